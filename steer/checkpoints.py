"""Checkpoints of a training: safetensors and JSON, whole or not there at all, the newest few kept.

A checkpoint is a folder FOLDER/checkpoints/step-00001000 with state.safetensors (weights, optimiser, averages) and
state.json. It is written under another name and renamed when all of it is on the disk: a killed process leaves either
the whole checkpoint or a folder that the next run sweeps away. Nothing in it is code, or names any.
"""

import json
import math
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

State = tuple[dict[str, Tensor], dict[str, Any]]


def write(folder: Path, step: int, tensors: dict[str, Tensor], facts: dict[str, Any], keep: int) -> Path:
    """Write a checkpoint of a step, then remove all but the newest `keep`; returns its folder.

    Raises:
        OSError: the disk is full, or cannot be written; the earlier checkpoints are as they were.
    """
    home = folder / "checkpoints"
    final, part = home / f"step-{step:08d}", home / f".step-{step:08d}.part"
    sweep(folder)
    try:
        part.mkdir(parents=True)
        save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, part / "state.safetensors")
        (part / "state.json").write_text(json.dumps({"step": step, **facts}, indent=1), encoding="utf8")
        for file in (*part.iterdir(), part):
            _to_disk(file)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(part, ignore_errors=True)
        raise OSError(
            f"the checkpoint of step {step} could not be written in {home}: {error}; the earlier ones are whole: make "
            f"room, and the same command goes on from the newest"
        ) from error
    if final.exists():  # damaged, or the same step again: the new one takes its place
        os.replace(final, home / f".step-{step:08d}.old.part")
    os.replace(part, final)
    _to_disk(home)
    _prune(folder, final, keep)
    return final


def _prune(folder: Path, newest: Path, keep: int) -> None:
    """Remove old checkpoints; and later ones, which are damaged, or the run would have gone on from them."""
    there = found(folder)
    place = there.index(newest)
    for old in (*there[: max(0, place + 1 - keep)], *there[place + 1 :]):
        os.replace(old, old.with_name(f".{old.name}.part"))
    sweep(folder)


def found(folder: Path) -> list[Path]:
    """The checkpoints there are, oldest first."""
    return sorted(p for p in (folder / "checkpoints").glob("step-*") if p.is_dir())


def sweep(folder: Path) -> None:
    """Remove what a killed process left."""
    for part in (folder / "checkpoints").glob(".step-*.part"):
        shutil.rmtree(part, ignore_errors=True)


def newest(folder: Path) -> State | None:
    """The newest checkpoint that can be read, or None where there is none; one that is damaged is told of by a warning.

    Raises:
        ValueError: there are some, and all are damaged.
    """
    there = found(folder)
    for checkpoint in reversed(there):
        try:
            return read(checkpoint)
        except ValueError as error:
            if checkpoint == there[0]:
                raise
            warnings.warn(f"{error}; going on from the one before", stacklevel=2)
    return None


def read(checkpoint: Path) -> State:
    """The tensors and facts of a checkpoint.

    Raises:
        ValueError: a file of it is missing or damaged, or of another step than its folder says.
    """
    try:
        facts = json.loads((checkpoint / "state.json").read_text(encoding="utf8"))
        if not isinstance(facts, dict) or f"step-{facts.get('step'):08}" != checkpoint.name:
            raise ValueError("state.json is of no step, or of another one")
        tensors = load_file(checkpoint / "state.safetensors")
        if bad := next((name for name, x in tensors.items() if bool(x.isnan().any())), None):
            raise ValueError(f"{bad} holds NaN")
        return tensors, facts
    except (OSError, ValueError, TypeError, RecursionError, SafetensorError) as error:
        raise ValueError(
            f"the checkpoint {checkpoint} is damaged ({error}); remove this folder to go on without it"
        ) from error


def write_json(path: Path, content: Any) -> None:  # noqa: ANN401 (what JSON holds)
    """JSON under a temporary name, then renamed; numbers that JSON lacks become words."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(plain(content), indent=1, allow_nan=False), encoding="utf8")
    os.replace(part, path)


def plain(content: Any) -> Any:  # noqa: ANN401
    """The same with words for numbers that JSON lacks."""
    if isinstance(content, dict):
        return {key: plain(v) for key, v in content.items()}
    if isinstance(content, list):
        return [plain(v) for v in content]
    return str(content) if isinstance(content, float) and not math.isfinite(content) else content


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
