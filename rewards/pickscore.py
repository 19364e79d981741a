"""PickScore: what users of a web site preferred, by a CLIP that was tuned on their choices."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from rewards import vision
from rewards.clip import Cosine
from rewards.contract import check_images
from rewards.towers import Towers, TransformersClip, import_open_clip
from rewards.vision import Kept, Source


@dataclass(frozen=True)
class PickScore(Cosine):
    """exp(logit_scale) * cos(image embedding, text embedding), as published: some 18 to 24, the scale being 100.

    Trainers of diffusion models often divide it by 26: give it the weight 1 / 26 for that.

    model: a folder with config.json and model.safetensors as transformers saves a CLIPModel, or the hub id of one. The
        files are taken from the folder or from the hub's cache, and never downloaded by themselves (see `missing`).

    Pictures are looked at as CLIP does: shortest side to 224, centre cut out, bicubic with antialiasing, by torch. The
    tokenizer is open_clip's own, of the vocabulary of "laion/CLIP-ViT-H-14-laion2B-s32B-b79K".

    Ref: Pick-a-Pic: An Open Dataset of User Preferences for Text-to-Image Generation (arXiv:2305.01569).

    Raises:
        FileNotFoundError: at the first call, when files are missing.
        ValueError: they are damaged; at a call, when the pictures are not [b 3 h w] of floats, or the prompts not b.
    """

    model: str = "yuvalkirstain/PickScore_v1"
    name: str = "pickscore"
    differentiable: bool = True
    cost: float = 1.0
    _kept: Kept[Towers] = field(default_factory=Kept, init=False, repr=False, compare=False)

    @property
    def _source(self) -> Source:
        return Source("model", self.model, ("config.json", "model.safetensors"))

    def missing(self) -> str | None:
        """What is not on this machine, and how to get it; None where the reward can run."""
        return vision.missing(self.name, self._source)

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Scores [b] of pictures [b 3 h w] in [0,1]."""
        check_images(images, prompts)
        scale = self.towers(images.device).model.clip.logit_scale.exp()
        return (scale * self.cosine(images, prompts)).to(images.dtype)

    def _load(self, device: torch.device) -> Towers:
        if lacking := self.missing():
            raise FileNotFoundError(lacking)
        folder = self._source.path("config.json").parent
        with vision.loading(self.name, folder):
            model = TransformersClip.from_folder(folder)
        model.clip.to(device)
        return Towers(model, import_open_clip().get_tokenizer("ViT-H-14"), model.look)
