"""A model small enough to know everything about: one colour a picture, and its law is Gaussian."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from steer.analytic import GaussianMixture
from steer.flow_map import Cond
from steer.interpolants import Linear, Time
from steer.models import Model

MEAN = torch.tensor([0.5, -0.5, 0.0])
STD = 0.7
SCALE = 0.05  # picture = 0.5 + SCALE * x, so that x stays far inside [0, 1]
SIDE = 8


@dataclass
class CountingFlow:
    """The exact flow map; keeps the number of rows of every call, and of those sent back."""

    rows: list[int] = field(default_factory=list)
    backward: int = 0

    def __post_init__(self) -> None:
        self.flow = GaussianMixture(torch.ones(1), MEAN[None], STD**2 * torch.eye(3)[None]).flow(Linear())

    def __call__(self, x: Tensor, s: Time, t: Time, cond: Cond = None) -> Tensor:
        self.rows.append(len(x))
        v = self.flow(x, s, t)
        if v.requires_grad:
            v.register_hook(self._count)
        return v

    def _count(self, gradient: Tensor) -> None:
        self.backward += len(gradient)


def decode(x: Tensor) -> Tensor:
    """Latents [b 3] as flat pictures [b 3 8 8]."""
    return (0.5 + SCALE * x)[:, :, None, None].expand(-1, -1, SIDE, SIDE)


def colour_model(flow: CountingFlow | None = None) -> Model:
    """Pictures of one colour, 0.5 + SCALE * x with x ~ N(MEAN, STD^2), for every prompt."""

    def encode(prompts: list[str]) -> dict[str, Tensor]:
        return {"length": torch.tensor([[float(len(p))] for p in prompts])}

    return Model(flow or CountingFlow(), Linear(), encode, decode, (3,), "colours")


def redness(images: Tensor) -> Tensor:
    """A linear reward with a gradient: red less green, in units of x."""
    return (images[:, 0] - images[:, 1]).mean((1, 2)) / SCALE
