"""Rollover budget forcing (RBF): a step ends as soon as it has improved, and leaves its unused calls to the next.

    quota = calls / steps;  x1 = the best of `quota` noises;  best = r(x1)
    for k = 1 .. K-1:
        for up to quota + left-over calls, in the last step for all that are left:
            x1' = X_{t_k,1}(beta x1 + alpha z)
            if r(x1') > best (not in the last step):  best = r(x1');  x1 = x1';  left-over = what is unused;  next step
        without success:  x1 = the best of the step, though worse than before;  left-over = 0
    return the best end of all

Each particle goes at its own pace: in each round every particle of every prompt tries one child, at the time of its own
step, so all spend exactly `calls` in as many batched rounds.

Source: "Inference-time scaling for flow models via stochastic generation and rollover budget forcing"
(arXiv:2503.19385), there 500 calls, 10 steps and 25 first noises. It moves by a VP-SDE and looks at the posterior mean;
here it is the restart move, with the jump for a look, in one call. Its code returns the last step's best; here nothing
that was seen is lost.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from steer.draws import Rng, randn_like
from steer.flow_map import Cond, FlowMap, jump
from steer.interpolants import Interpolant, interpolate
from steer.moves import JumpTimes
from steer.particles import Particles, Reward, Trace, steps_within
from steer.population import Population
from steer.run import Run


@dataclass(frozen=True)
class Rollover(JumpTimes):
    """Particles that each climb on their own; equal weights, no target law, log_z is NaN.

    Attributes:
        calls: of each particle, in all.
        steps: K, at times t_k = last_time sqrt(k / (K - 1)); each has calls // steps of them.
        last_time: of the last step.
    """

    calls: int = 64
    steps: int = 8
    last_time: float = 0.8
    needs_gradient: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if self.calls < self.steps:
            raise ValueError(f"calls must be at least one a step, got {self.calls} for {self.steps} steps")
        self.check_last_time()

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
        """Particles and trace of x0 [p n *d], the first of the noises."""
        run = Run(flow, path, reward, x0, cond, rng=rng)
        population, times = Population(run, x0), x0.new_tensor(self.times)
        step = torch.zeros(x0.shape[:2], dtype=torch.long, device=x0.device)
        quota = self.calls // self.steps
        left = torch.full_like(step, quota)  # calls, in the step
        rejected = x0.new_full(x0.shape[:2], -math.inf)
        start, tried, best = (x0, rejected), (x0, rejected), (x0, rejected)  # of the step; in the step; of all
        for k in range(self.calls):
            t = times[step]
            x1 = jump(run.flow, interpolate(path, randn_like(x0, rng) if k else x0, start[0], t), t, 1.0)
            child = (x1, run.rewards(x1))
            improved = (child[1] > best[1]) & (step > 0)
            tried, best = _better(tried, child), _better(best, child)
            left = left - 1
            ends = (improved | (left == 0)) & (step < self.steps - 1)
            start = _where(ends, tried, start)
            tried = (tried[0], tried[1].masked_fill(ends, -math.inf))
            step, left = step + ends.long(), torch.where(ends, left + quota, left)
            population.weigh(torch.zeros_like(rejected), self.times[min(k // quota, self.steps - 1)])
        return population.finish(*best, log_z=False)

    def with_budget(self, calls: int, n: int = 16) -> "Rollover":
        """The same method with `calls` of a prompt shared by its n particles, with at least eight in each step.

        Where fewer are tried, steps that fail take what is worse, and the climb ends below best-of-n. Raises ValueError
        below n calls.
        """
        each = steps_within(calls, n, a_step=1)
        return replace(self, calls=each, steps=min(self.steps, max(1, each // 8)))


_End = tuple[Tensor, Tensor]  # x1 [p n *d], its reward [p n]


def _better(old: _End, new: _End) -> _End:
    """The new end where its reward is at least as good."""
    return _where(new[1] >= old[1], new, old)


def _where(choice: Tensor, new: _End, old: _End) -> _End:
    wide = choice.view(choice.shape + (1,) * (new[0].ndim - 2))
    return torch.where(wide, new[0], old[0]), torch.where(choice, new[1], old[1])
