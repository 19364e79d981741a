"""The native kind of model "picture": its own vocabulary, a flow map over latents of an autoencoder or over pixels.

A folder holds model.json, flow.safetensors and, with latents, autoencoder.safetensors; model.json names no code.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rewards.files import read_json
from rewards.towers import WordPieces
from steer.interpolants import Linear
from steer.models import Model, growing, noise
from steer.models.autoencoder import Autoencoder
from steer.models.files import check_card, construct, read_card, write_card, write_tensors
from steer.models.grid import GridNetwork
from steer.models.network import FlowNetwork
from steer.models.patches import PatchNetwork

NETWORKS = {"perceptron": FlowNetwork, "grid": GridNetwork, "patches": PatchNetwork}
Network = FlowNetwork | GridNetwork | PatchNetwork


@dataclass(frozen=True)
class Spell:
    """Prompts -> {"words": [p c]}, by the network's own vocabulary."""

    pieces: WordPieces
    net: Network

    def ids(self, prompts: list[str]) -> Tensor:
        """Ids [p l], 0 where there is no word."""
        return self.pieces(prompts)

    def __call__(self, prompts: list[str]) -> dict[str, Tensor]:
        """Cond of prompts."""
        ids = self.ids(prompts).to(next(self.net.parameters()).device)
        return {"words": self.net.condition({"ids": ids})["words"]}


@dataclass(frozen=True)
class Latents:
    """Flat latents [b d] -> pictures [b 3 64 64]."""

    autoencoder: Autoencoder

    @property
    def size(self) -> int:
        """Numbers of a sample."""
        return self.autoencoder.config["channels"] * 64

    def __call__(self, x: Tensor) -> Tensor:
        """Pictures of latents."""
        return self.autoencoder.layers(x.unflatten(1, (-1, 8, 8))).clamp(0, 1)

    def encode(self, images: Tensor) -> Tensor:
        """Latents [b d] of pictures [b 3 64 64] in [0,1]."""
        return self.autoencoder.encode(images).flatten(1)


@dataclass(frozen=True)
class Pixels:
    """Pixels [b 3 h w] in [-1, 1] -> pictures in [0,1]."""

    def __call__(self, x: Tensor) -> Tensor:
        """Pictures."""
        return ((x + 1) / 2).clamp(0, 1)

    def encode(self, images: Tensor) -> Tensor:
        """Pixels of pictures [b 3 h w] in [0,1]."""
        return 2 * images - 1


def build(
    pieces: WordPieces, network: dict[str, Any], kind: str, decode: Latents | Pixels, shape: tuple[int, ...], name: str
) -> Model:
    """A model with untrained weights: kind is a name in `NETWORKS`, network its settings without the sizes."""
    if kind != "patches" and len(shape) != 1:
        raise ValueError(f"network={kind!r} is for flat latents, got samples of shape {shape}; take patches")
    sizes = {"side": shape[-1]} if kind == "patches" else {"size": shape[0]}
    token_size = network.get("token_size", 64)
    words = {"token_size": token_size, "vocabulary": pieces.vocab_size, "length": pieces.context}
    make: Callable[..., Network] = NETWORKS[kind]
    net = make(**(network | sizes | words))
    return Model(net, Linear(), Spell(pieces, net), decode, shape, name)


def load_decoder(folder: Path, config: dict[str, Any] | None = None, device: torch.device | str = "cpu") -> Latents:
    """The autoencoder of a folder, by the settings in its card or in autoencoder.json."""
    settings = config or read_json(folder / "autoencoder.json", "save or install the model again")
    card = {"autoencoder": settings}
    return Latents(construct(Autoencoder, card, "autoencoder", folder / "autoencoder.safetensors").to(device))


def load(folder: Path, device: torch.device) -> Model:
    """The model of a folder; see steer.load_model."""
    card = read_card(folder)
    check_card(folder, card, {"path": ("linear",), "architecture": NETWORKS})
    net = construct(NETWORKS[card["architecture"]], card, "network", folder / "flow.safetensors").to(device)
    decode = Pixels() if card.get("autoencoder") is None else load_decoder(folder, card["autoencoder"], device)
    pieces, shape = _words(card, net, folder), _shape(card, net, decode, folder)
    model = Model(net, Linear(), Spell(pieces, net), decode, shape, folder.name)
    return growing.read(noise.read(model, card, folder), card, folder)


def _words(card: dict[str, Any], net: Network, folder: Path) -> WordPieces:
    """The vocabulary; raises ValueError where it is not the one that the network has states for."""
    words = card.get("words")
    words = words if isinstance(words, dict) else {}
    texts, length = words.get("pieces"), words.get("context")
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts) or type(length) is not int:
        raise ValueError(f"{folder / 'model.json'}: words hold no pieces, or no context; save the model again")
    pieces, known = WordPieces(tuple(texts), length), (net.config["vocabulary"], net.config["length"])
    if (pieces.vocab_size, length) != known or length < 2:
        raise ValueError(
            f"{folder / 'model.json'}: words are {pieces.vocab_size} in a context of {length}, and the network's "
            f"{known[0]} in {known[1]}; save the model again"
        )
    return pieces


def _shape(card: dict[str, Any], net: Network, decode: Latents | Pixels, folder: Path) -> tuple[int, ...]:
    """The shape of a sample; raises ValueError where network, decoder and card do not agree on it."""
    drawn = (3, net.config["side"], net.config["side"]) if isinstance(net, PatchNetwork) else (net.config["size"],)
    fits = isinstance(net, PatchNetwork) if isinstance(decode, Pixels) else drawn == (decode.size,)
    if not fits or card.get("shape") != list(drawn):
        raise ValueError(
            f"{folder / 'model.json'}: shape={card.get('shape')!r}, the network draws {list(drawn)}, and the decoder "
            "takes " + ("pixels" if isinstance(decode, Pixels) else f"{[decode.size]}") + "; save the model again"
        )
    return drawn


def save(model: Model, folder: Path) -> None:
    """Write a model of this kind; see steer.save_model."""
    net = growing.base(model.flow)
    assert isinstance(net, Network) and isinstance(model.encode, Spell)
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / "flow.safetensors", net.state_dict())
    latents = model.decode if isinstance(model.decode, Latents) else None
    if latents:
        write_tensors(folder / "autoencoder.safetensors", latents.autoencoder.state_dict())
    pieces = model.encode.pieces
    write_card(folder, {
        "kind": "picture", "path": "linear", "shape": list(model.shape),
        "architecture": next(name for name, kind in NETWORKS.items() if isinstance(net, kind)),
        "network": net.config, "autoencoder": latents and latents.autoencoder.config,
        "words": {"pieces": list(pieces.pieces), "context": pieces.context},
        "posterior": growing.write(model.flow, folder), "noise": noise.write(model, folder),
    })  # fmt: skip
