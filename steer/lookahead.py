"""Guesses of the end: where will a half-made sample land?

A look-ahead is a callable ``(flow, path, x [*b *d], t, *, cond, rng) -> x1 [k *b *d]``, always with the k axis of its
draws in front. None of them computes a value; one function, `soft_value`, turns k rewards into one.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from steer.flow_map import Cond, FlowMap, denoise, jump
from steer.interpolants import Interpolant, Time


class LookAhead(Protocol):
    """A guess of x1 from x_t."""

    def __call__(
        self, flow: FlowMap, path: Interpolant, x: Tensor, t: Time, *, cond: Cond = None, rng: torch.Generator | None
    ) -> Tensor:
        """x1 [k *b *d] for x [*b *d]."""
        ...


@dataclass(frozen=True)
class Denoiser:
    """``E[x1 | x_t]`` [1 *b *d]: one call; an average of possible ends, so off the data where they differ."""

    def __call__(
        self,
        flow: FlowMap,
        path: Interpolant,
        x: Tensor,
        t: Time,
        *,
        cond: Cond = None,
        rng: torch.Generator | None = None,
    ) -> Tensor:
        """The posterior mean; draws nothing from rng."""
        return denoise(flow, path, x, t, cond)[None]


@dataclass(frozen=True)
class Jump:
    """``X_{t,1}(x_t)`` [1 *b *d]: one call; the end of the flow's own trajectory, on the data wherever the map is good.

    One point of the posterior p(x1 | x_t), not its mean: with x_t ~ p_t it has exactly the law of the data.
    """

    def __call__(
        self,
        flow: FlowMap,
        path: Interpolant,
        x: Tensor,
        t: Time,
        *,
        cond: Cond = None,
        rng: torch.Generator | None = None,
    ) -> Tensor:
        """The jump to t = 1; draws nothing from rng."""
        return jump(flow, x, t, 1.0, cond)[None]


def soft_value(r: Tensor, temperature: float = 1.0) -> Tensor:
    """``V = temperature log (1/k) sum_i exp(r_i / temperature)`` [*b] for r [k *b], in log space.

    temperature -> 0 gives the maximum, temperature = inf the mean. Rows of -inf alone give -inf. Biased low for
    finite k (Jensen). Raises ValueError when temperature is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}; math.inf gives the mean")
    if math.isinf(temperature):
        return r.mean(0)
    return temperature * ((r / temperature).logsumexp(0) - math.log(r.shape[0]))
