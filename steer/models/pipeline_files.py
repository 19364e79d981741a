"""What a pipeline's folder is held to, before diffusers takes memory and time for it, and what it then has loaded.

diffusers imports no code of a folder's, and reads weights in safetensors alone; what is left is told here: settings
that ask for more than the weights hold, weights that are missing (which would be drawn at random), and NaN.
"""

import math
from pathlib import Path
from typing import Any

from torch import nn

from rewards.files import check_size, read_json, shapes_in
from rewards.vision import damages

AGAIN = "save or download the pipeline again"
MOST_TIMES = 10**6  # of a scheduler, which keeps some numbers for each


def check_settings(diffusers: Any, folder: Path, index: dict[str, Any]) -> None:  # noqa: ANN401 (a module)
    """Hold the settings of each part to its weights.

    index: what model_index.json holds, {part: [library, class]}.

    Raises:
        ValueError: they ask for far more; the message names the files.
    """
    for name, part in index.items():
        path, files = folder / name / "config.json", _weights(folder, name)
        if files and path.is_file() and isinstance(part, list) and len(part) == 2:
            settings = _settings(path)
            kind = getattr(diffusers, str(part[1]), None) if part[0] == "diffusers" else None
            check_size(lambda kind=kind, settings=settings: _network(kind, settings), settings, *files)
    path = folder / "scheduler" / "scheduler_config.json"
    times = _settings(path).get("num_train_timesteps", 0) if path.is_file() else 0
    if not isinstance(times, int) or times > MOST_TIMES:
        raise ValueError(f"{path}: num_train_timesteps={times!r} must be a whole number, at most {MOST_TIMES}; {AGAIN}")


def check_weights(pipe: Any, folder: Path) -> None:  # noqa: ANN401 (a pipeline)
    """Hold a pipeline, as it was loaded, to what its folder has.

    Raises:
        ValueError: weights of a part are missing, NaN or infinite.
    """
    for name, part in pipe.components.items():
        weights = dict(part.named_parameters()) if isinstance(part, nn.Module) else {}
        there = sum(map(math.prod, shapes_in(*_weights(folder, name))))
        if 0 < there < sum(w.numel() for w in weights.values()):
            raise ValueError(f"{folder / name} lacks some of the weights of {type(part).__name__}; {AGAIN}")
        for key, w in weights.items():
            if w.device.type == "meta" or not bool(w.isfinite().all()):
                raise ValueError(f"the weights in {folder / name} lack {key}, or hold NaN or infinity there; {AGAIN}")


def _settings(path: Path) -> dict[str, Any]:
    settings = read_json(path, AGAIN)
    if not isinstance(settings, dict):
        raise ValueError(f"{path} is damaged (no object); {AGAIN}")
    return settings


def _weights(folder: Path, name: str) -> list[Path]:
    return sorted((folder / name).glob("*.safetensors")) if name.isidentifier() else []


def _network(kind: Any, settings: dict[str, Any]) -> nn.Module:  # noqa: ANN401 (a class of diffusers)
    """The network that the settings make; an empty one where they make none, which is told where it is loaded."""
    try:
        return kind.from_config(settings)
    except damages():
        return nn.Module()
