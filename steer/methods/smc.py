"""Sequential Monte Carlo on the restart chain, with the jump to the end as the look-ahead.

    x_{t_0} ~ N(0, I)
    for k = 0 .. K-1:
        x1 = X_{t_k,1}(x_{t_k});  V_k = lambda_k r(x1) / temperature            one call
        log w += V_k - V_{k-1}                                                  telescopes; lambda_{K-1} = 1
        if ESS(w) < ess_threshold n:  log Z += log mean w;  resample x1 and V;  w = 1
        x_{t_{k+1}} = beta x1 + alpha z                                         free: shares the call

Under an exact map x1 has the law of the data at every k, so the weights are exact and E[Z_hat] = E[exp(r/temperature)]
at any number of steps. Jump and potential share one network call a particle a step. The look-ahead reward of a
half-made sample is that of "Test-time scaling of diffusions with flow maps" (arXiv:2511.22688), the weights those of "A
general framework for inference-time scaling and steering of diffusion models" (arXiv:2501.06848), potential
"difference"; here weights are kept, not dropped, when no resampling happens.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from steer.flow_map import Batched, Cond, FlowMap, jump
from steer.interpolants import Interpolant
from steer.moves import restart
from steer.particles import (
    Particles,
    Resample,
    Reward,
    Trace,
    check_rewards,
    check_settings,
    check_start,
    ess,
    gather,
    log_mean_exp,
    normalise,
    resampler,
    tempered,
)


def ramp(u: float) -> float:
    """``u``: an equal part of the reward at each step. As u = (t / last_time)^2, gentle while ends are uncertain."""
    return u


@dataclass(frozen=True)
class SMC:
    """Particles that are jumped to the end, weighed by the reward found there, resampled and renoised.

    Attributes:
        steps: calls a particle, K.
        temperature: the target is p(x1) exp(reward / temperature).
        ess_threshold: resample a prompt when its effective sample size is below this share of n; 0 never, 1 always.
        resample: "systematic", "stratified", "multinomial", "residual", or a function of (log_w [p n], rng=...).
        schedule: lambda_k = schedule((k + 1) / K), a rise to schedule(1) = 1.
        last_time: where the last jump starts; t_k = last_time sqrt(k / (K - 1)). Closer to 1 the particles keep more of
            what was chosen, and explore less.
    """

    steps: int = 8
    temperature: float = 1.0
    ess_threshold: float = 0.5
    resample: str | Resample = "systematic"
    schedule: Callable[[float], float] = ramp
    last_time: float = 0.8
    needs_gradient: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_settings(self.steps, self.temperature)
        resampler(self.resample)
        if not 0 <= self.ess_threshold <= 1:
            raise ValueError(f"ess_threshold must be a share between 0 and 1, got {self.ess_threshold}")
        if not 0 < self.last_time < 1:
            raise ValueError(f"last_time must be between 0 (noise) and 1 (data), got {self.last_time}")
        if not math.isclose(self.schedule(1.0), 1.0):
            raise ValueError(f"schedule must end at 1, got schedule(1) = {self.schedule(1.0)}: the whole reward counts")

    @property
    def times(self) -> list[float]:
        """t_0 = 0 .. t_{K-1} = last_time."""
        return [self.last_time * math.sqrt(k / max(self.steps - 1, 1)) for k in range(self.steps)]

    @torch.no_grad()
    def __call__(
        self,
        flow: FlowMap,
        path: Interpolant,
        reward: Reward,
        x0: Tensor,
        cond: Cond = None,
        *,
        rng: torch.Generator,
    ) -> tuple[Particles, Trace]:
        """Particles and trace of x0 [p n *d]."""
        p, n = check_start(x0)
        x, times, last = x0, self.times, self.steps - 1
        base, ancestors = x0.new_zeros(p, n), torch.arange(n, device=x0.device).expand(p, n)
        log_z, sizes, low = x0.new_zeros(p), [], x0.new_zeros(self.steps, p, dtype=torch.bool)
        for k in range(last):
            x1, _, value = self._look(flow, reward, x, k, cond)
            log_w = value - base
            sizes.append(ess(log_w))
            low[k] = sizes[k] < self.ess_threshold * n
            if low[k].any():
                log_z = log_z + torch.where(low[k], log_mean_exp(log_w), 0)
                chosen = self._resample(log_w, low[k], rng)
                x1, value, base, ancestors = gather((x1, value, base, ancestors), chosen)
                base = torch.where(low[k, :, None], value, base)
            x = restart(flow, path, x, times[k], times[k + 1], cond, rng=rng, x1=x1)
        x1, rewards, value = self._look(flow, reward, x, last, cond)
        log_w = value - base
        sizes.append(ess(log_w))
        log_z = log_z + log_mean_exp(log_w)
        calls = n * self.steps
        trace = Trace.counted(torch.tensor(times), torch.stack(sizes), low, log_z, ancestors, calls, reward_calls=calls)
        return Particles(x1, normalise(log_w), rewards), trace

    def with_budget(self, calls: int, n: int = 16) -> "SMC":
        """The same method with as many steps as `calls` a prompt pay for; raises ValueError below n calls."""
        if calls < n:
            raise ValueError(f"budget of {calls} calls is too small for {n} particles; the least is {n}")
        return replace(self, steps=calls // n)

    def _look(self, flow: FlowMap, reward: Reward, x: Tensor, k: int, cond: Cond) -> tuple[Tensor, Tensor, Tensor]:
        """The jump to the end x1 [p n *d], its reward and its potential V_k [p n]."""
        x1 = jump(Batched(flow), x, self.times[k], 1.0, cond)
        rewards = check_rewards(reward(x1), (x.shape[0], x.shape[1]), x.dtype)
        return x1, rewards, self._potential(rewards, k)

    def _potential(self, rewards: Tensor, k: int) -> Tensor:
        """V_k [p n]: lambda r / temperature; the whole of it at the last step.

        Before that a rejected look-ahead (-inf) keeps the share 1 - lambda of the weight of the row's worst accepted
        one: its descendants may still be accepted, and killing it now would bias Z downwards.
        """
        value = tempered(rewards, self.temperature)
        lam = 1.0 if k == self.steps - 1 else self.schedule((k + 1) / self.steps)
        if lam >= 1:
            return value
        rejected = value == -math.inf
        worst = torch.where(rejected, math.inf, value).amin(-1, keepdim=True)
        worst = torch.where(worst == math.inf, 0, worst)
        return torch.where(rejected, lam * worst + math.log1p(-lam), lam * torch.where(rejected, worst, value))

    def _resample(self, log_w: Tensor, low: Tensor, rng: torch.Generator) -> Tensor:
        """Indices [p n]: redrawn in the rows `low` [p], unchanged in the others."""
        stay = torch.arange(log_w.shape[1], device=log_w.device).expand_as(log_w)
        return torch.where(low[:, None], resampler(self.resample)(log_w, rng=rng), stay)
