"""A user's own function, or another library's scorer, as a reward."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rewards.contract import check_scores, cost_of, is_differentiable, name_of

ORDER = ("images", "prompts", "metadata")
WORDS = {  # how parameters are called that mean one of these
    "images": ("image", "img", "pixel", "picture", "x", "sample"),
    "prompts": ("prompt", "text", "caption"),
    "metadata": ("meta", "info"),
}


def role_of(parameter: str) -> str | None:
    """What a parameter of this name takes: "images", "prompts", "metadata", or None where the name does not say."""
    return next((role for role, words in WORDS.items() if parameter.lower().startswith(words)), None)


@dataclass(frozen=True)
class Plan:
    """How to call a function: what each positional argument is, and what goes by keyword, as (keyword, what)."""

    positional: tuple[str, ...] = ("images", "prompts")
    keywords: tuple[tuple[str, str], ...] = ()

    def call(self, function: Callable[..., Any], images: Any, prompts: list[str]) -> Any:  # noqa: ANN401
        """function(images, ...), with one empty dict a picture for metadata."""
        what = {"images": images, "prompts": prompts, "metadata": [{} for _ in prompts]}
        return function(*(what[role] for role in self.positional), **{k: what[role] for k, role in self.keywords})


def plan(function: Callable[..., Any]) -> Plan:
    """Read the signature once. An argument is what its name says, or else the next of (images, prompts, metadata); one
    with a default is given only if it is called like prompts.

    Raises:
        TypeError: an argument without a default is none of these.
    """
    try:
        parameters = list(inspect.signature(_body(function)).parameters.values())
    except (TypeError, ValueError):  # a builtin without a signature
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
    return Plan(_order([p.name for p in needed]), keywords)


def _body(function: Callable[..., Any]) -> Callable[..., Any]:
    """What holds the arguments' names: of a module whose call is the usual one, its `forward`."""
    if isinstance(function, torch.nn.Module):
        usual = type(function).__call__ is torch.nn.Module.__call__
        return function.forward if usual else function.__call__
    return function


def _order(names: list[str]) -> tuple[str, ...]:
    """What the names say, the rest in the usual order; the usual order where two names say the same."""
    known = [role for name in names if (role := role_of(name))]
    if len(set(known)) < len(known):
        return ORDER[: len(names)]
    rest = iter(role for role in ORDER if role not in known)
    return tuple(role_of(name) or next(rest) for name in names)


def _keyword_role(function: object, parameter: inspect.Parameter) -> str | None:
    """What to give by keyword: all that is needed, and of what has a default the prompts."""
    role = role_of(parameter.name)
    if parameter.default is not parameter.empty:
        return role if role == "prompts" else None
    if role is None:
        raise TypeError(
            f"reward {name_of(function)!r} needs {parameter.name!r}; it is called with (images, prompts): give it a "
            "default, or wrap it in a lambda"
        )
    return role


@dataclass(frozen=True)
class Function:
    """A user's function of (images), (images, prompts) or (images, prompts, metadata); it may return (scores, info).

    Its exceptions are the user's own and pass unchanged; what it returns is checked (`check_scores`).
    differentiable: None means: find out by a probe.

    Raises:
        TypeError: it needs other arguments.
    """

    function: Callable[..., Any] = field(repr=False)
    name: str = ""
    differentiable: bool | None = None
    cost: float = 0.0
    _plan: Plan = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _read(self)

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Scores [b] of pictures [b 3 h w] in [0,1]."""
        scores = self._plan.call(self.function, images, prompts)
        return check_scores(self, _without_info(scores), len(images), images)


@dataclass(frozen=True)
class Pil:
    """A black box that wants a list of PIL pictures, and prompts if it takes them; it returns b numbers.

    Raises:
        TypeError: it needs other arguments.
    """

    function: Callable[..., Any] = field(repr=False)
    name: str = ""
    differentiable: bool = False
    cost: float = 0.0
    _plan: Plan = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _read(self)

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Scores [b] of pictures [b 3 h w] in [0,1]."""
        scores = self._plan.call(self.function, to_pil(images), prompts)
        return check_scores(self, _without_info(scores), len(images), images)


def _read(reward: Function | Pil) -> None:
    object.__setattr__(reward, "_plan", plan(reward.function))
    object.__setattr__(reward, "name", reward.name or name_of(reward.function))


def _without_info(scores: Any) -> Any:  # noqa: ANN401
    """The scores of a pair (scores, info); a tuple of two numbers is two scores."""
    pair = isinstance(scores, tuple) and len(scores) == 2
    return scores[0] if pair and (isinstance(scores[0], list) or getattr(scores[0], "ndim", 0)) else scores


def to_pil(images: Tensor) -> list[Any]:
    """Pictures [b 3 h w] in [0,1] as PIL."""
    from PIL import Image

    pixels = (images.detach().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(p) for p in pixels]


def from_callable(given: object) -> Function:
    """A reward of a function, of a torch module, or of an object with a method score(images, prompts).

    Raises:
        TypeError: nothing of these, or it needs other arguments.
    """
    if isinstance(given, type):
        raise TypeError(f"reward={given.__name__} is a class; give an instance, such as {given.__name__}()")
    function = _scorer(given) or given
    if not callable(function):
        raise TypeError(
            f"reward={given!r} is no reward; give a name, a function of pictures, an object with "
            "score(images, prompts), or a list or dict of these with weights"
        )
    return Function(function, name_of(given), is_differentiable(given), cost_of(given))


def _scorer(given: object) -> Callable[..., Any] | None:
    """Its method `score`, if it is no function itself; of a module, if it takes pictures or there is no `forward`."""
    score = getattr(given, "score", None)
    if not callable(score) or isinstance(score, torch.nn.Module):
        return None
    if isinstance(given, torch.nn.Module):
        forward = _body(given) != given.forward or type(given).forward is not torch.nn.Module.forward
        pictures = role_of(next(iter(inspect.signature(score).parameters), "")) == "images"
        return _unsqueezed(score) if pictures or not forward else None
    return None if callable(given) else _unsqueezed(score)


def _unsqueezed(score: Callable[..., Any]) -> Callable[..., Any]:
    """The same scores as [b]: libraries of scorers return [b 1], or squeeze a batch of one."""

    @functools.wraps(score)
    def scores(*given: Any, **named: Any) -> Any:  # noqa: ANN401
        out = score(*given, **named)
        flat = isinstance(out, Tensor) and out.numel() == max(out.shape, default=1)
        return out.reshape(-1) if flat else out

    return scores
