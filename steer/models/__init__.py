"""Models: all that a checkpoint means, nothing about algorithms. `load_model` takes a name or a folder."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor

from steer.flow_map import Cond, FlowMap
from steer.interpolants import Interpolant

ASSETS = Path(__file__).parent / "assets"
MODELS = ("emoji", "shapes")
KINDS = ("drawing", "picture")


@dataclass(frozen=True)
class Model:
    """A text-to-image flow map.

    flow: the average velocity v(x [b *shape], s, t, cond), see steer.flow_map.
    path: the interpolant it was trained on.
    encode: prompts -> cond, a dict of tensors whose leading axis is the prompt.
    decode: x1 [b *shape] -> pictures [b 3 h w] in [0,1].
    shape: of one sample x.
    name: what messages and reports call it.
    noise: x0 [b *shape] ~ N(0, I), cond -> the noise that the flow starts from, where that is another: see
        `steer.models.noise`. What is steered is then the law of the model with its noise.
    posterior: whether the flow, told x_t and t in cond, draws from p(x1 | x_t): see `steer.posterior.Learned`.
    """

    flow: FlowMap
    path: Interpolant
    encode: Callable[[list[str]], dict[str, Tensor] | None]
    decode: Callable[[Tensor], Tensor]
    shape: tuple[int, ...]
    name: str = "model"
    posterior: bool = False
    noise: Callable[[Tensor, Cond], Tensor] | None = None


def load_model(name_or_folder: str | Path, device: str | torch.device | None = None) -> Model:
    """The embedded model of a name ("emoji", "shapes"), or one that `save_model` wrote to a folder.

    Args:
        name_or_folder: a name in `MODELS`, or a folder with model.json.
        device: where its weights go; None takes CUDA where there is one.

    Raises:
        ValueError: the name is unknown and no folder, or the weights are damaged or do not fit model.json.
        FileNotFoundError: a file of the folder is missing.
    """
    from steer.models.files import check_card, read_card

    folder = ASSETS / str(name_or_folder) if str(name_or_folder) in MODELS else Path(name_or_folder)
    if not folder.is_dir():
        import difflib

        near = difflib.get_close_matches(str(name_or_folder), MODELS, 1, 0.3)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"model={str(name_or_folder)!r} is no embedded model and no folder; embedded: {', '.join(MODELS)}{hint}"
        )
    card = read_card(folder)
    check_card(folder, card, {"kind": KINDS})
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return import_module(f"steer.models.{card['kind']}").load(folder, place)


def save_model(model: Model, folder: str | Path) -> None:
    """Write a native model as safetensors and JSON, so that `load_model(folder)` gives it back.

    Raises:
        ValueError: the model is not one of the native kinds.
        OSError: the folder cannot be written.
    """
    from steer.models import drawing, picture

    if isinstance(model.encode, picture.Spell):
        picture.save(model, Path(folder))
    else:
        drawing.save(model, Path(folder))
