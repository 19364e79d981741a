"""Whole tensors where weights are spread over processes (FSDP), and plain ones where they are not."""

from typing import Any

import torch
from torch import Tensor, nn

STATE = "state."


def whole(x: Tensor) -> Tensor:
    """The tensor itself, or all of one that is spread over processes."""
    gather = getattr(x, "full_tensor", None)
    return x if gather is None else gather()


def full_state(module: nn.Module, optimiser: torch.optim.Optimizer) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """All weights, and the optimiser's state by the names of the weights: tensors, and settings that JSON holds."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights, state = get_state_dict(module, _inner(optimiser), options=options)
    tensors = {f"module.{k}": v for k, v in weights.items()}
    for name, values in state["state"].items():  # type: ignore[union-attr]
        tensors |= {f"{STATE}{name}|{key}": torch.as_tensor(v) for key, v in values.items()}
    return tensors, [dict(group) for group in state["param_groups"]]  # type: ignore[arg-type]


def load_full_state(
    module: nn.Module, optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor], groups: list[dict[str, Any]]
) -> None:
    """Take back what `full_state` gave.

    Raises:
        ValueError: it is of another network.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

    weights = {k.removeprefix("module."): v for k, v in tensors.items() if k.startswith("module.")}
    state: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith(STATE):
            name, _, slot = key.removeprefix(STATE).rpartition("|")
            state.setdefault(name, {})[slot] = value
    for group in groups:
        group["betas"] = tuple(group["betas"])
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    optim: Any = {"state": state, "param_groups": groups}
    try:
        set_state_dict(module, _inner(optimiser), model_state_dict=weights, optim_state_dict=optim, options=options)
    except (RuntimeError, KeyError) as error:
        raise ValueError(
            f"the checkpoint is of another network or objective: {error}; train in another folder"
        ) from error


def _inner(optimiser: torch.optim.Optimizer) -> torch.optim.Optimizer:
    return getattr(optimiser, "optimizer", optimiser)
