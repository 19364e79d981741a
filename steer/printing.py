"""What a command prints: tables, and what became of a run; numbers as strict JSON."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

SHORT = 32  # characters of a cell that is never broken


def print_summary(report: Mapping[str, Any], folder: Path) -> None:
    """What happened, on stdout: scores, cost, warnings, and where the files are."""
    columns = ("unsteered", "steered", "weighted", "best")
    rows = [
        {"mean score": scores["name"], **{c: scores.get(c) for c in columns}}
        for scores in (report["reward"], report.get("held_out"))
        if scores
    ]
    method, cost = report["method"]["name"], report["cost"]["steered"]
    print_table(f"{', '.join(report['prompts'])}: {method}, temperature {cell(report['temperature'])}", rows)
    seconds = report["cost"]["seconds"]
    print(f"{cost['calls']:.0f} network calls and {cost['reward_calls']:.0f} scored pictures a prompt; {seconds:.1f} s")
    print(f"wrote {folder}")


def print_table(title: str, rows: list[dict[str, Any]], long: Literal["whole", "fold"] = "whole") -> None:
    """A table on stdout, a column a key; numbers to the right.

    long: what is done in a terminal to texts that do not fit: nothing, or breaking them into lines of their column.
    Elsewhere a row is one whole line.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console, columns = Console(), columns_of(rows)
    numeric = {c for c in columns if all(isinstance(row.get(c), int | float | None) for row in rows)}
    wide = {c: max(len(text) for text in [c, *(cell(row.get(c)) for row in rows)]) for c in columns}
    if long != "whole" and console.is_terminal:
        wide = _within(wide, console.width - 3 * len(columns) - 1)
    table = Table(title=title, title_justify="left")
    for c in columns:
        side = "right" if c in numeric else "left"
        table.add_column(c, justify=side, width=wide[c], no_wrap=long != "fold", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell(row.get(c))) for c in columns))
    console.width = max(console.width, sum(wide.values()) + 3 * len(columns) + 1)  # squeezed it could not be read
    with console.capture() as captured:
        console.print(table)
    print(captured.get(), end="")  # not by the console, which exits by itself where nobody reads


def _within(wide: dict[str, int], room: int) -> dict[str, int]:
    """The widths of columns, where those of long texts share what the others leave of the room."""
    long = [column for column in wide if wide[column] > SHORT]
    left = room - sum(wide[column] for column in wide if column not in long)
    return wide | {column: min(wide[column], max(left // len(long), SHORT // 2)) for column in long}


def columns_of(rows: list[dict[str, Any]]) -> list[str]:
    """The keys of all rows, in the order of the longest."""
    return list(dict.fromkeys(key for row in sorted(rows, key=len, reverse=True) for key in row))


def cell(value: object) -> str:
    """A value as a table shows it."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def as_json(content: Any) -> bytes:  # noqa: ANN401 (rows of numbers and words)
    """Strict JSON: numbers that it lacks become null."""

    def finite(value: Any) -> Any:  # noqa: ANN401
        if isinstance(value, dict):
            return {key: finite(v) for key, v in value.items()}
        if isinstance(value, list):
            return [finite(v) for v in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return (json.dumps(finite(content), indent=2, allow_nan=False) + "\n").encode("utf8")
