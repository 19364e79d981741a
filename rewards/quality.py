"""Likeness to a reference picture by the measures of image quality, as the package piq has them."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rewards.contract import check_images
from rewards.packages import lacking_packages
from rewards.reference import check_reference, lacking_reference, reference_like
from rewards.towers import mend_torchvision


@dataclass(frozen=True)
class Measure:
    """One of piq's functions.

    function: its name there.
    side: the fewest pixels a side may have.
    sign: 1 where more is better, -1 where less is.
    smooth: its gradient is finite everywhere, also where a picture is flat.
    """

    function: str
    side: int
    sign: int = 1
    smooth: bool = True


MEASURES = {
    "ssim": Measure("ssim", 11),
    "ms-ssim": Measure("multi_scale_ssim", 161),
    "vif": Measure("vif_p", 41),
    "fsim": Measure("fsim", 11, smooth=False),
    "gmsd": Measure("gmsd", 11, sign=-1, smooth=False),
}


@dataclass(frozen=True)
class Piq:
    """A measure of piq against a reference picture, its sign such that higher is better.

    measure:
        "ssim"     structural similarity in windows of 11 pixels, in [-1, 1]; 1: the same (Wang et al., 2004).
        "ms-ssim"  the same over five scales, in [0, 1]; sides of at least 161 pixels (Wang et al., 2003).
        "vif"      visual information fidelity in the pixel domain; 1: the same, above it where contrast is raised;
                   sides of at least 41 pixels (Sheikh and Bovik, 2006).
        "fsim"     similarity of phase congruency and edges, in [0, 1]; 1: the same (Zhang et al., 2011).
        "gmsd"     minus the deviation of gradient similarity; 0: the same (arXiv:1308.3052).
        The gradients of the last two are NaN in flat areas (a root of 0): they are black boxes here.
    reference: a picture [3 h w] in [0,1] or the path of one; resized to the pictures' size (`reference_like`).

    Pictures are clamped to [0,1], as piq demands; it works in float64 for float64 and in float32 for the rest.

    Raises:
        FileNotFoundError, ValueError: there is no such file, the tensor is no picture, or the measure is unknown.
        ModuleNotFoundError, FileNotFoundError, ValueError: at a call, when piq is not installed, there is no reference,
            or the pictures are too small for the measure.
    """

    measure: str = "ssim"
    reference: str | Tensor | None = None
    name: str = ""
    cost: float = 0.0

    def __post_init__(self) -> None:
        if self.measure not in MEASURES:
            raise ValueError(f"measure={self.measure!r} is unknown; known: {', '.join(MEASURES)}")
        check_reference(self.reference)
        object.__setattr__(self, "name", self.name or self.measure)

    @property
    def differentiable(self) -> bool:
        """Whether the measure has finite gradients everywhere."""
        return MEASURES[self.measure].smooth

    def missing(self) -> str | None:
        """What is lacking, in one sentence; None where the reward can run."""
        return lacking_packages(self.name, "perceptual", "piq") or lacking_reference(self.name, self.reference)

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Scores [b] of pictures [b 3 h w] in [0,1]."""
        check_images(images, prompts)
        if lacks := lacking_packages(self.name, "perceptual", "piq"):
            raise ModuleNotFoundError(lacks)
        measure = MEASURES[self.measure]
        if min(images.shape[2:]) < measure.side:
            size = f"{images.shape[2]} x {images.shape[3]}"
            raise ValueError(f"measure={self.measure!r} needs sides of at least {measure.side} pixels, not {size}")
        x = (images.double() if images.dtype == torch.float64 else images.float()).clamp(0, 1)
        y = reference_like(self.name, self.reference, x).clamp(0, 1).expand(x.shape)
        with torch.set_grad_enabled(torch.is_grad_enabled() and measure.smooth):
            scores = measure.sign * getattr(_piq(), measure.function)(x, y, reduction="none")
        return scores.reshape(len(images)).to(images.dtype)


def _piq() -> Any:  # noqa: ANN401 (a module)
    mend_torchvision()
    import piq

    return piq
