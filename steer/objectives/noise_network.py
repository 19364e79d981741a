"""A noise hypernetwork: amortised search in the space of noise, with the map itself frozen.

    f(x0) = x0 + (v_theta - v_ref)_{0,1}(x0),   loss = E weight |f(x0) - x0|^2 / 2 - r(X_ref_{0,1}(f(x0))) / T

v_theta is the map with adapters, which start without effect. |f(x0) - x0|^2 / 2 bounds the KL of the noise's law where
f is near the identity, and the KL of the samples' with it: the optimum over all laws of noise pushes forward to
p_model exp(r / T). What comes back is the frozen map, and its noise.

Source: "Noise hypernetworks: amortizing test-time compute in diffusion models" (arXiv:2508.09968).
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from steer.collecting import Noise
from steer.draws import Rng
from steer.flow_map import jump
from steer.objectives.base import Batch, Loss, Student
from steer.objectives.tuning import mean_of_kept


@dataclass(frozen=True)
class NoiseNetwork:
    """The noise that suits a reward. Needs a differentiable reward, and adapters.

    Attributes:
        steps: jumps of the frozen map, through all of which the gradient goes.
        weight: of the bound on the KL; 1 is the bound itself.
        collector: where noise comes from.
    """

    steps: int = 1
    weight: float = 1.0
    collector: Noise = field(default_factory=Noise)
    exact: ClassVar[bool] = False
    of_noise: ClassVar[bool] = True

    def __call__(self, model: Student, batch: Batch, rng: Rng) -> Loss:
        """The loss of a batch of noise."""
        assert model.reference is not None and model.reward is not None
        x0, cond = batch.x1, batch.cond
        with torch.no_grad():
            plain = model.reference(x0, 0.0, 1.0, cond).to(x0)
        shift = model.flow(x0, 0.0, 1.0, cond) - plain
        x = x0 + shift
        for k in range(self.steps):
            x = jump(model.reference, x, k / self.steps, (k + 1) / self.steps, cond)
        r = model.reward(x, batch.more["prompt"])
        if not r.requires_grad:
            raise ValueError("objective=noise needs a differentiable reward; take nft or grpo")
        gain = mean_of_kept(r)
        bound = shift.square().flatten(1).sum(1).mean() / 2
        return self.weight * bound - gain, {"gain": gain.detach(), "kl_bound": bound.detach()}
