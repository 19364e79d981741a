"""The native kind of model, "drawing": words of emoji-clip, a perceptron over flat latents, a layered autoencoder.

A folder holds model.json, flow.safetensors and autoencoder.safetensors. Nothing in model.json names code to import.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from rewards.towers import EMBEDDED, Towers, load_clip, read_weights
from steer.data.stage import STAGE, show
from steer.interpolants import Linear
from steer.models import Model
from steer.models.autoencoder import DrawingAutoencoder
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

    autoencoder: DrawingAutoencoder

    def __call__(self, x: Tensor) -> Tensor:
        """Pictures of latents."""
        drawing, stage = x[:, :-STAGE], x[:, -STAGE:]
        return show(self.autoencoder.layers(drawing.unflatten(1, (-1, GRID, GRID))), stage)


def read_card(folder: Path) -> dict[str, Any]:
    """model.json, checked."""
    path = folder / "model.json"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; name a folder that steer.save_model wrote")
    try:
        card = json.loads(path.read_text(encoding="utf8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged ({error}); save or install the model again") from error
    for key, known in {"kind": ("drawing",), "path": ("linear",), "text": EMBEDDED}.items():
        if card.get(key) not in known:
            raise ValueError(f"{path}: {key}={card.get(key)!r} is not known here; known: {', '.join(known)}")
    return card


def fill(module: nn.Module, path: Path) -> None:
    """Load a file's weights into a module, for use: no dropout, no gradients to the weights."""
    try:
        module.load_state_dict(read_weights(path))
    except RuntimeError as error:
        raise ValueError(f"the weights in {path} do not fit model.json beside them: {error}") from error
    module.eval().requires_grad_(False)


def load(folder: Path, device: torch.device) -> Model:
    """The model of a folder; see steer.load_model."""
    card = read_card(folder)
    net, autoencoder = FlowNetwork(**card["network"]), DrawingAutoencoder(**card["autoencoder"])
    fill(net, folder / "flow.safetensors")
    fill(autoencoder, folder / "autoencoder.safetensors")
    net, autoencoder = net.to(device), autoencoder.to(device)
    towers = load_clip(card["text"], device=device)
    return Model(net, Linear(), Words(towers, net), Show(autoencoder), (card["network"]["size"],), folder.name)


def write_file(path: Path, tensors: dict[str, Tensor]) -> None:
    """Safetensors under a temporary name, then renamed."""
    part = path.with_name(path.name + ".part")
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, part)
    os.replace(part, path)


def save(model: Model, folder: Path) -> None:
    """Write a model of this kind; see steer.save_model."""
    if not (isinstance(model.flow, FlowNetwork) and isinstance(model.decode, Show)):
        raise ValueError(
            f"model={model.name!r} has a flow of type {type(model.flow).__name__}; save_model writes native models, "
            "whose flow is a FlowNetwork and whose decode is a Show"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / "flow.safetensors", model.flow.state_dict())
    write_file(folder / "autoencoder.safetensors", model.decode.autoencoder.state_dict())
    card = {
        "kind": "drawing", "path": "linear", "text": "emoji-clip",
        "network": model.flow.config, "autoencoder": model.decode.autoencoder.config,
    }  # fmt: skip
    part = folder / "model.json.part"
    part.write_text(json.dumps(card, indent=1), encoding="utf8")
    os.replace(part, folder / "model.json")
