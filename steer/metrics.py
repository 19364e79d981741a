"""Figures by which samples are judged: distance to a known law, survivors, diversity."""

from typing import NamedTuple

import torch
from torch import Tensor


class Diversity(NamedTuple):
    """Mean distances between pictures [p]: `within` a prompt (NaN for n = 1), `between` it and the others (p = 1)."""

    within: Tensor
    between: Tensor


def sliced_w1(
    x: Tensor,
    y: Tensor,
    log_w: Tensor | None = None,
    log_v: Tensor | None = None,
    *,
    directions: int = 128,
    rng: torch.Generator,
) -> Tensor:
    """Sliced Wasserstein-1 distance of the weighted points x [n d] and y [m d]: a number, 0 iff the laws agree.

    ``mean_u W1(u.x, u.y)`` over random unit directions u, each W1 exact: ``integral |F(z) - G(z)| dz`` of the two
    weighted distribution functions. log_w [n] and log_v [m] default to equal weights and need not be normalised.

    Source: "Sliced and Radon Wasserstein barycenters of measures" (Bonneel et al., 2015).
    """
    u = torch.randn(directions, x.shape[-1], generator=rng, device=rng.device, dtype=x.dtype).to(x.device)
    u = u / u.norm(dim=-1, keepdim=True)
    w = torch.cat([_weights(log_w, x), -_weights(log_v, y)])
    z, order = (torch.cat([x, y.to(x)]) @ u.T).sort(dim=0)
    gap = w[order].cumsum(0)[:-1].abs()
    return (gap * z.diff(dim=0)).sum(0).mean()


def distinct(ancestors: Tensor) -> Tensor:
    """Share of the initial particles that have a descendant [p], for ancestors [p n] (see `steer.particles.Trace`)."""
    sorted_ = ancestors.sort(-1).values
    return ((sorted_.diff(dim=-1) != 0).sum(-1) + 1) / ancestors.shape[-1]


def diversity(images: Tensor) -> Diversity:
    """Mean root-mean-square difference of pairs of pictures [p n *d], within each prompt and to the other prompts."""
    p, n = images.shape[:2]
    flat = images.flatten(0, 1).flatten(1).double()
    distance = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist") / flat.shape[1] ** 0.5
    block = distance.view(p, n, p, n).sum((1, 3))
    within = block.diagonal()
    return Diversity(within / (n * (n - 1)), (block.sum(1) - within) / (n * n * (p - 1)))


def _weights(log_w: Tensor | None, x: Tensor) -> Tensor:
    return (x.new_zeros(x.shape[0]) if log_w is None else log_w.to(x)).softmax(0)
