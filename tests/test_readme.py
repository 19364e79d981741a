"""The README does what it says: its Python runs, its commands and files exist."""

import re
from pathlib import Path

import pytest

from steer.settings import names

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf8")


@pytest.mark.filterwarnings("ignore:the samples descend", "ignore:nearly all weight", "ignore:.* rose from")
def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) >= 4
    space: dict = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), space)
    assert (tmp_path / "hearts" / "report.json").exists()
    assert space["best"].shape == (1, 3, 64, 64)
    assert space["weights"].sum(1).tolist() == pytest.approx([1, 1])
    assert space["trace"].log_z.item() == pytest.approx(space["log_z"].item(), abs=0.3)


def test_its_make_targets_and_its_methods_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^    make ([a-z-]+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    table = re.findall(r"^\| `([a-z_]+)` \| (?:no|yes) \|", README, re.MULTILINE)
    assert sorted(table) == names("method")


def test_its_links_lead_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")]
    assert links
    missing = [link for link in links if not (ROOT / link).exists()]
    assert not missing
