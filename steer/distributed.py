"""Several processes: accelerate as it is used here, and whole tensors of weights that are spread (FSDP)."""

import atexit
import gc
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from accelerate import Accelerator, PartialState

STATE = "state."


def make_accelerator(precision: str, tracker: str | None, folder: Path) -> "Accelerator":
    """What knows of devices and processes, by `accelerate launch` and its config."""
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.state import AcceleratorState

    if AcceleratorState._shared_state.get("_mixed_precision", precision) != precision:
        AcceleratorState._reset_state()  # else it would refuse a precision other than the last run's
    accelerator = Accelerator(
        mixed_precision=precision,
        log_with=tracker,
        project_dir=str(folder),
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    if accelerator.num_processes > 1:
        _part_at_exit()
    return accelerator


def process_state(cpu: bool = False) -> "PartialState":
    """Which of the processes of `accelerate launch` or torchrun this is, and its device; cpu: never an accelerator."""
    from accelerate import PartialState

    state = PartialState(cpu=cpu)
    if state.num_processes > 1:
        _part_at_exit()
    return state


@cache
def _part_at_exit() -> None:
    """Once: processes part when they end, and not after the first of several runs."""
    atexit.register(_part)


def _part() -> None:
    """Leave the others, and give gloo's threads time to let go of tensors: one that does so after the interpreter is
    gone aborts a process that has done all its work.
    """
    from accelerate import PartialState

    PartialState().destroy_process_group()
    gc.collect()
    time.sleep(0.3)


def whole(x: Tensor) -> Tensor:
    """The tensor itself, or all of one that is spread over processes."""
    gather = getattr(x, "full_tensor", None)
    return x if gather is None else gather()


def full_state(module: nn.Module, optimiser: torch.optim.Optimizer) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """All weights that are trained, buffers, and the optimiser's state by the names of the weights: tensors, and
    settings that JSON holds.

    Every process must ask; of several, the first alone is given all of it, and the others nothing.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    weights, found = get_state_dict(module, _inner(optimiser), options=options)
    tensors: dict[str, Any] = {f"module.{k}": v for k, v in weights.items()}
    state: Any = found.get("state", {})
    for name, values in state.items():
        tensors |= {f"{STATE}{name}|{key}": torch.as_tensor(v) for key, v in values.items()}
    groups: Any = found.get("param_groups", [])
    return tensors, [dict(group) for group in groups]


def _strange(state: dict[str, dict[str, Tensor]], learned: dict[str, torch.Size]) -> list[str]:
    """Parts of an optimiser's state that are of no weight, or of another shape than it."""
    return [
        f"{name}|{slot}"
        for name, slots in state.items()
        for slot, x in slots.items()
        if x.shape not in (torch.Size(), learned.get(name.removeprefix("module.")))
    ]


def load_full_state(
    module: nn.Module, optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor], groups: list[dict[str, Any]]
) -> None:
    """Take back what `full_state` gave; the optimiser's settings stay those it has.

    Raises:
        ValueError: it is of another network.
    """
    from torch.distributed.checkpoint import state_dict as parts

    weights: dict[str, Any] = {k.removeprefix("module."): v for k, v in tensors.items() if k.startswith("module.")}
    state: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith(STATE):
            name, _, slot = key.removeprefix(STATE).rpartition("|")
            state.setdefault(name, {})[slot] = value
    inner = _inner(optimiser)
    now = [{k: v for k, v in group.items() if k != "params"} for group in inner.param_groups]
    try:
        optim: Any = {"state": state, "param_groups": [g | mine for g, mine in zip(groups, now, strict=True)]}
        options = parts.StateDictOptions(full_state_dict=True, cpu_offload=True, strict=False)
        learned = {name.removeprefix("module."): p.shape for name, p in module.named_parameters() if p.requires_grad}
        _, unexpected = parts.set_model_state_dict(module, weights, options=options)
        if lost := [*unexpected, *(learned.keys() - weights.keys()), *_strange(state, learned)]:
            raise KeyError(lost)
        parts.set_optimizer_state_dict(module, inner, optim, options=options)
    except (RuntimeError, KeyError, ValueError, TypeError) as error:
        raise ValueError(
            f"the checkpoint is of another network or objective: {error}; train in another folder"
        ) from error
    for name, weight in module.named_parameters():  # what had no gradient yet had no state, and has none now
        if name.removeprefix("module.") not in state:
            inner.state.pop(weight, None)


def _inner(optimiser: torch.optim.Optimizer) -> torch.optim.Optimizer:
    return getattr(optimiser, "optimizer", optimiser)
