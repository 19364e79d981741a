"""Posterior maps grown on a model's network: how they come to be, and their file beside the model's."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from rewards.files import read_weights
from steer.models import Model
from steer.models.files import AGAIN, write_tensors
from steer.models.network import FlowNetwork
from steer.models.posterior_network import PosteriorNetwork

FILE = "posterior.safetensors"


def grow(model: Model, rank: int = 64) -> Model:
    """The model with an untrained posterior map beside its flow (see `PosteriorNetwork`); one that has it stays.

    Raises:
        ValueError: its flow is no FlowNetwork.
    """
    if isinstance(model.flow, PosteriorNetwork):
        return model
    if not isinstance(model.flow, FlowNetwork):
        raise ValueError(
            f"model={model.name!r} has a flow of type {type(model.flow).__name__}; "
            "a posterior map grows on a FlowNetwork"
        )
    return replace(model, flow=PosteriorNetwork(model.flow, rank), posterior=True)


def base(flow: Any) -> Any:  # noqa: ANN401 (a network)
    """The network without what has grown on it."""
    return flow.base if isinstance(flow, PosteriorNetwork) else flow


def read(model: Model, card: dict[str, Any], folder: Path) -> Model:
    """The model with the posterior map that its card names, if it does."""
    if card.get("posterior") is None:
        return model
    path, told = folder / FILE, card["posterior"]
    try:
        with torch.device("meta"):  # no memory is taken for a rank that nobody has
            grown = grow(model, told["rank"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{folder / 'model.json'}: posterior={told!r} makes no posterior map: {error}; {AGAIN}"
        ) from error
    assert isinstance(grown.flow, PosteriorNetwork)
    try:
        missing = grown.flow.load_state_dict(read_weights(path), strict=False, assign=True)
    except RuntimeError as error:
        raise ValueError(
            f"the weights in {path} do not fit posterior={told!r} in model.json: {error}; {AGAIN}"
        ) from error
    if missing.unexpected_keys or set(missing.missing_keys) & set(grown.flow.grown()):
        raise ValueError(f"the weights in {path} do not fit model.json beside them: {missing}; {AGAIN}")
    device = next(grown.flow.base.parameters()).device
    grown.flow.to(device).eval().requires_grad_(False)
    return grown


def write(flow: Any, folder: Path) -> dict[str, Any] | None:  # noqa: ANN401
    """Write the weights that have grown, if any; what the card says of them."""
    if not isinstance(flow, PosteriorNetwork):
        return None
    write_tensors(folder / FILE, flow.grown())
    return {"rank": flow.rank}
