"""Sequential Monte Carlo: particles that look ahead to the end, are weighed by the reward found there, and resampled.

    x_{t_0} ~ N(0, I)
    for k = 0 .. K-1:
        V_k = lambda_k log mean_j exp(r(z_j) / temperature),  z_j the look-ahead from x_{t_k}; V_{K-1} = r / temperature
        log w += log G_k                                          "difference": G_k = exp(V_k - V_{k-1})
        if ESS(w) < ess_threshold n:  log Z += log mean w;  resample;  w = 1
        x_{t_{k+1}} ~ the chain's move from x_{t_k}, with an exact weight if the reward's gradient shifts it

The chain's move keeps the marginals of the model and its last one is the jump to the end, so under an exact map
E[Z_hat] = E[exp(r / temperature)] at any number of steps, whatever look-ahead guides it. By default it is the restart
chain with the jump: then look-ahead and move share ONE network call a particle a step.

Sources: the look-ahead, "Test-time scaling of diffusions with flow maps" (arXiv:2511.22688); potentials, "A general
framework for inference-time scaling and steering of diffusion models" (FK steering, arXiv:2501.06848), here with
weights kept when no resampling happens and an exact last correction; twisting, "Practical and asymptotically exact
conditional sampling in diffusion models" (TDS, arXiv:2306.17775); tempering, "Test-time alignment of diffusion models
without reward over-optimization" (DAS, arXiv:2501.05803); the early-stopped chain, "Diamond maps" (arXiv:2602.05993).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from steer.draws import Rng
from steer.flow_map import Cond, FlowMap
from steer.interpolants import Interpolant
from steer.lookahead import Jump, LookAhead, Rollout
from steer.moves import JumpTimes, Kernel, early_stop, restart_kernel, sde_kernel
from steer.particles import Particles, Reward, Trace, bounded, check_settings, ess, length, steps_within
from steer.population import Population
from steer.resampling import Resample, resampler
from steer.run import Look, Run


def ramp(u: float) -> float:
    """``u``: an equal part of the reward at each step. As u = (t / last_time)^2, gentle while ends are uncertain."""
    return u


@dataclass
class _Carried:
    """What a particle carries [p n ...]: all of it is gathered together."""

    x: Tensor
    x1: Tensor
    spent: Tensor
    potential: Tensor
    gradient: Tensor | None


@dataclass(frozen=True)
class SMC(JumpTimes):
    """Weighted particles of p(x1) exp(reward / temperature), with log Z; see the module.

    Attributes:
        steps: looks ahead, K; by default calls a particle.
        temperature: the target is p(x1) exp(reward / temperature).
        ess_threshold: resample a prompt when its effective sample size is below this share of n; 0 never, 1 always.
        resample: "systematic", "stratified", "multinomial", "residual", "ssp", or a function of (log_w [p n], rng=...).
        schedule: lambda_k = schedule((k + 1) / K), a rise to schedule(1) = 1.
        last_time: where the last jump starts; t_k = last_time sqrt(k / (K - 1)). Closer to 1 the particles keep more of
            what was chosen, and explore less.
        chain: "restart"; "sde": overshoot and renoise by `churn`; "early_stop": p(x_t | x_s) by `inner` steps.
        lookahead: from `steer.lookahead` or `steer.posterior`.
        potential: "difference", "rt" (G_k = exp V_k), "max" (exp max_j V_j) or "sum" (exp sum_j V_j), the choices of FK
            steering; all meet the same law by the last correction, "difference" with the least variance; of the others
            the weights have heavy tails after some ten steps or more.
        corrected: False leaves the last correction out: a heuristic that is no tilt, and log_z is NaN. ("difference"
            needs none.)
        twist: shift the move's mean by ``twist std^2 grad V`` (0: no gradient is taken; needs a chain with noise).
        max_ratio: bound on a shift, as a multiple of the length of the flow's own move in the same step; weights stay
            exact. math.inf for none.
        tempering: "schedule", or "adaptive": the largest lambda_k >= lambda_{k-1} that keeps the ESS at ess_threshold,
            each prompt its own, with a resampling after each that is held back so.
        churn: of the chain "sde", see `steer.moves.sde`.
        inner: steps of a move of the chain "early_stop", 2 calls each.
    """

    steps: int = 8
    temperature: float = 1.0
    ess_threshold: float = 0.5
    resample: str | Resample = "systematic"
    schedule: Callable[[float], float] = ramp
    last_time: float = 0.8
    chain: Literal["restart", "sde", "early_stop"] = "restart"
    lookahead: LookAhead = field(default_factory=Jump)
    potential: Literal["difference", "rt", "max", "sum"] = "difference"
    corrected: bool = True
    twist: float = 0.0
    max_ratio: float = 1.0
    tempering: Literal["schedule", "adaptive"] = "schedule"
    churn: float = 1.0
    inner: int = 2

    def __post_init__(self) -> None:
        check_settings(self.steps, self.temperature)
        resampler(self.resample)
        if not 0 <= self.ess_threshold <= 1:
            raise ValueError(f"ess_threshold must be a share between 0 and 1, got {self.ess_threshold}")
        self.check_last_time()
        if not math.isclose(self.schedule(1.0), 1.0):
            raise ValueError(f"schedule must end at 1, got schedule(1) = {self.schedule(1.0)}: the whole reward counts")
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        for name, least in (("twist", 0), ("max_ratio", 0), ("churn", 0), ("inner", 1)):
            if not getattr(self, name) >= least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.twist and (self.chain == "early_stop" or (self.chain == "sde" and self.churn == 0)):
            raise ValueError(
                f"twist={self.twist}: the chain {self.chain!r} (churn={self.churn}) has no kernel with noise to shift; "
                "use 'restart', or 'sde' with churn > 0"
            )

    @property
    def needs_gradient(self) -> bool:
        """Whether the reward's gradient shifts the moves."""
        return self.twist != 0

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
        """Particles and trace of x0 [p n *d]; raises ValueError when twisting by a reward without a gradient."""
        run = Run(flow, path, reward, x0, cond, rng=rng)
        population = Population(run, x0, self.ess_threshold, self.resample)
        zero, lam, push = x0.new_zeros(run.p, run.n), x0.new_zeros(run.p, 1), []
        state = _Carried(x0, x0, zero, torch.full_like(zero, -math.inf) if self.potential == "max" else zero, None)
        for k, (t, after) in enumerate(zip(self.times, self.times[1:], strict=False)):
            look = self._look(run, state.x, t)
            lam = self._lam(k, look.value, state, population, lam)
            gain = self._gain(floor_rejected(look.value, lam), state)
            population.weigh(gain, t)
            state.spent, state.x1 = state.spent + gain, look.x1[0]
            state.gradient = None if look.gradient is None else lam.reshape(-1, *[1] * (x0.ndim - 1)) * look.gradient
            state = population.resample(state, self._threshold)
            state.x, log_ratio, ratio = self._move(run, state, t, after)
            population.log_w = population.log_w + log_ratio
            push.append(ratio)
        last = run.look(Jump(), state.x, self.times[-1], self.temperature)
        gain = last.value - state.spent if self.corrected else self._gain(last.value, state)
        population.weigh(gain, self.times[-1])
        push.append(zero[:, 0])
        return population.finish(
            last.x1[0],
            last.rewards[0],
            log_z=self.corrected or self.potential == "difference",
            push=push if self.twist else None,
        )

    def with_budget(self, calls: int, n: int = 16) -> "SMC":
        """The same method with as many steps as `calls` a prompt pay for.

        Raises ValueError below the cost of one step and, where a step costs more than the jump, of two.
        """
        a_step = self.lookahead.calls * (3 if self.twist else 1) + self._move_calls
        if a_step == 1:
            return replace(self, steps=steps_within(calls, n, a_step=1))
        return replace(self, steps=1 + steps_within(calls, n, a_step=a_step, besides=1))

    @property
    def _move_calls(self) -> int:
        if self.chain == "restart":
            return 0 if self._lands else 1
        return 1 if self.chain == "sde" else 2 * self.inner

    @property
    def _lands(self) -> bool:
        """Whether the look-ahead is the jump that the restart chain makes."""
        return isinstance(self.lookahead, Jump | Rollout)

    @property
    def _threshold(self) -> float:
        """Below this share of n is resampled: a little more than what adaptive tempering leaves."""
        return self.ess_threshold if self.tempering == "schedule" else min(1.0, 1.001 * self.ess_threshold)

    def _look(self, run: Run, x: Tensor, t: float) -> Look:
        look = run.look_gradient if self.twist else run.look
        return look(self.lookahead, x, t, self.temperature)

    def _lam(self, k: int, value: Tensor, state: _Carried, population: Population, before: Tensor) -> Tensor:
        """lambda_k [p 1]: the schedule's, or the largest that keeps the effective size, by bisection."""
        if self.tempering == "schedule":
            return torch.full_like(before, self.schedule((k + 1) / self.steps))
        wanted = max(self.ess_threshold, 1e-3) * value.shape[1]

        def enough(lam: Tensor) -> Tensor:
            gain = self._gain(floor_rejected(value, lam), state, peek=True)
            return ess(population.log_w + gain)[:, None] >= wanted

        low, high = before, torch.ones_like(before)
        whole = enough(high)
        for _ in range(24):
            middle = (low + high) / 2
            good = enough(middle)
            low, high = torch.where(good, middle, low), torch.where(good, high, middle)
        return torch.where(whole, 1, low)

    def _gain(self, value: Tensor, state: _Carried, *, peek: bool = False) -> Tensor:
        """Log G_k [p n] of the potential, with `state.potential` brought up to date unless it is only a peek."""
        if self.potential == "difference":
            return value - state.spent
        if self.potential == "rt":
            return value
        seen = torch.maximum(state.potential, value) if self.potential == "max" else state.potential + value
        if not peek:
            state.potential = seen
        return seen

    def _move(self, run: Run, state: _Carried, t: float, after: float) -> tuple[Tensor, Tensor, Tensor]:
        """X at the time after, the log-weight of its shift [p n], and the shift's length before the bound [p]."""
        zero = torch.zeros_like(state.spent)
        if self.chain == "early_stop":
            return early_stop(run.flow, run.path, state.x, t, after, rng=run.rng, steps=self.inner), zero, zero[:, 0]
        kernel = self._kernel(run, state, t, after)
        if state.gradient is None:
            return *kernel.draw(run.rng), zero[:, 0]
        shift = self.twist * kernel.std**2 * state.gradient
        unit = ((after - t) / (1 - t) * length(state.x1 - state.x)).clamp(min=torch.finfo(shift.dtype).tiny)
        ratio = (length(shift) / unit).flatten(1).mean(1)
        return *kernel.draw(run.rng, bounded(shift, self.max_ratio * unit)), ratio

    def _kernel(self, run: Run, state: _Carried, t: float, after: float) -> Kernel:
        if self.chain == "sde":
            return sde_kernel(run.flow, run.path, state.x, t, after, churn=self.churn)
        x1 = state.x1 if self._lands else state.x + (1 - t) * run.flow(state.x, t, 1.0)
        return restart_kernel(run.path, x1, after)


_CHOICES = {
    "chain": ("restart", "sde", "early_stop"),
    "potential": ("difference", "rt", "max", "sum"),
    "tempering": ("schedule", "adaptive"),
}


def floor_rejected(value: Tensor, lam: Tensor) -> Tensor:
    """``lam value`` [p n] for lam [p 1] <= 1, where a rejected look-ahead (-inf) keeps a share of a weight.

    It keeps the share ``max(1 - lam, .01)`` of the weight of the row's worst accepted one: its descendants may still be
    accepted, and killing it now would bias Z downwards.
    """
    rejected = value == -math.inf
    worst = torch.where(rejected, math.inf, value).amin(-1, keepdim=True)
    worst = torch.where(worst == math.inf, 0, worst)
    floor = lam * worst + (1 - lam).clamp(min=0.01).log()
    return torch.where(rejected, floor, lam * torch.where(rejected, worst, value))
