"""Figures of laws: paths in the plane, and errors against cost."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from steer.plots.canvas import BLUE, COLOURS, FAINT, GREY, MARKERS, STYLES, VERMILION, WIDTH, blank, check, numpy_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from steer.analytic import GaussianMixture


def trajectories(
    paths: Tensor, looks: Tensor | None = None, law: "GaussianMixture | Tensor | None" = None, n: int = 8
) -> "Figure":
    """Paths in the plane from noise (hollow) to data (filled), before a law.

    Args:
        paths: points [steps+1 m 2], noise first.
        looks: where a look ahead from each point lands [steps or steps+1, m 2], the first step first; later is darker.
        law: the target, as a mixture (its density) or as samples [k 2].
        n: paths drawn, the first ones.

    Raises:
        ValueError: a shape does not fit, or n < 1.
    """
    check(paths, "paths", "[steps+1 m 2]", paths.ndim == 3 and len(paths) > 1 and paths.shape[-1] == 2)
    if n < 1:
        raise ValueError(f"n={n}: draw at least 1 path")
    if looks is not None:
        fits = looks.ndim == 3 and looks.shape[1:] == paths.shape[1:] and 0 <= len(paths) - len(looks) <= 1
        check(looks, "looks", f"[{len(paths) - 1} or {len(paths)}, {paths.shape[1]} 2], as paths have", fits)
    plot = blank(5.6, 4.4)
    axes = plot.subplots()
    shown = numpy_of(paths[:, :n])
    for i in range(shown.shape[1]):
        label = "path" if i == 0 else None
        axes.plot(*shown[:, i].T, "-", color=BLUE, linewidth=1.2, alpha=0.8, label=label, zorder=2)
    axes.plot(*shown[0].T, "o", color=BLUE, markerfacecolor="white", markersize=5, label="noise", zorder=3)
    axes.plot(*shown[-1].T, "o", color=BLUE, markersize=5, label="data", zorder=5)
    if looks is not None:
        _looks(axes, numpy_of(looks[:, :n]))
    axes.set_aspect("equal", adjustable="datalim")
    _background(axes, law)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return plot


def _looks(axes: "Axes", looks: Any) -> None:  # noqa: ANN401 (numpy's [steps m 2])
    """The places where looks ahead land, joined in their order; later is darker."""
    for i in range(looks.shape[1]):
        axes.plot(*looks[:, i].T, "--", color=VERMILION, linewidth=0.7, alpha=0.6, zorder=3)
    for k, points in enumerate(looks):
        label = "look-ahead" if k == len(looks) - 1 else None
        alpha = 0.25 + 0.75 * k / max(len(looks) - 1, 1)
        axes.plot(*points.T, "D", color=VERMILION, markersize=3.5, alpha=alpha, label=label, zorder=4)


def _background(axes: "Axes", law: "GaussianMixture | Tensor | None") -> None:
    """The density or the samples of a law, behind what is drawn; samples widen the view, a density fills it."""
    if isinstance(law, Tensor):
        check(law, "law", "samples [k 2], or a GaussianMixture", law.ndim == 2 and law.shape[-1] == 2)
        axes.plot(*numpy_of(law).T, ".", color=FAINT, markersize=2.5, label="target", zorder=0)
    elif law is not None:
        means, reach = law.means, 3 * law.covs.diagonal(dim1=-2, dim2=-1).amax(-2).sqrt()
        check(means, "law", "a mixture in the plane", means.ndim == 2 and means.shape[-1] == 2)
        axes.update_datalim(numpy_of(torch.stack([means.amin(0) - reach, means.amax(0) + reach])))
        axes.autoscale_view()
        axes.apply_aspect()
        (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
        x, y = torch.linspace(left, right, 160), torch.linspace(low, high, 160)
        at = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).to(means)
        density = numpy_of(law.log_prob(at).exp().sqrt())  # the root, so that light modes are seen too
        levels = [density.max() * share / 12 for share in range(1, 13)]
        axes.contourf(numpy_of(x), numpy_of(y), density, levels, cmap="Greys", vmin=0, vmax=2 * levels[-1], zorder=-1)


def errors(
    rows: Sequence[Mapping[str, Any]],
    x: str = "calls",
    y: str = "error",
    by: str = "method",
    reference: float | None = None,
    se: str = "se",
) -> "Figure":
    """Errors against cost on logarithmic axes, a line a method; bands are two standard errors to either side.

    Args:
        rows: one a method and cost; those without y are left out.
        x: the column of the cost.
        y: that of the error.
        by: that of the method.
        reference: an error to compare with, as that of exact draws; a dashed line.
        se: the column of the standard error of y, in rows that have one.

    Raises:
        ValueError: no row has all of x, y and by, or x or y is nowhere above 0, where a logarithm has no place for it.
    """
    kept = [row for row in rows if row.get(y) is not None and row.get(x) is not None and by in row]
    if not kept:
        raise ValueError(f"rows hold no {x!r}, {y!r} and {by!r} together: {[sorted(row) for row in rows[:1]]}")
    if not all(row[x] > 0 for row in kept) or not any(row[y] > 0 for row in kept):
        raise ValueError(f"{x!r} and {y!r} must be above 0 on logarithmic axes")
    plot = blank(WIDTH, 4)
    axes = plot.subplots()
    for k, name in enumerate(dict.fromkeys(row[by] for row in kept)):
        of = sorted((row for row in kept if row[by] == name), key=lambda row: row[x])
        at, mean = [row[x] for row in of], [row[y] for row in of]
        colour, marker = COLOURS[k % len(COLOURS)], MARKERS[k % len(MARKERS)]
        style = STYLES[k // len(COLOURS) % len(STYLES)]
        axes.plot(at, mean, marker + style, color=colour, markersize=5, linewidth=1.4, label=str(name))
        if all(row.get(se) is not None for row in of):
            low, high = ([row[y] + sign * 2 * row[se] for row in of] for sign in (-1, 1))
            axes.fill_between(at, low, high, color=colour, alpha=0.18, linewidth=0)
    if reference is not None:
        axes.axhline(reference, color=GREY, linestyle="--", linewidth=1, label="reference")
    shown = [row[y] for row in kept if row[y] > 0] + [reference] * (reference is not None)
    axes.set(xscale="log", yscale="log", xlabel=x, ylabel=y, ylim=(min(shown) / 1.6, max(shown) * 1.6))
    ticks = _apart(sorted({row[x] for row in kept}))
    if len(ticks) <= 10:
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.xaxis.minorticks_off()
    axes.grid(color="0.92")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return plot


def _apart(ticks: Sequence[float]) -> list[float]:
    """Rising ticks without those that would touch the one before on a logarithmic axis."""
    kept: list[float] = []
    for tick in ticks:
        if not kept or tick >= 1.3 * kept[-1]:
            kept.append(tick)
    return kept
