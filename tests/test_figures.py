"""Figures that README and docs show: each is what `steer bench all` measured, as docs/results has it."""

import re
from pathlib import Path
from typing import Any

import pytest

from steer.bench import TABLES, page

ROOT = Path(__file__).parents[1]
RESULTS = page.load(ROOT / "docs" / "results")
PAGES = ("README.md", "docs/figures.md")
FIGURE = re.compile(r"(?<![\w.`/:-])\d*\.\d+(?![\w.]*\w)|(?<![\w.])\d+(?= ?%)")


def numbers(value: Any) -> list[float]:  # noqa: ANN401 (JSON)
    """All numbers in JSON, those that stand in its words too."""
    if isinstance(value, dict | list):
        return [x for part in (value.values() if isinstance(value, dict) else value) for x in numbers(part)]
    if isinstance(value, str):
        return [float(x) for x in re.findall(r"\d*\.?\d+(?:e-?\d+)?", value)]
    return [] if value is None or isinstance(value, bool) else [float(value)]


def prose(text: str) -> str:
    """A page without its code, its links' addresses, and the tables that are filled in."""
    text = re.sub(r"^```.*?^```|^    .*?$", "", page.PLACE.sub("", text), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`]*`|\]\([^)]*\)|arXiv:\S+", "", text)


def test_every_benchmark_has_its_results() -> None:
    assert sorted(RESULTS) == sorted(TABLES)
    for name, result in RESULTS.items():
        told = result["about"]
        assert told["command"] == f"steer bench {name}" and told["machine"]["cores"] and told["versions"]["torch"]


@pytest.mark.parametrize("name", PAGES)
def test_tables_are_those_of_the_results(name: str) -> None:
    """As `make figures` writes them."""
    text = (ROOT / name).read_text(encoding="utf8")
    assert page.PLACE.search(text) and page.fill(text, RESULTS) == text


def test_the_page_of_all_results_is_theirs() -> None:
    assert (ROOT / "docs/results/README.md").read_text(encoding="utf8") == page.page(ROOT / "docs/results")


@pytest.mark.parametrize("name", PAGES)
def test_figures_in_the_prose_are_in_the_results(name: str) -> None:
    """Every number with a decimal point, or in per cent, is one of the results, rounded as it is written."""
    known = numbers(RESULTS)
    for text in FIGURE.findall(prose((ROOT / name).read_text(encoding="utf8"))):
        digits, value = len(text.partition(".")[2]), float(text)
        close = any(abs(round(x * scale, digits) - value) < 1e-9 for x in known for scale in (1, 100))
        assert close, f"{text} in {name} was not measured"


def test_figures_that_were_not_measured_are_found() -> None:
    assert FIGURE.findall(
        prose("takes 1.234 s, 7 % less than `0.5` or [x](a-1.5.png), version 1.2.3, arXiv:2401.00001")
    ) == [
        "1.234",
        "7",
    ]
