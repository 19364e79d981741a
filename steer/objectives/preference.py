"""Direct preference optimisation: the better of two pictures should gain more likelihood than the worse.

    loss = - E log sigmoid(-beta (e(w) - e_ref(w) - e(l) + e_ref(l))),   e(x1) = |x1(v_{t,t}(x_t)) - x1|^2

for the winner w and the loser l of a pair at the same t and noise, errors as means over a sample's numbers. The pairs
are made of the model's own samples by the reward (online), or given (offline: `steer.preferences.PairRows`).

Source: "Diffusion model alignment using direct preference optimization" (arXiv:2311.12908); online as in "Direct
language model alignment from online AI feedback" (arXiv:2402.04792).
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from steer.collecting import Pairs
from steer.draws import Rng, rand_like, randn_like
from steer.flow_map import FlowMap, velocity
from steer.interpolants import interpolate, like
from steer.objectives.base import Batch, Loss, Student
from steer.objectives.tuning import LEAST, row_mean, step, with_jumps


@dataclass(frozen=True)
class Preference:
    """DPO on pairs of samples.

    Attributes:
        beta: how sharply a pair decides; the published 2000 to 5000 count sums over steps, here errors are of one.
        jumps: how much the loss of jumps that follow the velocity counts, on paths to the winners.
        collector: the pairs, where they are made online; None where they are given.
    """

    beta: float = 20.0
    jumps: float = 0.5
    collector: Pairs | None = field(default_factory=Pairs)
    exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ValueError(f"beta must be above 0, got {self.beta}")

    def __call__(self, model: Student, batch: Batch, rng: Rng) -> Loss:
        """The loss of a batch of pairs; one without a margin is left out."""
        assert model.reference is not None
        t, noise = rand_like(batch.x1.new_empty(len(batch)), rng), randn_like(batch.x1, rng)
        both = [batch.x1, batch.more["loser"]]
        mine = [_error(model, model.flow, x1, noise, t, batch) for x1 in both]
        with torch.no_grad():
            plain = [_error(model, model.reference, x1, noise, t, batch) for x1 in both]
        gain = -((mine[0] - plain[0]) - (mine[1] - plain[1]))
        tells = (batch.more["margin"] > 0).to(gain) if "margin" in batch.more else torch.ones_like(gain)
        loss = (-F.logsigmoid(self.beta * gain) * tells).mean()
        right = ((gain > 0) * tells).sum() / tells.sum().clamp_min(1)
        return with_jumps(loss, {"right": right.detach()}, self.jumps, model, batch, rng)


def _error(model: Student, flow: FlowMap, x1: Tensor, noise: Tensor, t: Tensor, batch: Batch) -> Tensor:
    """Mean square [b] of what the predicted data miss."""
    x = interpolate(model.path, noise, x1, t)
    slope = like(model.path.dalpha(t), x) * noise + like(model.path.dbeta(t), x) * x1
    return row_mean((step(model.path, x, t).clamp_min(LEAST) * (velocity(flow, x, t, batch.cond) - slope)).square())
