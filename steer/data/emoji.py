"""5,226 captioned emoji in three art styles: the pictures that the embedded models are trained and judged on.

Noto (Apache-2.0), Fluent flat (MIT) and Twemoji (CC BY 4.0), 64 x 64, laid over white, without skin tones; captions,
tags and groups from emojibase (MIT). See assets/LICENSES.md. `scripts/build_emoji.py` makes the files anew, bit for
bit.
"""

import json
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

ASSETS = Path(__file__).parent / "assets"
STYLES = ("noto", "fluent", "twemoji")
SIZE = 64


@dataclass(frozen=True)
class Emoji:
    """The data set, one entry a picture, ordered by style.

    images: uint8 [N 64 64 3], over white.
    coverage: uint8 [N 64 64], 255 where the drawing covers the white wholly.
    captions: the label, such as "red heart"; up to three pictures share one.
    tags: more words for the picture, possibly none.
    styles: "noto", "fluent" or "twemoji".
    groups, subgroups: such as "animals & nature" and "birds", "" where unknown.
    """

    images: np.ndarray = field(repr=False)
    coverage: np.ndarray = field(repr=False)
    captions: list[str] = field(repr=False)
    tags: list[list[str]] = field(repr=False)
    styles: list[str] = field(repr=False)
    groups: list[str] = field(repr=False)
    subgroups: list[str] = field(repr=False)

    def __len__(self) -> int:
        return len(self.captions)


def _read_sheet(path: Path, count: int) -> np.ndarray:
    from PIL import Image

    try:
        sheet = np.asarray(Image.open(path).convert("RGB"))
    except OSError as error:
        raise OSError(f"the emoji pictures in {path} are missing or damaged ({error}); install steer again") from error
    rows, columns = sheet.shape[0] // SIZE, sheet.shape[1] // SIZE
    tiles = sheet.reshape(rows, SIZE, columns, SIZE, 3).swapaxes(1, 2)
    return tiles.reshape(-1, SIZE, SIZE, 3)[:count]


@lru_cache(maxsize=1)
def load() -> Emoji:
    """Read the pictures and texts that ship with the package (a second; kept in memory afterwards).

    Raises:
        OSError: a file of the package is missing or damaged.
    """
    rows = json.loads((ASSETS / "captions.json").read_text(encoding="utf8"))
    counts = {style: sum(row["style"] == style for row in rows) for style in STYLES}
    images = np.concatenate([_read_sheet(ASSETS / f"{s}.webp", n) for s, n in counts.items()])
    coverage = np.concatenate([_read_sheet(ASSETS / f"{s}-coverage.webp", n)[..., 0] for s, n in counts.items()])
    for array in (images, coverage):
        array.setflags(write=False)
    columns = {k: [row[k] for row in rows] for k in ("caption", "tags", "style", "group", "subgroup")}
    return Emoji(
        images=images,
        coverage=coverage,
        captions=columns["caption"],
        tags=columns["tags"],
        styles=columns["style"],
        groups=columns["group"],
        subgroups=columns["subgroup"],
    )
