"""MeanFlow and improved MeanFlow: the Eulerian identity with the slope of the line that a row lies on.

    MeanFlow            loss |v_{s,t}(x) - sg(w + (t-s) (d_s v + grad v w))|^2,   w the conditional slope
    improved MeanFlow   loss |V - w|^2 + |v_{s,s}(x) - w|^2,   V = v_{s,t}(x) - (t-s) sg(d_s v + grad v v_{s,s})

The target of MeanFlow is linear in w, so its expectation over the rows through x is that with the velocity b_s(x).
Improved MeanFlow carries x with the predicted velocity: its loss is a regression on w, and falls as one does.

Source: "Mean flows for one-step generative modeling" (arXiv:2505.13447); "Improved mean flows" (arXiv:2512.02012).
Their time runs from data to noise: s = 1 - t', t = 1 - r', v = -u.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from steer.draws import Rng
from steer.objectives.base import Batch, Loss, Rows, Student, squared, total
from steer.objectives.derivative import Derivative
from steer.objectives.eulerian import carried, eulerian_target
from steer.objectives.flow_matching import on_diagonal, prepare
from steer.objectives.guidance import FoldedGuidance
from steer.objectives.times import Times
from steer.objectives.weighting import AdaptiveWeight, Weighting

TIMES = Times(diagonal=0.75, law="logit-normal", mean=0.4, std=1.0)


def mean_flow(model: Student, rows: Rows, w: Tensor, derivative: Derivative) -> Tensor:
    """``v_{s,t}(x) - sg(w + (t - s) (d_s v + grad v w))`` [b *d]; one jvp."""
    v, slope = carried(model, rows, w, derivative)
    return v - eulerian_target(rows, w, slope)


def improved_mean_flow(model: Student, rows: Rows, w: Tensor, derivative: Derivative) -> Tensor:
    """``v_{s,t}(x) - (t - s) sg(d_s v + grad v b) - w`` with b = v_{s,s}(x) [b *d]; one jvp and one plain call."""
    with torch.no_grad():
        b = model.flow(rows.x, rows.s, rows.s, rows.cond).to(rows.x)
    v, slope = carried(model, rows, b, derivative)
    return v - eulerian_target(rows, w, slope)


@dataclass(frozen=True)
class MeanFlow:
    """MeanFlow, or improved MeanFlow.

    Attributes:
        improved: whether x is carried by the predicted velocity.
        times, weighting: the published ones (a quarter of the rows off the diagonal, power 1).
        guidance: folded into the diagonal's target, and, when improved, into w everywhere.
        derivative: how the derivative is taken.
    """

    improved: bool = False
    times: Times = TIMES
    weighting: Weighting = AdaptiveWeight()
    guidance: FoldedGuidance | None = None
    derivative: Derivative = field(default_factory=Derivative)

    def __call__(self, model: Student, batch: Batch, rng: Rng) -> Loss:
        """The loss of a batch."""
        rows, diagonal = prepare(model, batch, self.times, self.guidance, rng)
        on, off = rows[diagonal], rows[~diagonal]
        plain = on_diagonal(model, on, self.guidance)
        parts = {"diagonal": (self.weighting(plain, on.s, on.t, model), plain)}
        if len(off):
            residual = improved_mean_flow if self.improved else mean_flow
            error = squared(model, residual(model, off, self._slope(model, off), self.derivative))
            parts["mean"] = (self.weighting(error, off.s, off.t, model), error)
        return total(parts, len(batch))

    def _slope(self, model: Student, rows: Rows) -> Tensor:
        """The conditional slope, under guidance where that is folded in."""
        if self.guidance is None:
            return rows.slope
        with torch.no_grad():
            v = model.flow(rows.x, rows.s, rows.s, rows.cond)
        return self.guidance.target(model, rows.ending(rows.s), v)
