"""compare.html: pictures by method, reward against calls, and the table; and what of it a terminal shows."""

from typing import TYPE_CHECKING, Any

from steer import pages
from steer.printing import cell

if TYPE_CHECKING:
    from steer.comparing import Comparison

SCORES = {"reward": "optimised", "judge": "judge"}  # by what a terminal calls them
FIGURES = ("optimised, best", "optimised, plain", "judge, best", "judge, plain", "wins", "diversity", "distinct")
NEAR = 128  # pixels of a strip's height on the page
LEGEND = (
    "calls: through the network, a prompt, a backward pass counted as two, without those of the plain pictures. "
    "optimised, judge: scores by the reward and by the judge, means over prompts; best: of the picture of highest "
    "reward; plain: of unsteered pictures. wins: share of prompts whose best picture the judge puts above the mean of "
    "their plain ones. diversity: root mean square difference of two pictures of a prompt. distinct: share of "
    "particles with descendants. best by: who puts this method above the others of its budget. One seed and "
    "few prompts: differences of a few points may be chance, so try other seeds and prompts."
)


def compare_page(found: "Comparison") -> bytes:
    """The page of a comparison."""
    ran = _ran(found)
    judge = f", judged by {found.judge}, which none of them saw" if found.judge else ""
    parts = [pages.paragraph(f"Optimised: {found.reward}{judge}. Each method spends at most the same network calls.")]
    columns = ("budget", "method", "n", "calls", *FIGURES, "seconds", "best by")
    table = [{column: row[column] for column in columns if column in row} for row in ran]
    parts += [pages.table(table, [i for i, row in enumerate(ran) if row["best by"]]), pages.paragraph(LEGEND)]
    parts += [pages.paragraph(text) for text in _left_out(found)]
    said = {f"{row['method']}, {row['budget']} calls: {row['warnings']}" for row in ran if row["warnings"]}
    parts += [pages.paragraph(text, "warning") for text in sorted(said)]
    for column, name in (("optimised", found.reward), ("judge", found.judge)):
        if name and any(f"{column}, best" in row for row in ran):
            parts += [pages.heading(f"{name} of the picture of highest reward"), _scores(ran, column)]
    for i, prompt in enumerate(found.prompts):
        parts += [pages.heading(prompt), _pictures(found, i)]
    if found.command:
        parts += [pages.heading("The same again"), pages.code(found.command)]
    return pages.page("Methods at equal budgets", *parts)


def printed(found: "Comparison") -> list[dict[str, Any]]:
    """The table for a terminal, no wider than 100 columns; compare.csv and the page have the other figures."""
    several, p = len({row["budget"] for row in found.rows}) > 1, len(found.prompts)
    rows = []
    for row in _ran(found):
        best = row["best by"].split(", ")
        told = {"budget": row["budget"]} if several else {}
        told |= {key: row[key] for key in ("method", "n", "calls")}
        for name, column in SCORES.items():
            if f"{column}, best" in row:
                scores = " \u2192 ".join(cell(row[f"{column}, {which}"]) for which in ("plain", "best"))
                told[name] = f"{scores} *" if name in best else scores
        if p > 1 and "wins" in row:
            told["wins"] = f"{p * row['wins']:.0f} of {p}"
        rows.append(told | {"seconds": round(row["seconds"], 2)})
    return rows


def legend(found: "Comparison") -> list[str]:
    """Lines below that table: what its columns mean, and which methods took no part."""
    judge = f"; judge: by {found.judge}, which no method saw" if found.judge else ""
    lines = [f"reward: mean score by {found.reward}{judge};"]
    lines += ["    mean of plain pictures \u2192 the picture of highest reward; * the best of its budget, by one seed"]
    lines += ["calls: a prompt, a backward pass counted as two; seconds: of the steering"]
    if any("wins" in row for row in printed(found)):
        lines += ["wins: prompts whose picture of highest reward the judge puts above their plain ones"]
    return lines + _left_out(found)


def _ran(found: "Comparison") -> list[dict[str, Any]]:
    return [row for row in found.rows if "n" in row]


def _left_out(found: "Comparison") -> list[str]:
    return [f"{row['method']}, {row['budget']} calls: {row['note']}" for row in found.rows if "note" in row]


def _scores(rows: list[dict[str, Any]], column: str) -> str:
    """Means over prompts: a line a method through its budgets, or where there is one budget a dot."""
    if len({row["budget"] for row in rows}) == 1:
        plain = max(rows, key=lambda row: row["n"])[f"{column}, plain"]
        best = {row["method"]: row[f"{column}, best"] for row in rows}
        return pages.dots(best, f"mean score at {rows[0]['budget']} network calls a prompt", ("plain", plain))
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        lines.setdefault(row["method"], []).append((row["calls"], row[f"{column}, best"]))
    return pages.chart(lines, "network calls a prompt", "mean score")


def _pictures(found: "Comparison", i: int) -> str:
    """The best pictures of one prompt, plain and by each method."""
    of = [("unsteered", "", "", found.plain)] if found.plain else []
    of += [(r["method"], r["budget"], r["best by"], s) for r, s in zip(found.rows, found.strips, strict=True) if s]
    rows = [
        {"method": name, "budget": budget, "best by": best, "highest rewards": pages.picture(strip[i], name, NEAR)}
        for name, budget, best, strip in of
    ]
    return pages.table(rows, html=("highest rewards",))
