"""Files of a model's folder: safetensors and JSON, read with checks, written whole or not at all."""

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from rewards.files import check_size, read_json, read_weights

AGAIN = "save or install the model again"


def read_card(folder: Path) -> dict[str, Any]:
    """model.json of a folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or no object.
    """
    path = folder / "model.json"
    card = read_json(path, "name a folder that steer.save_model wrote, or save or install the model again")
    if not isinstance(card, dict):
        raise ValueError(f"{path} is damaged (no object); {AGAIN}")
    return card


def check_card(folder: Path, card: dict[str, Any], known: dict[str, Iterable[str]]) -> None:
    """Hold the values of some keys to those that are known; raises ValueError."""
    for key, values in known.items():
        if card.get(key) not in tuple(values):
            given, here = f"{key}={card.get(key)!r}", ", ".join(values)
            raise ValueError(f"{folder / 'model.json'}: {given} is not known here; known: {here}; {AGAIN}")


def construct(kind: Callable[..., nn.Module], card: dict[str, Any], key: str, weights: Path) -> Any:  # noqa: ANN401
    """The network of the kind that card[key] holds the settings of, with its weights.

    Raises:
        FileNotFoundError: there is no file of weights.
        ValueError: the settings are none of its, or the weights are damaged or of another network.
    """
    try:
        check_size(lambda: kind(**card[key]), card[key], weights)
        net = kind(**card[key])
    except (KeyError, TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        given = f"{card.get(key)!r}"[:300]
        raise ValueError(
            f"{weights.parent / 'model.json'}: {key}={given} makes no network: {error}; {AGAIN}"
        ) from error
    fill(net, weights)
    return net


def fill(module: nn.Module, path: Path) -> None:
    """Load a file's weights into a module, for use: no dropout, no gradients to the weights."""
    try:
        module.load_state_dict(read_weights(path))
    except RuntimeError as error:
        raise ValueError(f"the weights in {path} do not fit model.json beside them: {error}; {AGAIN}") from error
    module.eval().requires_grad_(False)


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Safetensors under a temporary name, then renamed."""
    part = path.with_name(path.name + ".part")
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, part)
    os.replace(part, path)


def write_card(folder: Path, card: dict[str, Any]) -> None:
    """model.json under a temporary name, then renamed; the last file of a folder to be written."""
    part = folder / "model.json.part"
    part.write_text(json.dumps(card, indent=1), encoding="utf8")
    os.replace(part, folder / "model.json")
