"""Rewards: scores of pictures, higher better, one a picture.

rewards.get("clip")                 a reward by name
rewards.to_reward(my_function)      a reward of any function of pictures [b 3 h w] in [0,1], and prompts if it takes
them
"""

import difflib
from collections.abc import Callable

from rewards.base import (
    Chunked,
    Counted,
    Function,
    Negated,
    Pil,
    Reward,
    WeightedSum,
    check_scores,
    is_differentiable,
    name_of,
    probe_differentiable,
    to_reward,
)
from rewards.clip import Clip
from rewards.shapes import ShapesVerifier
from rewards.simple import Brightness, ColourMatch, JpegSize, Redness

__all__ = [
    "Brightness", "Chunked", "Clip", "ColourMatch", "Counted", "Function", "JpegSize", "Negated", "Pil", "Redness",
    "Reward", "ShapesVerifier", "WeightedSum", "check_scores", "get", "is_differentiable", "name_of", "names",
    "probe_differentiable", "to_reward",
]  # fmt: skip

_BUILT_IN: dict[str, Callable[[], Reward]] = {
    "clip": Clip,
    "clip-judge": lambda: Clip("emoji-clip-judge"),
    "redness": Redness,
    "brightness": Brightness,
    "colour-match": ColourMatch,
    "jpeg-size": JpegSize,
    "shapes": ShapesVerifier,
}


def names() -> list[str]:
    """The names that `get` knows."""
    return list(_BUILT_IN)


def get(name: str) -> Reward:
    """The built-in reward of a name, with its default settings.

    Raises:
        ValueError: the name is unknown; the message lists the known ones.
    """
    if name not in _BUILT_IN:
        near = difflib.get_close_matches(name, _BUILT_IN, 1, 0.4)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"reward={name!r} is unknown; known: {', '.join(_BUILT_IN)}{hint}")
    return _BUILT_IN[name]()
