"""Flow matching: the diagonal of a flow map is the velocity of the flow.

    x_t = alpha x0 + beta x1;   loss = E |v_{t,t}(x_t) - (dalpha x0 + dbeta x1)|^2

Source: "Flow matching for generative modeling" (arXiv:2210.02747); "Stochastic interpolants" (arXiv:2303.08797).
"""

from dataclasses import dataclass

from torch import Tensor

from steer.draws import Rng
from steer.objectives.base import Batch, Loss, Rows, Student, draw_rows, squared, total
from steer.objectives.guidance import FoldedGuidance
from steer.objectives.times import Times
from steer.objectives.weighting import Uniform, Weighting


def on_diagonal(model: Student, rows: Rows, guidance: FoldedGuidance | None) -> Tensor:
    """The squared errors [b] of the velocity at rows whose s is their t."""
    v = model.flow(rows.x, rows.s, rows.s, rows.cond)
    target = rows.slope if guidance is None else guidance.target(model, rows, v)
    return squared(model, v - target)


def prepare(
    model: Student, batch: Batch, times: Times, guidance: FoldedGuidance | None, rng: Rng
) -> tuple[Rows, Tensor]:
    """The rows of a batch, and a mask [b] that is True on the diagonal."""
    s, t, on = times(batch.x1, rng)
    rows = draw_rows(model.path, batch, s, t, rng)
    return (rows if guidance is None else guidance.tell(rows, rng)), on


@dataclass(frozen=True)
class FlowMatching:
    """Regression of the velocity ``v_{t,t}``; off the diagonal nothing is learned.

    Attributes:
        times: their law; the share of the diagonal is taken as 1.
        weighting: of the rows.
        guidance: folded into the target.
    """

    times: Times = Times(diagonal=1.0)
    weighting: Weighting = Uniform()
    guidance: FoldedGuidance | None = None

    def __post_init__(self) -> None:
        if self.times.diagonal != 1:
            raise ValueError(f"times.diagonal must be 1 for flow matching, got {self.times.diagonal}")

    def __call__(self, model: Student, batch: Batch, rng: Rng) -> Loss:
        """The loss of a batch."""
        rows, _ = prepare(model, batch, self.times, self.guidance, rng)
        plain = on_diagonal(model, rows, self.guidance)
        return total({"diagonal": (self.weighting(plain, rows.s, rows.t, model), plain)}, len(batch))
