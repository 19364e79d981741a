"""What objectives of fine-tuning share: the jumps that follow a velocity, and errors in units of data.

Such an objective also says how its rows are made: its property `collector` is a `steer.collecting.Collector`.
"""

from typing import Protocol

import torch
from torch import Tensor

from steer.collecting import Collector
from steer.draws import Rng
from steer.interpolants import Interpolant, Time, delta, like
from steer.objectives.base import Batch, Loss, Student, draw_rows, squared
from steer.objectives.self_distillation import progressive
from steer.objectives.times import Times


class Tuning(Protocol):
    """An objective of fine-tuning: (model, batch, rng) -> (loss, metrics) of rows that `collector` makes."""

    @property
    def collector(self) -> Collector | None:
        """How the model's samples are gathered; None where rows are given."""
        ...

    @property
    def exact(self) -> bool:
        """Whether its optimum is p exp(reward / temperature)."""
        ...

    def __call__(self, model: Student, batch: Batch, rng: Rng) -> Loss:
        """The loss of a batch."""
        ...


def with_jumps(loss: Tensor, told: dict[str, Tensor], share: float, model: Student, batch: Batch, rng: Rng) -> Loss:
    """The loss of a velocity, and `share` times that of jumps which follow it, on paths to the batch's samples.

    Self-distillation at midpoints, in units of data: no derivatives, and the averaged weights as the teacher, since a
    velocity that is pulled away from the jumps makes targets by the current ones run away.
    """
    if share == 0:
        return loss, told
    rows = draw_rows(model.path, batch, *PAIRS(batch.x1, rng)[:2], rng)
    error = progressive(model, rows, torch.full_like(rows.s, 0.5))
    kept = batch.more["weight"] > 0 if "weight" in batch.more else torch.ones(len(batch), device=rows.x.device)
    error = (kept * squared(model, step(model.path, rows.x, rows.s).clamp_min(LEAST) * error)).mean()
    return loss + share * error, told | {"jumps": error.detach()}


PAIRS = Times(diagonal=0.0, from_noise=0.25, to_data=0.25)
LEAST = 0.05  # errors of a velocity count at least so much, in units of data


def step(path: Interpolant, x: Tensor, s: Time) -> Tensor:
    """``alpha / Delta``, what a difference of velocities at time s is in units of data; 1 - s on the linear path."""
    return like(path.alpha(s) / delta(path, s), x)


def mean_of_kept(r: Tensor) -> Tensor:
    """The mean of rewards [b] that are not -inf; 0 where all are."""
    kept = r.isfinite()
    return r.masked_fill(~kept, 0.0).sum() / kept.sum().clamp_min(1)


def row_mean(x: Tensor) -> Tensor:
    """Mean over each row's numbers [b]."""
    return x.flatten(1).mean(1)
