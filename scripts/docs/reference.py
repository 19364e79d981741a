"""Pages of the public names, read off the docstrings by griffe, which imports nothing."""

from functools import cache
from typing import TYPE_CHECKING, Any

from places import ROOT

if TYPE_CHECKING:
    import griffe

MODULES = (
    "steer", "rewards", "steer.methods", "steer.objectives", "steer.lookahead", "steer.posterior", "steer.flow_map",
    "steer.interpolants", "steer.moves", "steer.particles", "steer.resampling", "steer.run", "steer.metrics",
    "steer.analytic", "steer.models", "steer.models.families", "steer.data", "steer.plots", "rewards.inverse",
)  # fmt: skip


def pages() -> dict[str, str]:
    """One a module."""
    return {f"api/{name}.md": page(name) for name in MODULES}


def page(name: str) -> str:
    """The docstring of a module and of its public names."""
    members = [f"        - {member}" for member in exported(name)]
    return "\n".join([f"# {name}", "", f"::: {name}", "    options:", "      members:", *members]) + "\n"


@cache
def exported(name: str) -> list[str]:
    """The classes and functions that `__all__` names; where there is none, those that are public and made there."""
    package, _, inner = name.partition(".")
    module = _loaded(package)[inner] if inner else _loaded(package)
    made = [n for n, thing in module.members.items() if not thing.is_alias and not n.startswith("_")]
    return [n for n in map(str, module.exports or made) if _is_code(module.members.get(n))]


def _is_code(thing: Any) -> bool:  # noqa: ANN401 (an object or an alias of griffe)
    import griffe

    try:
        return thing is not None and (thing.is_class or thing.is_function)
    except griffe.AliasResolutionError:  # of a constant: griffe knows no names that are assigned in a tuple
        return False


@cache
def public() -> frozenset[str]:
    """Names with dots that have a place on these pages."""
    return frozenset(f"{name}.{member}" for name in MODULES for member in exported(name))


@cache
def _loaded(package: str) -> "griffe.Module":
    import griffe

    return griffe.load(package, search_paths=[ROOT], resolve_aliases=True)  # pyright: ignore[reportReturnType]
