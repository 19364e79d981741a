"""LAION's aesthetic predictor, version 2: how much people liked pictures, whatever was asked for."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from rewards import vision
from rewards.contract import check_images
from rewards.towers import TransformersClip
from rewards.vision import Kept, Source


@dataclass(frozen=True)
class Aesthetic:
    """A rating from 1 to 10 or so: a linear head 768-1024-128-64-16-1 on the unit image embedding of CLIP ViT-L/14.

    The prompt is not looked at. The head's layers have no non-linearity between them, as published.

    model: OpenAI's CLIP ViT-L/14: a folder with config.json and model.safetensors of transformers, or a hub id.
    head: the head's weights, "sac+logos+ava1-l14-linearMSE.pth" of github.com/christophschuhmann/
        improved-aesthetic-predictor: the path of that file, or a folder or hub id with `file`. The default is the
        copy that TRL took for DDPO.
    file: the name of the head's file in the folder or repository.

    Files are taken from folders or from the hub's cache, and never downloaded by themselves (see `missing`). Pictures
    are looked at as CLIP does: shortest side to 224, centre cut out, bicubic with antialiasing, by torch.

    Ref: LAION-5B: An open large-scale dataset for training next generation image-text models (arXiv:2210.08402).

    Raises:
        FileNotFoundError: at the first call, when files are missing.
        ValueError: they are damaged; at a call, when the pictures are not [b 3 h w] of floats, or the prompts not b.
    """

    model: str = "openai/clip-vit-large-patch14"
    head: str = "trl-lib/ddpo-aesthetic-predictor"
    file: str = "aesthetic-model.pth"
    name: str = "aesthetic"
    differentiable: bool = True
    cost: float = 1.0
    _kept: "Kept[_Parts]" = field(default_factory=Kept, init=False, repr=False, compare=False)

    @property
    def _sources(self) -> tuple[Source, Source]:
        clip = Source("model", self.model, ("config.json", "model.safetensors"))
        path = Path(self.head).expanduser()
        if path.is_file():
            return clip, Source("head", str(path.parent), (path.name,))
        return clip, Source("head", self.head, (self.file,))

    def missing(self) -> str | None:
        """What is not on this machine, and how to get it; None where the reward can run."""
        return vision.missing(self.name, *self._sources)

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Scores [b] of pictures [b 3 h w] in [0,1]."""
        check_images(images, prompts)
        parts = self._kept.on(images.device, self._load)
        seen = parts.clip.encode_image(parts.clip.look(images), normalize=True)
        return parts.head(seen)[:, 0].to(images.dtype)

    def _load(self, device: torch.device) -> "_Parts":
        if lacking := self.missing():
            raise FileNotFoundError(lacking)
        clip, head = self._sources
        folder, path = clip.path("config.json").parent, head.path(head.files[0])
        with vision.loading(self.name, folder):
            model = TransformersClip.from_folder(folder)
        with vision.loading(self.name, path):
            layers = vision.linear_head(model.clip.config.projection_dim)
            weights = vision.read_checkpoint(path)
            layers.load_state_dict({key.removeprefix("layers."): value for key, value in weights.items()})
        model.clip.text_model = None  # prompts are not looked at
        model.clip.to(device)
        return _Parts(model, layers.to(device).requires_grad_(False))


@dataclass(frozen=True)
class _Parts:
    clip: TransformersClip
    head: nn.Module
