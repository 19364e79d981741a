"""Rows for fine-tuning that say where the velocity of the tilted law lies: by adjoints, or by draws of the posterior.

Both estimate ``b* - b_ref = eta grad V``, V the value log E[exp(reward(x1) / temperature) | x_t] under the reference.
Each way is a `steer.collecting.Collector`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from steer.collecting import Actor, Collected, Each, Source, jumps
from steer.draws import Rng, rand_like, randn_like
from steer.flow_map import Cond, denoise, jump
from steer.interpolants import Interpolant, delta, eta, interpolate
from steer.lookahead import LookAhead
from steer.moves import renoise, sde_kernel
from steer.particles import tempered
from steer.posterior import Glass
from steer.run import Run


@dataclass(frozen=True)
class Adjoints:
    """Paths of the memoryless SDE of the current map, with the lean adjoint along them.

        da/dt = -(2 grad b_ref - dbeta/beta)^T a,   a(1) = -grad reward(x_1) / temperature,   shift = -eta a

    Paths are drawn by `steer.moves.sde`, whose marginals have no step error; their correlations have one of the order
    of a step. The adjoint's part in beta is solved exactly, so that the shift is finite at t = 0 too, and of the other
    a step is twice the transposed Jacobian of the reference's jump, ``exp(2 h grad b)``: what grows fast between modes
    needs no short steps. It is the drift of the SDE, not of the flow, that is differentiated.

    Rows: x1, the end of the path, "point", "time", "shift", "weight", "reward". The weight makes the loss the published
    one, ``|b - b_ref + eta a|^2 / eta``, within bounds: adjoints of early times are noisy.

    steps: of a path, at times drawn anew each round. keep: of its points, those that become rows.

    Source: "Adjoint matching" (arXiv:2409.08861), algorithm 2.
    """

    steps: int = 20
    keep: int = 5
    source: Source = "current"

    def __post_init__(self) -> None:
        if not 1 <= self.keep <= self.steps + 1:
            raise ValueError(f"keep must lie between 1 and steps + 1 = {self.steps + 1}, got {self.keep}")

    def rows(self, n: int) -> int:
        """`keep` of each path."""
        return n * self.keep

    def __call__(self, actor: Actor, x0: Tensor, cond: Cond, *, rng: Rng, shared: torch.Generator) -> Collected:
        """Rows [p n keep ...]."""
        run = Run(actor.of(self.source), actor.path, actor.reward, x0, cond, rng=rng)
        inner = (torch.arange(1, self.steps) + 0.9 * (torch.rand(self.steps - 1, generator=shared) - 0.5)) / self.steps
        times = [0.0, *inner.tolist(), 1.0]
        points = [x0]
        for s, t in zip(times, times[1:], strict=False):
            points.append(sde_kernel(run.flow, actor.path, points[-1], s, t).draw(rng)[0])
        end = points[-1].detach().requires_grad_()
        with torch.enable_grad():
            r = run.rewards(end)
            if not r.requires_grad:
                raise ValueError("adjoint matching needs a differentiable reward; take objective=nft or weighted")
            (slope,) = torch.autograd.grad(tempered(r, actor.temperature).nan_to_num(neginf=0.0).sum(), end)
        frozen = Run(actor.reference, actor.path, actor.reward, x0, cond, rng=rng)
        shift = self.shifts(frozen, actor.path, times, points, -slope)
        chosen = torch.randperm(self.steps + 1, generator=shared)[: self.keep].sort().values.tolist()
        time = x0.new_tensor([times[k] for k in chosen]).expand(*x0.shape[:2], -1)
        more = {
            "point": torch.stack([points[k] for k in chosen], 2),
            "time": time,
            "shift": torch.stack([shift[k] for k in chosen], 2),
            "weight": _adjoint_weight(actor.path, time) * r.detach().isfinite().to(time)[:, :, None],
            "reward": r.detach()[:, :, None].expand_as(time),
        }
        x1 = end.detach()[:, :, None].expand(*time.shape, *x0.shape[2:])
        calls = run.forward + frozen.forward + 2 * frozen.backward
        return Collected(x1.flatten(1, 2), {key: v.flatten(1, 2) for key, v in more.items()}, calls)

    def shifts(
        self, frozen: Run, path: Interpolant, times: list[float], points: list[Tensor], a: Tensor
    ) -> list[Tensor]:
        """The shift ``-eta a`` [p n *d] at each time, by steps back from a at the end."""
        found = [torch.zeros_like(a)]
        for k in range(self.steps - 1, -1, -1):
            x, (t, after) = points[k].detach().requires_grad_(), times[k : k + 2]
            with torch.enable_grad():
                there = jump(frozen.flow, x, t, after)
                (a,) = torch.autograd.grad(there, x, a, retain_graph=True)
                (a,) = torch.autograd.grad(there, x, a)
            a = a / path.beta(after)  # less its factor beta(t)
            found.append(-path.alpha(t) * delta(path, t) * a)
            a = path.beta(t) * a
        return found[::-1]


def noised(path: Interpolant, x1: Tensor, times: Sequence[float], rng: Rng) -> list[Tensor]:
    """The memoryless process at rising times, the last of them 1, given its end x1 [*b *d]; noise alone at time 0."""
    points = [x1]
    for s, t in zip(times[-2::-1], times[::-1], strict=False):
        points.append(renoise(path, points[-1], t, s, rng=rng))
    return points[::-1]


@dataclass(frozen=True)
class PosteriorDraws(Each):
    """Points x_t of noised reference samples, and draws z_i of p(x1 | x_t) whose rewards say where the tilt leads.

        shift = mean_i w_i u_i / mean_i w_i,   w_i = exp(r(z_i) / T) / max(mean_{j != i} exp(r(z_j) / T), Z)
        u_i = (Delta / alpha) (z_i - E[x1 | x_t]),   or with the reward's gradient   u_i = eta grad_x r(z_i(x_t)) / T

    The other draws normalise each weight, independently of it given x_t: whatever their number, the fixed point
    ``E[w] (b - b_ref) = E[w u]`` of the weighted regression is the exact tilt. Z, the mean of all of the prompt's,
    keeps weights small where the tilted law hardly is, and makes a bias of the order of 1 / (group k): take groups that
    are large against exp(r / T) / Z. Rows: samples x1 of about the tilted law, "point", "time", "shift", "weight" (the
    mean of w), "reward".

    lookahead: what draws; at least two. steps: jumps of the reference samples. times: points of time a round.
    gradient: whether the reward's gradient is used.

    Source: "Meta flow maps" (arXiv:2601.14430), section 5; the normalisation by the other draws is ours.
    """

    lookahead: LookAhead = field(default_factory=lambda: Glass(k=4, steps=6))
    steps: int = 4
    times: int = 4
    gradient: bool = False

    def __post_init__(self) -> None:
        if getattr(self.lookahead, "k", 0) < 2:
            raise ValueError(f"lookahead must make at least two draws (k=2), got {self.lookahead}")
        if self.times < 1:
            raise ValueError(f"times must be at least 1, got {self.times}")

    def __call__(self, actor: Actor, x0: Tensor, cond: Cond, *, rng: Rng, shared: torch.Generator) -> Collected:
        """Rows [p n ...]: the samples in `times` parts, each noised to a time of its own."""
        run = Run(actor.reference, actor.path, actor.reward, x0, cond, rng=rng)
        parts = jumps(run.flow, x0, self.steps).tensor_split(min(self.times, x0.shape[1]), 1)
        places = (torch.arange(len(parts)) + torch.rand(len(parts), generator=shared)) / len(parts)
        low, high = EARLIEST, LATEST
        seen = [self._look(actor, run, x, low + (high - low) * float(u)) for x, u in zip(parts, places, strict=True)]
        log_z = torch.cat([look.log_r.transpose(0, 1).flatten(1) for look in seen], 1)  # of all times: E[e^r] is one
        log_z = log_z.logsumexp(1) - math.log(log_z.shape[1])
        rows = [self._rows(actor.path, run, look, log_z) for look in seen]
        x1, *more = (torch.cat(values, 1) for values in zip(*rows, strict=True))
        names = ("point", "time", "shift", "weight", "reward")
        return Collected(x1, dict(zip(names, more, strict=True)), run.forward + 2 * run.backward)

    def _look(self, actor: Actor, run: Run, x1: Tensor, t: float) -> "Looked":
        x = interpolate(actor.path, randn_like(x1, run.rng), x1, t).requires_grad_(self.gradient)
        with torch.set_grad_enabled(self.gradient):
            z, log_v = self.lookahead.weighted(run.flow, actor.path, x, t, rng=run.rng, event=x.ndim - 2)
            raw = run.rewards(z)
            r = tempered(raw, actor.temperature)
        if self.gradient and not r.requires_grad:
            raise ValueError("gradient=True needs a differentiable reward; take objective=tilt, which needs none")
        if self.gradient and log_v is not None:
            raise ValueError("gradient=True needs draws of equal weight, such as Glass()'s; take gradient=False")
        log_r = r.detach() if log_v is None else r.detach() + log_v.log_softmax(0) + math.log(len(r))
        return Looked(x, t, z, r, log_r, raw.mean(0))

    def _rows(self, path: Interpolant, run: Run, look: "Looked", log_z: Tensor) -> tuple[Tensor, ...]:
        x, t, z, r, log_r, raw = look
        log_w = self.weights(log_r, log_z)
        w, weight = log_w.exp(), log_w.exp().mean(0)
        if self.gradient:
            with torch.enable_grad():
                (slope,) = torch.autograd.grad((w * r.masked_fill(r == -math.inf, 0.0)).mean(0).sum(), x)
            shift = eta(path, t) * slope
        else:
            off = z - denoise(run.flow, path, x, t)
            shift = (t < SETTLED) * delta(path, t) / path.alpha(t) * (_beside(w, off) * off).mean(0)
        uniform = rand_like(torch.empty_like(log_w.movedim(0, 1)), run.rng).movedim(1, 0).clamp_min(1e-12)
        place = (log_w - (-uniform.log()).log()).argmax(0, keepdim=True)  # a draw in proportion to w (Gumbel)
        chosen = z.gather(0, _beside(place, z).expand(1, *z.shape[1:]))[0]
        time = torch.full_like(weight, t)
        shift = shift / _beside(weight.clamp_min(torch.finfo(weight.dtype).tiny), shift)
        return tuple(a.detach() for a in (chosen, x, time, shift, weight, raw))

    def weights(self, r: Tensor, log_z: Tensor) -> Tensor:
        """Log-weights [k p m] of r / T [k p m], each over the mean of the others' exp, or over Z [p] if more."""
        k = len(r)
        others = torch.stack([torch.cat([r[:i], r[i + 1 :]]).logsumexp(0) for i in range(k)]) - math.log(k - 1)
        return (r - torch.maximum(others, log_z[:, None])).nan_to_num(nan=-math.inf, neginf=-math.inf)


class Looked(NamedTuple):
    """Points x [p m *d] at time t, draws z [k p m *d] of their ends, r / T [k p m] of these, the same with the log of
    the draws' own weights, and mean rewards [p m].
    """

    x: Tensor
    t: float
    z: Tensor
    r: Tensor
    log_r: Tensor
    raw: Tensor


EARLIEST, LATEST = 0.002, 0.998  # times of points: at 0 nothing is seen, at 1 nothing is left to draw
SETTLED = 0.95  # from here on the tilt moves nothing, while what draws and denoiser differ by is divided by 1 - t


def _adjoint_weight(path: Interpolant, t: Tensor) -> Tensor:
    """``1 / (eta unit^2)``, unit = alpha / Delta, in [0.05, 4]."""
    return (path.beta(t) * delta(path, t) / path.alpha(t).clamp_min(1e-3) ** 3).clamp(0.05, 4.0)


def _beside(w: Tensor, x: Tensor) -> Tensor:
    return w.reshape(w.shape + (1,) * (x.ndim - w.ndim))
