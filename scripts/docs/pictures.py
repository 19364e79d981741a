"""Pictures of the methods: each, as it is set in configs/, on a law of the plane that is known exactly."""

from functools import cache

import torch
from torch import Tensor

from steer import plots, settings
from steer.bench.problems import Problem, mild_ring
from steer.interpolants import Linear
from steer.particles import gather
from steer.resampling import systematic

POINTS = 512
REACH = 5.5  # half the side of a panel
PANELS = (("plain samples", "0.55"), ("the target", plots.BLUE))
CAPTION = (
    f"Eight Gaussians on a ring, tilted by exp(reward), a quadratic, at temperature 1: {POINTS} plain samples, as many "
    "exact draws of the target, and the samples of the method as it is set below, drawn by their weights. The flow map "
    "is the exact one, to 4e-4."
)


@cache
def picture(name: str) -> bytes:
    """PNG of plain samples, of the target, and of the method's samples, with its calls a particle."""
    problem, rng = mild_ring(), torch.Generator().manual_seed(0)
    x, calls = samples(name, problem, rng)
    target = problem.draw(POINTS, rng)
    return drawn([problem.prior(POINTS, rng), target, x], f"{name}, {calls:.0f} calls each")


def samples(name: str, problem: Problem, rng: torch.Generator) -> tuple[Tensor, float]:
    """Samples [n 2] of a method, resampled by their weights, and its calls a particle."""
    x0 = torch.randn(1, POINTS, 2, generator=rng)
    particles, trace = settings.build("method", name)(problem.flow, Linear(), problem.reward, x0, rng=rng)
    chosen = systematic(particles.log_w, rng=rng)
    return gather(particles.x, chosen)[0], float(trace.calls.double().mean()) / POINTS


def drawn(sets: list[Tensor], title: str) -> bytes:
    """The panels, side by side."""
    figure = plots.blank(9, 3.2)
    panels = figure.subplots(1, len(sets), sharex=True, sharey=True)
    for axes, x, (label, colour) in zip(panels, sets, (*PANELS, (title, plots.VERMILION)), strict=True):
        axes.scatter(*x.double().numpy().T, s=5, alpha=0.5, linewidths=0, color=colour)
        axes.set(xlim=(-REACH, REACH), ylim=(-REACH, REACH), aspect="equal", xticks=[], yticks=[])
        axes.set_title(label, fontsize=11)
    return plots.png(figure)
