"""Figures of one run: its weights, who descends from whom, its pictures."""

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from steer.particles import Trace
from steer.plots.canvas import BLUE, COLOURS, GREY, SKY, VERMILION, WIDTH, blank, check, legend, numpy_of
from steer.samples import Samples

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEAST_WEIGHT = 1e-4  # of a fair share; below, a particle is as good as dead


def weights(out: Samples | Trace, prompt: int = 0) -> "Figure":
    """The effective sample size (ESS) and the weight of every particle over the steps of one prompt.

    Above, resamplings are marked; below, a dot is a particle, and all weights together are one. Those below 1e-4 of a
    fair share 1/n are not shown.

    Raises:
        ValueError: the trace holds no weights, or there is no such prompt.
    """
    trace, i = _part_of(out, prompt, "log_w")
    assert trace.log_w is not None
    size, share = numpy_of(trace.ess[:, i]), numpy_of(trace.log_w[:, i].softmax(-1).nan_to_num(0.0))
    n, drawn = share.shape[1], trace.resampled[:, i].cpu().numpy()
    x, name = _steps(trace)
    plot = blank(WIDTH, 4.2)
    above, below = plot.subplots(2, sharex=True)
    above.plot(x, size, "o-", color=BLUE, markersize=4, label="ESS before resampling")
    above.plot(x[drawn], size[drawn], "o", color=VERMILION, markerfacecolor="none", markersize=9, label="resampled")
    above.axhline(n, color=GREY, linestyle=":", linewidth=1, label=f"all {n}")
    above.set(ylabel="effective particles", ylim=(0, 1.08 * n))
    legend(above)
    below.plot(x, share, ".", color=SKY, markersize=4, zorder=1)
    below.plot(x, share.max(1), "s-", color=BLUE, markersize=4, linewidth=1, label="largest weight")
    below.axhline(1 / n, color=GREY, linestyle=":", linewidth=1, label="a fair share")
    below.set(yscale="log", ylabel="weight", xlabel=name, ylim=(LEAST_WEIGHT / n, 2))
    legend(below)
    return plot


def genealogy(out: Samples | Trace, prompt: int = 0) -> "Figure":
    """Who descends from whom: over the steps of one prompt, the share of the particles that each first one holds.

    A band is the descendants of one particle of the start, as they stand before the step's resampling; the last column
    is what is returned. Bands of those that have any left are coloured, the others grey. Where few bands are left,
    the samples are few independent ones, whatever their weights say.

    Raises:
        ValueError: the trace holds no lines of descent, or there is no such prompt.
    """
    trace, i = _part_of(out, prompt, "lines")
    assert trace.lines is not None
    lines = torch.cat([trace.lines[:, i], trace.ancestors[None, i]]).cpu()
    n, steps = lines.shape[1], range(1, len(lines) + 1)
    counts = torch.nn.functional.one_hot(lines, n).sum(1).T  # of each first particle, at each step
    alive = counts[:, -1] > 0
    plot = blank(WIDTH, 3.6)
    axes = plot.subplots()
    palette = itertools.cycle(COLOURS[:-1])
    colours = [next(palette) if left else "0.88" for left in alive.tolist()]
    axes.stackplot(steps, counts.numpy(), colors=colours, edgecolor="white", linewidth=0.4 if n <= 128 else 0.0)
    axes.set(xlim=(1, max(len(lines), 2)), ylim=(0, n), xlabel="step; the last is what is returned", ylabel="particles")
    axes.set_title(f"{int(alive.sum())} of {n} first particles have descendants left", fontsize=10, loc="left")
    axes.locator_params(axis="x", integer=True)
    return plot


def contact_sheet(images: Tensor, scores: Tensor | None = None, prompts: Sequence[str] | None = None) -> "Figure":
    """Pictures, at most eight a row, with their scores below; the best of each prompt is framed.

    Args:
        images: pictures [p n 3 h w] in [0,1] of p prompts, or [n 3 h w].
        scores: of each [p n] or [n].
        prompts: the p prompts, above their pictures.

    Raises:
        ValueError: a shape does not fit.
    """
    check(images, "images", "[p n 3 h w] or [n 3 h w]", images.ndim in (4, 5) and images.shape[-3] == 3)
    if scores is not None:
        check(scores, "scores", f"{list(images.shape[:-3])}, one a picture", scores.shape == images.shape[:-3])
    images = images[None] if images.ndim == 4 else images
    if prompts is not None and (isinstance(prompts, str) or len(prompts) != len(images)):
        raise ValueError(f"prompts={prompts!r} must be a list of {len(images)}, one a row of images")
    p, n = images.shape[:2]
    columns = min(8, n)
    lines, side = -(-n // columns), WIDTH / columns
    plot = blank(WIDTH, p * (lines * (side * images.shape[-2] / images.shape[-1] + 0.2) + 0.3))
    parts = plot.subfigures(p, squeeze=False)[:, 0]
    for i, part in enumerate(parts):
        if prompts is not None:
            part.suptitle(prompts[i], fontsize=10, x=0.01, ha="left")
        panels = part.subplots(lines, columns, squeeze=False).flatten()
        _tiles(panels, images[i], None if scores is None else scores.reshape(p, n)[i])
    return plot


def _tiles(panels: Any, images: Tensor, scores: Tensor | None) -> None:  # noqa: ANN401 (numpy's array of Axes)
    """A picture a panel; the others stay empty."""
    best = None if scores is None else int(scores.argmax())
    for j, axes in enumerate(panels):
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(j == best)
        axes.spines[:].set(color=VERMILION, linewidth=3)
        if j < len(images):
            axes.imshow(numpy_of(images[j].clamp(0, 1).permute(1, 2, 0)))
            if scores is not None:
                axes.set_xlabel(f"{scores[j].item():.3g}", fontsize=9, fontweight="bold" if j == best else "normal")


def _part_of(out: Samples | Trace, prompt: int, needed: str) -> tuple[Trace, int]:
    """The trace, and the row of a prompt, checked."""
    trace = out.trace if isinstance(out, Samples) else out
    if getattr(trace, needed) is None:
        raise ValueError(
            f"out: the trace holds no {needed}; take what steer.sample or a method of steer.methods returns"
        )
    if not 0 <= prompt < trace.ess.shape[1]:
        raise ValueError(f"prompt={prompt}: the trace is of {trace.ess.shape[1]} prompts, counted from 0")
    return trace, prompt


def _steps(trace: Trace) -> tuple[Any, str]:
    """Where the steps stand on the axis: their times, or their numbers where times do not rise."""
    if len(trace.times) > 1 and bool((trace.times.diff() > 0).all()):
        return numpy_of(trace.times), "time, from noise (0) to data (1)"
    return numpy_of(torch.arange(1.0, len(trace.times) + 1)), "step"
