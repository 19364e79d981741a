"""What each row's squared error counts: as it is, by a learned function of its times, or by its own size."""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from steer.objectives.base import Student


class Weighting(Protocol):
    """(squared errors [b], s [b], t [b], model) -> what is summed [b]."""

    def __call__(self, loss: Tensor, s: Tensor, t: Tensor, model: Student) -> Tensor:
        """The weighted losses [b]."""
        ...


@dataclass(frozen=True)
class Uniform:
    """The squared error, times ``max(1 - t, least)^2`` where `least` is given.

    The factor suits networks that predict data: their velocity is an error divided by 1 - t.
    """

    least: float | None = None

    def __call__(self, loss: Tensor, s: Tensor, t: Tensor, model: Student) -> Tensor:
        """The weighted losses [b]."""
        return loss if self.least is None else loss * (1 - t).clamp_min(self.least).square()


@dataclass(frozen=True)
class LearnedWeight:
    """``exp(-w(s, t)) l + w(s, t)`` with w learned beside the map: at its best, w is the logarithm of the mean l there.

    Source: "Analyzing and improving the training dynamics of diffusion models" (arXiv:2312.02696), section 2.2; of two
    times in "How to build a consistency model" (arXiv:2505.18825).

    Attributes:
        least: as in `Uniform`, before the learned weight.
        floor: e^w is ``floor + exp(...)``. A velocity's error has a variance that nothing can learn; that of a jump
            falls to 0, near the diagonal by itself, and without a floor its weight, and the gradient, grow for ever.
    """

    least: float | None = None
    floor: float = 0.05

    def __post_init__(self) -> None:
        if self.floor <= 0:
            raise ValueError(f"floor must be above 0, got {self.floor}")

    def __call__(self, loss: Tensor, s: Tensor, t: Tensor, model: Student) -> Tensor:
        """The weighted losses [b]; raises ValueError when the model has no weight network."""
        if model.weight is None:
            raise ValueError("weighting=LearnedWeight() needs model.weight; give weight=TimeWeight(), or Uniform()")
        w = torch.logaddexp(model.weight(s, t), torch.full_like(s, math.log(self.floor)))
        return (-w).exp() * Uniform(self.least)(loss, s, t, model) + w


@dataclass(frozen=True)
class AdaptiveWeight:
    """``l / sg(l + c)^power``: the gradient of a power 1 - `power` of the error, so that outliers count less.

    Source: "Consistency models made easy" (arXiv:2406.14548); "Mean flows for one-step generative modeling"
    (arXiv:2505.13447), whose power is 1. In few dimensions take a smaller one: at 1 the slopes of a ring's
    points pull an error within the ring back by next to nothing.

    Attributes:
        power: 0 changes nothing.
        c: keeps small errors small.
    """

    power: float = 1.0
    c: float = 1e-3

    def __call__(self, loss: Tensor, s: Tensor, t: Tensor, model: Student) -> Tensor:
        """The weighted losses [b]."""
        return loss / (loss.detach() + self.c) ** self.power


class TimeWeight(nn.Module):
    """w(s, t) for `LearnedWeight`: cosines and sines of both times through one hidden layer; 0 at the start."""

    def __init__(self, width: int = 64, frequencies: int = 32) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.logspace(-1, 6, frequencies, base=2.0) * math.pi, persistent=False)
        last = nn.Linear(width, 1)
        self.net = nn.Sequential(nn.Linear(4 * frequencies, width), nn.SiLU(), last)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    frequencies: Tensor

    def forward(self, s: Tensor, t: Tensor) -> Tensor:
        """W [b] of s, t [b]."""
        angle = torch.cat([s[:, None] * self.frequencies, t[:, None] * self.frequencies], 1)
        return self.net(torch.cat([angle.cos(), angle.sin()], 1))[:, 0]
