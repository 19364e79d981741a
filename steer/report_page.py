"""report.html: what report.json says and sheet.png shows, on one page to look at."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from steer import pages

if TYPE_CHECKING:
    from steer.samples import Samples

SHEETS = 4  # on the page; a run of more prompts has the others beside it
LINES = 8  # prompts in the chart
SCORES = ("unsteered", "steered", "weighted", "best")
COSTS = {
    "calls": "network calls, a backward pass counted as two",
    "network_forward": "rows through the network",
    "network_backward": "rows back through it",
    "reward_calls": "pictures scored",
}


def report_page(samples: "Samples", sheets: Sequence[bytes]) -> bytes:
    """The page of samples and their contact sheets (PNG)."""
    report, title = samples.report, ", ".join(samples.prompts[:4]) + (", ..." if len(samples.prompts) > 4 else "")
    parts = [pages.paragraph(f"{report['method']['name']} on {report['model']}, by {report['reward']['name']}")]
    parts += [pages.paragraph(text, "warning") for text in report["warnings"]]
    parts += [pages.picture(sheet, f"unsteered and steered pictures: {title}") for sheet in sheets[:SHEETS]]
    if len(sheets) > SHEETS:
        parts.append(pages.paragraph(f"More pictures are in sheet-{SHEETS + 1}.png and on, beside this page."))
    parts += [pages.heading("Scores"), pages.table(_scores(report)), *_survivors(report)]
    parts += [pages.heading("Effective sample size"), _ess(samples)]
    parts += [pages.heading("Cost a prompt"), pages.table(_costs(report["cost"]))]
    if "seconds" in report["cost"]:  # a prompt of many has none of its own
        parts += [pages.paragraph(f"{report['cost']['seconds']:.1f} seconds in all, on {report['device']}.")]
    parts += [pages.heading("Settings"), pages.table(_settings(report))]
    if "command" in report:
        parts += [pages.heading("The same again"), pages.code(report["command"])]
    return pages.page(title, *parts)


def _scores(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for the reward, and one for the reward that was not optimised."""
    rows = [("optimised", report["reward"]), ("held out", report["held_out"])]
    return [
        {"mean score": f"{scores['name']} ({kind})"}
        | {c: scores[c] for c in SCORES}
        | {"standard error of unsteered": scores["error"]}
        for kind, scores in rows
        if scores
    ]


def _survivors(report: Mapping[str, Any]) -> list[str]:
    """Figures of the weights and of diversity, in words."""
    left, diversity = report["survivors"], report["diversity"]
    n = report["particles"]
    text = (
        f"{n} particles a prompt: {left['distinct']:.0%} have descendants, the weights are worth "
        f"{left['effective'] * n:.3g} equal ones."
    )
    if diversity["steered"] is not None:
        before, after = diversity["unsteered"], diversity["steered"]
        text += f" Two pictures of a prompt differ by {after:.3g} (root mean square), unsteered ones by {before:.3g}."
    return [pages.paragraph(text)]


def _ess(samples: "Samples") -> str:
    """The effective sample size over time, a line a prompt."""
    times, ess = samples.trace.times.tolist(), samples.trace.ess.T.tolist()
    names = [f"{i}. {prompt}" for i, prompt in enumerate(samples.prompts[:LINES], 1)]
    lines = {name: list(zip(times, row, strict=False)) for name, row in zip(names, ess, strict=False)}
    return pages.chart(lines, "time, from noise (0) to data (1)", "ESS of the weights", least=0.0)


def _costs(cost: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for the plain pictures, and one for the steered ones."""
    rows = []
    for kind in ("unsteered", "steered"):
        counts = {words: cost[kind][key] for key, words in COSTS.items()}
        rows.append({"": kind} | counts | {"seconds": cost[kind]["seconds"].get("total")})
    return rows


def _settings(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each setting of the run and of the method."""
    plain = ("model", "seed", "particles", "temperature", "temperature_origin", "log_z")
    given = {key: report[key] for key in plain} | {f"method.{key}": v for key, v in report["method"].items()}
    given |= {"reward": report["reward"]["name"], "reward is called": report["reward"]["assumed"]} | report["versions"]
    return [{"setting": key, "value": str(value)} for key, value in given.items() if value is not None]
