"""Rows of data as a network takes them: pictures and captions made into latents and ids, once where that pays."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from rewards.towers import WordPieces
from steer.data import emoji
from steer.data.variations import Variation, describe, hue_is_clear, random_variation, subject, to_stage
from steer.flow_map import Cond
from steer.models import Model
from steer.models.drawing import Show, Words
from steer.models.files import write_tensors
from steer.models.picture import Latents, Spell
from steer.models.text import encode_prompts


class Captioned(Protocol):
    """Pictures with captions, by index; see steer.data.shapes.Shapes and steer.data.folder.Folder."""

    def rows(self, index: Sequence[int]) -> tuple[np.ndarray, list[str]]:
        """Pictures uint8 [b h w 3] and captions."""
        ...


def to_images(pictures: np.ndarray) -> Tensor:
    """Uint8 [b h w 3] -> floats [b 3 h w] in [0,1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255


@dataclass
class PixelRows:
    """Pictures read as they are needed, for a model over pixels."""

    data: Captioned
    model: Model
    count: int

    def __post_init__(self) -> None:
        self.null: Cond = {"ids": _spell(self.model)([""])}

    def __len__(self) -> int:
        return self.count

    def __call__(self, index: Sequence[int]) -> tuple[Tensor, Cond]:
        """x1 and cond."""
        pictures, captions = self.data.rows(index)
        decode: Any = self.model.decode
        return decode.encode(to_images(pictures)), {"ids": _spell(self.model)(captions)}


class LatentRows:
    """Latents of `count` rows, encoded once and kept in memory, and in `file` for a run that resumes."""

    def __init__(self, data: Captioned, model: Model, count: int, file: Path | None = None) -> None:
        self.null: Cond = {"ids": _spell(model)([""])}
        if file is not None and file.exists():
            stored = load_file(file)
        else:
            stored = self._encode(data, model, count)
            if file is not None:
                file.parent.mkdir(parents=True, exist_ok=True)
                write_tensors(file, stored)
        self.latents, self.ids = stored["latents"], stored["ids"]

    def _encode(self, data: Captioned, model: Model, count: int) -> dict[str, Tensor]:
        latents, ids, spell = [], [], _spell(model)
        assert isinstance(model.decode, Latents)
        device = next(model.decode.autoencoder.parameters()).device
        for start in range(0, count, 256):
            pictures, captions = data.rows(range(start, min(start + 256, count)))
            with torch.no_grad():
                latents.append(model.decode.encode(to_images(pictures).to(device)).half().cpu())
            ids.append(spell(captions).to(torch.int16))
        return {"latents": torch.cat(latents), "ids": torch.cat(ids)}

    def __len__(self) -> int:
        return len(self.latents)

    def __call__(self, index: Sequence[int]) -> tuple[Tensor, Cond]:
        """x1 and cond."""
        rows = torch.as_tensor(index)
        return self.latents[rows].float(), {"ids": self.ids[rows].long()}


class EmojiRows:
    """The emoji in `count` variations of colour, background, size and place, with captions that tell of most of them.

    For models of the kind "drawing": x1 is the latent of a drawing, encoded once, and its stage.
    """

    def __init__(
        self, model: Model, count: int = 157_000, plain: float = 0.5, told: float = 0.8, seed: int = 4
    ) -> None:
        assert isinstance(model.encode, Words) and isinstance(model.decode, Show)
        data, dice, encoder = emoji.load(), random.Random(seed), model.decode.autoencoder
        device = next(encoder.parameters()).device
        images = torch.from_numpy(data.images.copy()).permute(0, 3, 1, 2)
        latents, clear = [], []
        for part in images.split(512):
            x = part.float() / 255
            clear += hue_is_clear(x).tolist()
            with torch.no_grad():
                latents.append(encoder.encode(x.to(device)).flatten(1).cpu())
        self.drawings = torch.cat(latents)
        source, variations, captions = [], [], []
        for j in range(count):
            i = j % len(data)
            variations.append(Variation() if dice.random() < plain else random_variation(dice, clear[i]))
            captions.append(describe(subject(data, i, dice), variations[-1], told, dice))
            source.append(i)
        self.source, self.stages = torch.tensor(source), to_stage(variations)
        distinct = sorted(set(captions))
        place = {c: k for k, c in enumerate(distinct)}
        words = encode_prompts(model.encode.towers, distinct)
        self.tokens, self.mask = words["tokens"].to(torch.bfloat16).cpu(), words["mask"].cpu()
        self.caption = torch.tensor([place[c] for c in captions])
        self.null: Cond = {k: v.cpu() for k, v in encode_prompts(model.encode.towers, [""]).items()}

    def __len__(self) -> int:
        return len(self.source)

    def __call__(self, index: Sequence[int]) -> tuple[Tensor, Cond]:
        """x1 and cond."""
        j = torch.as_tensor(index)
        x1 = torch.cat([self.drawings[self.source[j]], self.stages[j]], 1)
        return x1, {"tokens": self.tokens[self.caption[j]].float(), "mask": self.mask[self.caption[j]]}


def vocabulary(captions: Sequence[str], context: int = 16, most: int = 4000) -> WordPieces:
    """A vocabulary of the most frequent words of captions; others are spelt by letters."""
    from collections import Counter

    from rewards.towers import split_words

    counts = Counter(word for caption in captions for word in split_words(caption))
    return WordPieces.from_words([word for word, _ in counts.most_common(most)], context)


def _spell(model: Model) -> Any:  # noqa: ANN401 (prompts -> ids)
    if not isinstance(model.encode, Spell):
        raise ValueError(
            f"model={model.name!r} has no vocabulary of its own; data of pictures need a model of kind picture"
        )
    return model.encode.ids
