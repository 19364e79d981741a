"""Flow-map trajectory tilting: an SDE that drifts up the reward of where the flow map says it will land.

    r_t(x) = t r(X_{t,1}(x)) / temperature                      r_0 = 0, r_1 = r / temperature
    for k = 0 .. K-1,  t_k = k / (K+1),  h = 1 / (K+1):
        g = grad r_t(x)                                         through the jump; nothing to do at t = 0
        at R of the steps:  "sample": resample by w where the ESS is low;  "search": keep the best n/C by r_t, C copies
        x' ~ N(x + h (b + eps s) + h (chi_t + eps) g, 2 eps h I),   eps = 1 - t,  chi_t = chi (1-t) / (t + .05)
        log w += r_t'(x') - r_t(x) + log of the density ratio of x' without and with g             weights="path"
        log w += h r(X_{t,1}(x)) / temperature                                                     weights="continuous"
    x1 = X_{t_K,1}(x)

Both weights lead to p(x1) exp(r(x1) / temperature), for a reason each. Path weights compare the guided path with the
unguided one: they are exact at any K, bound and chi for what the chain of Euler steps itself samples, so its step error
is all that is left, whatever the map's. The continuous ones follow p_t exp(r_t): since X_{t,1} is constant along the
flow, all that is left of their rate is the explicit factor, d/dt t = 1. They need short steps and an exact map.

Sources: "Test-time scaling of diffusions with flow maps" (arXiv:2511.22688), algorithm and continuous weights; path
weights as in "Practical and asymptotically exact conditional sampling in diffusion models" (arXiv:2306.17775).
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from steer.draws import Rng
from steer.flow_map import Cond, FlowMap
from steer.interpolants import Interpolant
from steer.lookahead import Jump
from steer.moves import euler_kernel
from steer.particles import Particles, Reward, Trace, bounded, check_settings, gather, length, steps_within
from steer.population import Population
from steer.resampling import Resample, resampler
from steer.run import Run


@dataclass
class _Carried:
    """What a particle carries [p n ...]: all of it is gathered together."""

    x: Tensor
    x1: Tensor
    spent: Tensor
    gradient: Tensor


@dataclass(frozen=True)
class FlowMapTilting:
    """Weighted particles of the tilted law, with log Z ("sample"), or particles of high reward ("search").

    Attributes:
        steps: Euler steps, K; a run costs 4 K - 1 calls a particle. The paper's 28.
        temperature: the target is p(x1) exp(reward / temperature).
        mode: "search" copies the best without weights: it is no sample of the tilted law, and log_z is NaN.
        weights: "path" or "continuous", of mode "sample"; see the module. Where max_ratio shortens a drift, continuous
            weights no longer hold, and log_z of that prompt is NaN.
        chi: scale of the further drift chi_t g; the paper's code has 1.05. None: 1.05, but 0 with continuous weights,
            which hold for no other.
        resamplings: steps at which is resampled or searched, evenly spread, R; the paper's 4.
        clones: copies of each one kept in a search, C; the paper's 2.
        ess_threshold: resample a prompt when its effective sample size is below this share of n; 1, always, is the
            paper's.
        resample: as of `steer.methods.SMC`; the paper's is "multinomial".
        max_ratio: bound on the drift up the reward, as a multiple of the length of the flow's own move in the same
            step; the paper has none, which is math.inf.
    """

    steps: int = 28
    temperature: float = 1.0
    mode: Literal["sample", "search"] = "sample"
    weights: Literal["path", "continuous"] = "path"
    chi: float | None = None
    resamplings: int = 4
    clones: int = 2
    ess_threshold: float = 0.5
    resample: str | Resample = "systematic"
    max_ratio: float = 1.0
    needs_gradient: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_settings(self.steps, self.temperature)
        resampler(self.resample)
        for name, known in (("mode", ("sample", "search")), ("weights", ("path", "continuous"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        for name, least in (("chi", 0), ("resamplings", 0), ("clones", 1), ("max_ratio", 0)):
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if not 0 <= self.ess_threshold <= 1:
            raise ValueError(f"ess_threshold must be a share between 0 and 1, got {self.ess_threshold}")
        if self.chi and self._kind == "continuous":
            raise ValueError(f"chi must be 0 with weights='continuous', got {self.chi}; use weights='path'")

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
        population, x, push = Population(run, x0, self.ess_threshold, self.resample), x0.detach(), []
        times, spent = [k / (self.steps + 1) for k in range(self.steps + 1)], x0.new_zeros(run.p, run.n)
        for k, (t, after) in enumerate(zip(times, times[1:], strict=False)):
            look = (run.look_gradient if k else run.look)(Jump(), x, t, self.temperature)
            population.weigh(self._gain(look.value, spent, t, after), t)
            g = torch.zeros_like(x) if look.gradient is None else t * look.gradient
            state = _Carried(x, look.x1[0], potential(look.value, t), g)
            state = self._chosen(population, state, look.value) if k in self._events else state
            shift, ratio = self._shift(state, t, after)
            kernel = euler_kernel(run.flow, path, state.x, t, after, epsilon=1 - t)
            x, log_ratio = kernel.draw(rng, shift)
            spent = state.spent
            if self._kind == "path":
                population.log_w = population.log_w + log_ratio
            elif self._kind == "continuous":
                population.log_z = population.log_z.masked_fill((ratio > self.max_ratio).any(1), math.nan)
            push.append(ratio.mean(1))
        last = run.look(Jump(), x, times[-1], self.temperature)
        population.weigh(self._gain(last.value, spent, times[-1], 1.0), times[-1])
        push.append(torch.zeros_like(push[0]))
        return population.finish(last.x1[0], last.rewards[0], log_z=self._kind != "search", push=push)

    def with_budget(self, calls: int, n: int = 16) -> "FlowMapTilting":
        """The same method with as many steps as `calls` a prompt pay for; raises ValueError below 7 n calls (two)."""
        return replace(self, steps=1 + steps_within(calls, n, a_step=4, besides=3))

    @property
    def _kind(self) -> str:
        """What the weights are: "path", "continuous", or none in a "search"."""
        return self.weights if self.mode == "sample" else "search"

    @property
    def _events(self) -> set[int]:
        """The steps of a resampling or search, of which the first, where nothing is known yet, is none."""
        return {round(j * self.steps / (self.resamplings + 1)) for j in range(1, self.resamplings + 1)} - {0}

    def _gain(self, value: Tensor, spent: Tensor, t: float, after: float) -> Tensor:
        """What the log-weights grow by at a look from time t [p n]; the last one is at t and 1."""
        if self._kind == "path":
            return potential(value, 1.0 if after == 1 else t) - spent
        if self._kind == "continuous":
            return potential(value, after) - potential(value, t)
        return torch.zeros_like(value)

    def _chosen(self, population: Population, state: _Carried, value: Tensor) -> _Carried:
        """The particles after a resampling by weight, or a search: the best n/C by value [p n], C times each."""
        if self.mode == "sample":
            return population.resample(state)
        n = value.shape[1]
        best = value.sort(dim=-1, descending=True, stable=True).indices[:, : math.ceil(n / self.clones)]
        population.low[-1] = torch.ones_like(population.low[-1])
        state, population.ancestors = gather((state, population.ancestors), best.repeat(1, self.clones)[:, :n])
        return state

    def _shift(self, state: _Carried, t: float, after: float) -> tuple[Tensor, Tensor]:
        """``h (chi_t + eps) g`` [p n *d], bounded, and its length before that over the flow's own move's [p n]."""
        chi = self.chi if self.chi is not None else 0.0 if self._kind == "continuous" else 1.05
        shift = (after - t) * (1 - t) * (chi / (t + 0.05) + 1) * state.gradient
        unit = ((after - t) / (1 - t) * length(state.x1 - state.x)).clamp(min=torch.finfo(shift.dtype).tiny)
        return bounded(shift, self.max_ratio * unit), (length(shift) / unit).flatten(1)


FMTT = FlowMapTilting


def potential(value: Tensor, t: float) -> Tensor:
    """``r_t = t value`` [p n]; what looks rejected (-inf) at t < 1 may still be accepted, and is not killed.

    It gets ``log (1 - t)`` below the row's worst accepted one, which grows to a rejection at t = 1.
    """
    if t == 1:
        return value
    rejected = value == -math.inf
    worst = torch.where(rejected, math.inf, value).amin(-1, keepdim=True)
    worst = torch.where(worst == math.inf, 0, worst)
    return t * torch.where(rejected, worst, value) + math.log(1 - t) * rejected
