"""The commands of `steer`, one module each, which is loaded when it is called for.

A module has `run(overrides)`, which may return the exit status, and a docstring that is its help: the first line for
`steer --help`, all of it for `steer COMMAND --help`. `CONFIG` names the file of configs/ with its settings, if it has
some, and `words()` gives the plain words that it takes, if it takes some.
"""

from importlib import import_module
from typing import Any

COMMANDS = {
    "sample": "sample",
    "compare": "compare",
    "train": "train",
    "finetune": "finetune",
    "serve-reward": "serve",
    "studio": "studio",
    "bench": "bench",
    "list": "listing",
    "doctor": "doctor",
    "completion": "completion",
}
"""By what a user calls them; the values are modules of this package."""


def command(name: str) -> Any:  # noqa: ANN401 (a module)
    """The module of a command."""
    return import_module(f"steer.commands.{COMMANDS[name]}")
