"""Diffusers pipelines as models: loaded from a folder or the hub, or held already. The one file that imports diffusers.

What is known of each pipeline class is in `steer.models.families`; the parts that all share are here: where its files
come from, the dtype and the memory, prompts that are encoded once, and its own sampler, which proves the adapter.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rewards.files import read_json, read_weights
from rewards.towers import mend_torchvision, without_bars
from rewards.vision import damages, first_line
from steer.adapters import adapt, fill_lora, lora_weights
from steer.draws import Rng, randn_like
from steer.flow_map import Cond, FlowMap, OdeFlowMap, jump
from steer.interpolants import interpolate
from steer.models import Model
from steer.models.families import family_of
from steer.models.families.base import Choices, Diagonal, Family, Guided
from steer.models.files import check_card, read_card, write_card, write_tensors
from steer.models.pipeline_files import AGAIN, check_settings, check_weights
from steer.settings import unknown

LOADING = ("dtype", "offload", "tiling", "slicing", "checkpoint_decoder")
KEPT = 512  # prompts whose encodings are kept, in the memory of the CPU
INDEX, LORA = "model_index.json", "pytorch_lora_weights.safetensors"


@dataclass(frozen=True)
class PipelineModel(Model):
    """A model that is a diffusers pipeline.

    family: what is known of it; family.pipe is the pipeline.
    step: one network call, guided, as a flow map: `flow` itself, but of a plain model, whose jumps take several calls.
    choices: what was chosen.
    """

    family: Any = None
    step: FlowMap | None = None
    choices: Choices = Choices()


def import_diffusers() -> Any:  # noqa: ANN401 (a module)
    """Import diffusers.

    Raises:
        ValueError: it is not installed.
    """
    mend_torchvision()
    try:
        import diffusers
    except ImportError as error:
        raise ValueError(f"a pipeline needs diffusers ({error}); pip install 'steer[diffusers]'") from error
    return diffusers


def load(
    source: str | Path,
    device: torch.device,
    *,
    dtype: str | None = None,
    offload: Literal["model", "sequential"] | None = None,
    tiling: bool = False,
    slicing: bool = False,
    checkpoint_decoder: bool = True,
    **choices: Any,  # noqa: ANN401 (fields of Choices)
) -> PipelineModel:
    """The model of a diffusers folder or hub id, or of adapters that `save` wrote.

    Only weights in safetensors are read, and no code of a folder's.

    dtype: "float32", "bfloat16" or "float16"; None takes bfloat16 on CUDA and float32 elsewhere.
    offload: "model" keeps on the device only the part that is at work, "sequential" only its layer. Methods that send
        gradients through the network then need `steer.sample(checkpoint=True)`, since it has left before they go back.
    tiling, slicing, checkpoint_decoder: the decoder's memory: pictures in tiles, one at a time, and its activations
        computed again for a gradient.
    **choices: see `steer.models.families.base.Choices`.

    Raises:
        ValueError: the pipeline's class is not known, or a setting is out of range.
        OSError: the files are not there and cannot be fetched.
    """
    card: dict[str, Any] = {"source": str(source), "choices": {}}
    if (Path(source) / "model.json").is_file():
        card = read_card(Path(source))
        check_card(Path(source), card, {})
        if not (isinstance(card.get("source"), str) and isinstance(card.get("choices"), dict)):
            raise ValueError(f"{Path(source) / 'model.json'} names no source, or no choices; save the model again")
    source, tuned = card["source"], Path(source)
    chosen = choices_of(card["choices"] | choices)
    number = _dtype(dtype, device)
    if offload not in (None, "model", "sequential"):
        raise ValueError(f'offload must be "model", "sequential" or null, got {offload!r}')
    diffusers = import_diffusers()
    index = _index(diffusers, source)
    name = str(index["_class_name"])
    family_of(name)
    if not hasattr(diffusers, name):
        raise ValueError(f"pipeline {name!r} is not in diffusers; load it yourself, and steer.pipeline(pipe) steers it")
    local = Path(source).is_dir()
    if local:
        check_settings(diffusers, Path(source), index)
    pipe = _pipe(getattr(diffusers, name), str(source), number)
    if local:
        check_weights(pipe, Path(source))
    if offload:
        getattr(pipe, f"enable_{offload}_cpu_offload")(device=device)
    else:
        pipe.to(device)
    if tiling:
        pipe.vae.enable_tiling()
    if slicing:
        pipe.vae.enable_slicing()
    if checkpoint_decoder and getattr(pipe.vae, "_supports_gradient_checkpointing", False):
        pipe.vae.enable_gradient_checkpointing()
    model = from_pipeline(pipe, chosen, name=str(source))
    if (tuned / LORA).is_file():
        weights = read_lora(tuned)
        rank = next((len(w) for name, w in weights.items() if "lora_A" in name), 0)
        if not rank:
            raise ValueError(f"{tuned / LORA} holds no adapters; save the model again")
        fill_lora(adapt(model.family.flow, rank, rank), weights)
        model.family.flow.requires_grad_(False)
    return model


def from_pipeline(pipe: Any, choices: Choices | None = None, name: str | None = None) -> PipelineModel:  # noqa: ANN401
    """The model that a loaded pipeline is; its weights are shared with it, and frozen.

    Raises:
        ValueError: its class is not known, or a choice does not fit it.
    """
    choices = choices or Choices()
    family = family_of(type(pipe).__name__)(pipe, choices)
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.eval().requires_grad_(False)
    encode = Encoder(family)
    scale = 1.0 if family.guidance is None else family.guidance
    step: FlowMap = family.flow
    if scale != 1:
        step = Guided(step, family.null(choices.negative), scale)
    flow = OdeFlowMap(Diagonal(step), choices.ode_steps) if family.kind == "velocity" else step
    size = family.noise_scale
    return PipelineModel(
        flow, family.path, encode, family.decode, family.shape, name or type(pipe).__name__,
        noise=None if size == 1 else ScaledNoise(size), family=family, step=step, choices=choices,
    )  # fmt: skip


def one_call(model: Model) -> Model:
    """A pipeline's model for fine-tuning: one network call a jump, without classifier-free guidance; others stay."""
    return replace(model, flow=model.family.flow, step=model.family.flow) if isinstance(model, PipelineModel) else model


def save(model: PipelineModel, folder: Path) -> None:
    """Write the adapters of a tuned pipeline, as diffusers' `load_lora_weights` reads them, and where the rest is from.

    Of one that was not tuned only that is written; pipe.save_pretrained(folder) writes the pipeline itself.
    """
    weights = lora_weights(model.flow) if isinstance(model.flow, nn.Module) else {}
    part = "unet" if hasattr(model.family.pipe, "unet") else "transformer"
    folder.mkdir(parents=True, exist_ok=True)
    if weights:
        write_tensors(folder / LORA, {name.replace("network", part, 1): w for name, w in weights.items()})
    else:
        (folder / LORA).unlink(missing_ok=True)
    chosen = {key: value for key, value in vars(model.choices).items() if value != getattr(Choices(), key)}
    write_card(folder, {"kind": "diffusers", "source": model.name, "choices": chosen})


def read_lora(folder: Path) -> dict[str, Tensor]:
    """What `save` wrote, by the names of the flow's layers."""
    return {f"network.{name.partition('.')[2]}": w for name, w in read_weights(folder / LORA).items()}


def plain(model: PipelineModel, x0: Tensor, cond: Cond, steps: int, rng: Rng | None = None) -> Tensor:
    """Latents as the pipeline's own sampler makes them of noise x0 [b *shape]: a network call at each of its times.

    Between calls the samplers of some distilled models go to the data and draw new noise, from `rng`. It is the
    pipeline's sampler exactly where that is of first order (DDIM, TCD, LCM, Euler, flow matching, SCM); those that
    reuse earlier calls (PNDM, DPM-Solver of order 2, UniPC) or make two a step (Heun) differ from it.
    """
    assert model.step is not None
    times = model.family.times(steps)
    x = x0 if model.noise is None else model.noise(x0, cond)
    for s, t in zip(times[:-1], times[1:], strict=True):
        if model.family.renoises:
            x = jump(model.step, x, s, 1.0, cond)
            x = interpolate(model.path, randn_like(x, rng), x, t) if t < 1 and rng is not None else x
        else:
            x = jump(model.step, x, s, t, cond)
    return x


@dataclass(frozen=True)
class ScaledNoise:
    """Noise times a number: samplers that start from other than unit variance."""

    scale: float

    def __call__(self, x0: Tensor, cond: Cond) -> Tensor:
        """[b *d]."""
        return self.scale * x0


@dataclass(frozen=True)
class Encoder:
    """Prompts -> what the network is told, {name: [p ...]}; each distinct prompt is encoded once."""

    family: Family
    kept: dict[str, Mapping[str, Tensor]] = field(default_factory=dict, repr=False, compare=False)

    @torch.no_grad()
    def __call__(self, prompts: list[str]) -> dict[str, Tensor]:
        """Rows in the prompts' order."""
        known = dict(self.kept)  # another thread may change it
        new = [q for q in dict.fromkeys(prompts) if q not in known]
        if new:
            rows = self.family.encode(new)
            known |= {q: {key: c[i].cpu() for key, c in rows.items()} for i, q in enumerate(new)}
            if len(known) > KEPT:
                self.kept.clear()
            self.kept.update({q: known[q] for q in prompts})
        place = self.family.pipe._execution_device
        return {key: torch.stack([known[q][key] for q in prompts]).to(place) for key in known[prompts[0]]}


def choices_of(given: Mapping[str, Any]) -> Choices:
    """Choices by name; raises ValueError for a name that is none."""
    fields = Choices.__dataclass_fields__
    for key in given:
        if key not in fields:
            raise unknown("setting of a pipeline", key, [*fields, *LOADING])
    return Choices(**given)


def _dtype(name: str | None, device: torch.device) -> torch.dtype:
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name is None:
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in known:
        raise ValueError(f"dtype={name!r} is unknown; known: {', '.join(known)}")
    return known[name]


def _pipe(kind: Any, source: str, number: torch.dtype) -> Any:  # noqa: ANN401
    """The pipeline on the CPU; raises OSError or ValueError that names it where its files cannot be had or read."""
    from diffusers.utils import logging
    from transformers.utils import logging as more

    try:
        with without_bars(logging, more):
            return kind.from_pretrained(source, torch_dtype=number, use_safetensors=True)
    except torch.OutOfMemoryError:
        raise
    except OSError as error:
        raise OSError(f"model={source!r} cannot be loaded: {first_line(error)}; {AGAIN}") from error
    except damages() as error:
        raise ValueError(f"model={source!r}: files are damaged or do not fit ({first_line(error)}); {AGAIN}") from error


def _index(diffusers: Any, source: str | Path) -> dict[str, Any]:  # noqa: ANN401
    """What model_index.json holds, which is in the folder or fetched."""
    path = Path(source) / INDEX
    if path.is_file():
        index = read_json(path, AGAIN)
        if not isinstance(index, dict) or "_class_name" not in index:
            raise ValueError(f"{path} is damaged (it names no class); {AGAIN}")
        return index
    try:
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
            raise OSError("no OWNER/NAME")
        return dict(diffusers.DiffusionPipeline.load_config(str(source)))
    except OSError as error:
        raise OSError(
            f"model={str(source)!r} is no folder with {INDEX}, and cannot be fetched from the hub "
            f"({first_line(error)}); check the name and the connection, or name a local folder"
        ) from error
