"""Resampling: indices [p n] drawn in proportion to weights, n w copies of each particle on average.

All work in float64 whatever the weights' dtype, and none ever draws a particle of weight zero.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from steer.draws import Rng, rand_like
from steer.particles import normalise

Resample = Callable[..., Tensor]


def systematic(log_w: Tensor, *, rng: Rng) -> Tensor:
    """Indices [p n] drawn with one uniform a row; each particle is chosen floor(n w) or ceil(n w) times."""
    return _invert(log_w, _grid(log_w) + rand_like(log_w[:, :1].double(), rng) / log_w.shape[1])


def stratified(log_w: Tensor, *, rng: Rng) -> Tensor:
    """Indices [p n] drawn with one uniform in each of n strata; within two of n w."""
    return _invert(log_w, _grid(log_w) + rand_like(log_w.double(), rng) / log_w.shape[1])


def multinomial(log_w: Tensor, *, rng: Rng) -> Tensor:
    """Indices [p n] drawn independently; the noisiest of the four."""
    return _invert(log_w, rand_like(log_w.double(), rng))


def residual(log_w: Tensor, *, rng: Rng) -> Tensor:
    """Indices [p n]: floor(n w) copies for certain, the rest multinomial on what the floors left.

    Source: "Sequential Monte Carlo methods for dynamic systems" (Liu and Chen, 1998).
    """
    n = log_w.shape[1]
    expected = n * normalise(log_w.double()).exp()
    copies = expected.floor()
    left = expected - copies
    left = torch.where(left.sum(-1, keepdim=True) > 0, left, expected)
    drawn = _invert(left.log(), rand_like(log_w.double(), rng))
    slots = torch.arange(n, device=log_w.device).expand_as(log_w)
    certain = torch.searchsorted(copies.cumsum(-1), slots.double().contiguous(), right=True)
    return torch.where(certain < n, certain, drawn)


def ssp(log_w: Tensor, *, rng: Rng) -> Tensor:
    """Indices [p n] by Srinivasan sampling: floor(n w) or ceil(n w) copies, negatively associated between particles.

    Pairs of fractional parts are merged, one of the two becoming whole, until all are. Source: "Negative association,
    ordering and convergence of resampling methods" (arXiv:1707.01845).
    """
    n = log_w.shape[1]
    expected = n * normalise(log_w.double()).exp()
    copies, part = expected.floor(), expected - expected.floor()
    uniforms = rand_like(log_w.double(), rng)
    rows = torch.arange(len(log_w), device=log_w.device)
    i = torch.zeros_like(rows)  # the one whose fraction is still open, in each row
    for j in range(1, n):
        a, b = part[rows, i], part[:, j]
        up, down = torch.minimum(b, 1 - a), torch.minimum(a, 1 - b)  # move `up` from j to i, or `down` from i to j
        rise = uniforms[:, j] * (up + down) < down
        a, b = torch.where(rise, a + up, a - down), torch.where(rise, b - up, b + down)
        part[rows, i], part[:, j] = a, b
        i = torch.where((b > 1e-12) & (b < 1 - 1e-12), j, i)
    copies = copies + part.round()
    copies[rows, i] += n - copies.sum(-1)  # what rounding left
    slots = torch.arange(n, device=log_w.device, dtype=torch.float64).expand_as(copies)
    return torch.searchsorted(copies.cumsum(-1), slots.contiguous(), right=True)


RESAMPLERS: dict[str, Resample] = {
    "systematic": systematic,
    "stratified": stratified,
    "multinomial": multinomial,
    "residual": residual,
    "ssp": ssp,
}


def resampler(name: str | Resample) -> Resample:
    """The resampling function of that name, or the callable itself; raises ValueError naming the known ones."""
    if callable(name):
        return name
    if name not in RESAMPLERS:
        raise ValueError(f"resample must be one of {sorted(RESAMPLERS)} or a callable, got {name!r}")
    return RESAMPLERS[name]


def _invert(log_w: Tensor, points: Tensor) -> Tensor:
    """Particle whose share of [0, 1) holds each point; in float64, and never one of weight zero (see below)."""
    w = normalise(log_w.double()).exp()
    cdf = w.cumsum(-1)
    points = (points * cdf[:, -1:]).contiguous()  # the sum may round to less than one
    index = torch.searchsorted(cdf, points, right=True)  # right: a point on a step belongs to the next, so u = 0 works
    last = (w > 0).long().cumsum(-1).argmax(-1, keepdim=True)  # the last particle alive, should rounding pass it
    return index.minimum(last)


def _grid(log_w: Tensor) -> Tensor:
    n = log_w.shape[1]
    return torch.arange(n, device=log_w.device, dtype=torch.float64) / n
