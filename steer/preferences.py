"""Preference pairs that are given, not made by a reward: rows for `steer.objectives.Preference`."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rewards.files import PICTURES, check_pixels
from steer.chunks import slices
from steer.data.folder import MOST
from steer.data.variations import Variation, to_stage
from steer.flow_map import Cond
from steer.models import Model
from steer.models.drawing import Show
from steer.models.picture import Latents, Pixels

Pair = tuple[str, Tensor, Tensor]
FILE = "pairs.jsonl"
KEYS = ("prompt", "winner", "loser")


class PairRows:
    """Rows x1 of winners, with "loser" beside them.

    pairs: (prompt, better picture [3 h w] in [0,1], worse picture); or a folder with pairs.jsonl, of lines
        {"prompt": "a red fox", "winner": "a.png", "loser": "b.png"} with paths in the folder (see `of`).

    Raises:
        ValueError: no pairs, a line or file that is none, pictures of another size than the model's, or a model whose
            pictures cannot be made into latents.
    """

    def __init__(self, pairs: Sequence[Pair], model: Model, raw: Callable[[list[str]], Cond]) -> None:
        if not pairs:
            raise ValueError("pairs holds no pair; give at least one (prompt, better picture, worse picture)")
        place = next(model.flow.parameters()).device if isinstance(model.flow, nn.Module) else torch.device("cpu")
        self.null: Cond = None
        self.totals: dict[str, float] = {}
        self.cond = {key: c.to(place) for key, c in (raw([q for q, _, _ in pairs]) or {}).items()}
        sizes = sorted({tuple(image.shape) for _, *both in pairs for image in both})
        if len(sizes) > 1:
            raise ValueError(f"pairs holds pictures of shapes {sizes}; give all of them the size of the model's own")
        winners = torch.stack([winner for _, winner, _ in pairs]).float().to(place)
        losers = torch.stack([loser for _, _, loser in pairs]).float().to(place)
        self.x1, self.losers = encode(model, winners), encode(model, losers)
        if self.x1.shape[1:] != model.shape:
            raise ValueError(
                f"pairs holds pictures of shape {sizes[0]}, whose latents {tuple(self.x1.shape[1:])} are not those of "
                f"model={model.name!r}, {model.shape}; give pictures of the size of its own"
            )

    @classmethod
    def of(
        cls, given: "str | Path | Sequence[Pair] | PairRows", model: Model, raw: Callable[[list[str]], Cond]
    ) -> "PairRows":
        """The rows of a folder, or of pairs."""
        if isinstance(given, cls):
            return given
        return cls(read(Path(given)) if isinstance(given, str | Path) else given, model, raw)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.x1)

    def __call__(self, index: Sequence[int]) -> tuple[Tensor, Cond]:
        """Winners and cond."""
        rows = torch.as_tensor(index, device=self.x1.device)
        return self.x1[rows], {key: c[rows] for key, c in self.cond.items()} or None

    def more(self, index: Sequence[int]) -> dict[str, Tensor]:
        """Losers."""
        return {"loser": self.losers[torch.as_tensor(index, device=self.x1.device)]}

    def renew(self, *_: object) -> dict[str, float]:
        """Nothing: the pairs stay."""
        return {}

    def reward(self, x1: Tensor, prompt: Tensor) -> Tensor:
        """None is known."""
        raise ValueError("preference pairs come without a reward; take objective=dpo")

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Nothing changes."""
        return {}, {}

    def load(self, *_: object) -> None:
        """Nothing to take back."""


@torch.no_grad()
def encode(model: Model, images: Tensor) -> Tensor:
    """Latents [b *d] of pictures [b 3 h w] in [0,1].

    Raises:
        ValueError: the model has no encoder.
    """
    decode = model.decode
    if isinstance(decode, Show):
        parts = [decode.autoencoder.encode(images[part]).flatten(1) for part in slices(len(images), 128)]
        return torch.cat([torch.cat(parts), to_stage([Variation()] * len(images)).to(images)], 1)
    if isinstance(decode, Latents | Pixels):
        return torch.cat([decode.encode(images[part]) for part in slices(len(images), 128)])
    raise ValueError(f"model={model.name!r} cannot encode pictures; give PairRows its latents by another decode")


def read(folder: Path) -> list[Pair]:
    """The pairs of a folder; raises ValueError that names the line."""
    path = folder / FILE
    if not path.is_file():
        raise ValueError(f"pairs={str(folder)!r} has no {FILE}; write lines of {dict.fromkeys(KEYS, '...')}")
    pairs = []
    try:
        lines = path.read_text(encoding="utf8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text ({error}); save it as UTF-8") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            prompt, winner, loser = (row[key] for key in KEYS)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{path}, line {number}: not an object with {', '.join(KEYS)} ({error})") from error
        pairs.append((str(prompt), *(_picture(folder, str(name), path, number) for name in (winner, loser))))
    return pairs


def _picture(folder: Path, name: str, path: Path, number: int) -> Tensor:
    from PIL import Image

    try:
        place = (folder / name).resolve()
    except (ValueError, OSError) as error:  # a zero byte, or too many letters
        raise ValueError(f"{path}, line {number}: {name!r} is no name of a file ({error})") from error
    if folder.resolve() not in place.parents:
        raise ValueError(f"{path}, line {number}: {name!r} lies outside of the folder")
    try:
        with Image.open(place, formats=PICTURES) as image:
            check_pixels(image, MOST)
            pixels = np.asarray(image.convert("RGB"))
    except MemoryError:
        raise
    except Exception as error:  # decoders raise whatever a broken file leads them to
        raise ValueError(f"{path}, line {number}: {name!r} cannot be read ({error})") from error
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255
