"""The native kind of model, "drawing": words of emoji-clip, a perceptron over flat latents, a layered autoencoder.

A folder holds model.json, flow.safetensors and autoencoder.safetensors. Nothing in model.json names code to import.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rewards.towers import EMBEDDED, Towers, load_clip
from steer.data.stage import STAGE, show
from steer.interpolants import Linear
from steer.models import Model, growing, noise
from steer.models.autoencoder import Autoencoder
from steer.models.files import check_card, construct, read_card, write_card, write_tensors
from steer.models.network import FlowNetwork
from steer.models.text import encode_prompts

GRID = 8  # rows and columns of a latent


@dataclass(frozen=True)
class Words:
    """Prompts -> {"words": [p c]}."""

    towers: Towers
    net: FlowNetwork

    def __call__(self, prompts: list[str]) -> dict[str, Tensor]:
        """Cond of prompts."""
        return {"words": self.net.describe(**encode_prompts(self.towers, prompts))}


@dataclass(frozen=True)
class Show:
    """Latents [b d] -> pictures [b 3 64 64]: the first numbers are the drawing's, the last eight its stage."""

    autoencoder: Autoencoder

    def __call__(self, x: Tensor) -> Tensor:
        """Pictures of latents."""
        drawing, stage = x[:, :-STAGE], x[:, -STAGE:]
        return show(self.autoencoder.layers(drawing.unflatten(1, (-1, GRID, GRID))), stage)


def load(folder: Path, device: torch.device) -> Model:
    """The model of a folder; see steer.load_model."""
    card = read_card(folder)
    check_card(folder, card, {"path": ("linear",), "text": EMBEDDED})
    net = construct(FlowNetwork, card, "network", folder / "flow.safetensors").to(device)
    autoencoder = construct(Autoencoder, card, "autoencoder", folder / "autoencoder.safetensors").to(device)
    shape, taken = (net.config["size"],), autoencoder.config["channels"] * GRID**2 + STAGE
    if shape != (taken,):
        raise ValueError(
            f"{folder / 'model.json'}: the network draws {shape[0]} numbers, and the decoder takes {taken}"
        )
    towers = load_clip(card["text"], device=device)
    model = Model(net, Linear(), Words(towers, net), Show(autoencoder), shape, folder.name)
    return growing.read(noise.read(model, card, folder), card, folder)


def load_untrained(folder: Path, network: dict[str, Any]) -> Model:
    """The model of a folder with a new network, of other sizes where `network` names them, with random weights."""
    model = load(folder, torch.device("cpu"))
    assert isinstance(model.flow, FlowNetwork) and isinstance(model.encode, Words)
    net = FlowNetwork(**{**model.flow.config, **network})
    return replace(model, flow=net, encode=replace(model.encode, net=net))


def save(model: Model, folder: Path) -> None:
    """Write a model of this kind; see steer.save_model."""
    net = growing.base(model.flow)
    if not (isinstance(net, FlowNetwork) and isinstance(model.decode, Show)):
        raise ValueError(
            f"model={model.name!r} has a flow of type {type(model.flow).__name__}; save_model writes native models, "
            "whose flow is a FlowNetwork and whose decode is a Show"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / "flow.safetensors", net.state_dict())
    write_tensors(folder / "autoencoder.safetensors", model.decode.autoencoder.state_dict())
    write_card(folder, {
        "kind": "drawing", "path": "linear", "text": "emoji-clip", "network": net.config,
        "autoencoder": model.decode.autoencoder.config, "posterior": growing.write(model.flow, folder),
        "noise": noise.write(model, folder),
    })  # fmt: skip
