"""Tables on stdout: whole lines where they are read by a program, folded to fit a terminal."""

import io
import re
from typing import Literal

import pytest
from rich.console import Console

from steer.printing import print_table

ROWS = [{"name": "a", "n": 1, "text": "word " * 40 + "/long" * 20}, {"name": "b" * 20, "text": "[red]no markup[/red]"}]
SIZES = {"COLUMNS": "80", "TERM": "dumb"}


def printed(long: Literal["whole", "fold"], terminal: bool, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    stdout = io.StringIO()
    monkeypatch.setattr("sys.stdout", stdout)
    monkeypatch.setattr(Console, "is_terminal", terminal)
    for key, value in SIZES.items():
        monkeypatch.setenv(key, value)
    print_table("names", ROWS, long)
    return stdout.getvalue().splitlines()


@pytest.mark.parametrize("long", ["whole", "fold"])
def test_a_row_is_a_whole_line_where_there_is_no_terminal(
    long: Literal["whole", "fold"], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = printed(long, False, monkeypatch)
    assert sum("word" in line for line in lines) == 1
    assert next(line for line in lines if "word" in line).count("word") == 40


def test_a_terminal_folds_long_texts_into_their_column(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = printed("fold", True, monkeypatch)
    assert sum(line.count("word") for line in lines) == 40 and max(map(len, lines)) <= 80
    kept = "".join(re.sub(r"[^a-z/]", "", line.split("\u2502")[-2]) for line in lines if "\u2502" in line)
    assert "/long" * 20 in kept  # broken, and not cut
    assert len([line for line in lines if "word" in line]) > 3 and any("b" * 20 in line for line in lines)


def test_what_is_missing_is_a_dash_and_no_text_is_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    row = next(line for line in printed("whole", False, monkeypatch) if "no markup" in line)
    assert "[red]no markup[/red]" in row and " - " in row
