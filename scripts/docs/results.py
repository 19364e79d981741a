"""Pages of docs/results/*.json, which `steer bench all out=docs/results` writes; nothing in them is typed by hand."""

from typing import Any

from places import DOCS

from steer.bench import TABLES
from steer.bench.exact import ALL
from steer.bench.page import load, markdown, told

Row = dict[str, Any]
FOLDER = DOCS / "results"
SAID = "All tables as the commands wrote them. What they show is said in words in [Figures](figures.md)."
LONG = 60  # rows of a table that a page shows; longer ones are in the file


def pages() -> dict[str, str]:
    """The list of the benchmarks, and a page for each that was measured."""
    done = load(FOLDER)
    return {"results.md": index(done)} | {f"results/{name}.md": page(name, result) for name, result in done.items()}


def command(name: str) -> str:
    """What measures it."""
    return f"steer bench {name} out=docs/results"


def index(done: dict[str, Row]) -> str:
    """Every benchmark, its command, and when it was measured."""
    rows = [
        {
            "benchmark": f"[{name}](results/{name}.md)" if name in done else name,
            "command": f"`{command(name)}`",
            "measured": done[name]["about"]["date"] if name in done else "not yet",
        }
        for name in TABLES
    ]
    return f"# Results\n\n{SAID}\n\n{markdown(rows)}"


def page(name: str, result: Row) -> str:
    """The plots and tables of one benchmark, with machine, versions and command."""
    blocks = [f"---\nhide: [toc]\n---\n\n# {name}", told(result["about"])]
    blocks += [f"![{plot.stem}]({plot.name})" for plot in sorted(FOLDER.glob(f"{name}*.png"))]
    for title, rows in result["tables"].items():
        long = f"{len(rows)} rows, in [{name}.json]({name}.json)."
        blocks += [f"## {title}", markdown(rows) if len(rows) <= LONG else long]
    return "\n\n".join(blocks) + "\n"


def of(name: str) -> str:
    """The rows that the benchmarks have of a method or an objective; the command, where there are none."""
    blocks = []
    for bench, result in load(FOLDER).items():
        found = [
            {"table": title} | {key: value for key, value in row.items() if key not in ("method", "objective")}
            for title, rows in result["tables"].items()
            for row in rows
            if title != ALL and name in (row.get("method"), row.get("objective"))
        ]
        if found:
            blocks += [f"[{bench}](../results/{bench}.md): {told(result['about'])}", markdown(found)]
    return "\n\n".join(blocks) or f"Not measured yet: `{command('all')}`."
