"""Data sets that need no download."""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from steer.data import emoji

if TYPE_CHECKING:
    from steer.data import shapes

__all__ = ["emoji", "shapes"]


def __getattr__(name: str) -> ModuleType:
    """`shapes`, imported when it is asked for: it reads its language from `rewards`, which imports torch."""
    if name == "shapes":
        return import_module("steer.data.shapes")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
