"""The model that is tuned: made ready, finished, written, and what its network is told of prompts."""

import copy
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from steer.adapters import adapt, merged
from steer.flow_map import Cond
from steer.learning import with_flow
from steer.models import Model, save_model
from steer.models.diffusers import PipelineModel
from steer.models.drawing import Words
from steer.models.growing import base
from steer.models.noise import TunedNoise
from steer.models.picture import Spell
from steer.models.text import encode_prompts
from steer.objectives import Objective
from steer.posterior import Learned


def raw(model: Model, prompts: list[str]) -> Cond:
    """What a model's network is told of prompts, before it reads the words itself."""
    if isinstance(model.encode, Spell):
        return {"ids": model.encode.ids(prompts)}
    if isinstance(model.encode, Words):
        return encode_prompts(model.encode.towers, prompts)
    return model.encode(prompts)


def prepared(model: Model, goal: Objective, rank: int, alpha: float | None = None, seed: int = 0) -> Model:
    """A copy of the model whose flow is ready to be trained."""
    if not isinstance(model.flow, nn.Module):
        raise ValueError(
            f"model={model.name!r} has a flow of type {type(model.flow).__name__}; tuning needs a torch module"
        )
    if isinstance(model.noise, TunedNoise):
        raise ValueError(f"model={model.name!r} has tuned noise, which suits its flow as it is; tune the model without")
    of_noise = getattr(goal, "of_noise", False)
    if of_noise and rank == 0:
        raise ValueError("rank=0: a noise network is made of adapters; give a rank")
    drawn = isinstance(getattr(getattr(goal, "collector", None), "lookahead", None), Learned)
    if drawn and not model.posterior:
        raise ValueError(f"lookahead=Learned() needs a posterior map, which model={model.name!r} lacks; take Glass()")
    shared = _shared(model, rank, of_noise)
    flow: Any = copy.deepcopy(model.flow if drawn else base(model.flow), shared)
    inner = base(flow)
    flow.requires_grad_(False)
    if rank:
        adapt(inner, rank, alpha, seed=seed, words=not of_noise)
    else:
        inner.requires_grad_(True)
    return replace(with_flow(model, flow), posterior=drawn)


def _shared(model: Model, rank: int, of_noise: bool) -> dict[int, Any]:
    """What a copy of the flow shares with it: of a pipeline its weights, which may be too large for two of them."""
    if not isinstance(model, PipelineModel):
        return {}
    if rank == 0 or of_noise:
        raise ValueError(
            f"model={model.name!r} is a pipeline, whose flow is tuned by adapters alone; give a rank above 0, and "
            "another objective than noise"
        )
    return {id(p): p for p in model.family.flow.parameters()}


def finished(start: Model, flow: nn.Module, goal: Objective) -> Model:
    """The model of tuned weights, without adapters: as it is saved and sampled."""
    if isinstance(start, PipelineModel):
        return replace(start, flow=flow, step=flow)
    net = merged(base(flow)).eval()
    if not getattr(goal, "of_noise", False):
        return replace(with_flow(start, net), posterior=False)
    assert isinstance(start.flow, nn.Module)
    return replace(start, noise=TunedNoise(net, base(start.flow)), flow=base(start.flow), posterior=False)


def save_best(model: Model, step: int, folder: Path) -> None:
    """Keep the best, and the two before it, one of which may be the best again after a restart."""
    save(model, folder / "best" / f"step-{step:08d}")
    for old in sorted((folder / "best").glob("step-*"))[:-3]:
        shutil.rmtree(old, ignore_errors=True)


def save(model: Model, folder: Path) -> None:
    """Write a model so that it can be loaded; of one that is none of ours the tuned network alone."""
    if isinstance(model.encode, Spell | Words) or isinstance(model, PipelineModel):
        save_model(model, folder)
    else:
        from steer.models.files import write_tensors

        net, name = tuned_part(model)
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(folder / f"{name}.safetensors", net.state_dict())


def tuned_part(model: Model) -> tuple[nn.Module, str]:
    """The network that was tuned, and the name of its file."""
    net, name = (model.noise.tuned, "noise") if isinstance(model.noise, TunedNoise) else (model.flow, "flow")
    assert isinstance(net, nn.Module)
    return net, name
