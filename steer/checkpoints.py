"""Checkpoints of a training: safetensors and JSON, whole or not there at all, the newest few kept.

A checkpoint is a folder FOLDER/checkpoints/step-00001000 with state.safetensors (weights, optimiser, averages) and
state.json. It is written under another name and renamed when all of it is on the disk: a killed process leaves either
the whole checkpoint or a folder that the next run sweeps away. Nothing in it is code, or names any.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

State = tuple[dict[str, Tensor], dict[str, Any]]


def write(folder: Path, step: int, tensors: dict[str, Tensor], facts: dict[str, Any], keep: int) -> Path:
    """Write a checkpoint of a step, then remove all but the newest `keep`; returns its folder."""
    home = folder / "checkpoints"
    final, part = home / f"step-{step:08d}", home / f".step-{step:08d}.part"
    sweep(folder)
    part.mkdir(parents=True)
    save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, part / "state.safetensors")
    (part / "state.json").write_text(json.dumps({"step": step, **facts}, indent=1), encoding="utf8")
    for file in part.iterdir():
        _to_disk(file)
    if final.exists():  # the same step again, after a resumption: the new one takes its place
        os.replace(final, home / f".step-{step:08d}.old.part")
    os.replace(part, final)
    _to_disk(home)
    for old in found(folder)[:-keep]:
        os.replace(old, home / f".{old.name}.part")
    sweep(folder)
    return final


def found(folder: Path) -> list[Path]:
    """The checkpoints there are, oldest first."""
    return sorted(p for p in (folder / "checkpoints").glob("step-*") if p.is_dir())


def sweep(folder: Path) -> None:
    """Remove what a killed process left."""
    for part in (folder / "checkpoints").glob(".step-*.part"):
        shutil.rmtree(part, ignore_errors=True)


def read(checkpoint: Path) -> State:
    """The tensors and facts of a checkpoint.

    Raises:
        ValueError: a file of it is missing or damaged.
    """
    try:
        facts = json.loads((checkpoint / "state.json").read_text(encoding="utf8"))
        return load_file(checkpoint / "state.safetensors"), facts
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(
            f"the checkpoint {checkpoint} is damaged ({error}); remove it to go on from the one before"
        ) from error


def write_json(path: Path, content: Any) -> None:  # noqa: ANN401 (what JSON holds)
    """JSON under a temporary name, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(content, indent=1), encoding="utf8")
    os.replace(part, path)


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
