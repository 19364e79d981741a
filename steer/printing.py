"""What a command prints: tables, and what became of a run; numbers as strict JSON."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def print_summary(report: Mapping[str, Any], folder: Path) -> None:
    """What happened, on stdout: scores, cost, warnings, and where the files are."""
    columns = ("unsteered", "steered", "weighted", "best")
    rows = [
        {"mean score": scores["name"], **{c: scores.get(c) for c in columns}}
        for scores in (report["reward"], report.get("held_out"))
        if scores
    ]
    method, cost = report["method"]["name"], report["cost"]["steered"]
    print_table(f"{', '.join(report['prompts'])}: {method}, temperature {_cell(report['temperature'])}", rows)
    seconds = report["cost"]["seconds"]
    print(f"{cost['calls']:.0f} network calls and {cost['reward_calls']:.0f} scored pictures a prompt; {seconds:.1f} s")
    print(f"wrote {folder}")


def print_table(title: str, rows: list[dict[str, Any]]) -> None:
    """A table on stdout, a column a key; numbers to the right."""
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table

    columns = list(dict.fromkeys(key for row in sorted(rows, key=len, reverse=True) for key in row))
    numeric = {c for c in columns if all(isinstance(row.get(c), int | float | None) for row in rows)}
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="right" if column in numeric else "left")
    for row in rows:
        table.add_row(*(_cell(row.get(column)) for column in columns))
    console = Console()
    console.width = max(console.width, Measurement.get(console, console.options.update(max_width=400), table).maximum)
    console.print(table)  # lines too long for a terminal wrap there; a squeezed table could not be read at all


def _cell(value: object) -> str:
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
