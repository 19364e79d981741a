"""Names of models, methods and rewards: the files of configs/, each of which builds one object."""

import difflib
import itertools
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

_HERE = Path(__file__).resolve().parent
CONFIGS = _HERE / "configs" if (_HERE / "configs").is_dir() else _HERE.parent / "configs"
"""Beside this file in an installed package, beside the package in a checkout."""


def names(group: str) -> list[str]:
    """The names of a group ("model", "method" or "reward"), sorted."""
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


@cache
def read(config: str) -> dict[str, Any]:
    """What configs/CONFIG.yaml says, unresolved."""
    import yaml

    return yaml.safe_load((CONFIGS / f"{config}.yaml").read_text(encoding="utf8")) or {}


def groups(config: str) -> dict[str, str]:
    """The settings of configs/CONFIG.yaml that choose a file by name, and the folder of configs/ that holds it."""
    parts = [key.partition("@") for entry in read(config).get("defaults", []) if entry != "_self_" for key in entry]
    return {key or folder: folder for folder, _, key in parts}


def says(group: str, name: str) -> str:
    """What the comment at the top of configs/GROUP/NAME.yaml says; "" where there is none."""
    lines = (CONFIGS / group / f"{name}.yaml").read_text(encoding="utf8").splitlines()
    comment = itertools.takewhile(lambda line: line.startswith("#"), lines)
    return " ".join(line.lstrip("# ") for line in comment if "@package" not in line)


def unknown(argument: str, value: str, known: Iterable[str], more: str = "") -> ValueError:
    """The error for a name that is not known: it lists those that are, and the nearest."""
    known = list(known)
    near = difflib.get_close_matches(value, known, 1, 0.4)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return ValueError(f"{argument}={value!r} is unknown; known: {', '.join(known)}{more}{hint}")


def build(group: str, name: str) -> Any:  # noqa: ANN401 (whatever the file names)
    """The object that configs/GROUP/NAME.yaml describes.

    Raises:
        ValueError: there is no such name; the message lists the known ones and the nearest.
    """
    if name not in names(group):
        raise unknown(group, name, names(group))
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    return instantiate(OmegaConf.load(CONFIGS / group / f"{name}.yaml"))
