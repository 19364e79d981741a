"""Psi-Sampler: noises chosen by where they lead, before any particle method sets out from them.

    x0 ~ N(0, I),  lam = 0,  V(x0) = r(X_{0,1}(x0)) / temperature
    repeat `moves` times, lam -> lam' up to 1:
        log w += (lam' - lam) V;  where the ESS is low: resample
        x0 = a move that keeps N(0, I) exp(lam' V)                    pcnl, pcn or mala; see `steer.chains`
    the method, from these x0, whose log-weights begin as  log w - V(x0)

So the noises follow the law N(x0) exp V(x0) / Z0, and a method that weighs its particles weighs them by its own
potentials *less V*: they cancel at its first look, what was gained is kept, and what is met is the method's own target,
with E[Z_hat] = Z at any number of moves but for what the population tunes itself. A rejected noise (V = -inf) is not
ruled out, but kept a little below the worst of the others: its own descendants may be accepted. Methods without a law
(log_z = NaN) take the noises as they are.

Two things are needed to gain by it. The wrapped chain must remember its noise: what forgets it is left with weights
exp(-V), which are the worse the steeper the reward; hence a default with little fresh noise. And it must not flatten
the first potential again: `whole` as its schedule. Under an exact map the best that the method can then do is little;
it is a poor map, or a look-ahead unlike the jump, that makes it worth its calls.

Source: "Psi-Sampler: initial particle sampling for SMC-based inference-time reward alignment in score models"
(arXiv:2506.01320), whose chains start from plain noises without weights, and are right only as they grow long.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from steer.chains import MOVES, TARGETS, Chain, Move, increment, next_lam
from steer.draws import Rng
from steer.flow_map import Cond, FlowMap
from steer.interpolants import Interpolant
from steer.methods.smc import SMC
from steer.particles import Particles, Reward, Trace, check_choice, check_least, check_settings
from steer.population import Population
from steer.run import Run, Seen

_CESS = 0.95  # as in noise SMC


def whole(u: float) -> float:
    """1: the whole reward counts from the first look on, for `SMC.schedule` behind a warm start."""
    return 1.0


def _default() -> SMC:
    return SMC(steps=4, chain="sde", churn=0.05, schedule=whole)


@dataclass(frozen=True)
class WarmStart:
    """A particle method from noises of the law N(x0) exp V(x0), with its weights made right; see the module.

    Attributes:
        method: what sets out from the noises; any that weighs them, and any heuristic.
        moves: of the chain, M; (M + 1) calls a particle, three times that with a gradient.
        temperature: of V, and of the method, whose own is not used.
        move: "pcnl", "mala" or "pcn" (needs no gradient).
        step: beta of the first move, between 0 and 1.
        acceptance: rate to which the step is tuned; None: .3 for pcn, .574 for the others; 0: the step stays.
        max_ratio: bound on the drift of a proposal, as a multiple of the length of its noise.
        ess_threshold: resample a prompt's noises when their effective sample size is below this share of n.
        share: of a budget, for the chain.
    """

    method: Any = field(default_factory=_default)
    moves: int = 4
    temperature: float = 1.0
    move: Move = "pcnl"
    step: float = 0.5
    acceptance: float | None = None
    max_ratio: float = 1.0
    ess_threshold: float = 0.5
    share: float = 0.5

    def __post_init__(self) -> None:
        check_settings(1, self.temperature)
        check_least(self, moves=1, max_ratio=0)
        check_choice(self, move=MOVES)
        if not 0 < self.step <= 1:
            raise ValueError(f"step must be above 0 and at most 1, got {self.step}")
        if self.acceptance is not None and not 0 <= self.acceptance < 1:
            raise ValueError(f"acceptance must be a rate from 0 (no tuning) to below 1, got {self.acceptance}")
        if not 0 <= self.ess_threshold <= 1:
            raise ValueError(f"ess_threshold must be a share between 0 and 1, got {self.ess_threshold}")
        if not 0 < self.share < 1:
            raise ValueError(f"share must be between 0 and 1, got {self.share}")

    @property
    def needs_gradient(self) -> bool:
        """Whether the chain or the method follows the reward's gradient."""
        return self.move != "pcn" or self.method.needs_gradient

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
        population, chain = Population(run, x0, self.ess_threshold), self._chain(run)
        at = chain.look(x0.detach())
        level, lam = floor(at.value), x0.new_zeros(run.p, 1)
        at = replace(at, value=torch.where(at.value == -math.inf, level, at.value), level=level)
        for k in range(self.moves):
            before, lam = lam, next_lam(population.log_w, at.value, lam, _CESS, self.moves - k)
            population.weigh(increment(at.value, before, lam), 0.0)
            at = chain.move(population.resample(at), lam, population.log_w.softmax(-1))
        run.tell()
        log_w0 = population.log_z[:, None] + population.log_w - at.value
        hot = hasattr(self.method, "temperature")
        method = replace(self.method, temperature=self.temperature) if hot else self.method
        particles, trace = method(flow, path, _From(reward, log_w0, population.ancestors), at.x, cond, rng=rng)
        return particles, _joined(population, trace)

    def with_budget(self, calls: int, n: int = 16) -> "WarmStart":
        """The same with `share` of `calls` a prompt for the chain, and the rest for the method.

        Raises ValueError when that does not pay for one move of the chain and the least of the method.
        """
        look = 3 * n if self.move != "pcn" else n
        least = 2 * look + _least(self.method, n)
        if calls < least:
            raise ValueError(
                f"budget of {calls} calls is too small for {n} particles of this method; the least is {least}"
            )
        chain = min(max(int(self.share * calls), 2 * look), calls - least + 2 * look)
        moves = chain // look - 1
        return replace(self, moves=moves, method=self.method.with_budget(calls - (moves + 1) * look, n))

    def _chain(self, run: Run) -> Chain:
        acceptance = TARGETS[self.move] if self.acceptance is None else self.acceptance
        return Chain(run, self.move, self.temperature, step=self.step, acceptance=acceptance,
                     most=self.max_ratio)  # fmt: skip


@dataclass(frozen=True)
class _From:
    """The reward, with the log-weights [p n] of the noises from which a run is to begin, see `steer.run.Run`, and the
    ancestors [p n] of these.
    """

    reward: Reward
    log_w0: Tensor
    ancestors: Tensor

    @property
    def lazy(self) -> bool:
        """Whether the reward takes the keyword `where`."""
        return getattr(self.reward, "lazy", False)

    @property
    def watch(self) -> Callable[[Seen], None] | None:
        """Who watches, told of ancestors before the chain."""
        watch: Callable[[Seen], None] | None = getattr(self.reward, "watch", None)
        if watch is None:
            return None

        def told(seen: Seen) -> None:
            line = None if seen.ancestors is None else self.ancestors.gather(1, seen.ancestors)
            watch(replace(seen, ancestors=line))

        return told

    def __call__(self, x1: Tensor, **where: Tensor) -> Tensor:
        """Its rewards."""
        return self.reward(x1, **where)


def floor(value: Tensor) -> Tensor:
    """For each particle 3 less than the worst accepted of the values [p n] of the half of which it is none [p n].

    What is known of the others makes no law of a particle depend on itself. -3 where none of them is accepted.
    """
    n = value.shape[1]
    accepted = torch.where(value == -math.inf, math.inf, value)
    halves = [half.amin(-1, keepdim=True) if half.shape[1] else accepted.new_full((len(value), 1), math.inf) for half in
              (accepted[:, n // 2 :], accepted[:, : n // 2])]  # fmt: skip
    level = torch.cat([halves[0].expand(-1, n // 2), halves[1].expand(-1, n - n // 2)], 1)
    return torch.where(level.isfinite(), level, 0) - 3


def _least(method: Any, n: int) -> int:  # noqa: ANN401
    """The fewest calls a prompt that the method can be set to."""
    try:
        method.with_budget(0, n)
    except ValueError as error:
        return int(str(error).rsplit(" ", 1)[1])
    return 0


def _joined(before: Population, trace: Trace) -> Trace:
    """The trace of the method with the steps and the cost of the chain in front."""
    run, ess = before.run, torch.stack(before.sizes)
    rest = ess.new_zeros(len(ess), run.p)
    return replace(
        trace,
        times=torch.cat([trace.times.new_tensor(before.times), trace.times]),
        ess=torch.cat([ess, trace.ess]),
        resampled=torch.cat([torch.stack(before.low), trace.resampled]),
        forward=run.forward + trace.forward,
        backward=run.backward + trace.backward,
        reward_calls=run.scored + trace.reward_calls,
        ancestors=_through(before, trace.ancestors[None])[0],
        push=None if trace.push is None else torch.cat([rest, trace.push]),
        log_w=None if trace.log_w is None else torch.cat([torch.stack(before.weights), trace.log_w]),
        lines=None if trace.lines is None else torch.cat([torch.stack(before.lines), _through(before, trace.lines)]),
    )


def _through(before: Population, lines: Tensor) -> Tensor:
    """Ancestors [steps p n] among the noises that the chain left, as ancestors among those it began with."""
    return before.ancestors.expand_as(lines).gather(2, lines)
