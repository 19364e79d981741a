"""HPS v2.1: human preferences between generated pictures, by a CLIP that was tuned on them."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from rewards import vision
from rewards.clip import Cosine
from rewards.contract import check_images
from rewards.towers import Towers, load_clip
from rewards.vision import Kept, Source


@dataclass(frozen=True)
class Hps(Cosine):
    """100 * cos(image embedding, text embedding): some 20 to 35. The published code gives the cosine, its tables this.

    model: a folder with the checkpoint, or the hub id of its repository. The file is taken from the folder or from the
        hub's cache, and never downloaded by itself (see `missing`).
    file: the checkpoint, whose "state_dict" holds the weights; "HPS_v2_compressed.pt" is version 2.0.
    architecture: the open_clip model that they are of.

    Pictures are looked at as in the published code, and unlike CLIP: the longest side to 224, black edges around,
    bicubic with antialiasing, by torch. The checkpoint is read by torch.load(weights_only=True): no code in it is run.

    Ref: Human Preference Score v2: A Solid Benchmark for Evaluating Human Preferences of Text-to-Image Synthesis
    (arXiv:2306.09341).

    Raises:
        FileNotFoundError: at the first call, when the file is missing.
        ValueError: it is damaged; at a call, when the pictures are not [b 3 h w] of floats, or the prompts not b.
    """

    model: str = "xswu/HPSv2"
    file: str = "HPS_v2.1_compressed.pt"
    architecture: str = "ViT-H-14"
    name: str = "hps"
    differentiable: bool = True
    cost: float = 1.0
    _kept: Kept[Towers] = field(default_factory=Kept, init=False, repr=False, compare=False)

    @property
    def _source(self) -> Source:
        return Source("model", self.model, (self.file,))

    def missing(self) -> str | None:
        """What is not on this machine, and how to get it; None where the reward can run."""
        return vision.missing(self.name, self._source)

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Scores [b] of pictures [b 3 h w] in [0,1]."""
        check_images(images, prompts)
        return (100 * self.cosine(images, prompts)).to(images.dtype)

    def _load(self, device: torch.device) -> Towers:
        if lacking := self.missing():
            raise FileNotFoundError(lacking)
        path = self._source.path(self.file)
        with vision.loading(self.name, path):
            towers = load_clip(self.architecture, str(path), device)
        return replace(towers, look=replace(towers.look, resize="longest"))
