"""Self-distillation: flow matching on the diagonal, and off it one of the identities that make a map that of a flow.

    Lagrangian   d/dt X_{s,t}(x) = sg b_t(X_{s,t}(x))                                         (the end moves)
    Eulerian     d/ds X_{s,t}(x) + sg [grad X_{s,t}(x) b_s(x)] = 0                             (the start moves)
    progressive  v_{s,t}(x) = sg [(1-h) v_{s,u}(x) + h v_{u,t}(X_{s,u}(x))],  u = h s + (1-h) t   (two jumps for one)

with b = v_{t,t}, the map's own diagonal, and sg a stopped gradient.

Source: "How to build a consistency model: learning flow maps via self-distillation" (arXiv:2505.18825), section 3,
with its stopped gradients; the progressive kind is preconditioned by 1 / (t - s)^2 as there.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from steer.draws import Rng, rand_like
from steer.flow_map import jump
from steer.interpolants import like
from steer.objectives.base import Batch, Loss, Rows, Student, squared, total
from steer.objectives.derivative import Derivative
from steer.objectives.flow_matching import on_diagonal, prepare
from steer.objectives.guidance import FoldedGuidance
from steer.objectives.times import Times
from steer.objectives.weighting import LearnedWeight, Weighting


def end_and_slope(model: Student, rows: Rows, derivative: Derivative) -> tuple[Tensor, Tensor]:
    """``X_{s,t}(x)`` and ``d/dt X_{s,t}(x)`` [b *d], one jvp."""
    return derivative(lambda t: jump(model.flow, rows.x, rows.s, t, rows.cond), (rows.t,), (torch.ones_like(rows.t),))


def lagrangian(model: Student, rows: Rows, derivative: Derivative) -> Tensor:
    """``d/dt X_{s,t}(x) - sg b_t(X_{s,t}(x))`` [b *d], one jvp and one plain call."""
    there, slope = end_and_slope(model, rows, derivative)
    with torch.no_grad():
        target = model.teacher(there.detach().to(rows.x), rows.t, rows.t, rows.cond)
    return slope - target


def eulerian(model: Student, rows: Rows, derivative: Derivative) -> Tensor:
    """``-d/ds X_{s,t}(x) - sg [grad X_{s,t}(x) b_s(x)]`` [b *d], two jvps and one plain call."""
    with torch.no_grad():
        b = model.teacher(rows.x, rows.s, rows.s, rows.cond).to(rows.x)
        _, carried = derivative(lambda x: jump(model.flow, x, rows.s, rows.t, rows.cond), (rows.x,), (b,))
    _, slope = derivative(
        lambda s: jump(model.flow, rows.x, s, rows.t, rows.cond), (rows.s,), (torch.ones_like(rows.s),)
    )
    return -slope - carried


def progressive(model: Student, rows: Rows, h: Tensor) -> Tensor:
    """``v_{s,t}(x) - sg [(1-h) v_{s,u}(x) + h v_{u,t}(X_{s,u}(x))]`` [b *d], three plain calls; h [b] in [0, 1]."""
    u = h * rows.s + (1 - h) * rows.t
    with torch.no_grad():
        first = model.teacher(rows.x, rows.s, u, rows.cond)
        second = model.teacher(rows.x + like(u - rows.s, rows.x) * first, u, rows.t, rows.cond)
    share = like(h, rows.x)
    return model.flow(rows.x, rows.s, rows.t, rows.cond) - ((1 - share) * first + share * second)


@dataclass(frozen=True)
class SelfDistillation:
    """Flow matching on the diagonal, and one identity off it.

    Attributes:
        identity: "lagrangian" (LSD), the default, which also works on pictures; "eulerian" (ESD), which is unstable
            on pictures; "midpoint" and "uniform" (PSD-M, PSD-U), progressive with h = 1/2 or uniform, which need no
            derivative.
        times: the share of the diagonal, and the law of the times.
        weighting: of the rows.
        guidance: folded into the diagonal's target.
        derivative: how derivatives in time are taken.
        average: whether the averaged weights are the teacher; the published choice is the current ones.
        start: the share of the training before which all rows lie on the diagonal.
    """

    identity: Literal["lagrangian", "eulerian", "midpoint", "uniform"] = "lagrangian"
    times: Times = Times()
    weighting: Weighting = LearnedWeight()
    guidance: FoldedGuidance | None = None
    derivative: Derivative = field(default_factory=Derivative)
    average: bool = False
    start: float = 0.0

    def __post_init__(self) -> None:
        known = ("lagrangian", "eulerian", "midpoint", "uniform")
        if self.identity not in known:
            raise ValueError(f"identity must be one of {', '.join(known)}, got {self.identity!r}")

    def __call__(self, model: Student, batch: Batch, rng: Rng) -> Loss:
        """The loss of a batch."""
        teacher = model if self.average else replace(model, average=None)  # its own teacher
        times = self.times if model.progress >= self.start else replace(self.times, diagonal=1.0)
        rows, diagonal = prepare(model, batch, times, self.guidance, rng)
        on, off, h = rows[diagonal], rows[~diagonal], rand_like(rows.s, rng)[~diagonal]
        plain = on_diagonal(model, on, self.guidance)
        parts = {"diagonal": (self.weighting(plain, on.s, on.t, model), plain)}
        if len(off):
            error = squared(model, self.residual(teacher, off, h))
            parts[self.identity] = (self.weighting(error, off.s, off.t, model), error)
        return total(parts, len(batch))

    def residual(self, model: Student, rows: Rows, h: Tensor) -> Tensor:
        """What the identity leaves over [b *d]; 0 for the map of a flow. h [b] is read by "uniform" alone."""
        if self.identity == "lagrangian":
            return lagrangian(model, rows, self.derivative)
        if self.identity == "eulerian":
            return eulerian(model, rows, self.derivative)
        return progressive(model, rows, torch.full_like(h, 0.5) if self.identity == "midpoint" else h)
