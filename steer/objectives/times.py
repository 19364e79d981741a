"""At which times an objective looks: which rows lie on the diagonal s = t, and pairs s < t for the others."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from steer.draws import Rng, Shard, rand_like, randn_like


@dataclass(frozen=True)
class Times:
    """Pairs (s, t): a share of the rows on the diagonal s = t, the rest above it, s < t.

    Attributes:
        diagonal: share of rows with s = t, spread evenly over the batch, so that each process of several has its share.
        law: "uniform" draws t on [0, 1], and pairs on the triangle s < t; "logit-normal" draws each time as
            ``sigmoid(mean + std z)``, and sorts a pair. Data are at t = 1: a negative mean looks more at noise.
        mean, std: of "logit-normal" ("MeanFlow" has .4 and 1 in this convention; arXiv:2505.13447).
        from_noise, to_data: share of the pairs whose s is moved to 0, and of those whose t is moved to 1.
        power: t -> t^power for the diagonal's times of "uniform"; above 1 looks more at noise.

    Source: the diagonal's share of 3/4 and the triangle are those of "How to build a consistency model"
    (arXiv:2505.18825).
    """

    diagonal: float = 0.75
    law: Literal["uniform", "logit-normal"] = "uniform"
    mean: float = 0.0
    std: float = 1.0
    from_noise: float = 0.0
    to_data: float = 0.0
    power: float = 1.0

    def __post_init__(self) -> None:
        for name in ("diagonal", "from_noise", "to_data"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be a share between 0 and 1, got {getattr(self, name)}")
        if self.from_noise + self.to_data > 1:
            raise ValueError(f"from_noise + to_data must be at most 1, got {self.from_noise + self.to_data}")
        if self.law not in ("uniform", "logit-normal"):
            raise ValueError(f'law must be "uniform" or "logit-normal", got {self.law!r}')
        for name in ("std", "power"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")

    def __call__(self, like: Tensor, rng: Rng) -> tuple[Tensor, Tensor, Tensor]:
        """s, t [b] and a mask [b] that is True on the diagonal, for a batch `like` [b ...]."""
        b = like.shape[0]
        pair = like.new_empty(b, 2)
        raw = (
            rand_like(pair, rng) if self.law == "uniform" else (self.mean + self.std * randn_like(pair, rng)).sigmoid()
        )
        (s, t), kind = raw.sort(1).values.unbind(1), rand_like(like.new_empty(b), rng)
        s = torch.where(kind < self.from_noise, torch.zeros_like(s), s)
        t = torch.where(kind > 1 - self.to_data, torch.ones_like(t), t)
        on = self.on_diagonal(like, rng)
        alone = raw[:, 0] ** self.power if self.law == "uniform" else raw[:, 0]
        return torch.where(on, alone, s), torch.where(on, alone, t), on

    def on_diagonal(self, like: Tensor, rng: Rng) -> Tensor:
        """Which rows of a batch [b ...] lie on the diagonal [b]; nothing is drawn."""
        b = like.shape[0]
        first = rng.rank * b if isinstance(rng, Shard) else 0
        place = torch.arange(first, first + b, device=like.device, dtype=torch.float64)
        return ((place + 1) * self.diagonal).floor() > (place * self.diagonal).floor()
