"""The README and the pages of docs/ do what they say: their Python runs, their commands, links and methods exist."""

import re
from pathlib import Path

import pytest

from steer.settings import names

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf8")
PAGES = sorted((ROOT / "docs").rglob("*.md"))


@pytest.mark.filterwarnings("ignore:the samples descend", "ignore:nearly all weight", "ignore:.* rose from")
def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) >= 4
    space: dict = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), space)
    assert len(README.splitlines()) < 200
    assert (tmp_path / "hearts" / "report.json").exists()
    assert space["best"].shape == (1, 3, 64, 64)
    assert space["weights"].sum(1).tolist() == pytest.approx([1, 1])
    assert space["trace"].log_z.item() == pytest.approx(space["log_z"].item(), abs=0.3)


@pytest.mark.filterwarnings("ignore:the samples descend", "ignore:nearly all weight", "ignore:.* rose from")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_python_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    space: dict = {}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf8"), re.DOTALL):
        exec(compile(block, page.name, "exec"), space)


def test_its_make_targets_and_its_methods_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^    make ([a-z-]+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    methods = (ROOT / "docs" / "methods.md").read_text(encoding="utf8")
    table = re.findall(r"^\| `([a-z_]+)` \| (?:no|yes) \|", methods, re.MULTILINE)
    assert sorted(table) == names("method")
