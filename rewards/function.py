"""A user's own function as a reward: called with what it takes, and what it gives back checked.

Each adapter says in `assumed` how it calls the function; where the function fails, its exception passes as it is, with
a note that says the same and, where the words of the exception show it, which adapter would suit the function.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rewards.contract import check_scores, missing, name_of
from rewards.signature import Plan, plan


class _Called:
    """What the adapters share: the signature read once, and what is said of it."""

    function: Callable[..., Any]
    name: str
    _plan: Plan

    def __post_init__(self) -> None:
        _read(self)

    def _gives(self) -> str:
        return "pictures as floats [b 3 h w] in [0, 1]"

    @property
    def assumed(self) -> str:
        """How the function is called, and which way is better."""
        function = getattr(self.function, "func", self.function)  # of a partial
        called = getattr(function, "__name__", type(function).__name__)
        given = ", ".join([*self._plan.positional, *(f"{key}={role}" for key, role in self._plan.keywords)])
        return f"called as {called}({given}), {self._gives()}; higher is better"

    def missing(self) -> str | None:
        """What the function, if it is an object that says so, lacks."""
        return missing(self.function)

    def _ask(self, images: Any, prompts: Any, raw: Tensor) -> Any:  # noqa: ANN401 (a user's return value)
        """What the function gives; scores without the info beside them."""
        try:
            out = self._plan.call(self.function, images, prompts, raw)
        except Exception as error:
            error.add_note(f"reward {self.name!r} was {self.assumed}{_advice(error)}")
            raise
        return _scores(self.name, out)

    def _checked(self, scores: Any, images: Tensor) -> Tensor:  # noqa: ANN401
        if "noise" in self._plan.roles and getattr(scores, "ndim", 0) > 1:
            scores = scores.flatten(1).sum(1)  # a density of each pixel, as twists give it
        return check_scores(self, scores, len(images), images)


def _read(reward: _Called) -> None:
    object.__setattr__(reward, "_plan", plan(reward.function))
    object.__setattr__(reward, "name", reward.name or name_of(reward.function))


@dataclass(frozen=True)
class Function(_Called):
    """A function of (images), (images, prompts) or (images, prompts, metadata); it may return (scores, info).

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

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Scores [b] of pictures [b 3 h w] in [0,1]."""
        return self._checked(self._ask(images, prompts, images), images)


@dataclass(frozen=True)
class Pil(_Called):
    """A black box that wants a list of PIL pictures, and prompts if it takes them; it returns b numbers.

    Raises:
        TypeError: it needs other arguments.
    """

    function: Callable[..., Any] = field(repr=False)
    name: str = ""
    differentiable: bool = False
    cost: float = 0.0
    _plan: Plan = field(init=False, repr=False, compare=False)

    def _gives(self) -> str:
        return "a list of PIL pictures"

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Scores [b] of pictures [b 3 h w] in [0,1]."""
        return self._checked(self._ask(to_pil(images), prompts, images), images)


@dataclass(frozen=True)
class Bytes(_Called):
    """A black box that wants whole numbers from 0 to 255; it returns b numbers.

    layout: "nhwc", a numpy array [b h w 3] as PIL and OpenCV have it, or "nchw", a torch tensor [b 3 h w].

    Raises:
        TypeError: it needs other arguments.
        ValueError: an unknown layout.
    """

    function: Callable[..., Any] = field(repr=False)
    layout: str = "nhwc"
    name: str = ""
    differentiable: bool = False
    cost: float = 0.0
    _plan: Plan = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.layout not in ("nhwc", "nchw"):
            raise ValueError(f"layout={self.layout!r} is unknown; give 'nhwc' (a numpy array) or 'nchw' (a tensor)")
        _read(self)

    def _gives(self) -> str:
        return "pictures as uint8 " + ("arrays [b h w 3]" if self.layout == "nhwc" else "tensors [b 3 h w]")

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Scores [b] of pictures [b 3 h w] in [0,1]."""
        pixels = to_bytes(images)
        given = pixels.permute(0, 2, 3, 1).cpu().numpy() if self.layout == "nhwc" else pixels
        return self._checked(self._ask(given, prompts, images), images)


@dataclass(frozen=True)
class PerPrompt(_Called):
    """A function of one picture and its prompt (a plain text) that returns one number; it is called b times.

    pictures: "floats" gives it [1 3 h w] in [0,1], "pil" a PIL picture, which has no gradient.
    prepare: what is done to floats [1 3 h w] before, such as a `rewards.vision.Look`; None: nothing.

    Raises:
        TypeError: it needs other arguments.
        ValueError: pictures of another kind; at a call, when it returns more than one number.
    """

    function: Callable[..., Any] = field(repr=False)
    pictures: str = "floats"
    prepare: Callable[[Tensor], Tensor] | None = None
    name: str = ""
    differentiable: bool | None = None
    cost: float = 0.0
    _plan: Plan = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.pictures not in ("floats", "pil"):
            raise ValueError(f"pictures={self.pictures!r} are unknown; give 'floats' or 'pil'")
        if self.pictures == "pil":
            object.__setattr__(self, "differentiable", False)
        _read(self)

    def _gives(self) -> str:
        before = "" if self.prepare is None else f", then put through {self.prepare!r}"
        kind = "a PIL picture" if self.pictures == "pil" else f"a picture of floats [1 3 h w] in [0, 1]{before}"
        return f"{kind} and one prompt at a time"

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Scores [b] of pictures [b 3 h w] in [0,1]."""
        return self._checked([self._one(i, q) for i, q in zip(images.split(1), prompts, strict=True)], images)

    def _one(self, image: Tensor, prompt: str) -> Any:  # noqa: ANN401
        given = to_pil(image)[0] if self.pictures == "pil" else self.prepare(image) if self.prepare else image
        score = self._ask(given, prompt, image)
        shape = list(getattr(score, "shape", [len(score)] if isinstance(score, list) else []))
        if any(side != 1 for side in shape):
            raise ValueError(f"reward {self.name!r} returned shape {shape} for one picture; return one number")
        return score.reshape(()) if shape and not isinstance(score, list) else score[0] if shape else score


def _scores(name: str, out: Any) -> Any:  # noqa: ANN401
    """The scores of a pair (scores, info), or of an object with `rewards`; a tuple of two numbers is two scores.

    Raises:
        TypeError: two sets of scores, such as (losses, rewards), of which nothing says which one is meant.
    """
    if hasattr(out, "rewards"):
        return out.rewards
    if not (isinstance(out, tuple) and len(out) == 2):
        return out
    if _many(out[0]) and _many(out[1]):
        raise TypeError(
            f"reward {name!r} returned two sets of scores, such as losses beside rewards; wrap it in a lambda that "
            "returns the one in which higher is better, as in lambda images: function(images)[1]"
        )
    return out[0] if _many(out[0]) or isinstance(out[1], dict) else out


def _many(x: Any) -> bool:  # noqa: ANN401
    """Whether it is a list or array of numbers."""
    numbers = isinstance(x, list) and bool(x) and all(isinstance(v, (int, float, Tensor)) for v in x)
    return numbers or getattr(x, "ndim", 0) > 0


_PIL = "it takes PIL pictures, wrap it: rewards.Pil(function), or rewards.PerPrompt(function, 'pil') for one at a time"
_BYTES = "it takes whole numbers from 0 to 255, wrap it: rewards.Bytes(function)"
_PER_PROMPT = "it takes one prompt at a time, wrap it: rewards.PerPrompt(function)"
_FLOATS = "it takes tensors, leave the wrapper out, or take rewards.Function(function)"


def _advice(error: Exception) -> str:
    """Which adapter would suit a function that failed so; "" where its words do not show it."""
    from PIL import Image

    text = str(error)
    if isinstance(error, AttributeError) and error.name:
        has = [kind for kind in (Image.Image, str, Tensor) if hasattr(kind, error.name)]
        if isinstance(error.obj, Image.Image):
            cure = _FLOATS if Tensor in has else ""
        elif isinstance(error.obj, list):
            cure = _PER_PROMPT if str in has else _PIL if Image.Image in has else _FLOATS if Tensor in has else ""
        else:
            cure = _PIL if Image.Image in has else _BYTES if error.name == "astype" else ""
    elif "PIL" in text:
        cure = _PIL
    elif any(word in text for word in ("uint8", "Byte", "handle this data type")):
        cure = _BYTES
    else:
        cure = _PER_PROMPT if re.search(r"""(not|got|type:?) ['"]?list|<class 'list'>""", text) else ""
    return f"; if {cure}" if cure else ""


def to_bytes(images: Tensor) -> Tensor:
    """Pictures [b 3 h w] in [0,1] as whole numbers from 0 to 255, rounded."""
    return (images.detach().clamp(0, 1) * 255).round().to(torch.uint8)


def to_pil(images: Tensor) -> list[Any]:
    """Pictures [b 3 h w] in [0,1] as PIL."""
    from PIL import Image

    return [Image.fromarray(p) for p in to_bytes(images).permute(0, 2, 3, 1).cpu().numpy()]
