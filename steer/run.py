"""One run of a method: what it was given, what it asks of flow and reward, and what that has cost.

Methods put every row through `Run.flow` and every picture through `Run.rewards`, so costs are counted where they arise
and no method can miscount them. Rewards are checked there too.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from steer.draws import Rng
from steer.flow_map import Cond, FlowMap
from steer.interpolants import Interpolant, Time
from steer.lookahead import LookAhead, soft_value
from steer.particles import Reward, Trace, check_rewards, check_start, tempered


class Look(NamedTuple):
    """What a look ahead from particles [p m *d] saw.

    x1: the guesses of the end [k p m *d].
    rewards: of each [k p m].
    value: ``log mean_k exp(reward / temperature)`` [p m], a log-weight.
    gradient: of the value in x [p m *d], where asked for.
    """

    x1: Tensor
    rewards: Tensor
    value: Tensor
    gradient: Tensor | None = None


@dataclass(frozen=True)
class Seen:
    """What a run saw when it scored pictures, and how the population stood then; `steer.sample(watch=...)` is told.

    Attributes:
        x1: what was scored [k p m *d], as latents: k draws of a look ahead, or one of what the method returns.
        rewards: of each [k p m], not divided by the temperature; -inf also where none was asked for.
        t: the time from which was looked ahead; None where it was not, or not from one time.
        log_w: log-weights [p n] with these rewards, before any resampling; None where nothing is weighed by them.
        ess: the effective sample size of these [p].
        ancestors: the first particle from which each descends [p n], before any resampling.
        prompts: the p prompts.
        decode: latents [p m *d] -> pictures [p m 3 h w].
    """

    x1: Tensor = field(repr=False)
    rewards: Tensor
    t: float | None = None
    log_w: Tensor | None = None
    ess: Tensor | None = None
    ancestors: Tensor | None = None
    prompts: tuple[str, ...] = ()
    decode: Callable[[Tensor], Tensor] | None = field(default=None, repr=False)

    def pictures(self) -> Tensor:
        """What was scored, as pictures [p m 3 h w] in [0,1], the first draw of several; decoded at each call."""
        if self.decode is None:
            raise ValueError("a method that is called by itself knows no pictures; take x1, or steer.sample(watch=...)")
        with torch.no_grad():
            return self.decode(self.x1[0])


class Run:
    """Flow, path, reward and cond of one run over prompts x0 [p n *d], with the rows that were spent.

    Attributes:
        p, n: prompts, particles a prompt.
        path, rng: as given.
        log_w0: log-weights [p n] that stand for x0's law against N(0, I), where the reward brings some (its attribute
            `log_w0`, as of `steer.methods.WarmStart`); None where x0 is plain noise.
        watch: who is told of each `Seen`, where the reward brings one (its attribute `watch`); what it raises ends the
            run. It hears of a look when that is weighed, or else before the next one.
        forward, backward, scored: rows put through the flow, sent back through it, and pictures scored [p].
    """

    def __init__(
        self, flow: FlowMap, path: Interpolant, reward: Reward, x0: Tensor, cond: Cond = None, *, rng: Rng
    ) -> None:
        self.p, self.n = check_start(x0)
        self.path, self.rng = path, rng
        self.log_w0: Tensor | None = getattr(reward, "log_w0", None)
        self.watch: Callable[[Seen], None] | None = getattr(reward, "watch", None)
        self._seen: Seen | None = None
        self._flow, self._reward, self._cond, self._axes = flow, reward, cond, x0.ndim - 2
        self._repeated: tuple[tuple[int, int], Cond] = ((0, 0), None)
        self.forward, self.backward, self.scored = (
            torch.zeros(self.p, dtype=torch.long, device=x0.device) for _ in range(3)
        )

    def flow(self, x: Tensor, s: Time, t: Time, cond: Cond = None) -> Tensor:
        """v_{s,t}(x) of particles x [*k p m *d], in one call of the map; times are floats or [*k p m].

        A FlowMap, so that `steer.jump` and all free functions take it. The run's own cond is used; what `cond` holds
        here, [*k p m ...], comes on top of it.
        """
        return self._call(x, s, t, None, cond)

    def only(self, where: Tensor) -> FlowMap:
        """The same map for particles [p m *d], evaluated in the rows of `where` [p m] alone; v = 0 in the others."""

        def flow(x: Tensor, s: Time, t: Time, cond: Cond = None) -> Tensor:
            return self._call(x, s, t, where)

        return flow

    def _call(self, x: Tensor, s: Time, t: Time, where: Tensor | None, extra: Cond = None) -> Tensor:
        lead, d = x.shape[: x.ndim - self._axes], x.shape[x.ndim - self._axes :]
        k, m = math.prod(lead[:-2]), lead[-1]
        if lead[-2] != self.p:
            raise ValueError(f"x has shape {tuple(x.shape)}; particles are [*k {self.p} m *d] here")
        flat, cond = x.reshape(-1, *d), self._cond_of(k, m)
        if extra:
            cond = {**(cond or {}), **{key: c.reshape(-1, *c.shape[len(lead) :]) for key, c in extra.items()}}
        s, t = (u.expand(lead).reshape(-1) if isinstance(u, Tensor) and u.ndim else u for u in (s, t))
        if where is not None:
            v = torch.zeros_like(flat)
            rows = where.reshape(-1).nonzero()[:, 0]
            if len(rows):
                s, t = (u[rows] if isinstance(u, Tensor) and u.ndim else u for u in (s, t))
                part = self._flow(flat[rows], s, t, None if cond is None else {q: c[rows] for q, c in cond.items()})
                v = v.index_put((rows,), part.to(x.dtype))
            count = where.sum(-1)
        else:
            v, count = self._flow(flat, s, t, cond), k * m
            if v.shape != flat.shape:
                raise ValueError(
                    f"flow returned {tuple(v.shape)} for x of {tuple(flat.shape)}; return a velocity a row"
                )
        self.forward += count
        if v.requires_grad:

            def sent_back(gradient: Tensor) -> None:
                self.backward += count

            v.register_hook(sent_back)
        return v.to(x.dtype).reshape(x.shape)

    def _cond_of(self, k: int, m: int) -> Cond:
        """Cond with one row a particle, kept from call to call."""
        if self._cond is None:
            return None
        if self._repeated[0] != (k, m):
            for key, c in self._cond.items():
                if c.ndim == 0 or c.shape[0] != self.p:
                    raise ValueError(
                        f"cond[{key!r}] has shape {tuple(c.shape)}; its first axis must be the {self.p} prompts of x"
                    )
            rows = {key: c.repeat_interleave(m, 0) for key, c in self._cond.items()}
            rows = {key: c.repeat(k, *[1] * (c.ndim - 1)) for key, c in rows.items()} if k > 1 else rows
            self._repeated = ((k, m), rows)
        return self._repeated[1]

    def rewards(self, x1: Tensor, where: Tensor | None = None, t: Time | None = None) -> Tensor:
        """Rewards [*k p m] of x1 [*k p m *d], checked; t, from where they were seen, is told to who watches.

        With `where` [p m] only those are wanted, and the others get -inf. A reward with the attribute `lazy` is given
        the mask as its keyword `where` and called on those alone; any other is called on all of them, and all count.
        """
        lead = x1.shape[: x1.ndim - self._axes]
        k, m = math.prod(lead[:-2]), lead[-1]
        folded = x1.reshape(k, self.p, m, *x1.shape[len(lead) :]).transpose(0, 1).flatten(1, 2)
        if where is not None and getattr(self._reward, "lazy", False):
            r = self._reward(folded, where=where) if bool(where.any()) else folded.new_zeros(self.p, m)  # pyright: ignore
            self.scored += where.sum(-1)
        else:
            r = self._reward(folded)
            self.scored += k * m
        r = r.masked_fill(~where, -math.inf) if where is not None else r
        r = check_rewards(r, (self.p, k * m), x1.dtype).view(self.p, k, m).transpose(0, 1)
        if self.watch is not None:
            self.tell()
            x1, time = x1.detach().reshape(k, self.p, m, *x1.shape[len(lead) :]), None if isinstance(t, Tensor) else t
            self._seen = Seen(x1, r.detach(), time)
        return r.reshape(lead)

    def tell(self, **population: Tensor) -> None:
        """Tell who watches what was seen last, once, and how the population stands with it."""
        if self.watch is not None and self._seen is not None:
            seen, self._seen = self._seen, None
            self.watch(replace(seen, **population))

    def look(
        self, lookahead: LookAhead, x: Tensor, t: Time, temperature: float = 1.0, noise: Tensor | None = None
    ) -> Look:
        """The ends that `lookahead` sees from x [p m *d], their rewards and their soft value."""
        x1, log_w = lookahead.weighted(self.flow, self.path, x, t, rng=self.rng, noise=noise, event=self._axes)
        r = self.rewards(x1, t=t)
        return Look(x1, r, soft_value(tempered(r, temperature), log_w=log_w))

    def look_gradient(self, lookahead: LookAhead, x: Tensor, t: Time, temperature: float = 1.0) -> Look:
        """The same with the value's gradient in x; 0 where all draws are rejected (-inf).

        A map with an attribute `rows` (`steer.flow_map.Chunked`) bounds how many particles are held for a gradient at
        once. Raises ValueError when the reward has no gradient.
        """
        noise = lookahead.noise(x, rng=self.rng)

        def value(part: Tensor, columns: slice) -> tuple[Tensor, Look]:
            look = self.look(lookahead, part, t, temperature, None if noise is None else noise[:, :, columns])
            return look.value, look

        gradient, looks = self.gradient(value, x, draws=lookahead.calls)
        x1, r, v = (torch.cat([getattr(look, f).detach() for look in looks], axis) for f, axis in
                    (("x1", 2), ("rewards", 2), ("value", 1)))  # fmt: skip
        return Look(x1, r, v, gradient)

    def gradient(
        self, value: Callable[[Tensor, slice], tuple[Tensor, object]], x: Tensor, draws: int = 1
    ) -> tuple[Tensor, list]:
        """The gradient [p m *d] in x of ``value(x[:, columns], columns) -> ([p m'], anything)``, chunk by chunk.

        Also a list of what else `value` returned, a chunk each. `draws`: rows of the flow that it holds for a particle.
        """
        rows = getattr(self._flow, "rows", None)
        size = x.shape[1] if rows is None else max(1, rows // (self.p * max(draws, 1)))
        gradients, others = [], []
        for i in range(0, x.shape[1], size):
            columns = slice(i, i + size)
            with torch.enable_grad():
                part = x[:, columns].detach().requires_grad_()
                v, other = value(part, columns)
                if not v.requires_grad:
                    raise ValueError(
                        "the method needs a reward that torch can differentiate, and this one is not; use SMC or "
                        "another method without a gradient"
                    )
                (g,) = torch.autograd.grad(torch.where(v.isfinite(), v, 0).sum(), part)
            gradients.append(g.nan_to_num(0.0, 0.0, 0.0))
            others.append(other)
        return torch.cat(gradients, 1), others

    def trace(
        self,
        times: list[float],
        ess: Tensor,
        *,
        resampled: Tensor | None = None,
        log_z: Tensor | None = None,
        ancestors: Tensor | None = None,
        push: list[Tensor] | None = None,
        log_w: Tensor | None = None,
        lines: Tensor | None = None,
    ) -> Trace:
        """The trace of what was spent; times [steps], ess [steps p]; log Z is NaN and nothing resampled by default."""
        self.tell()
        device = ess.device
        return Trace(
            torch.tensor(times),
            ess,
            torch.zeros_like(ess, dtype=torch.bool) if resampled is None else resampled,
            torch.full_like(ess[0], math.nan) if log_z is None else log_z,
            self.forward.clone(),
            self.backward.clone(),
            self.scored.clone(),
            torch.arange(self.n, device=device).expand(self.p, self.n) if ancestors is None else ancestors,
            None if push is None else torch.stack(push),
            log_w,
            lines,
        )
