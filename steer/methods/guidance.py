"""Guidance: follow the reward's gradient through the jump to the end, on several particles.

    for k = 0 .. K-1:
        x1 = X_{t_k,1}(x);  g = grad_x r(X_{t_k,1}(x)) lambda_t                 a gradient call, 3 units
        delta = c(t_k, t_{k+1}) g, shortened to max_ratio times the length of the move of the flow, v (t_{k+1} - t_k)
        x = beta x1 + alpha z + delta                                           the restart move, shifted
    x1 = X_{t_K,1}(x)                                                           a plain jump: ends stay on the data

It is the guided velocity ``b* = b + eta grad V`` of the tilted law, in a form that stays finite at t = 0 and may take
few steps. With the damping ``lambda_t = lam / (1 + 2 lam s^2)``, ``lam = strength / temperature`` and
``s^2 = data_std^2 alpha^2 / (alpha^2 + beta^2 data_std^2)``, the variance of p(x1 | x_t) for data of that width: a
steep reward cannot push further than the posterior is wide ("Are we really tilting?", arXiv:2606.02884). Guiding
through the jump with a length tied to the velocity's is from "Flow map reward guidance" (arXiv:2604.27147). The
coefficient is ours: for S_t = alpha^2 + beta^2 data_std^2,

    c = sqrt(S_t') (first step),  c = (sqrt(S_t') - beta_t' data_std) sqrt(S_t) (later: what renoising made it forget),

so that for Gaussian data of that width, a linear reward, no damping and no bound, the tilted law is met exactly at any
K.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from steer.flow_map import Batched, Cond, FlowMap, jump
from steer.interpolants import Interpolant, interpolate, randn_like
from steer.particles import (
    Particles,
    Reward,
    Trace,
    check_rewards,
    check_settings,
    check_start,
    ess,
    log_mean_exp,
    normalise,
    tempered,
)


@dataclass(frozen=True)
class Guidance:
    """Particles pushed up the reward's gradient, each on its own.

    Attributes:
        steps: guided steps, K; a run costs 3 K + 1 calls a particle.
        temperature: the push is proportional to 1 / temperature.
        strength: multiplies the push further.
        max_ratio: bound on a push, as a multiple of the length of the flow's own move in the same step, so that no
            reward, however steep, throws a sample off the data; math.inf for none.
        damping: shorten the push as above; exact for a reward quadratic in x1, too short for a linear one.
        data_std: rough standard deviation of one coordinate of the data (in the space of the flow).
        last_time: the guided times are K equal parts from 0 to here; the last, plain jump starts here.
        weights: "uniform": equal weights and log_z = NaN; the law of the samples is heuristic, near the tilted law for
            gentle rewards only. "path": the exact weights ``r / temperature - sum_k (delta.z / alpha + |delta|^2 /
            (2 alpha^2))`` of the guided path against the unguided one: a guided importance sampler of the tilted law
            with E[Z_hat] = Z. They are uneven in high dimension, hence not the default.
    """

    steps: int = 8
    temperature: float = 1.0
    strength: float = 1.0
    max_ratio: float = 1.0
    damping: bool = True
    data_std: float = 1.0
    last_time: float = 0.8
    weights: Literal["uniform", "path"] = "uniform"
    needs_gradient: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_settings(self.steps, self.temperature)
        for name in ("strength", "max_ratio"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if not 0 < self.data_std < math.inf:
            raise ValueError(f"data_std must be positive, got {self.data_std}")
        if not 0 < self.last_time < 1:
            raise ValueError(f"last_time must be between 0 (noise) and 1 (data), got {self.last_time}")
        if self.weights not in ("uniform", "path"):
            raise ValueError(f"weights must be 'uniform' or 'path', got {self.weights!r}")

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
        """Particles and trace of x0 [p n *d]; raises ValueError when the reward has no gradient."""
        p, n = check_start(x0)
        x, log_w = x0.detach(), x0.new_zeros(p, n)
        times = [self.last_time * k / self.steps for k in range(self.steps + 1)]
        sizes = []
        for k, (t, after) in enumerate(zip(times, times[1:], strict=False)):
            x1, gradient = self._look(flow, reward, x, t, cond)
            delta = self._push(path, x, x1, gradient, t, after, first=k == 0)
            z = randn_like(x, rng)
            alpha = path.alpha(after)
            x = interpolate(path, z, x1, after) + delta
            log_w = log_w - (delta * z / alpha + delta**2 / (2 * alpha**2)).flatten(2).sum(-1)
            sizes.append(ess(log_w))
        x = jump(Batched(flow), x, times[-1], 1.0, cond)
        rewards = check_rewards(reward(x), (p, n), x.dtype)
        log_w, log_z = self._weigh(log_w, rewards)
        trace = Trace.counted(
            torch.tensor(times),
            torch.stack([*sizes, ess(log_w)]),
            torch.zeros(self.steps + 1, p, dtype=torch.bool, device=x.device),
            log_z,
            torch.arange(n, device=x.device).expand(p, n),
            forward=n * (self.steps + 1),
            backward=n * self.steps,
            reward_calls=n * (self.steps + 1),
        )
        return Particles(x, normalise(log_w), rewards), trace

    def with_budget(self, calls: int, n: int = 16) -> "Guidance":
        """The same method with as many steps as `calls` a prompt pay for; raises ValueError below 4 n calls."""
        steps = (calls // n - 1) // 3
        if steps < 1:
            raise ValueError(f"budget of {calls} calls is too small to guide {n} particles; the least is {4 * n}")
        return replace(self, steps=steps)

    def _look(self, flow: FlowMap, reward: Reward, x: Tensor, t: float, cond: Cond) -> tuple[Tensor, Tensor]:
        """X_{t,1}(x) and the gradient of its reward in x; zero where the reward rejects (-inf)."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            x1 = jump(Batched(flow), x, t, 1.0, cond)
            r = reward(x1)
            rewards = check_rewards(r, (x.shape[0], x.shape[1]), x.dtype)
            if not rewards.requires_grad:
                raise ValueError("Guidance needs a reward that torch can differentiate, this one is not; use SMC")
            accepted = torch.where(rewards == -math.inf, 0, rewards)
            (gradient,) = torch.autograd.grad(accepted.sum(), x)
        return x1.detach(), gradient.nan_to_num(0.0, 0.0, 0.0)

    def _push(
        self, path: Interpolant, x: Tensor, x1: Tensor, gradient: Tensor, t: float, after: float, *, first: bool
    ) -> Tensor:
        """Delta [p n *d], the shift of the restart move from t to after."""
        spread, spread_after = (math.hypot(path.alpha(u), path.beta(u) * self.data_std) for u in (t, after))
        size = spread_after if first else (spread_after - path.beta(after) * self.data_std) * spread
        delta = size * self._lam(path, t) * gradient
        bound = self.max_ratio * (after - t) / (1 - t) * _length(x1 - x)
        return delta * (bound / _length(delta).clamp(min=torch.finfo(x.dtype).tiny)).clamp(max=1)

    def _lam(self, path: Interpolant, t: float) -> float:
        lam = self.strength / self.temperature
        alpha, beta = path.alpha(t), path.beta(t)
        variance = (self.data_std * alpha) ** 2 / (alpha**2 + (beta * self.data_std) ** 2)
        return lam / (1 + 2 * lam * variance) if self.damping else lam

    def _weigh(self, log_w: Tensor, rewards: Tensor) -> tuple[Tensor, Tensor]:
        if self.weights == "path":
            log_w = log_w + tempered(rewards, self.temperature)
            return log_w, log_mean_exp(log_w)
        return torch.zeros_like(log_w), torch.full_like(log_w[:, 0], math.nan)


def _length(x: Tensor) -> Tensor:
    """Norm of each particle [p n 1 ... 1]."""
    return torch.linalg.vector_norm(x.flatten(2), dim=-1).reshape(x.shape[:2] + (1,) * (x.ndim - 2))
