"""A weighted population through a run: increments in, resampling where the effective size is low, log Z out."""

import math
from typing import TypeVar

import torch
from torch import Tensor

from steer.draws import of_prompts
from steer.particles import Particles, Trace, ess, gather, log_mean_exp, normalise
from steer.resampling import Resample, resampler
from steer.run import Run

S = TypeVar("S")


class Population:
    """The log-weights of p x n particles since the last resampling of their prompt.

    Weights are carried until a resampling uses them up, at which ``log Z += log mean w``; the last ones are returned.
    Nothing is ever added twice or dropped. They begin with those of x0, if it has any (`Run.log_w0`); what samples no
    law (finish(log_z=False)) takes x0 as it is.

    Args:
        run: of which this is the population.
        like: any tensor [p n ...] that gives dtype and device.
        ess_threshold: resample a prompt when its effective sample size is below this share of n; 0 never, 1 always.
        resample: a name in `steer.resampling.RESAMPLERS`, or a function of (log_w [p n], rng=...).
    """

    def __init__(
        self, run: Run, like: Tensor, ess_threshold: float = 0.5, resample: str | Resample = "systematic"
    ) -> None:
        self.run, self.ess_threshold, self.draw = run, ess_threshold, resampler(resample)
        self.start = like.new_zeros(run.p, run.n) if run.log_w0 is None else run.log_w0.to(like)
        self.log_w = self.start
        self.log_z = like.new_zeros(run.p)
        self.ancestors = torch.arange(run.n, device=like.device).expand(run.p, run.n)
        self.times: list[float] = []
        self.sizes: list[Tensor] = []
        self.low: list[Tensor] = []
        self.weights: list[Tensor] = []
        self.lines: list[Tensor] = []

    def weigh(self, increment: Tensor, t: float) -> None:
        """Add log-weights [p n] at time t. A particle at -inf stays there."""
        self.log_w = torch.where(self.log_w == -math.inf, self.log_w, self.log_w + increment)
        self.times.append(t)
        self.sizes.append(ess(self.log_w))
        self.low.append(torch.zeros_like(self.sizes[-1], dtype=torch.bool))
        self.weights.append(self.log_w.detach())
        self.lines.append(self.ancestors)
        self.run.tell(log_w=self.log_w, ess=self.sizes[-1], ancestors=self.ancestors)

    def resample(self, state: S, threshold: float | None = None) -> S:
        """`state`, every per-particle tensor of it gathered together, redrawn in the prompts whose size is low."""
        threshold = self.ess_threshold if threshold is None else threshold
        low = (self.sizes[-1] < threshold * self.run.n) | (threshold >= 1)
        self.low[-1] = low
        if not bool(low.any()):
            return state
        self.log_z = self.log_z + torch.where(low, log_mean_exp(self.log_w), 0)
        chosen = torch.arange(self.run.n, device=low.device).repeat(self.run.p, 1)
        chosen[low] = self.draw(self.log_w[low], rng=of_prompts(self.run.rng, low))
        state, self.ancestors = gather((state, self.ancestors), chosen)
        self.log_w, self.start = (torch.where(low[:, None], 0, w) for w in (self.log_w, self.start))
        return state

    def finish(
        self, x: Tensor, rewards: Tensor, *, log_z: bool = True, push: list[Tensor] | None = None
    ) -> tuple[Particles, Trace]:
        """The particles with the weights that are left, and the trace; log_z=False where Z is not estimated.

        What the reward rejects (-inf) has weight zero, whatever its log-weight; a row of that alone raises ValueError.
        So does a run that was never weighed: a heuristic weighs by zeros.
        """
        if not self.sizes:
            raise ValueError("finish() before weigh(): weigh once at least; a heuristic by torch.zeros_like(rewards)")
        log_w = self.log_w if log_z else self.log_w - self.start
        log_w = log_w.masked_fill(rewards == -math.inf, -math.inf)
        z = self.log_z + log_mean_exp(log_w)
        trace = self.run.trace(
            self.times,
            torch.stack(self.sizes),
            resampled=torch.stack(self.low),
            log_z=z if log_z else torch.full_like(z, math.nan),
            ancestors=self.ancestors,
            push=push,
            log_w=torch.stack(self.weights),
            lines=torch.stack(self.lines),
        )
        return Particles(x, normalise(log_w), rewards), trace
