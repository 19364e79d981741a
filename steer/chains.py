"""Markov chains on the noise x0: moves that keep the law N(0, I) exp(lam V), V the value of where the noise leads.

A proposal is ``x' = rho x + kappa G + beta z`` with G = lam grad V(x) and z ~ N(0, I):

    pcn     rho = sqrt(1 - beta^2),  kappa = 0           no gradient; at lam = 0 every proposal is accepted
    pcnl    rho = sqrt(1 - beta^2),  kappa = 1 - rho     the same with drift, like pcn at home in any dimension
    mala    rho = 1 - beta^2 / 2,    kappa = beta^2 / 2  Langevin

and is accepted, in log space, where ``log u`` is below

    lam (V' - V) + c (|x'|^2 - |x|^2) / 2
        + kappa / beta^2 ((x - rho x').G' - (x' - rho x).G - kappa (|G'|^2 - |G|^2) / 2)

with c = (1 - rho^2) / beta^2 - 1, which is 0 but for mala. The law is that of the samples' noises under the model's own
jump, so it is met whatever the map's error: X_{0,1}(x0) then has the law of the model tilted by exp V.

Source: "MCMC methods for functions: modifying old algorithms to make them faster" (arXiv:1202.0709): pCN, pCNL.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from steer.draws import rand_like, randn_like
from steer.lookahead import Rollout
from steer.particles import bounded
from steer.run import Run

MOVES = ("pcn", "pcnl", "mala")
Move = Literal["pcn", "pcnl", "mala"]
TARGETS = {"pcn": 0.3, "pcnl": 0.574, "mala": 0.574}
"""Acceptance rates at which each move goes farthest, roughly."""


@dataclass
class Noises:
    """Where a chain is [p n ...]: noises, their ends, rewards, values V and, for moves with a drift, grad V.

    With a `level` [p n], V is that where the reward rejects (-inf), so that nothing is ruled out.
    """

    x: Tensor
    x1: Tensor
    rewards: Tensor
    value: Tensor
    gradient: Tensor | None
    level: Tensor | None = None


class Chain:
    """Moves of one run, with a step size that tunes itself, a prompt each.

    Args:
        run: of which these are the noises; every look costs `jumps` calls a particle, three times that with a gradient.
        move: "pcn", "pcnl" or "mala".
        temperature: V = reward / temperature.
        jumps: equal jumps from noise to end.
        step: beta of the first move.
        acceptance: rate to which beta is tuned after each move by the whole population of the prompt, never within
            one, so that each move by itself keeps the law; 0: not at all.
        most: bound on the drift kappa G, as a multiple of beta sqrt(d), the length of the move's noise. Any keeps the
            law.
    """

    def __init__(
        self,
        run: Run,
        move: Move,
        temperature: float,
        *,
        jumps: int = 1,
        step: float = 0.5,
        acceptance: float = 0.3,
        most: float = 1.0,
    ) -> None:
        self.run, self.temperature, self.lookahead = run, temperature, Rollout(jumps)
        self.kind: Move = move
        self.acceptance, self.most = acceptance, most
        self.step = torch.full((run.p, 1), step, dtype=torch.float64, device=run.forward.device)
        self._factor = torch.ones_like(self.step)
        self.accepted: list[Tensor] = []

    def look(self, x: Tensor, level: Tensor | None = None) -> Noises:
        """Where the noises x [p n *d] lead; V is `level` [p n], where there is one, for what is rejected."""
        if self.kind == "pcn":
            look = self.run.look(self.lookahead, x, 0.0, self.temperature)
        else:
            look = self.run.look_gradient(self.lookahead, x, 0.0, self.temperature)
        value = look.value if level is None else torch.where(look.value == -math.inf, level, look.value)
        return Noises(x, look.x1[0], look.rewards[0], value, look.gradient, level)

    def move(self, at: Noises, lam: Tensor, weights: Tensor) -> Noises:
        """One move that keeps N(0, I) exp(lam V), lam [p 1]; `weights` [p n] say how much a particle's rate counts."""
        beta = self.step.to(at.x).reshape(-1, *[1] * (at.x.ndim - 1))
        z, u = randn_like(at.x, self.run.rng), rand_like(at.value, self.run.rng)
        rho, kappa = coefficients(self.kind, beta)
        new = self.look(rho * at.x + self._drift(at, lam, beta, kappa) + beta * z, at.level)
        log_ratio = self.log_ratio(at, new, lam)
        rate = (log_ratio.clamp(max=0).exp() * weights).sum(-1, keepdim=True).double()
        self.accepted.append(rate[:, 0])
        if self.acceptance:
            factor = (rate / self.acceptance).clamp(1 / 3, 3)
            swings = (factor - 1) * (self._factor - 1) < 0
            self._factor = factor = torch.where(swings, factor.sqrt(), factor)
            self.step = (self.step * factor).clamp(1e-6, 1.0)
        return _either(u.log() < log_ratio, new, at)

    def log_ratio(self, at: Noises, new: Noises, lam: Tensor) -> Tensor:
        """Log of ``pi(x') q(x', x) / (pi(x) q(x, x'))`` [p n]; -inf where x' is rejected."""
        beta = self.step.to(at.x).reshape(-1, *[1] * (at.x.ndim - 1))
        rho, kappa = coefficients(self.kind, beta)
        gain = torch.where(lam == 0, 0.0, lam * torch.where(new.value == at.value, 0.0, new.value - at.value))
        if at.gradient is None:
            return gain
        there, back = self._drift(at, lam, beta, kappa), self._drift(new, lam, beta, kappa)
        c = (1 - rho**2) / beta**2 - 1 if self.kind == "mala" else torch.zeros_like(beta)
        forth = (new.x - rho * at.x) * there - there**2 / 2
        reverse = (at.x - rho * new.x) * back - back**2 / 2
        return gain + ((reverse - forth) / beta**2 + c / 2 * (new.x**2 - at.x**2)).flatten(2).sum(-1)

    def _drift(self, at: Noises, lam: Tensor, beta: Tensor, kappa: Tensor) -> Tensor:
        """Kappa G [p n *d], bounded."""
        if at.gradient is None:
            return torch.zeros_like(at.x)
        g = lam.reshape(-1, *[1] * (at.x.ndim - 1)) * at.gradient
        return bounded(kappa * g, self.most * beta * math.sqrt(at.x[0, 0].numel()))


def coefficients(move: Move, beta: Tensor) -> tuple[Tensor, Tensor]:
    """Rho and kappa of a move of step beta."""
    if move == "mala":
        return 1 - beta**2 / 2, beta**2 / 2
    rho = (1 - beta**2).clamp(min=0).sqrt()
    return rho, beta**2 / (1 + rho)  # 1 - rho, without the loss of digits


def next_lam(log_w: Tensor, value: Tensor, lam: Tensor, cess: float, left: int) -> Tensor:
    """The next of `left` rises of lam [p 1] to 1: an equal part of what remains, or less where that were too much.

    Too much is what takes the conditional effective sample size, that of the increment ``(lam' - lam) V`` under the
    weights log_w [p n], below the share `cess` of n; rejected particles do not count, and where all are, lam stays. The
    least is an equal factor at each rise, so that lam is 1 in time. Source of the conditional size: "Toward automatic
    model comparison: an adaptive sequential Monte Carlo approach" (arXiv:1303.3123).
    """
    alive = (value > -math.inf) & (log_w > -math.inf)
    w = torch.where(alive, log_w, -math.inf)
    w = torch.where(alive, w - w.logsumexp(-1, keepdim=True), -math.inf)
    v = torch.where(alive, value, 0)

    def enough(new: Tensor) -> Tensor:
        gain = (new - lam) * v
        size = 2 * (w + gain).logsumexp(-1, keepdim=True) - (w + 2 * gain).logsumexp(-1, keepdim=True)
        return size >= math.log(cess)

    even = lam + (1 - lam) / max(left, 1)
    low, high = torch.full_like(lam, -60.0), torch.zeros_like(lam)  # of log((lam' - lam) / (even - lam))
    fine = enough(even)
    for _ in range(24):
        middle = (low + high) / 2
        good = enough(lam + (even - lam) * middle.exp())
        low, high = torch.where(good, middle, low), torch.where(good, high, middle)
    wanted = torch.where(fine, even, lam + (even - lam) * low.exp())
    least = lam ** (1 - 1 / max(left, 1))
    after = torch.ones_like(lam) if left <= 1 else torch.maximum(wanted, least)
    return torch.where(alive.any(-1, keepdim=True), after, lam)


def increment(value: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """``(after - before) V`` [p n] for lam [p 1], 0 where lam stays even if V is -inf."""
    return torch.where(after == before, 0.0, (after - before) * value)


def _either(accept: Tensor, new: Noises, old: Noises) -> Noises:
    def pick(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(accept.reshape(accept.shape + (1,) * (a.ndim - 2)), a, b)

    gradient = None if old.gradient is None or new.gradient is None else pick(new.gradient, old.gradient)
    return Noises(pick(new.x, old.x), pick(new.x1, old.x1), pick(new.rewards, old.rewards),
                  pick(new.value, old.value), gradient, old.level)  # fmt: skip
