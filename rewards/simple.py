"""Rewards without weights: colours, smoothness, and the size of a file as a black box."""

import io
from dataclasses import dataclass

import torch
from torch import Tensor

from rewards.contract import check_images
from rewards.function import to_pil

COLOURS = {
    "red": (0.9, 0.1, 0.1), "orange": (1.0, 0.55, 0.1), "yellow": (1.0, 0.85, 0.1), "green": (0.2, 0.7, 0.2),
    "turquoise": (0.2, 0.75, 0.75), "blue": (0.15, 0.35, 0.9), "purple": (0.55, 0.25, 0.8), "pink": (1.0, 0.55, 0.75),
    "brown": (0.5, 0.3, 0.15), "black": (0.0, 0.0, 0.0), "grey": (0.5, 0.5, 0.5), "white": (1.0, 1.0, 1.0),
}  # fmt: skip


@dataclass(frozen=True)
class Redness:
    """Mean over the pixels of red - (green + blue) / 2, in [-1, 1]."""

    name: str = "redness"
    differentiable: bool = True
    cost: float = 0.0

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Scores [b] of pictures [b 3 h w] in [0,1]."""
        check_images(images, prompts)
        red, green, blue = images.unbind(1)
        return (red - (green + blue) / 2).mean((-2, -1))


@dataclass(frozen=True)
class Brightness:
    """Mean luminance over the pixels (Rec. 709 weights), in [0, 1]."""

    name: str = "brightness"
    differentiable: bool = True
    cost: float = 0.0

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Scores [b] of pictures [b 3 h w] in [0,1]."""
        check_images(images, prompts)
        red, green, blue = images.unbind(1)
        return (0.2126 * red + 0.7152 * green + 0.0722 * blue).mean((-2, -1))


@dataclass(frozen=True)
class ColourMatch:
    """Minus the root mean squared distance of the pixels from one colour: 0 is a picture of nothing but it.

    colour: a name in `COLOURS`, or red, green and blue in [0,1].

    Raises:
        ValueError: an unknown name, or no three numbers in [0,1].
    """

    colour: str | tuple[float, float, float] = "blue"
    name: str = "colour-match"
    differentiable: bool = True
    cost: float = 0.0

    def __post_init__(self) -> None:
        self.rgb()

    def rgb(self) -> tuple[float, ...]:
        """The colour as three numbers."""
        if isinstance(self.colour, str):
            if self.colour not in COLOURS:
                raise ValueError(f"colour={self.colour!r} is unknown; known: {', '.join(COLOURS)}, or give (r, g, b)")
            return COLOURS[self.colour]
        rgb = tuple(float(c) for c in self.colour)
        if len(rgb) != 3 or not all(0 <= c <= 1 for c in rgb):
            raise ValueError(f"colour={self.colour!r} must be a name or three numbers in [0, 1]")
        return rgb

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Scores [b] of pictures [b 3 h w] in [0,1]."""
        check_images(images, prompts)
        target = torch.tensor(self.rgb(), device=images.device, dtype=images.dtype).view(3, 1, 1)
        return -(images - target).square().mean((1, 2, 3)).add(1e-12).sqrt()


@dataclass(frozen=True)
class TotalVariation:
    """Minus the total variation: the absolute differences of neighbouring pixels, across and down, in sum over a
    picture and divided by its number of values 3 h w. 0 is a plain colour, the best; edges and grain cost.

    Ref: Nonlinear total variation based noise removal algorithms (Rudin, Osher and Fatemi, 1992), there isotropic.
    """

    name: str = "total-variation"
    differentiable: bool = True
    cost: float = 0.0

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Scores [b] of pictures [b 3 h w] in [0,1]."""
        check_images(images, prompts)
        across, down = (images.diff(dim=dim).abs().sum((1, 2, 3)) for dim in (3, 2))
        return -(across + down) / images.shape[1:].numel()


@dataclass(frozen=True)
class JpegSize:
    """Minus the kilobytes of the picture as JPEG: simple pictures score high. A black box, without gradients.

    `Negated(JpegSize())` asks for rich ones.

    Ref: the compressibility reward of Training Diffusion Models with Reinforcement Learning (arXiv:2305.13301).
    """

    quality: int = 95
    name: str = "jpeg-size"
    differentiable: bool = False
    cost: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 95:
            raise ValueError(f"quality={self.quality} must lie in 1 to 95, as JPEG encoders take it")

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Scores [b] of pictures [b 3 h w] in [0,1]."""
        check_images(images, prompts)
        return -_kilobytes(images, format="JPEG", quality=self.quality)


@dataclass(frozen=True)
class PngSize:
    """Minus the kilobytes of the picture as PNG, which loses nothing: flat areas and few colours score high.

    A black box, without gradients. `Negated(PngSize())` asks for rich pictures.

    level: of zlib's compression, 0 (none: all pictures of a size score alike) to 9.
    """

    level: int = 6
    name: str = "png-size"
    differentiable: bool = False
    cost: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.level <= 9:
            raise ValueError(f"level={self.level} must lie in 0 to 9, as zlib takes it")

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Scores [b] of pictures [b 3 h w] in [0,1]."""
        check_images(images, prompts)
        return -_kilobytes(images, format="PNG", compress_level=self.level)


def _kilobytes(images: Tensor, **settings: int | str) -> Tensor:
    """Thousands of bytes [b] of each picture's file."""
    sizes = []
    for picture in to_pil(images):
        picture.save(buffer := io.BytesIO(), **settings)
        sizes.append(len(buffer.getvalue()) / 1000)
    return images.new_tensor(sizes)
