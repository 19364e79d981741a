"""Reading a function's signature: which of its arguments takes pictures, which prompts, and in what form."""

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rewards.contract import name_of

ORDER = ("images", "prompts", "metadata")
WORDS = {  # how parameters are called that mean one of these
    "raw": ("raw",),
    "images": ("image", "img", "im_pix", "pixel", "picture", "pil", "x", "sample"),
    "prompts": ("prompt", "text", "caption"),
    "metadata": ("meta", "info"),
    "noise": ("sigma",),
}
TIMES = ("t", "time", "timestep", "timesteps")


def role_of(parameter: str) -> str | None:
    """What a parameter of this name takes: "images", "prompts", "metadata", "raw" (the pictures as they came, whatever
    else is given as "images"), "noise" (the level of noise that is left: 0), or None where the name does not say.
    """
    return next((role for role, words in WORDS.items() if parameter.lower().startswith(words)), None)


@dataclass(frozen=True)
class Plan:
    """How to call a function: what each positional argument is, and what goes by keyword, as (keyword, what)."""

    positional: tuple[str, ...] = ("images", "prompts")
    keywords: tuple[tuple[str, str], ...] = ()

    @property
    def roles(self) -> tuple[str, ...]:
        """All that is given."""
        return (*self.positional, *(role for _, role in self.keywords))

    def call(self, function: Callable[..., Any], images: Any, prompts: Any, raw: Tensor) -> Any:  # noqa: ANN401
        """function(images, ...); metadata are one empty dict a prompt.

        images, prompts: in the form that the function takes, of many pictures or of one.
        raw: the pictures [b 3 h w] in [0,1] that these stand for.
        """
        metadata = {} if isinstance(prompts, str) else [{} for _ in prompts]
        what = {"images": images, "prompts": prompts, "metadata": metadata, "raw": raw, "noise": raw.new_zeros(())}
        return function(*(what[role] for role in self.positional), **{k: what[role] for k, role in self.keywords})


def plan(function: Callable[..., Any]) -> Plan:
    """Read the signature once. An argument is what its name says, or else the next of (images, prompts, metadata); of
    those with a default it is given the ones called like prompts or raw pictures, and pictures if nothing else takes
    them.

    Raises:
        TypeError: an argument without a default is none of these, or nothing takes pictures.
    """
    parameters = parameters_of(function)
    if parameters is None:
        return Plan()
    plain = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = [p for p in plain if p.default is p.empty]
    if len(needed) > len(ORDER):
        given = f"{len(needed)} arguments; it is called with (images, prompts)"
        raise TypeError(f"reward {name_of(function)!r} needs {given}")
    if not needed and any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return Plan()
    named = [p for p in parameters if p not in needed and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    keywords = tuple((p.name, role) for p in named if (role := _keyword_role(function, p)))
    if not needed and "images" not in dict(keywords).values():
        keywords = tuple(k for k in keywords if not plain or k[0] != plain[0].name)
        return Plan(("images",), keywords)
    positional = _order(function, [p.name for p in needed])
    if "images" not in (*positional, *dict(keywords).values()):
        pictures = next((p.name for p in named if role_of(p.name) == "images"), None)
        if pictures is None:
            raise TypeError(f"reward {name_of(function)!r} takes no pictures; give it an argument `images`")
        keywords = (*keywords, (pictures, "images"))
    return Plan(positional, keywords)


def parameters_of(function: Callable[..., Any]) -> list[inspect.Parameter] | None:
    """Its parameters; None of a builtin without a signature."""
    try:
        return list(inspect.signature(body(function)).parameters.values())
    except (TypeError, ValueError):
        return None


def body(function: Callable[..., Any]) -> Callable[..., Any]:
    """What holds the arguments' names: of a module whose call is the usual one, its `forward`."""
    if isinstance(function, torch.nn.Module):
        usual = type(function).__call__ is torch.nn.Module.__call__
        return function.forward if usual else function.__call__
    return function


def _order(function: object, names: list[str]) -> tuple[str, ...]:
    """What the names say, the rest in the usual order; the usual order where two names say the same.

    Raw pictures are the pictures where none but they are asked for.
    """
    if len(names) > 1 and (times := [name for name in names if name in TIMES]):
        raise TypeError(
            f"reward {name_of(function)!r} needs {times[0]!r}, a time, and libraries disagree on where it is 0; "
            "wrap it in a lambda that gives the time of a finished picture"
        )
    said = [role_of(name) for name in names]
    if "images" not in said and "raw" in said:
        said[said.index("raw")] = "images"
    known = [role for role in said if role]
    if len(set(known)) < len(known):
        return ORDER[: len(names)]
    rest = iter(role for role in ORDER if role not in known)
    return tuple(role or next(rest) for role in said)


def _keyword_role(function: object, parameter: inspect.Parameter) -> str | None:
    """What to give by keyword: all that is needed, and of what has a default the prompts and raw pictures."""
    role = role_of(parameter.name)
    if parameter.default is not parameter.empty:
        plain = parameter.name.lower().removesuffix("s") in WORDS["prompts"]  # prompt_embeds=None is no list of texts
        return role if role == "raw" or plain else None
    if role is None:
        raise TypeError(
            f"reward {name_of(function)!r} needs {parameter.name!r}; it is called with (images, prompts): give it a "
            "default, or wrap it in a lambda"
        )
    return role


def wants_pil(function: Callable[..., Any]) -> bool:
    """Whether an argument for pictures is annotated as PIL's, or called like it."""
    return any(_is_pil(p) for p in parameters_of(function) or ())


def wants_one(function: Callable[..., Any]) -> bool:
    """Whether it says that it takes one picture at a time: its prompt is a plain `str`, or its picture a PIL one."""
    parameters = parameters_of(function) or ()
    if any(role_of(p.name) == "prompts" and p.annotation in (str, "str") for p in parameters):
        return True
    many = r"\b(list|tuple|sequence|iterable)\b"
    return any(
        _is_pil(p) and p.annotation is not p.empty and not re.search(many, _annotation(p), re.IGNORECASE)
        for p in parameters
    )


def _is_pil(parameter: inspect.Parameter) -> bool:
    if role_of(parameter.name) != "images":
        return False
    text = _annotation(parameter)
    return parameter.name.startswith("pil") or bool(re.search(r"\bPIL\b|\bImage\b", text) and "Tensor" not in text)


def _annotation(parameter: inspect.Parameter) -> str:
    return "" if parameter.annotation is parameter.empty else str(parameter.annotation)
