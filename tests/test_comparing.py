"""`steer.compare`: its figures are those of the runs themselves, and its page stands alone."""

import csv
import io
import json
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from colours import colour_model, redness
from PIL import Image

import steer
from steer.compare_page import compare_page, legend, printed
from steer.comparing import Comparison, _marked
from steer.methods import SMC
from steer.printing import print_table
from steer.settings import names

PROMPTS = ["a", "a <b> & c"]
METHODS = ["best_of_n", "smc", "tds", "diamond"]


def compared(**given: Any) -> Comparison:  # noqa: ANN401
    told: dict = {"reward": redness, "model": colour_model(), "methods": METHODS, "progress": False, "temperature": 1.0}
    return steer.compare(PROMPTS, **told | {"budgets": [16, 64], "seed": 3} | given)


def test_a_row_is_the_run_itself() -> None:
    rows = {(row["budget"], row["method"]): row for row in compared().rows}
    row = rows[64, "smc"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = steer.sample(
            PROMPTS, reward=redness, model=colour_model(), method="smc", n=row["n"], budget=64, temperature=1.0, seed=3,
            progress=False,
        )  # fmt: skip
    assert row["calls"] == 64 and row["n"] == 8
    assert row["optimised, best"] == pytest.approx(out.rewards.amax(1).mean().item(), rel=1e-5)
    assert row["optimised, plain"] == pytest.approx(out.unsteered_rewards.mean().item(), rel=1e-5)
    assert row["diversity"] == pytest.approx(out.report["diversity"]["steered"], rel=1e-5)
    assert list(rows) == [(budget, name) for budget in (16, 64) for name in METHODS]


def test_nobody_spends_more_than_the_budget() -> None:
    for row in compared().rows:
        assert row.get("calls", 0) <= row["budget"]


def test_the_same_plain_pictures_where_there_are_as_many() -> None:
    rows = compared(n=4, budgets=[64], methods=["best_of_n", "smc", "tds"]).rows
    assert len({row["optimised, plain"] for row in rows}) == 1 and {row["n"] for row in rows} == {4}


def test_what_cannot_take_part_says_why() -> None:
    """A reward without a gradient, which says nothing of itself, and budgets below a method's least."""

    def black_box(images: torch.Tensor) -> list[float]:
        return [float(picture[0].mean()) for picture in images.detach()]

    rows = {row["method"]: row for row in compared(reward=black_box, budgets=[8], n=4).rows}
    assert rows["tds"]["note"] == "left out: it follows the reward's gradient, and reward 'black_box' has none"
    assert rows["diamond"]["note"].startswith("left out: ") and "8" in rows["diamond"]["note"]
    assert "note" not in rows["smc"] and "optimised, best" not in rows["tds"] and not rows["tds"]["best by"]


def test_the_best_of_each_budget_is_marked() -> None:
    rows = [
        {"budget": 8, "method": "a", "optimised, best": 1.0, "judge, best": 5.0},
        {"budget": 8, "method": "b", "optimised, best": 2.0, "judge, best": 4.0},
        {"budget": 8, "method": "c", "note": "left out"},
        {"budget": 16, "method": "a", "optimised, best": 3.0, "judge, best": 6.0},
        {"budget": 16, "method": "b", "optimised, best": 2.0, "judge, best": None},
    ]
    assert [row["best by"] for row in _marked(rows)] == ["judge", "reward", "", "reward, judge", ""]


def test_method_objects_and_a_single_budget() -> None:
    (row,) = compared(methods=[SMC(chain="sde")], budgets=None, budget=32).rows
    assert (row["method"], row["budget"]) == ("smc_sde", 32)  # as a command line calls it


def test_the_page_the_table_and_the_numbers(tmp_path: Path) -> None:
    found = compared()
    assert found.save(tmp_path / "new") == tmp_path / "new"
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == ["compare.csv", "compare.html", "compare.json"]
    page = (tmp_path / "new" / "compare.html").read_text(encoding="utf8")
    ran = [row for row in found.rows if "n" in row]
    assert page.count("<img ") == len(PROMPTS) * (1 + len(ran))
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="(.*?)"', page))
    assert not re.search(r"https?:|<script|<link|url\(", page)
    assert "a &lt;b&gt; &amp; c" in page and "a <b>" not in page
    assert page.count('<tr class="marked">') == 2  # no judge: one a budget
    assert "diamond, 16 calls: left out: " in page
    told = json.loads((tmp_path / "new" / "compare.json").read_text())
    assert told["prompts"] == PROMPTS and told["judge"] is None
    assert [row.get("calls") for row in told["rows"]] == [row.get("calls") for row in found.rows]
    table = list(csv.DictReader(io.StringIO((tmp_path / "new" / "compare.csv").read_text())))
    assert [row["method"] for row in table] == METHODS * 2


def test_the_pictures_are_those_of_highest_reward() -> None:
    """The strip's first picture is the best: colours so flat that they can be read off it."""
    found = compared(methods=["best_of_n"], budgets=[16], n=8)
    out = steer.sample(
        PROMPTS, reward=redness, model=colour_model(), method="best_of_n", n=8, budget=16, temperature=1.0, seed=3,
        progress=False,
    )  # fmt: skip
    for strip, best in zip(found.strips[0], out.best, strict=True):
        image = Image.open(io.BytesIO(strip))
        assert image.size == (4 * 8, 8)
        assert image.getpixel((0, 0)) == tuple((best[:, 0, 0] * 255).round().int().tolist())


@pytest.mark.parametrize("budgets", [[64], [1000, 4000]])
def test_the_printed_table_fits_100_columns_and_says_what_it_means(
    budgets: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    """With the longest names and figures that there are; the other half of the figures stands on the page."""
    figures = {f"{who}, {which}": -1234.5678 for who in ("optimised", "judge") for which in ("best", "plain")}
    figures |= {"wins": 1.0, "diversity": 0.1234, "distinct": 1.0, "seconds": 1234.567, "warnings": "", "n": 16}
    longest = max(names("method"), key=len)
    rows = [{"budget": b, "method": longest, "calls": float(b), **figures, "best by": "reward, judge"} for b in budgets]
    rows += [{"budget": budgets[0], "method": "tds", "best by": "", "note": "left out: " + "x" * 90}]
    found = Comparison(rows, [], [[]] * len(rows), [f"prompt {i}" for i in range(12)], "clip", "clip-judge")
    print_table("t", printed(found))
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 100
    assert printed(found)[0]["judge"] == "-1235 \u2192 -1235 *" and printed(found)[0]["wins"] == "12 of 12"
    said = legend(found)
    assert all(
        any(word in line for line in said)
        for word in ("reward:", "judge:", "calls:", "wins:", "seconds:", "* the best")
    )
    assert max(map(len, said[:-1])) <= 100
    assert said[-1] == f"tds, {budgets[0]} calls: left out: {'x' * 90}" and len(printed(found)) == len(budgets)


def test_one_budget_is_drawn_as_dots_and_several_as_lines() -> None:
    page = [compare_page(compared(budgets=b, methods=["best_of_n", "smc"])).decode() for b in ([16], [16, 64])]
    assert page[0].count("<circle") == 2 and "<polyline" not in page[0] and "plain " in page[0]
    assert page[1].count("<polyline") == 2 and all("distinct: share of particles" in text for text in page)


def test_the_judge_may_be_named() -> None:
    rows = compared(budgets=[16], methods=["best_of_n"], held_out="brightness")
    assert rows.judge == "brightness" and rows.rows[0]["judge, best"] is not None
