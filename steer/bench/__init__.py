"""The figures that are claimed, each made by a command: `steer bench NAME`, NAME in `TABLES`."""

import csv
import io
from importlib import import_module
from importlib.util import find_spec

Row = dict[str, object]
TABLES = ("exact", "embedded", "values", "compositional", "overhead", "training", "finetune", "models", "scale")


def run(name: str, fast: bool = False) -> dict[str, list[Row]]:
    """The tables of one benchmark, by title; fast is a smaller run of the same."""
    tables = import_module(f"steer.bench.{name}").run(fast=fast)
    return tables if isinstance(tables, dict) else {name: tables}


def plot(name: str, tables: dict[str, list[Row]]) -> bytes | None:
    """PNG of what `run` gave; None for a benchmark that draws nothing, and without matplotlib (`steer[bench]`)."""
    draw = getattr(import_module(f"steer.bench.{name}"), "plot", None)
    if draw is None or find_spec("matplotlib") is None:
        return None
    return draw(tables)


def as_csv(tables: dict[str, list[Row]]) -> bytes:
    """All rows of all tables under one heading; the first column is the table's title. What a row lacks is empty."""
    columns = ["table", *dict.fromkeys(key for rows in tables.values() for row in rows for key in row)]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({"table": title} | row for title, rows in tables.items() for row in rows)
    return text.getvalue().encode("utf8")
