"""Measure the scales of the rewards that run here: rewards/assets/calibration.json.

    python scripts/calibrate.py             all of them, in many minutes
    python scripts/calibrate.py redness     those that are named; the others stay as they are

On 512 emoji drawings with their own captions, evenly over the data set. Three rewards look for something else:

    shapes      the first 512 pictures of `Shapes(seed=0)`, every second with the caption of the one before: its own
                caption is right for each
    ocr         512 captions of emoji in PIL's own font, every second asked for the caption before
    imagenet    the emoji whose captions name one class

Rewards that lack weights or packages here are named and left out, and so are those that ask a server.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

import rewards
from steer.checkpoints import write_json
from steer.data import emoji
from steer.data.shapes import Shapes

OUT = Path("rewards/assets/calibration.json")
COUNT = 512
SERVERS = ("vlm", "remote")

Pictures = tuple[Tensor, list[str], str]


def rows_of_emoji() -> list[int]:
    size = len(emoji.load())
    return [i * size // COUNT for i in range(COUNT)]


def drawings(rows: list[int], said: str) -> Pictures:
    data = emoji.load()
    return floats(data.images[rows]), [data.captions[i] for i in rows], f"{len(rows)} emoji drawings of 64 x 64, {said}"


def any_emoji() -> Pictures:
    return drawings(rows_of_emoji(), "evenly over steer.data.emoji, with their captions")


def named_emoji() -> Pictures:
    captions = emoji.load().captions
    known = {caption for caption in set(captions) if names_one(caption)}
    rows = [i for i, caption in enumerate(captions) if caption in known]
    return drawings(rows, "those whose captions name one class of ImageNet, with their captions")


def names_one(caption: str) -> bool:
    try:
        return bool(rewards.Classifier().places([caption]))
    except ValueError:
        return False


def shapes() -> Pictures:
    images, captions = Shapes(seed=0).rows(range(COUNT))
    said = f"the first {COUNT} pictures of steer.data.shapes, seed 0, each odd one captioned as the one before"
    return floats(images), shifted(captions), said


def words() -> Pictures:
    captions = [emoji.load().captions[i] for i in rows_of_emoji()]
    said = f"{COUNT} captions of steer.data.emoji in PIL's font, 256 x 64, each odd one asked for the one before"
    images = np.stack([written(caption) for caption in captions])
    return floats(images), [f'a sign that says "{text}"' for text in shifted(captions)], said


def written(text: str) -> np.ndarray:
    picture = Image.new("RGB", (256, 64), "white")
    ImageDraw.Draw(picture).text((128, 32), text, "black", ImageFont.load_default(20), anchor="mm")
    return np.asarray(picture)


def shifted(texts: list[str]) -> list[str]:
    """Every second text is the one before."""
    return [texts[i - i % 2] for i in range(len(texts))]


def floats(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


OWN: dict[str, Callable[[], Pictures]] = {"shapes": shapes, "ocr": words, "imagenet": named_emoji}


def reference(name: str) -> Pictures:
    """The pictures [b 3 h w] in [0,1] that a reward is measured on, their prompts, and what they are."""
    return OWN.get(name, any_emoji)()


def main() -> None:
    some = sys.argv[1:]
    found = json.loads(OUT.read_text(encoding="utf8")) if some else {}
    for name in some or rewards.names():
        reward = rewards.get(name)
        lacks = "it asks a server" if name in SERVERS else rewards.missing(reward)
        if lacks:
            print(f"{name}: left out: {lacks}")
            continue
        row = asdict(rewards.calibrate(reward, *reference(name)))
        found[name] = row | {key: float(f"{row[key]:.6g}") for key in ("mean", "std")}
        print(f"{name}: {found[name]}", flush=True)
    write_json(OUT, {name: found[name] for name in rewards.names() if name in found})


if __name__ == "__main__":
    main()
