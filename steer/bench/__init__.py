"""The figures that are claimed, each made by a command: `steer bench exact`, `embedded` or `overhead`."""

from importlib import import_module

Row = dict[str, object]
TABLES = ("exact", "embedded", "overhead")


def run(name: str, fast: bool = False) -> dict[str, list[Row]]:
    """The tables of one benchmark, by title; fast is a smaller run of the same."""
    tables = import_module(f"steer.bench.{name}").run(fast=fast)
    return tables if isinstance(tables, dict) else {name: tables}
