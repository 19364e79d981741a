"""Results in words: one page of all of them, and tables of theirs inside other pages, which nobody types.

A page asks for a table by a comment, a JSON object in angle brackets, and what stands between it and the next
`<!-- end -->` is written by `fill`:

    <!-- table {"of": "exact", "title": "aims", "columns": {"aim": "aim", "best": "best"}, "where": {"met": "yes"}} -->
    <!-- end -->

of: the benchmark, title: its table, columns: keys of rows and their headings (all, where none are named), where: what
rows must hold, a value or a list of values for a key, pivot: three keys, of which the second becomes columns that hold
the third.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from steer.bench import TABLES
from steer.printing import cell, columns_of

Row = Mapping[str, Any]
LONG = 200  # rows of a table that is shown; a longer one is in a file
PLACE = re.compile(r"(<!-- table (\{.*?\}) -->\n).*?(<!-- end -->)", re.DOTALL)


def load(folder: Path) -> dict[str, dict[str, Any]]:
    """What `steer bench` wrote there, by benchmark: "about" and "tables"."""
    files = {name: folder / f"{name}.json" for name in TABLES}
    return {name: json.loads(path.read_text(encoding="utf8")) for name, path in files.items() if path.exists()}


def markdown(rows: Sequence[Row], columns: Mapping[str, str] | None = None) -> str:
    """A table in Markdown, a column for each key of `columns` under its heading."""
    heads = dict(columns or {key: key for key in columns_of([dict(row) for row in rows])})
    lines = [list(heads.values()), ["---"] * len(heads), *([shown(row.get(key)) for key in heads] for row in rows)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def shown(value: object) -> str:
    """A value as tables of pages show it: three digits, nothing where there is none."""
    if value is None:
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return cell(value).replace("|", "\\|").replace("\n", " ")


def table(
    results: Mapping[str, Any],
    of: str,
    title: str,
    columns: Mapping[str, str] | None = None,
    where: Mapping[str, Any] | None = None,
    pivot: Sequence[str] = (),
) -> str:
    """A table of the results in Markdown; see the module.

    Raises:
        ValueError: the results lack the benchmark, the table, a column, or all the rows that are asked for.
    """
    if of not in results or title not in results[of]["tables"]:
        raise ValueError(f"the results hold no table {title!r} of {of!r}; run steer bench {of}")
    rows = [row for row in results[of]["tables"][title] if all(_is(row.get(k), v) for k, v in (where or {}).items())]
    rows = turned(rows, *pivot) if pivot else rows
    lacking = [key for key in columns or {} if not any(key in row for row in rows)]
    if lacking or not rows:
        raise ValueError(f"table {title!r} of {of!r} has no {'rows' if not rows else lacking} as asked for")
    return markdown(rows, columns)


def turned(rows: Sequence[Row], by: str, across: str, value: str) -> list[Row]:
    """One row for each `by`, whose columns are the values of `across` and hold `value`."""
    found: dict[Any, dict[str, Any]] = {}
    for row in rows:
        found.setdefault(row[by], {by: row[by]})[f"{row[across]} {across}"] = row.get(value)
    return list(found.values())


def _is(value: object, wanted: object) -> bool:
    return value in wanted if isinstance(wanted, list) else value == wanted


def fill(text: str, results: Mapping[str, Any]) -> str:
    """The page with each of its tables as the results have it."""
    return PLACE.sub(lambda found: f"{found[1]}\n{table(results, **json.loads(found[2]))}\n{found[3]}", text)


def page(folder: Path) -> str:
    """All tables that `steer bench` wrote to the folder, with their commands, machines and plots, in Markdown."""
    parts = ["# Results\n\nWritten by `steer bench all`; files of a benchmark lie beside this page.\n"]
    for name, result in load(folder).items():
        parts.append(f"## {name}\n\n{told(result['about'])}\n")
        for title, rows in result["tables"].items():
            content = markdown(rows) if len(rows) <= LONG else f"{len(rows)} rows: [{name}.csv]({name}.csv)\n"
            parts.append(f"### {name}: {title}\n\n{content}")
        parts += [f"![{plot.stem}]({plot.name})\n" for plot in sorted(folder.glob(f"{name}*.png"))]
    return "\n".join(parts)


def told(about: Mapping[str, Any]) -> str:
    """By what the figures were made, in one line."""
    machine, versions = about["machine"], about["versions"]
    where = f"{machine['processor']}, {about['threads']} of {machine['cores']} cores"
    gpu = f", {machine['gpu']}" if machine["gpu"] else ""
    used = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"`{about['command']}`, {about['seconds'] / 60:.1f} minutes on {about['date']}; {where}{gpu}; {used}."
