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

from steer.draws import Rng
from steer.flow_map import Cond, FlowMap
from steer.interpolants import Interpolant
from steer.lookahead import Jump, damping
from steer.moves import restart_kernel
from steer.particles import (
    Particles,
    Reward,
    Trace,
    check_between,
    check_choice,
    check_least,
    check_settings,
    length,
    limited,
    steps_within,
    tempered,
)
from steer.population import Population
from steer.run import Run


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
        check_least(self, strength=0, max_ratio=0)
        check_between(self, data_std=(0, math.inf), last_time=(0, 1))
        check_choice(self, weights=("uniform", "path"))

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
        """Particles and trace of x0 [p n *d]; raises ValueError when the reward has no gradient."""
        run = Run(flow, path, reward, x0, cond, rng=rng)
        population, x, push = Population(run, x0), x0.detach(), []
        times = [self.last_time * k / self.steps for k in range(self.steps + 1)]
        for t, after in zip(times, times[1:], strict=False):
            look = run.look_gradient(Jump(), x, t)
            x1 = look.x1[0]
            delta, ratio = self._push(path, x, x1, look.gradient, t, after)
            push.append(ratio)
            x, log_ratio = restart_kernel(path, x1, after).draw(rng, delta)
            population.weigh(log_ratio if self.weights == "path" else torch.zeros_like(log_ratio), t)
        last = run.look(Jump(), x, times[-1])
        rewards = last.rewards[0]
        gain = tempered(rewards, self.temperature) if self.weights == "path" else torch.zeros_like(rewards)
        population.weigh(gain, times[-1])
        push.append(torch.zeros_like(push[0]))
        return population.finish(last.x1[0], rewards, log_z=self.weights == "path", push=push)

    def with_budget(self, calls: int, n: int = 16) -> "Guidance":
        """The same method with as many steps as `calls` a prompt pay for; raises ValueError below 4 n calls."""
        return replace(self, steps=steps_within(calls, n, a_step=3, besides=1))

    def _push(
        self, path: Interpolant, x: Tensor, x1: Tensor, gradient: Tensor | None, t: float, after: float
    ) -> tuple[Tensor, Tensor]:
        """Delta [p n *d], the shift of the restart move from t to after, and its length over the bound's unit [p]."""
        spread, spread_after = (math.hypot(path.alpha(u), path.beta(u) * self.data_std) for u in (t, after))
        size = spread_after if t == 0 else (spread_after - path.beta(after) * self.data_std) * spread
        assert gradient is not None
        delta = size * self._lam(path, t) * gradient
        unit = (after - t) / (1 - t) * length(x1 - x)
        return limited(delta, unit, self.max_ratio)

    def _lam(self, path: Interpolant, t: float) -> float:
        lam = self.strength / self.temperature
        return lam * damping(path, t, lam, self.data_std) if self.damping else lam
