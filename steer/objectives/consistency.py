"""Consistency models: jumps to the data alone, X_{s,1}.

    g = v_{s,1}(x) - w - r (1-s) (d_s v_{s,1} + grad v_{s,1} w);   loss = |v - sg(v - g / (|g| / sqrt(d) + c))|^2

The Eulerian identity with the end fixed at 1: w is the slope of the row's line (consistency training) or the velocity
of a teacher (consistency distillation); r rises from 0 to 1 over the start of the training.

Source: "Consistency models" (arXiv:2303.01469); "Simplifying, stabilizing and scaling continuous-time consistency
models" (arXiv:2410.11081), written with velocities.
"""

from dataclasses import dataclass, field, replace

import torch

from steer.draws import Rng
from steer.flow_map import FlowMap, velocity
from steer.objectives.base import Batch, Loss, Rows, Student, total
from steer.objectives.derivative import Derivative
from steer.objectives.eulerian import carried, descended, eulerian_target, ramp
from steer.objectives.flow_matching import on_diagonal, prepare
from steer.objectives.times import Times
from steer.objectives.weighting import Uniform, Weighting


@dataclass(frozen=True)
class Consistency:
    """X_{s,1} for all s; jumps that end elsewhere are not learned.

    Further steps are made by noising the end again (`steer.moves.restart`), not by shorter jumps; many of them add up
    their errors. A share of rows on the diagonal teaches the velocity beside the jumps.

    Attributes:
        teacher: a flow map whose velocity is distilled; None trains from data.
        times: the law of s, drawn by itself and not as the lesser of two; the default looks more at data, since errors
            travel from there to noise. `diagonal` is the share of rows that learn the velocity.
        weighting: of the rows.
        derivative: how the derivative is taken.
        c: of the tangent's normalisation; None leaves the tangent as it is.
        warm_up: the share of the training over which r rises.
    """

    teacher: FlowMap | None = None
    times: Times = Times(diagonal=0.25, law="logit-normal", mean=1.0, std=1.4)
    weighting: Weighting = Uniform()
    derivative: Derivative = field(default_factory=Derivative)
    c: float | None = 0.1
    warm_up: float = 0.1

    def __call__(self, model: Student, batch: Batch, rng: Rng) -> Loss:
        """The loss of a batch."""
        rows, _ = prepare(model, batch, replace(self.times, diagonal=1.0), None, rng)
        diagonal = self.times.on_diagonal(batch.x1, rng)
        on, off = rows[diagonal], rows[~diagonal].ending(torch.ones_like(rows.t[~diagonal]))
        parts = {}
        if len(on):
            plain = on_diagonal(model, on, None)
            parts["diagonal"] = (self.weighting(plain, on.s, on.t, model), plain)
        if len(off):
            error, plain = self._jumps(model, off)
            parts["consistency"] = (self.weighting(error, off.s, off.t, model), plain)
        return total(parts, len(batch))

    def _jumps(self, model: Student, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
        """The squared errors whose gradient is descended, and those of the identity, each [b]."""
        with torch.no_grad():
            w = rows.slope if self.teacher is None else velocity(self.teacher, rows.x, rows.s, rows.cond).to(rows.x)
        v, slope = carried(model, rows, w, self.derivative)
        error = v - eulerian_target(rows, w, slope, ramp(model.progress, self.warm_up))
        return descended(model, v, error, self.c)
