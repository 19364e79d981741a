"""Learn what steering finds: samples of the tilted law, or the best that a search brings, by flow matching.

    rows x1 ~ p exp(r / T)  (plain samples resampled by their weights, or any method of steer.methods)
    loss = E |v_{t,t}(x_t) - dI_t/dt|^2,   and self-distillation off the diagonal

On rows of the tilted law its optimum is the velocity of that law: ``E_p[e^{r/T} |v - dI_t/dt|^2]`` is minimal at
``b* = E_p[e^{r/T} dI_t/dt | x_t] / E_p[e^{r/T} | x_t]``. On the best of n it sharpens, towards no law that can be
stated.

Source: rewards as weights in "Aligning text-to-image models using human feedback" (arXiv:2302.12192); best-of-n
distillation, "RAFT" (arXiv:2304.06767).
"""

from dataclasses import dataclass, field

import torch

from steer.collecting import Steered
from steer.draws import Rng, rand_like
from steer.flow_map import velocity
from steer.objectives.base import Batch, Loss, Student, draw_rows, squared
from steer.objectives.tuning import LEAST, step, with_jumps


@dataclass(frozen=True)
class Weighted:
    """Flow matching on what a method finds; the jumps follow.

    Attributes:
        collector: the method; see `steer.collecting.Steered`.
        jumps: how much the loss of the jumps counts.
    """

    collector: Steered = field(default_factory=Steered)
    jumps: float = 1.0

    @property
    def exact(self) -> bool:
        """Whether rows are resampled by weights, from the reference."""
        return self.collector.best is None and self.collector.source == "reference"

    def __call__(self, model: Student, batch: Batch, rng: Rng) -> Loss:
        """The loss of a batch."""
        t = rand_like(batch.x1.new_empty(len(batch)), rng)
        rows = draw_rows(model.path, batch, t, t, rng)
        unit = step(model.path, rows.x, t).clamp_min(LEAST)
        weight = batch.more.get("weight", torch.ones_like(t))
        loss = (weight * squared(model, unit * (velocity(model.flow, rows.x, t, rows.cond) - rows.slope))).mean()
        return with_jumps(loss, {"diagonal": loss.detach()}, self.jumps, model, batch, rng)
