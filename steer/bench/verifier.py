"""How often the verifier of shapes errs: on true pictures, on spoilt ones, and on captions that do not hold."""

import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import ndimage

from rewards.objects import Objects
from rewards.scenes import CATEGORIES, COLOURS, NUMBERS, RELATIONS, SHAPES, Scene, scenes
from rewards.shapes import ShapesVerifier, assertions
from steer.data.shapes import Drawn, draw

Row = dict[str, Any]
Spoil = Callable[[np.ndarray, np.random.Generator], np.ndarray]
PART = 500  # pictures in memory at once


def calibration(n: int = 2000, seed: int = 0) -> list[Row]:
    """One row for each way to spoil pictures, over n pictures of all categories, held-out combinations included.

    false negatives: the share of pictures that show their caption and are said not to.
    false positives, another scene: with the caption of another scene of the category that does not hold.
    false positives, one word: with one word of the caption changed (a colour, shape, number or relation).

    A standard error is at most (share (1 - share) / n)^.5; where no error was seen, the truth is below 3 / n with 95 %.

    Raises:
        ValueError: n below 1.
    """
    if n < 1:
        raise ValueError(f"n={n} must be at least 1")
    rng = np.random.default_rng(seed)
    told = [_pick(scenes(CATEGORIES[i % len(CATEGORIES)]), rng) for i in range(n)]
    drawn = draw(told, seed)
    truth = known(drawn)
    wrong = [_wrong(scene, truth, at, rng) for scene, at in zip(told, truth.of(n), strict=True)]
    captions = {
        "false negatives": told,
        "false positives, another scene": [other for other, _ in wrong],
        "false positives, one word": [changed for _, changed in wrong],
    }
    rows: list[Row] = []
    for name, spoil in spoilt().items():
        found = [objects for part in _parts(drawn.images, spoil, rng) for objects in part]
        said = {k: np.mean([_holds(s, *f) for s, f in zip(c, found, strict=True)]) for k, c in captions.items()}
        said["false negatives"] = 1 - said["false negatives"]
        rows.append({"pictures": name, "n": n, **{k: round(float(share), 5) for k, share in said.items()}})
    return rows


def spoilt() -> dict[str, Spoil]:
    """What is done to pictures [b 64 64 3] in [0,1] before the verifier sees them."""
    return {
        "as drawn": lambda x, rng: x,
        "blurred, sigma 0.5": lambda x, rng: blur(x, 0.5),
        "blurred, sigma 1": lambda x, rng: blur(x, 1.0),
        "noisy, sd 0.05": lambda x, rng: noisy(x, 0.05, rng),
        "noisy, sd 0.1": lambda x, rng: noisy(x, 0.1, rng),
        "JPEG, quality 75": lambda x, rng: jpeg(x, 75),
        "shifted by part of a pixel": shift,
    }


def blur(x: np.ndarray, sigma: float) -> np.ndarray:
    """A Gaussian blur."""
    return ndimage.gaussian_filter(x, (0, sigma, sigma, 0), mode="nearest")


def noisy(x: np.ndarray, sd: float, rng: np.random.Generator) -> np.ndarray:
    """White Gaussian noise, clipped to [0,1]."""
    return np.clip(x + sd * rng.standard_normal(x.shape, dtype=np.float32), 0, 1)


def jpeg(x: np.ndarray, quality: int) -> np.ndarray:
    """Through a JPEG file and back."""
    from PIL import Image

    back = []
    for picture in np.rint(255 * x).astype(np.uint8):
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "JPEG", quality=quality)
        back.append(np.asarray(Image.open(file)))
    return np.stack(back).astype(np.float32) / 255


def shift(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Right and down by 0 to 1 pixels, bilinear; what wraps around is all but white, as objects keep off the edge."""
    for axis in (1, 2):
        part = rng.random((len(x), 1, 1, 1), dtype=np.float32)
        x = (1 - part) * x + part * np.roll(x, 1, axis)
    return x


def known(drawn: Drawn) -> Objects:
    """What is in drawn pictures, as a search without error would find it."""
    picture, slot = np.nonzero(drawn.shapes >= 0)
    shape, colour = drawn.shapes[picture, slot], drawn.colours[picture, slot]
    one = np.ones(len(picture))
    return Objects(picture, shape, colour, drawn.centres[picture, slot], np.eye(len(SHAPES))[shape], one)


def changed(scene: Scene) -> list[Scene]:
    """The scenes that one other word makes of it: a colour, a shape, a number or a relation."""
    options = [replace(scene, count=count) for count in NUMBERS if scene.count > 1]
    options += [replace(scene, relation=relation) for relation in RELATIONS if scene.relation]
    near: list[Scene] = [option for option in options if option != scene]
    valid = set(scenes(scene.category))
    for i, thing in enumerate(scene.things):
        others = [replace(thing, shape=shape) for shape in SHAPES]
        others += [replace(thing, colour=colour) for colour in COLOURS if thing.colour]
        for other in others:
            things = tuple(other if j == i else t for j, t in enumerate(scene.things))
            if len(set(things)) == len(things) and other != thing and (new := replace(scene, things=things)) in valid:
                near.append(new)
    return near


def _pick(some: list[Scene] | tuple[Scene, ...], rng: np.random.Generator) -> Scene:
    return some[rng.integers(len(some))]


def _holds(scene: Scene, found: Objects, at: slice) -> bool:
    met, of = assertions(scene, found, at)
    return met == of


def _wrong(scene: Scene, truth: Objects, at: slice, rng: np.random.Generator) -> tuple[Scene, Scene]:
    """Another scene of the category, and one of another word, that do not hold in the picture."""
    other, near = scene, [option for option in changed(scene) if not _holds(option, truth, at)]
    while _holds(other, truth, at):
        other = _pick(scenes(scene.category), rng)
    return other, _pick(near, rng)


def _parts(images: np.ndarray, spoil: Spoil, rng: np.random.Generator) -> Iterator[list[tuple[Objects, slice]]]:
    """What the verifier finds in the spoilt pictures."""
    finder = ShapesVerifier().finder
    for start in range(0, len(images), PART):
        pictures = spoil(images[start : start + PART].astype(np.float32) / 255, rng)
        found = finder(pictures)
        yield [(found, at) for at in found.of(len(pictures))]
