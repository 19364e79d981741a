"""CLIPScore by any open_clip model; the small one that ships by default."""

import json
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rewards.contract import check_images
from rewards.towers import EMBEDDED, Towers, load_clip

NAMES = {"emoji-clip": "clip", "emoji-clip-judge": "clip-judge"}


@dataclass(frozen=True)
class Clip:
    """100 * cos(image embedding, text embedding): how well a picture fits its prompt.

    model: "emoji-clip" (ships with the package), "emoji-clip-judge" (ships, for judging, never to be optimised), any
        open_clip model name with its pretrained tag, an "hf-hub:..." name, or a local folder.
    pretrained: the tag, such as "laion2b_s34b_b79k"; not for embedded models and folders.

    Ref: CLIPScore: A Reference-free Evaluation Metric for Image Captioning (arXiv:2104.08718), there 2.5 * max(cos,
    0); here unclipped, so that gradients never vanish. The weights are loaded at the first call, on the pictures'
    device; the score has the pictures' dtype, the towers work in float32.

    Raises:
        FileNotFoundError, ValueError, OSError: at the first call, when weights are missing, damaged, of unknown name,
            or cannot be fetched.
        ValueError: at a call, when the pictures are not [b 3 h w] of floats, or the prompts not b.
    """

    model: str = "emoji-clip"
    pretrained: str | None = None
    name: str = ""
    differentiable: bool = True
    cost: float = 1.0
    _towers: dict[torch.device, Towers] = field(default_factory=dict, init=False, repr=False, compare=False)
    _texts: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or NAMES.get(self.model, Path(self.model).name))

    def towers(self, device: torch.device) -> Towers:
        """The model, loaded once; it follows the pictures from device to device."""
        if device not in self._towers:
            towers = _load(self.model, self.pretrained, device)
            self._towers.clear()
            self._texts.clear()
            self._towers[device] = towers
        return self._towers[device]

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
        """Unit vectors [b e] of pictures [b 3 h w] in [0,1], resized to the tower's size with antialiasing."""
        towers = self.towers(images.device)
        x = images.float()
        if x.shape[-2:] != (towers.size, towers.size):
            x = F.interpolate(x, (towers.size, towers.size), mode="bicubic", antialias=True, align_corners=False)
        mean, std = (torch.tensor(v, device=x.device).view(3, 1, 1) for v in (towers.mean, towers.std))
        return towers.model.encode_image((x - mean) / std, normalize=True)

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Scores [b] of pictures [b 3 h w] in [0,1]."""
        check_images(images, prompts)
        texts = self.embed_texts(prompts, images.device)
        return 100 * (self.embed_images(images) * texts).sum(-1).to(images.dtype)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles carry the settings; they load the weights for themselves."""
        return {**self.__dict__, "_towers": {}, "_texts": {}}


def _load(model: str, pretrained: str | None, device: torch.device) -> Towers:
    """`load_clip`, with open_clip's own failures named."""
    folder = Path(model)
    local = model not in EMBEDDED and folder.is_dir()
    damaged = f"model={model!r}: its files are damaged or do not fit each other; download or save them again"
    try:
        if local:
            _check_folder(folder)
        return load_clip(model, pretrained, device)
    except json.JSONDecodeError as error:
        raise ValueError(f"{damaged} ({error})") from error
    except (ValueError, FileNotFoundError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, OSError, EOFError, KeyError, TypeError, pickle.UnpicklingError, *_weights_errors()) as error:
        if local or model in EMBEDDED or (pretrained and Path(pretrained).exists()):
            raise ValueError(f"{damaged} ({_first_line(error)})") from error
        raise OSError(
            f"model={model!r}, pretrained={pretrained!r}: the weights cannot be fetched ({_first_line(error)}); check "
            "the name and the connection, name a local folder, or use 'emoji-clip', which ships with the package"
        ) from error


def _weights_errors() -> tuple[type[Exception], ...]:
    from safetensors import SafetensorError

    return (SafetensorError,)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _check_folder(folder: Path) -> None:
    """open_clip would score with random weights where a folder has none."""
    config = folder / "open_clip_config.json"
    if not config.exists():
        raise FileNotFoundError(f"no model in {str(folder)!r}: open_clip_config.json is missing; save it there again")
    json.loads(config.read_text(encoding="utf8"))
    if not any(file.suffix in (".safetensors", ".bin", ".pth") for file in folder.iterdir()):
        raise FileNotFoundError(f"no weights in {str(folder)!r}; put open_clip_model.safetensors beside its config")
