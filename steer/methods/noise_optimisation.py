"""ReNO: gradient ascent on the noise from which the flow map makes a sample.

    repeat `steps` times:
        loss = -strength r(X_{0,1}(x0)) + regularisation (|x0|^2 / 2 - (d - 1) log |x0|)
        g = grad loss, shortened to clip sqrt(d / 16384)
        m = momentum m + g;   x0 = x0 - learning_rate (g + momentum m)      Nesterov
        x0 = its own direction at a length within `spread` standard deviations of that of noise
    x1 = X_{0,1}(the x0 of least loss)

The regulariser is minus the log-density of the length |x0| of a noise, least near sqrt(d).

Source: "ReNO: Enhancing one-step text-to-image models through reward-based noise optimization" (arXiv:2406.04312);
published for noises of d = 16384 numbers: 50 steps at learning rate 5, momentum .9, clip .1, regularisation .01, with
rewards weighted by 5 (HPSv2), 1 (ImageReward), .01 (CLIP) and .05 (PickScore), and no bound on the length.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from steer.draws import Rng
from steer.flow_map import Cond, FlowMap
from steer.interpolants import Interpolant
from steer.lookahead import Rollout
from steer.particles import Particles, Reward, Trace, bounded, check_least, length, steps_within
from steer.population import Population
from steer.run import Run

_SIZE = 16384  # numbers in the paper's noises, to which its clip refers


@dataclass(frozen=True)
class NoiseOptimisation:
    """Each particle climbs to the best noise near its own; equal weights, no target law, log_z is NaN.

    What is returned is the best that was seen, by the loss; the first noise is among these, and so is the last.

    Attributes:
        steps: of ascent, K; a particle costs (3 K + 1) jumps calls. The paper's 50.
        strength: multiplies the reward. Once a gradient is longer than the clip, it only weighs reward against
            regulariser.
        learning_rate: the paper's 5 (10 for HyperSD).
        momentum: of Nesterov, between 0 and below 1.
        clip: most length of a gradient for d = 16384; in proportion to sqrt(d), as the length of the noise is, so that
            a step makes the same angle in any dimension.
        regularisation: weight of the regulariser.
        spread: how far |x0| may go from sqrt(d), in standard deviations (1 / sqrt(2)) of a noise's length. A steep
            reward outweighs any regulariser, and takes the map to noises it has never seen. math.inf, as in the paper:
            no bound.
        jumps: jumps of the map from noise to sample.
    """

    steps: int = 50
    strength: float = 1.0
    learning_rate: float = 5.0
    momentum: float = 0.9
    clip: float = 0.1
    regularisation: float = 0.01
    spread: float = 3.0
    jumps: int = 1
    needs_gradient: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_least(self, steps=1, strength=0, regularisation=0, spread=0, jumps=1)
        for name in ("learning_rate", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be at least 0 and below 1, got {self.momentum}")

    @torch.no_grad()
    def __call__(
        self,
        flow: FlowMap,
        path: Interpolant,
        reward: Reward,
        x0: Tensor,
        cond: Cond = None,
        *,
        rng: Rng,
    ) -> tuple[Particles, Trace]:
        """Particles and trace of x0 [p n *d]; draws nothing from rng."""
        run, lookahead = Run(flow, path, reward, x0, cond, rng=rng), Rollout(self.jumps)
        population, x, velocity, best = Population(run, x0), x0.detach(), torch.zeros_like(x0), None
        for k in range(self.steps + 1):
            look = (run.look_gradient if k < self.steps else run.look)(lookahead, x, 0.0)
            population.weigh(torch.zeros_like(look.value), 0.0)
            loss = self.regularisation * regulariser(x) - self.strength * look.value
            seen = (loss.masked_fill(look.value == -math.inf, math.inf), look.x1[0], look.rewards[0])
            best = seen if best is None else _better(seen, best)
            if look.gradient is not None:
                x, velocity = self._step(x, look.gradient, velocity)
        assert best is not None
        return population.finish(best[1], best[2], log_z=False)

    def with_budget(self, calls: int, n: int = 16) -> "NoiseOptimisation":
        """The same method with as many steps as `calls` a prompt pay for; raises ValueError below those of one."""
        return replace(self, steps=steps_within(calls, n, a_step=3 * self.jumps, besides=self.jumps))

    def _step(self, x: Tensor, gradient: Tensor, velocity: Tensor) -> tuple[Tensor, Tensor]:
        """The next noise [p n *d] and its velocity, by the gradient of the reward in x."""
        d, size = x[0, 0].numel(), length(x)
        tiny = torch.finfo(x.dtype).tiny
        g = self.regularisation * (1 - (d - 1) / (size**2).clamp(min=tiny)) * x - self.strength * gradient
        g = bounded(g, torch.full_like(size, self.clip * math.sqrt(d / _SIZE)))
        velocity = self.momentum * velocity + g
        x = x - self.learning_rate * (g + self.momentum * velocity)
        far = self.spread / math.sqrt(2)
        size = length(x).clamp(min=tiny)
        return x * (size.clamp(max(0.0, math.sqrt(d) - far), math.sqrt(d) + far) / size), velocity


_Seen = tuple[Tensor, Tensor, Tensor]  # loss [p n], x1, rewards


def regulariser(x: Tensor) -> Tensor:
    """``|x|^2 / 2 - (d - 1) log |x|`` [p n] of noises [p n *d]; least at |x| = sqrt(d - 1)."""
    size = length(x).flatten(1)
    return size**2 / 2 - (x[0, 0].numel() - 1) * size.clamp(min=torch.finfo(x.dtype).tiny).log()


def _better(new: _Seen, old: _Seen) -> _Seen:
    """Of each particle, what has less loss."""
    less = new[0] < old[0]
    ends = torch.where(less.reshape(less.shape + (1,) * (new[1].ndim - 2)), new[1], old[1])
    return torch.where(less, new[0], old[0]), ends, torch.where(less, new[2], old[2])
