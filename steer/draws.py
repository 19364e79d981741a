"""Random draws: every one takes an explicit generator, or one for each prompt; nothing is seeded globally."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Shard:
    """A generator that several processes hold alike, each of which takes its own rows of what all draw.

    So a batch spread over `world` processes sees the numbers that one process with the whole batch would.
    """

    generator: torch.Generator
    rank: int = 0
    world: int = 1


Rng = torch.Generator | Sequence[torch.Generator] | Shard
"""One generator for all prompts; or a sequence of one a prompt, so that each prompt gets what it would get alone; or
a process's share of one."""


def randn_like(x: Tensor, rng: Rng) -> Tensor:
    """Standard normal draws in the shape, dtype and device of x; a generator may live on another device.

    With one generator a prompt x is [p ...]. Raises ValueError when there are not p of them.
    """
    return _each(torch.randn, x, rng)


def rand_like(x: Tensor, rng: Rng) -> Tensor:
    """Uniform draws on [0, 1) in the shape, dtype and device of x; see `randn_like`."""
    return _each(torch.rand, x, rng)


def draws_like(x: Tensor, k: int, rng: Rng) -> Tensor:
    """Standard normal draws [k *x.shape]: k for each number of x [p ...]; a prompt's come from its own rng."""
    return randn_like(x.unsqueeze(1).expand(x.shape[0], k, *x.shape[1:]), rng).movedim(1, 0)


def of_prompts(rng: Rng, where: Tensor) -> Rng:
    """The generators of the prompts in the mask `where` [p] alone, so that the others' draws do not depend on them."""
    if isinstance(rng, torch.Generator | Shard):
        return rng
    return [g for g, chosen in zip(rng, where.tolist(), strict=True) if chosen]


def _each(draw, x: Tensor, rng: Rng) -> Tensor:  # noqa: ANN001 (torch.rand or torch.randn)
    if isinstance(rng, torch.Generator):
        return draw(x.shape, generator=rng, device=rng.device, dtype=x.dtype).to(x.device)
    if isinstance(rng, Shard):
        b, g = x.shape[0], rng.generator
        everything = draw((rng.world * b, *x.shape[1:]), generator=g, device=g.device, dtype=x.dtype)
        return everything[rng.rank * b : (rng.rank + 1) * b].to(x.device)
    if len(rng) != x.shape[0]:
        raise ValueError(f"rng holds {len(rng)} generators for {x.shape[0]} prompts; give one, or one a prompt")
    return torch.stack([draw(x.shape[1:], generator=g, device=g.device, dtype=x.dtype).to(x.device) for g in rng])
