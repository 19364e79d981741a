"""Models: all that a checkpoint means, nothing about algorithms. `load_model` takes a name or a folder."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steer.flow_map import Cond, FlowMap
from steer.interpolants import Interpolant

ASSETS = Path(__file__).parent / "assets"
MODELS = ("emoji", "shapes")
KINDS = ("drawing", "picture", "diffusers")


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


def load_model(
    name_or_folder: str | Path,
    device: str | torch.device | None = None,
    **choices: Any,  # noqa: ANN401 (settings of a pipeline)
) -> Model:
    """The embedded model of a name ("emoji", "shapes"), one that `save_model` wrote, or a diffusers pipeline.

    Args:
        name_or_folder: a name in `MODELS`, a folder with model.json, a folder with model_index.json (diffusers), or
            the hub id of one, "owner/name".
        device: where its weights go; None takes CUDA where there is one.
        **choices: of a pipeline alone: dtype, offload, tiling, ... of `steer.models.diffusers.load`, and height, width,
            guidance, ... of `steer.models.families.base.Choices`.

    Raises:
        ValueError: the name is unknown and no folder, or the weights are damaged or do not fit model.json; or a
            pipeline's class is not known.
        FileNotFoundError: a file of the folder is missing.
        OSError: a hub id cannot be fetched.
    """
    from steer.models.files import check_card, read_card

    if not (isinstance(name_or_folder, str | Path) and str(name_or_folder)):
        raise ValueError(f"model={name_or_folder!r} must be a name, a folder or a steer.Model")
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    folder = ASSETS / str(name_or_folder) if str(name_or_folder) in MODELS else Path(name_or_folder)
    if _is_pipeline(folder):
        from steer.models.diffusers import load

        return load(name_or_folder, place, **choices)
    if choices:
        given = ", ".join(choices)
        raise ValueError(f"{given}: for diffusers pipelines, and model={str(name_or_folder)!r} is none; leave it out")
    if not folder.is_dir():
        import difflib

        near = difflib.get_close_matches(str(name_or_folder), MODELS, 1, 0.3)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"model={str(name_or_folder)!r} is no embedded model and no folder; embedded: {', '.join(MODELS)}{hint}"
        )
    card = read_card(folder)
    check_card(folder, card, {"kind": KINDS})
    return import_module(f"steer.models.{card['kind']}").load(folder, place)


def _is_pipeline(folder: Path) -> bool:
    """Whether it is a folder that diffusers wrote, or looks like a hub id."""
    hub = len(folder.parts) == 2 and not folder.is_absolute() and folder.parts[0] not in (".", "..", "~")
    return (folder / "model_index.json").is_file() or (hub and not folder.exists() and not folder.parent.is_dir())


def save_model(model: Model, folder: str | Path) -> None:
    """Write a model as safetensors and JSON, so that `load_model(folder)` gives it back; of a pipeline its adapters.

    Raises:
        ValueError: the model is none of the kinds that can be written.
        OSError: the folder cannot be written.
    """
    from steer.models import diffusers, drawing, picture

    if isinstance(model, diffusers.PipelineModel):
        diffusers.save(model, Path(folder))
    elif isinstance(model.encode, picture.Spell):
        picture.save(model, Path(folder))
    else:
        drawing.save(model, Path(folder))
