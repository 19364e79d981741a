"""compare.html: pictures by method, reward against calls, and the table."""

from typing import TYPE_CHECKING, Any

from steer import pages

if TYPE_CHECKING:
    from steer.comparing import Comparison

FIGURES = ("optimised, best", "optimised, plain", "judge, best", "judge, plain", "wins", "diversity", "distinct")
NEAR = 128  # pixels of a strip's height on the page


def compare_page(found: "Comparison") -> bytes:
    """The page of a comparison."""
    ran = [row for row in found.rows if "n" in row]
    judge = f", judged by {found.judge}, which none of them saw" if found.judge else ""
    parts = [pages.paragraph(f"Optimised: {found.reward}{judge}. Each method spends at most the same network calls.")]
    table = [{key: value for key, value in shown(row).items() if key != "note"} for row in found.rows]
    parts += [pages.table(table, [i for i, row in enumerate(found.rows) if row["best by"]])]
    parts += [pages.paragraph(f"{r['method']}, {r['budget']} calls: {r['note']}") for r in found.rows if "note" in r]
    said = {f"{row['method']}, {row['budget']} calls: {row['warnings']}" for row in ran if row["warnings"]}
    parts += [pages.paragraph(text, "warning") for text in sorted(said)]
    for column, name in (("optimised, best", found.reward), ("judge, best", found.judge)):
        if name and any(column in row for row in ran):
            parts += [pages.heading(f"{name} against calls"), _against_calls(ran, column)]
    for i, prompt in enumerate(found.prompts):
        parts += [pages.heading(prompt), _pictures(found, i)]
    if found.command:
        parts += [pages.heading("The same again"), pages.code(found.command)]
    return pages.page("Methods at equal budgets", *parts)


def shown(row: dict[str, Any]) -> dict[str, Any]:
    """What a table shows of a row of `steer.compare`."""
    columns = ("budget", "method", "n", "calls", *FIGURES, "seconds", "best by", "note")
    return {column: row[column] for column in columns if column in row}


def _against_calls(rows: list[dict[str, Any]], column: str) -> str:
    """A line a method through its budgets: the score of the picture of highest reward, mean over the prompts."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        lines.setdefault(row["method"], []).append((row["calls"], row[column]))
    return pages.chart(lines, "network calls a prompt", f"mean {column}")


def _pictures(found: "Comparison", i: int) -> str:
    """The best pictures of one prompt, plain and by each method."""
    of = [("unsteered", "", "", found.plain)] if found.plain else []
    of += [(r["method"], r["budget"], r["best by"], s) for r, s in zip(found.rows, found.strips, strict=True) if s]
    rows = [
        {"method": name, "budget": budget, "best by": best, "highest rewards": pages.picture(strip[i], name, NEAR)}
        for name, budget, best, strip in of
    ]
    return pages.table(rows, html=("highest rewards",))
