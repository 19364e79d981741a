"""CLIPScore by any open_clip model; the small one that ships by default."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from rewards.towers import Towers, load_clip


@dataclass
class Clip:
    """100 * cos(image embedding, text embedding): how well a picture fits its prompt.

    model: "emoji-clip" (ships with the package), "emoji-clip-judge" (ships, for judging, never to be optimised), any
        open_clip model name with its pretrained tag, an "hf-hub:..." name, or a local folder.
    pretrained: the tag, such as "laion2b_s34b_b79k"; not for embedded models and folders.

    Ref: CLIPScore: A Reference-free Evaluation Metric for Image Captioning (arXiv:2104.08718), there 2.5 * max(cos,
    0); here unclipped, so that gradients never vanish. The weights are loaded at the first call, on the pictures'
    device.

    Raises:
        FileNotFoundError, ValueError: at the first call, when weights are missing, damaged or unknown; see `load_clip`.
    """

    model: str = "emoji-clip"
    pretrained: str | None = None
    name: str = "clip"
    differentiable: bool = True
    cost: float = 1.0
    _towers: Towers | None = field(default=None, repr=False, compare=False)
    _texts: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def towers(self, device: torch.device) -> Towers:
        """The model, loaded once a device."""
        if self._towers is None or next(self._towers.model.parameters()).device != device:
            self._towers = load_clip(self.model, self.pretrained, device)
            self._texts.clear()
        return self._towers

    def embed_texts(self, prompts: list[str], device: torch.device) -> Tensor:
        """Unit vectors [b e], each distinct prompt encoded once."""
        towers = self.towers(device)
        new = [p for p in dict.fromkeys(prompts) if p not in self._texts]
        if new:
            with torch.no_grad():
                rows = towers.model.encode_text(towers.tokenize(new).to(device), normalize=True)
            self._texts.update(zip(new, rows, strict=True))
        return torch.stack([self._texts[p] for p in prompts])

    def embed_images(self, images: Tensor) -> Tensor:
        """Unit vectors [b e] of pictures [b 3 h w] in [0,1]."""
        towers = self.towers(images.device)
        x = images.float()
        if x.shape[-2:] != (towers.size, towers.size):
            x = F.interpolate(x, (towers.size, towers.size), mode="bicubic", antialias=True, align_corners=False)
        mean, std = (torch.tensor(v, device=x.device).view(3, 1, 1) for v in (towers.mean, towers.std))
        return towers.model.encode_image((x - mean) / std, normalize=True)

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Scores [b] of pictures [b 3 h w] in [0,1]."""
        texts = self.embed_texts(prompts, images.device)
        return 100 * (self.embed_images(images) * texts).sum(-1).to(images.dtype)
