"""Pictures, weights and scores as HTML that holds all it shows, and figures; colours that all eyes tell apart."""

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from torch import Tensor

from steer.plots import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION, blank, png
from steer.samples import Samples
from steer.sheets import fit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from steer.studio.page import Past
    from steer.studio.running import Sight, Step

COLOURS = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY)  # without black, which vanishes on a dark page
GREY = "#808791"
CELL, BAND = 48, 72  # of the drawing of ancestors, in units of its own


def picture(image: Tensor, side: int, alt: str) -> str:
    """An <img> of a picture [3 h w] in [0,1], its longer side at most `side`; never enlarged."""
    return _img(_png(image, min(side, max(image.shape[1:]))), alt)


def _img(png: bytes, alt: str) -> str:
    return f'<img alt="{escape(alt)}" src="{_data(png)}">'


def _data(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _png(image: Tensor, side: int) -> bytes:
    fit(image, side).save(buffer := io.BytesIO(), format="PNG")
    return buffer.getvalue()


def cards(images: Tensor, notes: Sequence[str], side: int, best: int | None = None) -> str:
    """A grid of pictures [m 3 h w] with a line under each; `best` is framed."""
    made = [
        f'<figure class="card{" best" * (i == best)}">{picture(image, side, f"picture {i}: {note}")}'
        f"<figcaption>{escape(note)}</figcaption></figure>"
        for i, (image, note) in enumerate(zip(images, notes, strict=True))
    ]
    return f'<div class="cards">{"".join(made)}</div>'


def number(x: float | None) -> str:
    """Four digits; a dash for none, and for a rejected picture."""
    return "–" if x is None or x in (float("inf"), float("-inf")) else f"{x:.4g}"


def looks(sight: "Sight", shown: int, side: int) -> str:
    """What a step saw: at most `shown` pictures, those of the highest rewards."""
    order = sight.rewards.argsort(descending=True)[:shown]
    weights = sight.steps[-1].weights
    weighed = weights if weights is not None and len(weights) == len(sight.rewards) else None
    notes = [number(sight.rewards[i].item()) + (f" · {weighed[i]:.0%}" if weighed else "") for i in order.tolist()]
    t = sight.steps[-1].t
    where = "pictures" if t is None else f"looks ahead from t = {t:.2f}"
    count = f"{len(sight.rewards)} {where}" + (f", the best {shown}" if len(sight.rewards) > shown else "")
    what = "reward · weight" if weighed else "reward"
    return f"<h4>{count} <small>{what} under each</small></h4>{cards(sight.pictures[order], notes, side)}"


def result(samples: Samples, judged: Any, said: Sequence[str], side: int) -> str:  # noqa: ANN401 (a Judged, or None)
    """Plain pictures beside steered ones, by falling reward; scores; what was warned of; who descends from whom."""
    report = samples.report
    warned = "".join(f'<p class="warn">{escape(text)}</p>' for text in dict.fromkeys([*report["warnings"], *said]))
    plain, steered = (None, None) if judged is None else (judged.unsteered[0], judged.steered[0])
    weights = samples.log_w[0].exp()
    blocks = (
        _block("unsteered", samples.unsteered[0], samples.unsteered_rewards[0], plain, None, side),
        _block("steered", samples.images[0], samples.rewards[0], steered, weights, side),
    )
    beside = "".join(f"<section>{block}</section>" for block in blocks)
    return f'{_scores(report)}{warned}<div class="beside">{beside}</div>{ancestry(samples)}'


def _block(name: str, images: Tensor, r: Tensor, judged: Tensor | None, weights: Tensor | None, side: int) -> str:
    order = r.argsort(descending=True).tolist()
    notes = [
        number(r[i].item())
        + ("" if judged is None else f" · {number(judged[i].item())}")
        + ("" if weights is None else f"\nweight {weights[i].item():.0%}")
        for i in order
    ]
    what = "reward" if judged is None else "reward · judge"
    return f"<h4>{name} <small>{what} under each</small></h4>{cards(images[order], notes, side, best=0)}"


def _scores(report: dict[str, Any]) -> str:
    columns = {"unsteered": "unsteered", "steered": "steered", "weighted": "by weight", "best": "best"}
    rows = [(kind, scores) for kind, scores in (("", report["reward"]), ("judge: ", report["held_out"])) if scores]
    head = "".join(f"<th>{title}</th>" for title in columns.values())
    body = "".join(
        f"<tr><th>{kind}{escape(scores['name'])}</th>"
        + "".join(f"<td>{number(scores[key])}</td>" for key in columns)
        + "</tr>"
        for kind, scores in rows
    )
    cost, origin = report["cost"]["steered"], report["temperature_origin"]
    facts = (
        f"{report['method']['name']}, {cost['calls']:.0f} network calls, {cost['reward_calls']:.0f} pictures scored, "
        f"{report['cost']['seconds']:.1f} s; temperature {number(report['temperature'])} ({origin}); "
        f"seed {report['seed']}"
    )
    table = f'<table class="scores"><thead><tr><th>mean score</th>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f'{table}<p class="facts">{escape(facts)}</p>'


def earlier(runs: Sequence["Past"]) -> str:
    """The runs of a session as buttons, each with its best picture, its prompt, and what it reached."""
    buttons = "".join(
        f'<button data-run="{i}">{past.thumbnail}<span>{escape(past.caption)}</span></button>'
        for i, past in enumerate(runs)
    )
    return f'<h4>runs of this session <small>go back to one</small></h4><div class="runs">{buttons}</div>'


def ancestry(samples: Samples) -> str:
    """The first particles above, as the pictures that they make unsteered; below those that descend from them."""
    line, n = samples.trace.ancestors[0].tolist(), samples.rewards.shape[1]
    order = sorted(range(n), key=lambda i: line[i])
    alive = sorted(set(line))
    colour = {first: COLOURS[k % len(COLOURS)] for k, first in enumerate(alive)}
    x = [CELL * i + CELL / 2 for i in range(n)]
    paths = "".join(
        f'<path d="M{x[line[i]]},{CELL} C{x[line[i]]},{CELL + BAND / 2} {x[k]},{CELL + BAND / 2} {x[k]},{CELL + BAND}" '
        f'stroke="{colour[line[i]]}"/>'
        for k, i in enumerate(order)
    )
    tops = "".join(_cell(samples.unsteered[0, i], x[i], 0, colour.get(i)) for i in range(n))
    ends = "".join(_cell(samples.images[0, i], x[k], CELL + BAND, colour[line[i]]) for k, i in enumerate(order))
    said = f"{len(alive)} of {n} first particles have descendants"
    return (
        f"<h4>ancestry <small>{said}: above, what each makes unsteered; below, the steered pictures</small></h4>"
        f'<div class="scroll"><svg class="tree" style="min-width:{26 * n}px;max-width:{64 * n}px" role="img" '
        f'aria-label="{said}" viewBox="0 0 {CELL * n} {2 * CELL + BAND}">{paths}{tops}{ends}</svg></div>'
    )


def _cell(image: Tensor, x: float, y: float, colour: str | None) -> str:
    """A small picture with its middle at x; framed in a colour, faint without one."""
    side, data = CELL - 8, _data(_png(image, min(64, max(image.shape[1:]))))
    box = f'x="{x - side / 2}" y="{y + 4}" width="{side}" height="{side}"'
    frame = f'<rect {box} stroke="{colour}" fill="none"/>' if colour else ""
    faint = "" if colour else ' opacity=".35"'
    return f'<image {box}{faint} href="{data}"/>{frame}'


def plots(steps: Sequence["Step"], n: int) -> str:
    """The figures of a run of n particles, as pictures."""
    told = ("rewards of each look against steps", "effective sample size against steps", "weights of the particles")
    drawn = [_img(png(figure), alt) for figure, alt in zip(figures(steps, n), told, strict=True)]
    return f'<div class="plots">{"".join(drawn)}</div>'


def figures(steps: Sequence["Step"], n: int) -> tuple["Figure", "Figure", "Figure"]:
    """Rewards of each look, effective sample sizes, and the latest weights."""
    rewards, axes = _figure("rewards of each look", "step")
    for k, step in enumerate(steps):
        axes.plot([k + 1] * len(step.rewards), step.rewards, ".", color=COLOURS[0], alpha=0.45, markersize=5)
    told = [(k + 1, step.rewards) for k, step in enumerate(steps) if step.rewards]
    for name, colour, of in (("best", COLOURS[1], max), ("mean", COLOURS[3], lambda r: sum(r) / len(r))):
        axes.plot([k for k, _ in told], [of(r) for _, r in told], color=colour, label=name)
    axes.legend(frameon=False, fontsize=9, labelcolor=GREY)
    size, axes = _figure("effective particles (ESS)", "step")
    sized = [(k + 1, step.ess) for k, step in enumerate(steps) if step.ess is not None]
    axes.plot([k for k, _ in sized], [e for _, e in sized], "o-", color=COLOURS[2], markersize=3)
    axes.set_ylim(0, n * 1.05)
    weights, axes = _figure("weights now", "particle")
    latest = next((step.weights for step in reversed(steps) if step.weights is not None), [])
    axes.bar(range(len(latest)), latest, color=COLOURS[0])
    axes.axhline(1 / n, color=GREY, linestyle=":", linewidth=1)
    return rewards, size, weights


def _figure(title: str, below: str) -> tuple["Figure", Any]:
    """A small figure that a dark page can carry as well as a light one."""
    from matplotlib.ticker import MaxNLocator

    figure = blank(3.2, 2.2, dpi=150)
    figure.patch.set_alpha(0)
    axes = figure.add_subplot(facecolor="none")
    axes.set_title(title, fontsize=10, color=GREY, loc="left")
    axes.set_xlabel(below, fontsize=9, color=GREY)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.tick_params(colors=GREY, labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    return figure, axes
