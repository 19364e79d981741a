"""Draw the emoji and their captioned variations once, for every training script: runs/bank (about 1.1 GB).

python scripts/bank.py --variants 16
"""

import argparse
import json
import random
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from steer.data import emoji
from steer.data.stage import show
from steer.data.variations import Variation, hue_is_clear, random_variation, to_stage

BANK = Path("runs/bank")


@dataclass(frozen=True)
class Bank:
    """pictures uint8 [M 3 64 64] (memory mapped); source[j] is the emoji that picture j draws, in variations[j].

    The first len(emoji) pictures are the emoji as they are.
    """

    pictures: np.ndarray
    source: np.ndarray
    variations: list[Variation]


def read(folder: Path = BANK) -> Bank:
    rows = json.loads((folder / "variations.json").read_text())
    source = np.array([row.pop("source") for row in rows])
    return Bank(np.load(folder / "pictures.npy", mmap_mode="r"), source, [Variation(**row) for row in rows])


def layers(data: emoji.Emoji, rows: Iterable[int]) -> torch.Tensor:
    """Colours over white, and coverage, [b 4 64 64] in [0,1]."""
    index = list(rows)
    stack = np.concatenate([data.images[index], data.coverage[index][..., None]], -1)
    return torch.from_numpy(stack).permute(0, 3, 1, 2).float() / 255


def main(variants: int, seed: int) -> None:
    data = emoji.load()
    dice = random.Random(seed)
    known = torch.cat(
        [hue_is_clear(layers(data, range(i, min(i + 512, len(data))))[:, :3]) for i in range(0, len(data), 512)]
    )
    print(f"{known.float().mean():.2f} of the pictures have one hue that a word can change")
    jobs = [(i, Variation()) for i in range(len(data))]
    jobs += [(i, random_variation(dice, bool(known[i]))) for _ in range(variants) for i in range(len(data))]
    BANK.mkdir(parents=True, exist_ok=True)
    shape = (len(jobs), 3, emoji.SIZE, emoji.SIZE)
    out = np.lib.format.open_memmap(BANK / "pictures.npy", mode="w+", dtype=np.uint8, shape=shape)
    for start in range(0, len(jobs), 512):
        chunk = jobs[start : start + 512]
        drawn = show(layers(data, [i for i, _ in chunk]), to_stage([v for _, v in chunk]))
        out[start : start + 512] = (drawn * 255).round().to(torch.uint8).numpy()
    out.flush()
    (BANK / "variations.json").write_text(json.dumps([{"source": i, **asdict(v)} for i, v in jobs]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variants", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    main(**vars(parser.parse_args()))
