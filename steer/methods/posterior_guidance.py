"""Posterior guidance (MFM-G, MFM-GF): the flow's velocity plus the gradient of the value, over draws of p(x1 | x_t).

    for k = 0 .. K-1:
        z_1 .. z_k ~ p(x1 | x_{t_k}),  w = softmax(r(z) / temperature)
        D* - D = sum_j w_j z_j - mean_j z_j                                      gradient=False (MFM-GF): any reward
               = (alpha^2 / beta) sum_j w_j grad_x r(z_j(x)) / temperature       gradient=True  (MFM-G)
        x = X_{t_k,t_{k+1}}(x) + c (D* - D),   c = beta' - beta alpha' / alpha   (linear path: (t' - t) / (1 - t))
    x1 = X_{t_K,1}(x)                                                            a plain jump

It is the exact guided flow ``b* = b + eta grad V`` of the tilted law, ``eta grad V = (Delta / alpha)(D* - D)``: as
steps and draws grow and last_time -> 1 noise is carried to the tilted law. The flow's own part of a step has no error.
With ``churn`` a step goes on to ``u = t' + churn (t' - t)``, pushed on its way, and noises back to t': the SDE
``[b + eps s + (eta + eps) grad V] dt + sqrt(2 eps) dW``, eps = churn eta.

With a gradient eta grows without bound towards pure noise, where grad V vanishes. The paper clamps it at 25, which
weakens the drift; here earlier times look ahead as if from the time at which alpha / beta = eta_max.

Source: "Meta flow maps" (arXiv:2601.14430); its 250 Euler steps by jumps, and the untrained draws, are ours.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from steer.draws import Rng
from steer.flow_map import Cond, FlowMap
from steer.interpolants import Interpolant
from steer.lookahead import Jump, LookAhead, mean_shift
from steer.moves import sde_kernel
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
    unit_length,
)
from steer.population import Population
from steer.posterior import Glass
from steer.run import Run


@dataclass(frozen=True)
class PosteriorGuidance:
    """Particles along the guided flow of the tilted law; with few steps or draws a heuristic.

    A step costs ``lookahead.calls + 1`` calls a particle (three times the look-ahead's with gradient=True), the run
    one more: with the default look-ahead 37 (MFM-G) and 13 (MFM-GF), with `steer.posterior.Learned(k=2)` 7 and 3.

    Attributes:
        steps: guided steps, K (250 in the paper).
        temperature: the target is p(x1) exp(reward / temperature).
        gradient: True differentiates reward and network (MFM-G), False neither (MFM-GF).
        lookahead: draws of the posterior, from `steer.posterior` (4 in the paper); `Learned` for a map trained to make
            them.
        churn: noise of the steps, see `steer.moves.sde`: 0 the ODE, 1 the memoryless SDE, math.inf the restart.
        weights: "uniform": equal weights and log_z = NaN. "path": the exact weights of the guided path against the
            unguided one, for any churn > 0: an importance sampler of the tilted law with E[Z_hat] = Z.
        normalise: scale each push to the length of the flow's own move in the step, as the paper's code does; the law
            is then no longer met.
        max_ratio: bound on a push, as a multiple of that length; math.inf for none.
        eta_max: see the module; 25 in the paper. Without effect where gradient=False, which needs no bound.
        last_time: the guided times are K equal parts from 0 to here; the last, plain jump starts here.
    """

    steps: int = 8
    temperature: float = 1.0
    gradient: bool = True
    lookahead: LookAhead = field(default_factory=lambda: Glass(k=4, steps=2))
    churn: float = 0.0
    weights: Literal["uniform", "path"] = "uniform"
    normalise: bool = False
    max_ratio: float = 1.0
    eta_max: float = 25.0
    last_time: float = 0.8

    def __post_init__(self) -> None:
        check_settings(self.steps, self.temperature)
        check_least(self, churn=0, max_ratio=0)
        check_between(self, eta_max=(0, math.inf), last_time=(0, 1))
        check_choice(self, weights=("uniform", "path"))
        if self.weights == "path" and self.churn == 0:
            raise ValueError("weights='path' with churn=0: a step without noise has no weight; use churn > 0")

    @property
    def needs_gradient(self) -> bool:
        """Whether the reward is differentiated."""
        return self.gradient

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
        """Particles and trace of x0 [p n *d]; raises ValueError when gradient=True and the reward has none."""
        run = Run(flow, path, reward, x0, cond, rng=rng)
        population, x, push = Population(run, x0), x0.detach(), []
        times = [self.last_time * k / self.steps for k in range(self.steps + 1)]
        for t, after in zip(times, times[1:], strict=False):
            x, log_ratio, ratio = self._step(run, x, t, after)
            population.weigh(log_ratio if self.weights == "path" else torch.zeros_like(log_ratio), t)
            push.append(ratio)
        last = run.look(Jump(), x, times[-1], self.temperature)
        population.weigh(last.value if self.weights == "path" else torch.zeros_like(last.value), times[-1])
        push.append(torch.zeros_like(push[0]))
        return population.finish(last.x1[0], last.rewards[0], log_z=self.weights == "path", push=push)

    def with_budget(self, calls: int, n: int = 16) -> "PosteriorGuidance":
        """The same method with as many steps as `calls` a prompt pay for; raises ValueError below the cost of one."""
        a_step = self.lookahead.calls * (3 if self.gradient else 1) + 1
        return replace(self, steps=steps_within(calls, n, a_step=a_step, besides=1))

    def _step(self, run: Run, x: Tensor, t: float, after: float) -> tuple[Tensor, Tensor, Tensor]:
        """X at the time after, the log-weight of its push [p n], and the push's length before the bound [p]."""
        path, beyond = run.path, min(1.0, after + self.churn * (after - t))
        back = path.beta(after) / path.beta(beyond)
        weight = path.beta(beyond) - path.beta(t) * path.alpha(beyond) / path.alpha(t)
        shift = back * weight * self._shift(run, x, t)
        kernel = sde_kernel(run.flow, path, x, t, after, churn=self.churn)
        unit = length(kernel.mean - back * x)
        shift = unit * unit_length(shift) if self.normalise else shift
        shift, ratio = limited(shift, unit, self.max_ratio)
        if kernel.std == 0:
            return kernel.mean + shift, x.new_zeros(x.shape[:2]), ratio
        return *kernel.draw(run.rng, shift), ratio

    def _shift(self, run: Run, x: Tensor, t: float) -> Tensor:
        """D* - D [p n *d], what the reward adds to E[x1 | x_t]."""
        path = run.path
        if self.gradient:
            t = max(t, path.when(1 / self.eta_max))
            gradient = run.look_gradient(self.lookahead, x, t, self.temperature).gradient
            assert gradient is not None
            return path.alpha(t) ** 2 / path.beta(t) * gradient
        x1, log_w = self.lookahead.weighted(run.flow, path, x, t, rng=run.rng, event=x.ndim - 2)
        return mean_shift(x1, tempered(run.rewards(x1), self.temperature), log_w=log_w)
