"""Rewards: scores of pictures, higher better, one a picture.

rewards.get("clip")                 a reward by name
rewards.to_reward(my_function)      a reward of any function of pictures [b 3 h w] in [0,1], and prompts if it takes
them
"""

import difflib
from collections.abc import Callable

from rewards.aesthetic import Aesthetic
from rewards.base import (
    Bytes,
    Chunked,
    Counted,
    Function,
    Loss,
    Negated,
    PerPrompt,
    Pil,
    Reward,
    WeightedSum,
    assumed,
    check_scores,
    is_differentiable,
    missing,
    name_of,
    probe_differentiable,
    to_reward,
)
from rewards.calibration import Calibration, Normalised, calibrate
from rewards.classifier import Classifier
from rewards.clip import Clip
from rewards.hps import Hps
from rewards.image_reward import ImageReward
from rewards.inverse import Measured
from rewards.ocr import Ocr
from rewards.perceptual import Lpips, Perceptual
from rewards.pickscore import PickScore
from rewards.quality import Piq
from rewards.remote import Remote
from rewards.serving import serve
from rewards.shapes import ShapesVerifier
from rewards.simple import Brightness, ColourMatch, JpegSize, PngSize, Redness, TotalVariation
from rewards.vlm import VlmJudge

__all__ = [
    "Aesthetic", "Brightness", "Bytes", "Calibration", "Chunked", "Classifier", "Clip", "ColourMatch", "Counted",
    "Function", "Hps", "ImageReward", "JpegSize", "Loss", "Lpips", "Measured", "Negated", "Normalised", "Ocr",
    "PerPrompt", "Perceptual", "PickScore", "Pil", "Piq", "PngSize", "Redness", "Remote", "Reward", "ShapesVerifier",
    "TotalVariation", "VlmJudge", "WeightedSum", "assumed", "calibrate", "check_scores", "get", "is_differentiable",
    "missing", "name_of", "names", "probe_differentiable", "serve", "to_reward",
]  # fmt: skip

_BUILT_IN: dict[str, Callable[[], Reward]] = {
    "clip": Clip,
    "clip-judge": lambda: Clip("emoji-clip-judge"),
    "redness": Redness,
    "brightness": Brightness,
    "colour-match": ColourMatch,
    "jpeg-size": JpegSize,
    "png-size": PngSize,
    "total-variation": TotalVariation,
    "ocr": Ocr,
    "imagenet": Classifier,
    "perceptual": Perceptual,
    "lpips": Lpips,
    "ssim": Piq,
    "ms-ssim": lambda: Piq("ms-ssim"),
    "vif": lambda: Piq("vif"),
    "fsim": lambda: Piq("fsim"),
    "gmsd": lambda: Piq("gmsd"),
    "shapes": ShapesVerifier,
    "pickscore": PickScore,
    "hps": Hps,
    "image-reward": ImageReward,
    "aesthetic": Aesthetic,
    "vlm": VlmJudge,
    "remote": Remote,
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
