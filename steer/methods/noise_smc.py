"""Noise SMC: sequential Monte Carlo over the noise from which the flow map makes each sample.

    x0 ~ N(0, I),  lam = 0,  V(x0) = r(X_{0,1}(x0)) / temperature
    repeat `steps` times:
        lam' = an even part of the way to 1, or less, to keep the conditional ESS
        log w += (lam' - lam) V;  where the ESS is low: log Z += log mean w, resample, w = 1
        x0 = a Metropolis move that keeps N(0, I) exp(lam' V)            pcn, pcnl or mala; see `steer.chains`
    x1 = X_{0,1}(x0)

The last law, N(x0) exp V(x0), is carried by the map to the model's own law tilted by the reward, *exactly, whatever the
map's error*: what is claimed is the law of what the map samples, not of the data it was trained on. At a fixed step and
schedule E[Z_hat] = Z at any number of moves; what is tuned by the population itself adds a bias of order 1/n to Z.
Noises of separate modes do not mix by small moves: there it is the population that weighs the modes, so take n large.
Where all of the first noises are rejected the moves look for others, and log Z is NaN.

Sources: pCN and pCNL, "MCMC methods for functions" (arXiv:1202.0709); the noise law of a one-step model and pCNL for
it, "Psi-Sampler" (arXiv:2506.01320); adaptive tempering by conditional ESS (arXiv:1303.3123).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from steer.chains import MOVES, TARGETS, Chain, Move, increment, next_lam
from steer.draws import Rng
from steer.flow_map import Cond, FlowMap
from steer.interpolants import Interpolant
from steer.particles import Particles, Reward, Trace, check_choice, check_least, check_settings, steps_within
from steer.population import Population
from steer.resampling import Resample, resampler
from steer.run import Run


@dataclass(frozen=True)
class NoiseSMC:
    """Weighted particles of p(x1) exp(reward / temperature), p the law of what the map samples, with log Z.

    Attributes:
        steps: levels of lam, with a Metropolis move at each, K; a particle costs (K + 1) jumps calls, three times that
            with a gradient.
        jumps: equal jumps of the map from noise to sample.
        temperature: the target is p(x1) exp(reward / temperature).
        move: "pcn" (needs no gradient), "pcnl" or "mala".
        step: beta of the first move, between 0 and 1: the share of fresh noise in a proposal.
        acceptance: rate to which the step is tuned between the moves, each prompt its own. None: .3 for pcn, .574 for
            the others. 0: the step stays.
        max_ratio: bound on the drift of a proposal, as a multiple of the length of its noise; the law is kept with any.
        tempering: "adaptive": lam rises evenly, but no further at once than keeps the conditional effective sample size
            at `cess`, each prompt its own, and by even factors where moves would run out; "schedule": by `schedule`.
        cess: the conditional effective sample size kept, as a share of n.
        schedule: lam after a share u of the rise, with schedule(1) = 1.
        rise: share of the steps in which lam reaches 1 at the latest; at those that are left it is 1.
        ess_threshold: resample a prompt when its effective sample size is below this share of n; 0 never, 1 always.
        resample: as of `steer.methods.SMC`.
    """

    steps: int = 15
    jumps: int = 1
    temperature: float = 1.0
    move: Move = "pcn"
    step: float = 0.5
    acceptance: float | None = None
    max_ratio: float = 1.0
    tempering: Literal["adaptive", "schedule"] = "adaptive"
    cess: float = 0.95
    schedule: Callable[[float], float] = float
    rise: float = 1.0
    ess_threshold: float = 0.5
    resample: str | Resample = "systematic"

    def __post_init__(self) -> None:
        check_settings(self.steps, self.temperature)
        check_least(self, jumps=1, max_ratio=0)
        check_choice(self, move=MOVES, tempering=("adaptive", "schedule"))
        resampler(self.resample)
        for name in ("step", "cess", "rise"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must be above 0 and at most 1, got {getattr(self, name)}")
        if self.acceptance is not None and not 0 <= self.acceptance < 1:
            raise ValueError(f"acceptance must be a rate from 0 (no tuning) to below 1, got {self.acceptance}")
        if not 0 <= self.ess_threshold <= 1:
            raise ValueError(f"ess_threshold must be a share between 0 and 1, got {self.ess_threshold}")
        if not math.isclose(self.schedule(1.0), 1.0):
            raise ValueError(f"schedule must end at 1, got schedule(1) = {self.schedule(1.0)}: the whole reward counts")

    @property
    def needs_gradient(self) -> bool:
        """Whether the moves follow the reward's gradient."""
        return self.move != "pcn"

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
        """Particles and trace of x0 [p n *d]; raises ValueError when a gradient is needed and the reward has none."""
        run = Run(flow, path, reward, x0, cond, rng=rng)
        population, chain = Population(run, x0, self.ess_threshold, self.resample), self._chain(run)
        at, lam = chain.look(x0.detach()), x0.new_zeros(run.p, 1)
        lost = (at.value == -math.inf).all(-1)  # lam waits there until a move finds what is not rejected
        for k in range(self.steps):
            before, lam = lam, self._lam(k, population.log_w, at.value, lam)
            population.weigh(increment(at.value, before, lam), 0.0)
            at = chain.move(population.resample(at), lam, population.log_w.softmax(-1))
        population.weigh(increment(at.value, lam, torch.ones_like(lam)), 0.0)
        population.log_z = population.log_z.masked_fill(lost, math.nan)
        return population.finish(at.x1, at.rewards)

    def with_budget(self, calls: int, n: int = 16) -> "NoiseSMC":
        """The same method with as many steps as `calls` a prompt pay for; raises ValueError below those of one."""
        a_look = self.jumps * (3 if self.needs_gradient else 1)
        return replace(self, steps=steps_within(calls, n, a_step=a_look, besides=a_look))

    def _chain(self, run: Run) -> Chain:
        return Chain(
            run,
            self.move,
            self.temperature,
            jumps=self.jumps,
            step=self.step,
            acceptance=TARGETS[self.move] if self.acceptance is None else self.acceptance,
            most=self.max_ratio,
        )

    def _lam(self, k: int, log_w: Tensor, value: Tensor, lam: Tensor) -> Tensor:
        """The lam' [p 1] of move k."""
        rises = max(1, round(self.rise * self.steps))
        if self.tempering == "adaptive":
            return next_lam(log_w, value, lam, self.cess, rises - k)
        after = torch.full_like(lam, self.schedule(min(1.0, (k + 1) / rises)))
        return torch.where((value > -math.inf).any(-1, keepdim=True), after, lam)
