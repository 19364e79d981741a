"""Inverse problems: what a measurement says of the picture it was taken of, as a log-likelihood.

An operator A maps pictures [b 3 h w] to measurements [b *m]. All but `PhaseRetrieval` are linear; all have gradients.
Measured as y = A(x) + sigma z with z standard normal, a picture has the reward log p(y | x), and at temperature 1 the
tilted law p(x) exp(reward(x)) / Z is the exact posterior p(x | y): no weight is left to choose.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from rewards.contract import check_images, name_of

Operator = Callable[[Tensor], Tensor]
"""Pictures [b 3 h w] -> measurements [b *m]; rows do not mix."""


@dataclass(frozen=True)
class Box:
    """Inpainting: the pixels outside a box, [b 3 m]. Inside nothing is known.

    top, left, height, width: of the box, as shares of the picture's sides; edges are rounded to whole pixels.

    Raises:
        ValueError: the box does not lie in the picture; at a call, when it leaves no pixel.
    """

    top: float = 0.25
    left: float = 0.25
    height: float = 0.5
    width: float = 0.5
    name: str = "box"

    def __post_init__(self) -> None:
        for start, size in ((self.top, self.height), (self.left, self.width)):
            if not (start >= 0 and size > 0 and start + size <= 1):
                raise ValueError(f"{self} does not lie in the picture; give shares of its sides, start + size <= 1")

    def seen(self, h: int, w: int) -> Tensor:
        """Which pixels are measured: bool [h w]."""
        seen = torch.ones(h, w, dtype=torch.bool)
        rows, columns = (
            slice(round(start * side), round((start + size) * side))
            for start, size, side in ((self.top, self.height, h), (self.left, self.width, w))
        )
        seen[rows, columns] = False
        return seen

    def __call__(self, images: Tensor) -> Tensor:
        """The seen pixels [b 3 m] of pictures [b 3 h w]."""
        return _pick(images, self.seen(*images.shape[2:]), self.name)


@dataclass(frozen=True)
class Pixels:
    """Inpainting from pixels here and there, [b 3 m]: `share` of them, drawn by `seed`, the same in every picture.

    Raises:
        ValueError: share is not in (0, 1]; at a call, when it leaves no pixel.
    """

    share: float = 0.1
    seed: int = 0
    name: str = "pixels"

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share={self.share} must lie in (0, 1]")

    def seen(self, h: int, w: int) -> Tensor:
        """Which pixels are measured: bool [h w], round(share h w) of them."""
        order = torch.randperm(h * w, generator=torch.Generator().manual_seed(self.seed))
        return (order < round(self.share * h * w)).view(h, w)

    def __call__(self, images: Tensor) -> Tensor:
        """The seen pixels [b 3 m] of pictures [b 3 h w]."""
        return _pick(images, self.seen(*images.shape[2:]), self.name)


def _pick(images: Tensor, seen: Tensor, name: str) -> Tensor:
    if not bool(seen.any()):
        raise ValueError(f"operator {name!r} leaves no pixel of {list(seen.shape)}; show it more")
    return images[:, :, seen.to(images.device)]


@dataclass(frozen=True)
class Downsample:
    """Super-resolution: the picture at 1/factor of its sides, [b 3 h/factor w/factor].

    mode: "area", means of factor x factor pixels, or "bicubic" with antialiasing, as PIL does it without rounding.

    Raises:
        ValueError: factor < 2 or another mode; at a call, when it does not divide both sides.
    """

    factor: int = 4
    mode: str = "area"
    name: str = "downsample"

    def __post_init__(self) -> None:
        if self.factor < 2:
            raise ValueError(f"factor={self.factor} must be at least 2")
        if self.mode not in ("area", "bicubic"):
            raise ValueError(f"mode={self.mode!r} is unknown; give 'area' or 'bicubic'")

    def __call__(self, images: Tensor) -> Tensor:
        """The small pictures."""
        h, w = images.shape[2:]
        if h % self.factor or w % self.factor:
            raise ValueError(f"factor={self.factor} does not divide the sides {h} x {w}")
        if self.mode == "area":
            return F.avg_pool2d(images, self.factor)
        return F.interpolate(images, (h // self.factor, w // self.factor), mode="bicubic", antialias=True)


@dataclass(frozen=True)
class Blur:
    """Deblurring: the picture convolved with a Gaussian of `std` pixels, cut at 4 std, [b 3 h w]; edges are mirrored.

    Raises:
        ValueError: std is not above 0; at a call, when the picture is no larger than the kernel's half.
    """

    std: float = 2.0
    name: str = "blur"

    def __post_init__(self) -> None:
        if not 0 < self.std < math.inf:
            raise ValueError(f"std={self.std} must be above 0, in pixels")

    def kernel(self) -> Tensor:
        """[k k], k odd, of sum 1."""
        at = torch.arange(-math.ceil(4 * self.std), math.ceil(4 * self.std) + 1, dtype=torch.float64)
        line = (-((at / self.std) ** 2) / 2).softmax(0)
        return torch.outer(line, line)

    def __call__(self, images: Tensor) -> Tensor:
        """The blurred pictures."""
        return _convolve(images, self.kernel(), self.name)


@dataclass(frozen=True)
class Motion:
    """Deblurring of motion: the picture convolved with a line of `length` pixels, [b 3 h w]; edges are mirrored.

    A pixel of the kernel weighs max(0, 1 - its distance from the line).

    angle: degrees from "to the right", counted towards "up".

    Raises:
        ValueError: length is not above 0; at a call, when the picture is no larger than the kernel's half.
    """

    length: float = 8.0
    angle: float = 0.0
    name: str = "motion"

    def __post_init__(self) -> None:
        if not 0 < self.length < math.inf:
            raise ValueError(f"length={self.length} must be above 0, in pixels")

    def kernel(self) -> Tensor:
        """[k k], k odd, of sum 1."""
        reach = math.ceil(self.length / 2)
        at = torch.arange(-reach, reach + 1, dtype=torch.float64)
        y, x = torch.meshgrid(-at, at, indexing="ij")
        c, s = math.cos(math.radians(self.angle)), math.sin(math.radians(self.angle))
        along, beside = c * x + s * y, c * y - s * x
        distance = torch.hypot((along.abs() - self.length / 2).clamp(min=0), beside)
        weights = (1 - distance).clamp(min=0)
        return weights / weights.sum()

    def __call__(self, images: Tensor) -> Tensor:
        """The blurred pictures."""
        return _convolve(images, self.kernel(), self.name)


def _convolve(images: Tensor, kernel: Tensor, name: str) -> Tensor:
    """Each colour with the kernel [k k], k odd and symmetric about its centre."""
    reach = kernel.shape[0] // 2
    if min(images.shape[2:]) <= reach:
        raise ValueError(f"operator {name!r} reaches {reach} pixels, too far for pictures {list(images.shape[2:])}")
    wide = F.pad(images, (reach,) * 4, mode="reflect")
    return F.conv2d(wide, kernel.to(images).expand(3, 1, *kernel.shape), groups=3)


@dataclass(frozen=True)
class Grey:
    """Colouring in: the luminance (Rec. 709 weights), [b 1 h w]."""

    name: str = "grey"

    def __call__(self, images: Tensor) -> Tensor:
        """The grey pictures."""
        return torch.einsum("bchw,c->bhw", images, images.new_tensor([0.2126, 0.7152, 0.0722]))[:, None]


@dataclass(frozen=True)
class PhaseRetrieval:
    """Phase retrieval: |F(x)|, the magnitudes of an orthonormal Fourier transform, [b 3 H W]. Not linear.

    The picture is padded with zeros to `oversample` times its sides, H = ceil(oversample h). From 2 on the magnitudes
    fix a picture but for a shift and a turn by 180 degrees.

    Raises:
        ValueError: oversample < 1.
    """

    oversample: float = 2.0
    name: str = "phase-retrieval"

    def __post_init__(self) -> None:
        if not 1 <= self.oversample < math.inf:
            raise ValueError(f"oversample={self.oversample} must be at least 1")

    def __call__(self, images: Tensor) -> Tensor:
        """The magnitudes."""
        size = [math.ceil(self.oversample * side) for side in images.shape[2:]]
        return torch.fft.fft2(images, s=size, norm="ortho").abs()


@dataclass(frozen=True)
class Measured:
    """log p(y | x) = -|A(x) - y|^2 / (2 sigma^2), without its constant -m log(2 pi sigma^2) / 2 for m numbers measured.

    0 is a picture that explains y exactly. At temperature 1 the tilted law is the exact posterior p(x | y), and log Z
    plus the constant is the log-evidence log p(y). Pictures are taken as they are, also beyond [0,1]; the operator
    works in float64 for float64 pictures and in float32 for the rest.

    operator: pictures [b 3 h w] -> [b *m], such as `Box()`, `Downsample(4)` or any function.
    y: one measurement [*m], of a picture as large as those that will be scored.
    sigma: standard deviation of the noise on each number of y, on the scale of pixels in [0,1].

    Ref: Diffusion Posterior Sampling for General Noisy Inverse Problems (arXiv:2209.14687).

    Raises:
        ValueError: sigma is not above 0, or y holds NaN; at a call, when A(x) and y have different shapes.
    """

    operator: Operator
    y: Tensor
    sigma: float
    name: str = ""
    differentiable: bool | None = True
    cost: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma < math.inf:
            raise ValueError(f"sigma={self.sigma} must be above 0; exact data have no density, take a small one")
        if not bool(self.y.isfinite().all()):
            raise ValueError("y holds NaN or infinities; leave such numbers out of the operator")
        object.__setattr__(self, "name", self.name or f"measured {name_of(self.operator)}")

    @classmethod
    def of(cls, operator: Operator, picture: Tensor, sigma: float, *, rng: torch.Generator) -> Self:
        """The reward of a simulated measurement y = A(picture) + sigma z of a picture [3 h w]; rng draws z."""
        clean = operator(picture[None])[0]
        z = torch.randn(clean.shape, generator=rng, device=rng.device, dtype=clean.dtype)
        return cls(operator, clean + sigma * z.to(clean.device), sigma)

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Scores [b] of pictures [b 3 h w]."""
        check_images(images, prompts)
        seen = self.operator(images if images.dtype == torch.float64 else images.float())
        if seen.shape[1:] != self.y.shape:
            what = f"operator {name_of(self.operator)!r} gives {list(seen.shape[1:])} of these pictures"
            raise ValueError(f"{what}, y is {list(self.y.shape)}; measure a picture of their size")
        gap = seen - self.y.to(seen)
        return (-gap.square().flatten(1).sum(1) / (2 * self.sigma**2)).to(images.dtype)
