"""Captioned variations of the emoji: another hue, another background, another size and place, and the words for them.

A prompt must leave a reward something to choose, so a picture is drawn in many ways, and its caption tells of them,
or now and then does not: "a fox" is mostly the drawing as it is, sometimes small in a corner, sometimes blue.
"""

import math
import random
from dataclasses import dataclass

import torch
from torch import Tensor

from steer.data.emoji import Emoji
from steer.data.stage import chroma_and_sector, hue_plane

HUES = {"red": 0, "orange": 28, "yellow": 52, "green": 120, "turquoise": 175, "blue": 215, "purple": 275, "pink": 325}
BACKGROUNDS = {
    "red": (0.90, 0.25, 0.25), "orange": (1.0, 0.62, 0.25), "yellow": (1.0, 0.90, 0.35), "green": (0.45, 0.78, 0.42),
    "turquoise": (0.35, 0.80, 0.78), "blue": (0.35, 0.60, 0.95), "purple": (0.66, 0.47, 0.90),
    "pink": (1.0, 0.66, 0.80),
    "black": (0.08, 0.08, 0.10), "grey": (0.62, 0.62, 0.64),
}  # fmt: skip
COLUMNS = {-1: "left", 0: "", 1: "right"}
ROWS = {-1: "top", 0: "", 1: "bottom"}
COLOUR_WORDS = {*HUES, "brown", "white", "black", "grey", "gray", "golden"}


@dataclass(frozen=True)
class Variation:
    """How a picture is drawn. None and 0 leave it as it is; row and column in {-1, 0, 1} place a small drawing."""

    hue: str | None = None
    background: str | None = None
    small: bool = False
    row: int = 0
    column: int = 0


def hue_is_clear(images: Tensor) -> Tensor:
    """Whether one hue colours most of each picture [b 3 h w] in [0,1], so that a colour word can change it: bool
    [b].
    """
    _, chroma, _ = chroma_and_sector(images)
    inked = (images.amin(1, keepdim=True) < 0.95).float().mean((1, 2, 3))
    colour = chroma.mean((1, 2, 3))
    return (hue_plane(images).norm(dim=1) > 0.8 * colour) & (colour > 0.3 * inked)


def to_stage(variations: list[Variation]) -> Tensor:
    """The stages [b 8] of variations."""
    rows = []
    for v in variations:
        behind = [2 * (c - 1) for c in BACKGROUNDS[v.background]] if v.background else [0.0] * 3
        angle = math.radians(HUES[v.hue]) if v.hue else None
        hue = [math.cos(angle), math.sin(angle)] if angle is not None else [0.0, 0.0]
        rows.append([*behind, float(v.row), float(v.column), float(v.small), *hue])
    return torch.tensor(rows)


def random_variation(dice: random.Random, hue_known: bool) -> Variation:
    """One to three of the four aspects changed."""
    hue = dice.choice(list(HUES)) if hue_known and dice.random() < 0.45 else None
    background = dice.choice(list(BACKGROUNDS)) if dice.random() < 0.45 else None
    small = dice.random() < 0.4 or not (hue or background)
    place = (dice.randint(-1, 1), dice.randint(-1, 1)) if small and dice.random() < 0.7 else (0, 0)
    return Variation(hue, background, small, *place)


def subject(data: Emoji, i: int, dice: random.Random) -> str:
    """What picture i shows, at a random level: its label mostly, else tags, subgroup or group."""
    level = dice.random()
    if level > 0.94 and data.subgroups[i]:
        return data.subgroups[i]
    if level > 0.90 and data.groups[i]:
        return dice.choice(data.groups[i].split(" & "))
    if level > 0.72 and data.tags[i]:
        return " ".join(dice.sample(data.tags[i], min(len(data.tags[i]), dice.randint(1, 3))))
    return data.captions[i]


def describe(what: str, variation: Variation, told: float, dice: random.Random) -> str:
    """Words for a subject drawn in a variation; each changed aspect is told with probability `told`."""
    words = what.split()
    if variation.hue and dice.random() < told:
        words = [variation.hue, *(w for w in words if w not in COLOUR_WORDS)]
    if variation.small and dice.random() < told:
        words = ["small", *words]
    text = " ".join(words)
    if variation.background and dice.random() < told:
        text += f" on a {variation.background} background"
    place = " ".join(w for w in (ROWS[variation.row], COLUMNS[variation.column]) if w)
    if place and dice.random() < told:
        text += f" at the {place}"
    return text
