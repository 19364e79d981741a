"""Whether a run that is taken up is the one that was left: the same settings, rows and objective."""

import warnings
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FREE = {"accumulate", "save_every", "keep", "log_every", "sample_every", "tracker"}  # these decide no weight
BENT = {"steps", "precision"}  # these do, yet a run may go on with others
CLOSE = 0.02  # rows that were made anew on another machine differ by rounding


def described(value: object) -> Any:  # noqa: ANN401 (what JSON holds)
    """A setting, or an object of settings, as JSON; of other objects their kind alone."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [described(v) for v in value]
    if is_dataclass(value) and not isinstance(value, type):
        inner = {f.name: described(getattr(value, f.name)) for f in fields(value) if f.init}
        return {"class": type(value).__name__, **inner}
    return type(value).__name__


def some_rows(x1: Tensor) -> list[list[float]]:
    """The first numbers of some rows, to know them by."""
    return [[float(f"{v:.4g}") for v in row] for row in x1.flatten(1)[:, :8].double().tolist()]


def check_same(there: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """Hold the facts of a checkpoint to those of the run that would go on from it.

    Raises:
        ValueError: they differ in what decides the weights.
    """
    cure = "give the old one, or another folder (with model= this one, to start from its weights)"
    old, new = dict(there.get("settings", {})), dict(now["settings"])
    if new["steps"] < there["step"]:
        raise ValueError(
            f"steps must be at least {there['step']}, which the run in {folder} has done, got {new['steps']}"
        )
    for key in sorted(old.keys() & new.keys() - FREE):
        if old[key] != new[key] and key in BENT:
            warnings.warn(f"{key} was {old[key]} and is {new[key]} from step {there['step']} on", stacklevel=3)
        elif old[key] != new[key]:
            raise ValueError(f"{key}={new[key]}, but the run in {folder} began with {old[key]}; {cure}")
    for key in sorted(now.keys() - {"settings", "some_rows"}):
        if key in there and there[key] != now[key]:
            what = difference(key, there[key], now[key])
            raise ValueError(f"{what}, in the run in {folder}; {cure}")
    if "some_rows" in there and not _close(there["some_rows"], now["some_rows"]):
        raise ValueError(f"the rows of data are others than those that the run in {folder} began with; {cure}")


def difference(key: str, old: object, new: object) -> str:
    """Where two descriptions differ, as deep inside as can be told."""
    if isinstance(old, dict) and isinstance(new, dict) and old.get("class") == new.get("class"):
        for inner in sorted(old.keys() & new.keys()):
            if old[inner] != new[inner]:
                return difference(f"{key}.{inner}", old[inner], new[inner])
    return f"{key}={new} was {old}"


def _close(old: list[list[float]], new: list[list[float]]) -> bool:
    a, b = torch.tensor(old), torch.tensor(new)
    return a.shape == b.shape and torch.allclose(a, b, rtol=CLOSE, atol=CLOSE, equal_nan=True)
