"""Mathematics of one map: everything a flow map says, derived from its average velocity.

A flow map is any callable ``v(x [b *d], s, t, cond) -> [b *d]``, the average velocity from time s to time t. Then

    X_{s,t}(x) = x + (t - s) v_{s,t}(x)        (the jump; the identity at s = t by construction)
    b_t(x) = v_{t,t}(x)                        (the velocity is the diagonal)

One primitive, the rest free functions that no adapter can override and break. Times are floats or tensors [b]; cond is
a dict of tensors [b ...] or None, and only the model looks inside. See "Flow map matching" (arXiv:2406.07507) and
"How to build a consistency model: learning flow maps via self-distillation" (arXiv:2505.18825).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from steer.interpolants import Interpolant, Time, data_from_velocity, like, score_from_velocity

Cond = Mapping[str, Tensor] | None


class FlowMap(Protocol):
    """The average velocity ``v_{s,t}(x)`` of a flow."""

    def __call__(self, x: Tensor, s: Time, t: Time, cond: Cond = None, /) -> Tensor:
        """v_{s,t}(x) [b *d] for x [b *d], s and t floats or [b]."""
        ...


class VelocityField(Protocol):
    """The instantaneous velocity ``b_t(x)`` of a plain flow model."""

    def __call__(self, x: Tensor, t: Time, cond: Cond = None, /) -> Tensor:
        """b_t(x) [b *d] for x [b *d], t a float or [b]."""
        ...


def jump(flow: FlowMap, x: Tensor, s: Time, t: Time, cond: Cond = None) -> Tensor:
    """``X_{s,t}(x) = x + (t - s) v_{s,t}(x)`` [b *d]: where the flow carries x from time s to time t, in one call."""
    return x + like(t - s, x) * flow(x, s, t, cond)


def velocity(flow: FlowMap, x: Tensor, t: Time, cond: Cond = None) -> Tensor:
    """``b_t(x) = v_{t,t}(x)`` [b *d]."""
    return flow(x, t, t, cond)


def denoise(flow: FlowMap, path: Interpolant, x: Tensor, t: Time, cond: Cond = None) -> Tensor:
    """``E[x1 | x_t = x]`` [b *d], the posterior mean; blurry where the posterior is wide, unlike the jump."""
    return data_from_velocity(path, x, velocity(flow, x, t, cond), t)


def score(flow: FlowMap, path: Interpolant, x: Tensor, t: Time, cond: Cond = None) -> Tensor:
    """``grad log p_t(x)`` [b *d]; NaN at t = 1, where the velocity no longer holds it."""
    return score_from_velocity(path, x, velocity(flow, x, t, cond), t)


@dataclass(frozen=True)
class Chunked:
    """The same map, at most `rows` rows at a time; methods that take a gradient also hold no more than these for it.

    Raises ValueError when rows < 1, and tells to lower it when memory runs out.
    """

    flow: FlowMap
    rows: int = 1024

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ValueError(f"rows must be at least 1, got {self.rows}")

    def __call__(self, x: Tensor, s: Time, t: Time, cond: Cond = None) -> Tensor:
        """v_{s,t}(x) [b *d]."""
        if len(x) <= self.rows:
            return self.flow(x, s, t, cond)
        return torch.cat([self._part(x, s, t, cond, slice(i, i + self.rows)) for i in range(0, len(x), self.rows)])

    def _part(self, x: Tensor, s: Time, t: Time, cond: Cond, rows: slice) -> Tensor:
        s, t = (u[rows] if isinstance(u, Tensor) and u.ndim else u for u in (s, t))
        return self.flow(x[rows], s, t, None if cond is None else {key: c[rows] for key, c in cond.items()})


@dataclass(frozen=True)
class Checkpointed:
    """The same map; what its backward pass needs is computed again there, not kept from the forward pass.

    For gradients through many jumps (`steer.lookahead.Rollout`, `OdeFlowMap`): only x [b *d] is kept of each call, at
    the price of one more forward pass of every row that is sent back. That pass changes nothing but memory and time,
    so `Run` counts it in no budget; the report of `steer.sample` names it ("network_recomputed").
    """

    flow: FlowMap

    def __call__(self, x: Tensor, s: Time, t: Time, cond: Cond = None) -> Tensor:
        """v_{s,t}(x) [b *d]."""
        if not torch.is_grad_enabled():
            return self.flow(x, s, t, cond)
        v: Any = checkpoint(self.flow, x, s, t, cond, use_reentrant=False, preserve_rng_state=False)
        return v


@dataclass(frozen=True)
class Autocast:
    """The same map, its matrix products in `dtype` (torch.autocast); x, the times and what comes back keep float32."""

    flow: FlowMap
    dtype: torch.dtype = torch.bfloat16

    def __call__(self, x: Tensor, s: Time, t: Time, cond: Cond = None) -> Tensor:
        """v_{s,t}(x) [b *d] in the dtype of x."""
        with torch.autocast(x.device.type, self.dtype):
            return self.flow(x, s, t, cond).to(x.dtype)


@dataclass(frozen=True)
class OdeFlowMap:
    """A plain velocity model as a flow map: ``v_{s,t}`` by `steps` second-order steps from s to t.

    The mean of the steps' velocities is returned, without a division by t - s, so the diagonal is the velocity itself.
    A call costs ``2 steps`` calls of the velocity (one on the diagonal, when s and t are the same float). Works in both
    directions of time; the error falls as ``steps**-2``.
    """

    velocity: VelocityField
    steps: int = 4
    scheme: Literal["midpoint", "heun"] = "midpoint"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if self.scheme not in ("midpoint", "heun"):
            raise ValueError(f"scheme must be 'midpoint' or 'heun', got {self.scheme!r}")

    def __call__(self, x: Tensor, s: Time, t: Time, cond: Cond = None) -> Tensor:
        """v_{s,t}(x) [b *d]."""
        if not isinstance(s, Tensor) and not isinstance(t, Tensor) and s == t:
            return self.velocity(x, t, cond)
        h = (t - s) / self.steps
        step = self._midpoint if self.scheme == "midpoint" else self._heun
        total = torch.zeros_like(x)
        for k in range(self.steps):
            v = step(x + like(h, x) * total, s + k * h, h, cond)
            total = total + v
        return total / self.steps

    def _midpoint(self, x: Tensor, t: Time, h: Time, cond: Cond) -> Tensor:
        half = x + like(h, x) / 2 * self.velocity(x, t, cond)
        return self.velocity(half, t + h / 2, cond)

    def _heun(self, x: Tensor, t: Time, h: Time, cond: Cond) -> Tensor:
        first = self.velocity(x, t, cond)
        return (first + self.velocity(x + like(h, x) * first, t + h, cond)) / 2


@dataclass(frozen=True)
class ClassifierFree:
    """Classifier-free guidance of a flow map's **velocity**: ``b = b(null) + scale (b(cond) - b(null))``.

    This is a velocity field, to be integrated: ``OdeFlowMap(ClassifierFree(flow, null, scale=3.0), steps=8)``.
    Extrapolating ``v_{s,t}`` off the diagonal in the same way gives no flow map: the result is the jump of no flow and
    breaks ``X_{u,t} o X_{s,u} = X_{s,t}``. Both velocities are found in one call of twice the rows.

    Source: "Classifier-free diffusion guidance" (arXiv:2207.12598). null holds the same keys as cond, one row each.
    """

    flow: FlowMap
    null: Mapping[str, Tensor]
    scale: float = 1.0

    def __call__(self, x: Tensor, t: Time, cond: Cond = None) -> Tensor:
        """b_t(x) [b *d] under guidance; raises ValueError when cond is missing or has other keys than null."""
        if cond is None or set(cond) != set(self.null):
            raise ValueError(f"cond must have the keys of null {sorted(self.null)}, got {cond and sorted(cond)}")
        both = {key: torch.cat([c, self.null[key].to(c).expand_as(c)]) for key, c in cond.items()}
        t = t.repeat(2) if isinstance(t, Tensor) and t.ndim else t
        with_cond, without = velocity(self.flow, torch.cat([x, x]), t, both).chunk(2)
        return without + self.scale * (with_cond - without)


def compiled(flow: FlowMap) -> FlowMap:
    """The same map with its network through `torch.compile`; the wrappers of this file stay around it as they are.

    Compiled once for all numbers of rows, and once more for gradients. Times reach the network as tensors [b], since a
    float would be compiled anew for each value.
    """
    if isinstance(flow, Chunked | Checkpointed | Autocast):
        return replace(flow, flow=compiled(flow.flow))
    if isinstance(flow, OdeFlowMap):
        inner = flow.velocity
        if isinstance(inner, ClassifierFree):
            return replace(flow, velocity=replace(inner, flow=compiled(inner.flow)))
        return replace(flow, velocity=_Compiled(torch.compile(inner, dynamic=True)))
    return _Compiled(torch.compile(flow, dynamic=True))


@dataclass(frozen=True)
class _Compiled:
    """A compiled function of x, one or two times, and cond."""

    function: Callable[..., Tensor]

    def __call__(self, x: Tensor, *rest: Any) -> Tensor:  # noqa: ANN401 (times, cond)
        """Its value, given tensors [b] for floats."""
        times = (x.new_full((), u).expand(len(x)) if isinstance(u, int | float) else u for u in rest)
        return self.function(x, *times)
