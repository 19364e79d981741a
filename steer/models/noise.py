"""A noise network beside a model's flow: tuned noise for a frozen map, its file, and where sampling starts."""

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from steer.flow_map import Cond
from steer.models import Model
from steer.models.files import fill, write_tensors

FILE = "noise.safetensors"


@dataclass(frozen=True)
class TunedNoise:
    """``x0 + (v_tuned - v)_{0,1}(x0)``: what `steer.objectives.NoiseNetwork` learns. The words are read once, by v.

    tuned, flow: two networks of one kind that read the words alike.
    """

    tuned: nn.Module
    flow: nn.Module

    def __call__(self, x0: Tensor, cond: Cond) -> Tensor:
        """Noise [b *d] from N(0, I) [b *d]."""
        return x0 + self.tuned(x0, 0.0, 1.0, cond) - self.flow(x0, 0.0, 1.0, cond)


@torch.no_grad()
def start(model: Model, x0: Tensor, cond: Cond) -> Tensor:
    """The noise [p n *d] that a model's flow starts from, given x0 [p n *d] ~ N(0, I) and cond [p ...]."""
    if model.noise is None or not x0.shape[1]:
        return x0
    rows = None if cond is None else {key: c.repeat_interleave(x0.shape[1], 0) for key, c in cond.items()}
    return model.noise(x0.flatten(0, 1), rows).unflatten(0, x0.shape[:2])


def read(model: Model, card: dict[str, Any], folder: Path) -> Model:
    """The model with the noise network that its card names, if it does; raises ValueError where that does not fit."""
    if not card.get("noise"):
        return model
    assert isinstance(model.flow, nn.Module)
    tuned = copy.deepcopy(model.flow)
    fill(tuned, folder / FILE)
    return replace(model, noise=TunedNoise(tuned, model.flow))


def write(model: Model, folder: Path) -> bool | None:
    """Write the noise network, if there is one; what the card says of it."""
    if not isinstance(model.noise, TunedNoise):
        return None
    write_tensors(folder / FILE, model.noise.tuned.state_dict())
    return True
