"""Training-free guidance: DPS, FreeDoM, universal guidance and TFG are settings of one loop.

    for k = 0 .. K-1, each R times:
        x1 = D_{t_k}(x), the look-ahead;  r~(z) = log mean_j exp(r(z + sigma_t e_j) / temperature),  e_j ~ N(0, I)
        Delta_t = rho_k J^T grad r~(x1),  J = d x1 / d x;  Delta_0 = z - x1,  z from x1 by N_iter z += mu_k grad r~
        x' = beta' x1 + alpha' n + Delta_t + beta' Delta_0,   n = (x - beta x1) / alpha, the noise in x     (DDIM)
        but for the last time: x = renoise x' from t_{k+1} back to t_k
    x1 = X_{t_K,1}(x)                                              a plain jump: ends stay on the data

It meets no law: the gradient at one guessed end stands for that of V_t, whatever the posterior's width.

    DPS                 rho alone, grad r~ scaled to one length (their division by |y - A x1|, for rewards at large)
    FreeDoM             rho alone, rising, R > 1
    universal guidance  rho (their "forward") and mu = rho ("backward"), falling, R > 1
    TFG                 rho : mu = 4 : 1, N_iter = 4, both rising, sigma = .001

Ours: rho and mu are totals, divided among the steps (the papers add the whole of theirs at each step, so that more
steps steer more); the pushes are bounded; Delta_t is not divided by beta_t / beta_t', which is 0 at pure noise.

Sources: "Diffusion posterior sampling for general noisy inverse problems" (DPS, arXiv:2209.14687); "FreeDoM"
(arXiv:2303.09833); "Universal guidance for diffusion models" (arXiv:2302.07121); "TFG: unified training-free guidance
for diffusion models" (arXiv:2409.15761).
"""

import math
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from steer.draws import Rng, draws_like, randn_like
from steer.flow_map import Cond, FlowMap
from steer.interpolants import Interpolant
from steer.lookahead import Denoiser, Jump, LookAhead, Rollout, soft_value
from steer.moves import renoise
from steer.particles import (
    Particles,
    Reward,
    Trace,
    bounded,
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
from steer.run import Run


@dataclass(frozen=True)
class TrainingFreeGuidance:
    """Particles pushed by the reward's gradient at a guessed end; a heuristic: log_z is NaN, weights are equal.

    A pass (a step, once) costs 3 calls a particle (1 if rho = 0), the run one more; inner steps cost rewards alone.

    Attributes:
        steps: guided steps, K (1000 in DPS, 100 in FreeDoM, 500 in universal guidance, 50 or 100 in TFG).
        temperature: the reward is divided by it.
        rho: strength of the gradient in x through the look-ahead, summed over the steps (in TFG 1 at each of 50).
        mu: strength of the gradient in x1, summed over the steps, of each inner step (in TFG .25 at each of 50).
        inner: gradient steps in x1, N_iter (4 in TFG).
        recurrence: times each step is made, R or N_recur, with the noise put back in between; the first step is made
            once, since pure noise remembers nothing.
        smoothing: sigma; the noise added to the look-ahead is sigma_t = sigma alpha / sqrt(alpha^2 + beta^2).
        draws: of that noise (1 in TFG).
        schedule: shares of rho and mu among the steps, as in TFG: "increase" with the ratio of the signal's shares of
            the variance before and after the step, "decrease" with one less that ratio, or "constant".
        normalise: scale each gradient in x1 to the length of the flow's own move in the step, so that rho and mu are
            ratios to it, and the reward's scale and temperature do not matter.
        lookahead: `Denoiser` (as published), `Jump` or `Rollout`.
        noise: "ddim" keeps the noise n; "ddpm" renews what DDPM does (as in DPS and TFG, eta = 1), more the longer the
            step; "restart" renews all, which with `Jump` and no strength keeps the marginals at any step length.
        max_ratio: bound on a push, as a multiple of the length of the flow's own move; math.inf (as published) for
            none.
        last_time: the guided times are K equal parts from 0 to here; the last, plain jump starts here.
    """

    steps: int = 8
    temperature: float = 1.0
    rho: float = 2.0
    mu: float = 0.5
    inner: int = 4
    recurrence: int = 1
    smoothing: float = 0.001
    draws: int = 1
    schedule: Literal["increase", "decrease", "constant"] = "increase"
    normalise: bool = False
    lookahead: LookAhead = field(default_factory=Denoiser)
    noise: Literal["ddim", "ddpm", "restart"] = "ddim"
    max_ratio: float = 1.0
    last_time: float = 0.8

    def __post_init__(self) -> None:
        check_settings(self.steps, self.temperature)
        check_least(self, rho=0, mu=0, inner=0, recurrence=1, smoothing=0, draws=1, max_ratio=0)
        check_choice(self, schedule=("increase", "decrease", "constant"), noise=("ddim", "ddpm", "restart"))
        check_between(self, last_time=(0, 1))
        if not isinstance(self.lookahead, Denoiser | Jump | Rollout):
            raise ValueError(
                f"lookahead must be Denoiser(), Jump() or Rollout(), got {self.lookahead!r}; for draws of the "
                "posterior use PosteriorGuidance"
            )

    @property
    def needs_gradient(self) -> bool:
        """Whether the reward is differentiated."""
        return self.rho > 0 or (self.mu > 0 and self.inner > 0)

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
        for t, after, share in zip(times, times[1:], self._shares(path, times), strict=False):
            for again in reversed(range(self.recurrence if t > 0 else 1)):
                x, ratio = self._step(run, x, t, after, share)
                x = renoise(path, x, after, t, rng=rng) if again else x
                population.weigh(torch.zeros_like(population.log_w), t)
                push.append(ratio)
        last = run.look(Jump(), x, times[-1])
        population.weigh(torch.zeros_like(population.log_w), times[-1])
        push.append(torch.zeros_like(push[0]))
        return population.finish(last.x1[0], last.rewards[0], log_z=False, push=push)

    def with_budget(self, calls: int, n: int = 16) -> "TrainingFreeGuidance":
        """The same method with as many steps as `calls` a prompt pay for; at least two where steps recur.

        Raises ValueError below the cost of those.
        """
        a_pass, first = self.lookahead.calls * (3 if self.rho else 1), int(self.recurrence > 1)
        more = steps_within(calls, n, a_step=self.recurrence * a_pass, besides=1 + first * a_pass)
        return replace(self, steps=first + more)

    def _step(self, run: Run, x: Tensor, t: float, after: float, share: float) -> tuple[Tensor, Tensor]:
        """X at the time after, and the push's length before the bound over that of the flow's own move [p]."""
        path, blur = run.path, self._blur(run, x, t)
        beta, beta_after = path.beta(t), path.beta(after)
        x1, slope = self._outer(run, x, t, blur)
        noise = (x - beta * x1) / path.alpha(t)
        unit = length(beta_after * x1 + path.alpha(after) * noise - x)
        scale = self.steps * unit if self.normalise else torch.ones_like(unit)
        moved, asked = self._inner(run, x1, blur, share * scale, unit / beta_after)
        delta = self.rho * share * scale * slope
        _, ratio = limited(delta + beta_after * asked, unit, self.max_ratio)
        delta, _ = limited(delta + beta_after * moved, unit, self.max_ratio)
        if self.noise != "ddim":
            kept = path.alpha(after) * beta / (path.alpha(t) * beta_after) if self.noise == "ddpm" else 0.0
            noise = kept * noise + math.sqrt(1 - kept**2) * randn_like(x, run.rng)
        return beta_after * x1 + path.alpha(after) * noise + delta, ratio

    def _blur(self, run: Run, x: Tensor, t: float) -> Tensor:
        """sigma_t e [k p n *d]."""
        if not self.smoothing:
            return torch.zeros_like(x)[None]
        alpha, beta = run.path.alpha(t), run.path.beta(t)
        return self.smoothing * alpha / math.hypot(alpha, beta) * draws_like(x, self.draws, run.rng)

    def _outer(self, run: Run, x: Tensor, t: float, blur: Tensor) -> tuple[Tensor, Tensor]:
        """x1 and ``J^T grad r~(x1)`` [p n *d]."""
        if not self.rho:
            return self.lookahead(run.flow, run.path, x, t)[0], torch.zeros_like(x)

        def value(part: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
            x1 = self.lookahead(run.flow, run.path, part, t)[0]
            slope = self._slope(run, x1.detach(), blur[:, :, columns])
            return (x1 * slope).flatten(2).sum(-1), x1.detach()

        slope, x1 = run.gradient(value, x)
        return torch.cat(x1, 1), slope

    def _inner(self, run: Run, x1: Tensor, blur: Tensor, scale: Tensor, unit: Tensor) -> tuple[Tensor, Tensor]:
        """Delta_0 [p n *d], kept within the bound after each inner step, and the sum of what those asked for."""
        moved, asked = torch.zeros_like(x1), torch.zeros_like(x1)
        for _ in range(self.inner if self.mu else 0):
            step = self.mu * scale * self._slope(run, x1 + moved, blur)
            moved, asked = bounded(moved + step, self.max_ratio * unit), asked + step
        return moved, asked

    def _slope(self, run: Run, x1: Tensor, blur: Tensor) -> Tensor:
        """Grad r~(x1) [p n *d], of length one if normalised."""

        def value(part: Tensor, columns: slice) -> tuple[Tensor, None]:
            return soft_value(tempered(run.rewards(part + blur[:, :, columns]), self.temperature)), None

        slope, _ = run.gradient(value, x1, draws=len(blur))
        return unit_length(slope) if self.normalise else slope

    def _shares(self, path: Interpolant, times: list[float]) -> list[float]:
        """The steps' shares of rho and mu; they sum to one."""
        signal = [path.beta(t) ** 2 / (path.alpha(t) ** 2 + path.beta(t) ** 2) for t in times]
        kept = [before / after for before, after in zip(signal, signal[1:], strict=False)]
        raw = {"increase": kept, "decrease": [1 - a for a in kept], "constant": [1.0] * self.steps}[self.schedule]
        total = math.fsum(raw)
        return [a / total for a in raw] if total else [1.0]
