"""What the three training scripts share: the schedule, the log, checkpoints that a killed run resumes from."""

import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from steer.models import files


class Progress:
    """How far a run is, in [0, 1]: by its steps, or by its minutes where they are used up earlier."""

    def __init__(self, steps: int, minutes: float | None) -> None:
        self.steps, self.minutes, self.step = steps, minutes, 0
        self.spent, self.since = 0.0, time.time()

    @property
    def elapsed(self) -> float:
        return self.spent + time.time() - self.since

    def __call__(self) -> float:
        by_time = self.elapsed / 60 / self.minutes if self.minutes else 0.0
        return min(1.0, max(self.step / self.steps, by_time))


def learning_rate(peak: float, progress: float, warm_up: float = 0.02) -> float:
    """Linear warm-up, then a cosine down to 1 % of the peak."""
    if progress < warm_up:
        return peak * max(progress / warm_up, 0.01)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (progress - warm_up) / (1 - warm_up))))


def log(path: Path, **row: Any) -> None:  # noqa: ANN401 (numbers and words)
    """Append one line of JSON, and print it."""
    text = json.dumps({k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(text + "\n")
    print(text, flush=True)


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Safetensors under a temporary name, then renamed; tensors may share memory, and the folder may be missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_tensors(path, {k: v.detach().clone() for k, v in tensors.items()})


def checkpoint(path: Path, module: torch.nn.Module, optimiser: torch.optim.Optimizer, progress: Progress) -> None:
    """Weights, optimiser state, step and time, as one safetensors file."""
    tensors = {f"module.{k}": v for k, v in module.state_dict().items()}
    for i, state in optimiser.state_dict()["state"].items():
        tensors |= {f"state.{i}.{k}": torch.as_tensor(v) for k, v in state.items()}
    tensors["progress"] = torch.tensor([progress.step, progress.elapsed], dtype=torch.float64)
    write_tensors(path, tensors)


def resume(path: Path, module: torch.nn.Module, optimiser: torch.optim.Optimizer, progress: Progress) -> bool:
    """Load what `checkpoint` wrote, if it is there."""
    if not path.exists():
        return False
    tensors = load_file(path)
    step, progress.spent = tensors.pop("progress").tolist()
    progress.step = int(step)
    module.load_state_dict({k[7:]: v for k, v in tensors.items() if k.startswith("module.")})
    saved = optimiser.state_dict()
    for name, value in tensors.items():
        if name.startswith("state."):
            _, i, key = name.split(".")
            saved["state"].setdefault(int(i), {})[key] = value
    optimiser.load_state_dict(saved)
    return True


def half(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Floating tensors in half precision, as shipped."""
    return {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}
