"""GRPO: a noisy chain of jumps as a policy, its moves as actions, advantages within the samples of a prompt.

    ratio_k = N(x_{k+1}; m_theta(x_k), std_k^2 I) / N(x_{k+1}; m_old(x_k), std_k^2 I)
    loss = d (- E_k min(ratio A, clip(ratio, 1 - clip, 1 + clip) A) + kl E_k |m_theta - m_ref|^2 / (2 d std_k^2))

The kernels are those of `steer.moves`: jump beyond the next time and renoise, or jump to the end and renoise. So the
jumps themselves are what learns, at any number of steps. The last move has no noise, hence no ratio.

Source: "DeepSeekMath" (arXiv:2402.03300), for flows "Flow-GRPO" (arXiv:2505.05470) and "DanceGRPO" (arXiv:2505.07818),
whose Euler-Maruyama steps are exact kernels here. As there, ratios are per number of a sample, of which there are d: of
the mean log-density.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from steer.collecting import Chain, log_density
from steer.draws import Rng
from steer.objectives.base import Batch, Loss, Student
from steer.objectives.tuning import with_jumps


@dataclass(frozen=True)
class PolicyGradient:
    """The clipped policy gradient on chains.

    Attributes:
        collector: the chains; see `steer.collecting.Chain`.
        clip: of the ratio of a move, whose log-density is a mean over the numbers of a sample.
        kl: weight of the KL of the moves from the reference's, per number.
        jumps: how much the loss of jumps that follow the velocity counts, on paths to the samples.
    """

    collector: Chain = field(default_factory=Chain)
    clip: float = 1e-3
    kl: float = 0.0
    jumps: float = 0.0
    exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.clip > 0:
            raise ValueError(f"clip must be above 0, got {self.clip}")

    def __call__(self, model: Student, batch: Batch, rng: Rng) -> Loss:
        """The loss of a batch of chains."""
        points, old, advantage = (batch.more[name] for name in ("points", "log_p", "advantage"))
        axes, size = batch.x1.ndim - 1, batch.x1[0].numel()
        gains, away, clipped = [], batch.x1.new_zeros(()), []
        for k in range(old.shape[1]):
            x, after = points[:, k], points[:, k + 1]
            kernel = self.collector.kernel(model.flow, model.path, x, k, batch.cond)
            ratio = ((log_density(kernel, after, axes) - old[:, k]) / size).exp()
            within = ratio.clamp(1 - self.clip, 1 + self.clip)
            gains.append(torch.minimum(ratio * advantage, within * advantage))
            clipped.append((ratio != within).float().mean())
            if self.kl:
                assert model.reference is not None
                with torch.no_grad():
                    plain = self.collector.kernel(model.reference, model.path, x, k, batch.cond)
                away = away + ((kernel.mean - plain.mean) / kernel.std).square().flatten(1).mean(1).mean() / 2
        loss = size * (self.kl * away / len(gains) - torch.stack(gains).mean())
        told: dict[str, Tensor] = {"clipped": torch.stack(clipped).mean()}
        told |= {"away": away.detach() / len(gains)} if self.kl else {}
        return with_jumps(loss, told, self.jumps, model, batch, rng)
