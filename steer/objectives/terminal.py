"""Terminal velocity matching: the slope of a jump at its end is the velocity there.

    loss = |d/dt X_{s,t}(x) - v'_{t,t}(X_{s,t}(x))|^2 + flow matching on the diagonal,   v' the averaged weights

The Lagrangian identity, with gradients through the end X as well: v' is a function of it, only its weights are held.

Source: "Terminal velocity matching" (arXiv:2511.19797).
"""

from dataclasses import dataclass, field

from torch import Tensor

from steer.draws import Rng
from steer.objectives.base import Batch, Loss, Rows, Student, squared, total
from steer.objectives.derivative import Derivative
from steer.objectives.flow_matching import on_diagonal, prepare
from steer.objectives.guidance import FoldedGuidance
from steer.objectives.self_distillation import end_and_slope
from steer.objectives.times import Times
from steer.objectives.weighting import Uniform, Weighting


def terminal(model: Student, rows: Rows, derivative: Derivative) -> Tensor:
    """``d/dt X_{s,t}(x) - v'_{t,t}(X_{s,t}(x))`` [b *d]; one jvp and one call with gradients."""
    there, slope = end_and_slope(model, rows, derivative)
    return slope - model.teacher(there.to(rows.x), rows.t, rows.t, rows.cond)


@dataclass(frozen=True)
class TerminalVelocity:
    """Terminal velocity matching.

    Without averaged weights the teacher would be the map itself, and the loss could be lowered by moving v_{t,t} to
    meet the slope: so `model.average` is required.

    Attributes:
        times, weighting, guidance, derivative: as in `steer.objectives.SelfDistillation`.
    """

    times: Times = Times()
    weighting: Weighting = Uniform()
    guidance: FoldedGuidance | None = None
    derivative: Derivative = field(default_factory=Derivative)

    def __call__(self, model: Student, batch: Batch, rng: Rng) -> Loss:
        """The loss of a batch; raises ValueError when the model has no averaged weights."""
        if model.average is None:
            raise ValueError("terminal velocity matching needs model.average, the averaged weights; give ema=")
        rows, diagonal = prepare(model, batch, self.times, self.guidance, rng)
        on, off = rows[diagonal], rows[~diagonal]
        plain = on_diagonal(model, on, self.guidance)
        parts = {"diagonal": (self.weighting(plain, on.s, on.t, model), plain)}
        if len(off):
            error = squared(model, terminal(model, off, self.derivative))
            parts["terminal"] = (self.weighting(error, off.s, off.t, model), error)
        return total(parts, len(batch))
