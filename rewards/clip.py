"""CLIPScore by any open_clip model; the small one that ships by default."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from rewards.contract import check_images
from rewards.files import check_size, read_json
from rewards.open_clip_files import bare, lacking, offline
from rewards.towers import EMBEDDED, Towers, load_clip
from rewards.vision import Kept, damages, first_line

NAMES = {"emoji-clip": "clip", "emoji-clip-judge": "clip-judge"}


class Cosine(ABC):
    """What rewards share that compare a picture's vector with its prompt's: two towers, which follow the pictures."""

    _kept: Kept[Towers]

    @abstractmethod
    def _load(self, device: torch.device) -> Towers:
        """The towers, on a device."""

    def towers(self, device: torch.device) -> Towers:
        """The model, loaded once; it follows the pictures from device to device."""
        return self._kept.on(device, self._load)

    def embed_texts(self, prompts: list[str], device: torch.device) -> Tensor:
        """Unit vectors [b e], each distinct prompt encoded once."""
        towers = self.towers(device)
        return self._kept.texts(
            prompts, lambda new: towers.model.encode_text(towers.tokenize(new).to(device), normalize=True)
        )

    def embed_images(self, images: Tensor) -> Tensor:
        """Unit vectors [b e] of pictures [b 3 h w] in [0,1], in float32."""
        towers = self.towers(images.device)
        return towers.model.encode_image(towers.look(images), normalize=True)

    def cosine(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Cosines [b], in float32, of the vectors of pictures [b 3 h w] in [0,1] and prompts."""
        texts = self.embed_texts(prompts, images.device)
        return (self.embed_images(images) * texts).sum(-1)


@dataclass(frozen=True)
class Clip(Cosine):
    """100 * cos(image embedding, text embedding): how well a picture fits its prompt.

    model: "emoji-clip" (ships with the package), "emoji-clip-judge" (ships, for judging, never to be optimised), any
        open_clip model name with its pretrained tag, an "hf-hub:..." name, or a local folder.
    pretrained: the tag, such as "laion2b_s34b_b79k"; not for embedded models and folders.
    logits: the model's own exp(logit_scale) * cos + logit_bias instead. SigLIP learns both; CLIP has no bias, and a
        scale near 100.

    Pictures are resized as the model's preprocess_cfg says: CLIP scales the shortest side and cuts out the centre,
    SigLIP and the two small ones squash (see `rewards.vision.Look`).

    Ref: CLIPScore: A Reference-free Evaluation Metric for Image Captioning (arXiv:2104.08718), there 2.5 * max(cos,
    0); here unclipped, so that gradients never vanish. Sigmoid Loss for Language Image Pre-Training (arXiv:2303.15343),
    SigLIP 2 (arXiv:2502.14786). The weights are loaded at the first call, on the pictures' device; the score has the
    pictures' dtype, the towers work in float32.

    Raises:
        FileNotFoundError: at the first call, when files are missing (see `missing`); nothing is downloaded by itself.
        ValueError: at the first call, when they are damaged, or the name or the tag is unknown.
        ValueError: at a call, when the pictures are not [b 3 h w] of floats, or the prompts not b.
    """

    model: str = "emoji-clip"
    pretrained: str | None = None
    name: str = ""
    differentiable: bool = True
    cost: float = 1.0
    logits: bool = False
    _kept: Kept[Towers] = field(default_factory=Kept, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or NAMES.get(self.model, Path(self.model).name))

    def missing(self) -> str | None:
        """What is not on this machine, and how to get it; None where the reward can run."""
        what = lacking(self.model, self.pretrained)
        cure = "name a local folder, or take 'emoji-clip', which ships with the package"
        return what and f"reward {self.name!r} lacks {what}; or {cure}"

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Scores [b] of pictures [b 3 h w] in [0,1]."""
        check_images(images, prompts)
        cosine = self.cosine(images, prompts)
        if not self.logits:
            return 100 * cosine.to(images.dtype)
        model = self.towers(images.device).model
        bias = getattr(model, "logit_bias", None)
        return (model.logit_scale.exp() * cosine + (0 if bias is None else bias)).to(images.dtype)

    def _load(self, device: torch.device) -> Towers:
        """`load_clip`, with open_clip's own failures named."""
        folder = Path(self.model)
        local = self.model not in EMBEDDED and folder.is_dir()
        damaged = f"model={self.model!r}: its files are damaged or do not fit each other; download or save them again"
        try:
            if local:
                _check_folder(folder)
            elif lacks := self.missing():
                raise FileNotFoundError(lacks)
            with offline():
                return load_clip(self.model, self.pretrained, device)
        except (ValueError, FileNotFoundError, torch.OutOfMemoryError):
            raise
        except damages() as error:
            raise ValueError(f"{damaged} ({first_line(error)})") from error


def _check_folder(folder: Path) -> None:
    """open_clip would score with random weights where a folder has none, and take whatever memory its config asks."""
    path = folder / "open_clip_config.json"
    if not path.exists():
        raise FileNotFoundError(f"no model in {str(folder)!r}: open_clip_config.json is missing; save it there again")
    config = read_json(path, "its files are damaged or do not fit each other; download or save them again")
    if not any(file.suffix in (".safetensors", ".bin", ".pth") for file in folder.iterdir()):
        raise FileNotFoundError(f"no weights in {str(folder)!r}; put open_clip_model.safetensors beside its config")
    weights, given = folder / "open_clip_model.safetensors", config["model_cfg"]
    if weights.is_file() and not (folder / "vocabulary.json").exists():
        check_size(lambda: bare(given), given, weights)
