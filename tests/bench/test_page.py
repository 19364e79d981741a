"""Files of results, and pages that show them: nothing measured is lost, nothing shown is typed."""

import json
import types
from pathlib import Path

import pytest

from steer import cli
from steer.bench import TABLES, measuring, page

RESULTS = {
    "exact": {
        "about": measuring.about("exact", False, 90.0),
        "tables": {"aims": [{"aim": "a | b", "got": 0.123456, "met": "yes"}, {"aim": "c", "got": None, "met": "no"}]},
    }
}


def test_a_table_holds_what_was_asked_for() -> None:
    asked = {"of": "exact", "title": "aims", "columns": {"aim": "meant", "got": "found"}, "where": {"met": ["yes"]}}
    text = f"before\n<!-- table {json.dumps(asked)} -->\nold\n<!-- end -->\nafter"
    filled = page.fill(text, RESULTS)
    assert filled.splitlines()[2:7] == ["", "| meant | found |", "| --- | --- |", "| a \\| b | 0.123 |", ""]
    assert filled.startswith("before\n") and filled.endswith("<!-- end -->\nafter") and "old" not in filled
    assert page.fill(filled, RESULTS) == filled


def test_a_column_may_go_across() -> None:
    rows = [{"method": m, "budget": b, "right": b / 100} for m in ("smc", "beam") for b in (16, 64)]
    assert page.turned(rows, "method", "budget", "right")[1] == {"method": "beam", "16 budget": 0.16, "64 budget": 0.64}


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"of": "nope", "title": "aims"}, "no table 'aims' of 'nope'; run steer bench nope"),
        ({"of": "exact", "title": "nope"}, "no table 'nope'"),
        ({"of": "exact", "title": "aims", "columns": {"x": "x"}}, r"has no \['x'\]"),
        ({"of": "exact", "title": "aims", "where": {"met": "perhaps"}}, "has no rows"),
    ],
)
def test_what_is_not_there_is_not_made_up(asked: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        page.fill(f"<!-- table {json.dumps(asked)} -->\n<!-- end -->", RESULTS)


def test_a_part_that_is_done_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def make(title: str) -> list[dict[str, object]]:
        made.append(title)
        if made == ["a", "b"]:
            raise KeyboardInterrupt
        return [{"of": title}]

    def parts(fast: bool, folder: Path) -> dict[str, object]:
        return {title: lambda title=title: make(title) for title in ("a", "b")}

    monkeypatch.setattr(measuring, "import_module", lambda name: types.SimpleNamespace(parts=parts))
    with pytest.raises(KeyboardInterrupt):
        measuring.measure("long", tmp_path)
    tables, _ = measuring.measure("long", tmp_path)
    assert made == ["a", "b", "b"] and tables == {"a": [{"of": "a"}], "b": [{"of": "b"}]}
    assert not list(tmp_path.iterdir())


def test_all_keeps_what_is_there_and_makes_one_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every benchmark's file is there, of this version: nothing is measured, the page holds each table and command."""
    for name in TABLES:
        content = {"about": measuring.about(name, False, 60.0), "tables": {f"of {name}": [{"figure": 0.25}]}}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    assert cli.main(["bench", "all", f"out={tmp_path}"]) == 0
    assert capsys.readouterr().out.count("kept; remove it to measure anew") == len(TABLES)
    text = (tmp_path / "README.md").read_text()
    assert all(f"`steer bench {name}`, 1.0 minutes" in text and f"### {name}: of {name}" in text for name in TABLES)
    assert "torch 2." in text and " cores" in text


def test_what_another_version_or_a_fast_run_wrote_is_not_kept(tmp_path: Path) -> None:
    from steer.commands.bench import is_there

    path = tmp_path / "exact.json"
    assert not is_there(path, False)
    for fast in (False, True):
        path.write_text(json.dumps({"about": measuring.about("exact", fast, 1.0)}))
        assert is_there(path, fast) and not is_there(path, not fast)
    old = json.loads(path.read_text())
    old["about"]["versions"]["steer"] = "0.0.1"
    path.write_text(json.dumps(old))
    assert not is_there(path, True)
