"""A picture that others are compared with: given as a tensor, or as the path of a file."""

from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from rewards.files import PICTURES, check_pixels

MOST = 20_000_000  # pixels, each of which takes some 24 bytes while it is read


def check_reference(reference: str | Tensor | None) -> None:
    """Hold a setting to a picture [3 h w] of floats, a path, or None, which stands for one that is given later.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a tensor of another shape or of whole numbers, or nothing of these.
    """
    if isinstance(reference, Tensor):
        if reference.ndim != 3 or reference.shape[0] != 3 or not reference.is_floating_point():
            given = f"a tensor {list(reference.shape)} of {reference.dtype}"
            raise ValueError(f"reference={given} must be one picture [3, h, w] of floats in [0, 1]")
    elif isinstance(reference, (str, Path)):
        if not Path(reference).is_file():
            raise FileNotFoundError(f"reference={str(reference)!r} is no file; give the path of a picture")
    elif reference is not None:
        raise ValueError(f"reference={reference!r} must be a picture [3, h, w] in [0, 1], or the path of one")


def lacking_reference(reward: str, reference: str | Tensor | None) -> str | None:
    """One sentence where there is no picture to compare with; else None."""
    lacks = f"reward {reward!r} lacks a picture to compare with; give reference=PATH or a tensor [3, h, w] in [0, 1]"
    return lacks if reference is None else None


def reference_like(reward: str, reference: str | Tensor | None, images: Tensor) -> Tensor:
    """The picture [1 3 h w] in the size, dtype and device of `images`.

    Where the sizes differ it is resized, both sides whatever their ratio, by bicubic interpolation with antialiasing,
    and clamped to [0,1], which bicubic overshoots. A file is read once; what is transparent in it is white.

    Raises:
        FileNotFoundError: there is no reference.
        ValueError: the file is no picture.
    """
    if reference is None:
        raise FileNotFoundError(lacking_reference(reward, None))
    picture = reference if isinstance(reference, Tensor) else _read(str(reference))
    picture = picture.detach().to(images.device, images.dtype)[None]
    if picture.shape[2:] == images.shape[2:]:
        return picture
    wide = picture.double() if picture.dtype == torch.float64 else picture.float()
    size = list(images.shape[2:])
    return F.interpolate(wide, size, mode="bicubic", antialias=True).clamp(0, 1).to(images.dtype)


@lru_cache(maxsize=16)
def _read(path: str) -> Tensor:
    """The file as [3 h w] in [0,1]."""
    import numpy as np
    from PIL import Image

    try:
        with Image.open(path, formats=PICTURES) as file:
            check_pixels(file, MOST)
            picture = file.convert("RGBA")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"reference={path!r} is no picture that PIL can read ({error}); save it as PNG") from error
    flat = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return torch.from_numpy(np.array(flat)).permute(2, 0, 1).float() / 255
