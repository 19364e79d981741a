"""The objects in a picture on white, without learned parts: where they are, and each one's colour and shape."""

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from rewards.scenes import AREA, COLOURS, SHAPES, SINK, signed_distance

GRID = 24  # points along a side of the grid on which shapes are compared
REACH = 1.1  # it goes so far from the centre of mass, in units of the root of the object's area
SOLID = 0.75  # inner pixels have at least this share of the ink of their neighbours, and of a colour
CONTRAST = 2.0  # how much steeper edges are made before shapes are compared, which undoes some blur


@dataclass(frozen=True)
class Objects:
    """The objects of some pictures, one after another, the largest of each picture first.

    picture: int [m], which picture it is in.
    shape, colour: int [m], into `SHAPES` and `COLOURS`; -1: none of them.
    centre: float [m 2], the centre of mass, x from the left and y from the top, in pixels.
    overlap: float [m 4], the intersection over union with each ideal shape.
    purity: float [m], the share of its inner pixels that have its most frequent colour.
    """

    picture: np.ndarray
    shape: np.ndarray
    colour: np.ndarray
    centre: np.ndarray = field(repr=False)
    overlap: np.ndarray = field(repr=False)
    purity: np.ndarray = field(repr=False)

    def of(self, count: int) -> list[slice]:
        """Where the objects of each of `count` pictures are."""
        edges = np.searchsorted(self.picture, np.arange(count + 1))
        return [slice(int(a), int(b)) for a, b in zip(edges[:-1], edges[1:], strict=True)]


@dataclass(frozen=True)
class Finder:
    """Settings of the search for objects. Colours are in [0,1]^3 and distances Euclidean; areas are in pixels.

    An object is a connected part (8 neighbours) of the pixels that differ from white. Its colour is the one that most
    of its inner pixels (those without a white neighbour, and not much paler than one) are nearest to, its shape the one
    that overlaps it best when both have the same area and centre of mass. Things that touch are one object, mostly of
    no colour or no shape.

    ink: pixels at least so far from white belong to objects.
    speck: objects of a smaller area are ignored (the smallest one that is drawn, a star, has 61).
    reject: a pixel further than that from all colours has none.
    purity: an object has a colour if at least this share of its inner pixels has it.
    overlap: an object has a shape if its best intersection over union is at least that of the shape, in the order of
        `SHAPES`. A square and a circle share .84, so less would be no proof; small stars lose their points in pixels.
    """

    ink: float = 0.3
    speck: int = 16
    reject: float = 0.3
    purity: float = 0.7
    overlap: tuple[float, float, float, float] = (0.85, 0.85, 0.8, 0.72)

    def __post_init__(self) -> None:
        for name in ("ink", "reject", "purity"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must lie between 0 and 1")
        if len(self.overlap) != len(SHAPES) or not all(0 < least < 1 for least in self.overlap):
            raise ValueError(f"overlap={self.overlap} must be {len(SHAPES)} numbers between 0 and 1")
        if self.speck < 1:
            raise ValueError(f"speck={self.speck} must be at least 1 pixel")

    def __call__(self, pictures: np.ndarray) -> Objects:
        """Objects of pictures [b h w 3] in [0,1]."""
        ink = 1 - pictures.astype(np.float32)
        depth = np.sqrt(np.square(ink).sum(-1))
        labels, picture = _components(depth > self.ink, self.speck)
        solid = (_reduce(np.minimum, depth) > self.ink) & (depth >= SOLID * _reduce(np.maximum, depth))
        inner = np.flatnonzero(solid & (labels > 0))
        flat = ink.reshape(-1, 3)
        votes = _votes(flat[inner], labels.ravel()[inner] - 1, len(picture), self.reject)
        total = votes.sum(1)
        colour, purity = votes[:, :-1].argmax(1), votes[:, :-1].max(1) / np.maximum(total, 1)
        colour = np.where(purity >= self.purity, colour, -1)
        own = _mean_ink(flat, labels.ravel(), inner, len(picture))
        centre, overlap = _compare(ink, np.where(labels > 0, labels, _reduce(np.maximum, labels)), own)
        shape = overlap.argmax(1)
        shape = np.where(overlap.max(1) >= np.array(self.overlap)[shape], shape, -1)
        return Objects(picture, shape, colour, centre, overlap, purity)


def _components(covered: np.ndarray, speck: int) -> tuple[np.ndarray, np.ndarray]:
    """Parts of at least `speck` pixels: their numbers [b h w] from 1 on (0: none), and the picture of each [m]."""
    from scipy import ndimage  # here, as the other rewards do without

    flat = np.zeros((3, 3, 3), dtype=int)
    flat[1] = 1
    labels = np.zeros(covered.shape, dtype=np.int32)
    ndimage.label(covered, flat, output=labels)
    area = np.bincount(labels.ravel())
    area[0] = 0
    picture = np.zeros(len(area), dtype=int)
    where = np.flatnonzero(labels)
    picture[labels.ravel()[where]] = where // covered[0].size
    kept = np.flatnonzero(area >= speck)
    kept = kept[np.lexsort((-area[kept], picture[kept]))]
    number = np.zeros(len(area), dtype=int)
    number[kept] = np.arange(1, len(kept) + 1)
    return number[labels], picture[kept]


def _reduce(function: np.ufunc, values: np.ndarray) -> np.ndarray:
    """np.minimum or np.maximum over each pixel [b h w] and its 8 neighbours within the picture."""
    wide = np.pad(values, ((0, 0), (1, 1), (1, 1)), mode="edge")
    tall = function(function(wide[:, :-2], wide[:, 1:-1]), wide[:, 2:])
    return function(function(tall[:, :, :-2], tall[:, :, 1:-1]), tall[:, :, 2:])


def _votes(ink: np.ndarray, member: np.ndarray, count: int, reject: float) -> np.ndarray:
    """How many pixels of each object are nearest to each colour, and in the last column to none: [m colours + 1].

    A pixel may be as pale as a share `SOLID` of a colour over white.
    """
    palette = 1 - np.array(list(COLOURS.values()), dtype=np.float32) / 255
    norm, product = np.square(palette).sum(1), ink @ palette.T
    share = np.clip(product / norm, SOLID, 1)
    square = np.square(ink).sum(1)[:, None] - 2 * share * product + share * share * norm
    nearest = np.where(square.min(1, initial=np.inf) <= reject**2, square.argmin(1), len(palette))
    width = len(palette) + 1
    return np.bincount(member * width + nearest, minlength=count * width).reshape(count, width)


def _mean_ink(ink: np.ndarray, labels: np.ndarray, inner: np.ndarray, count: int) -> np.ndarray:
    """The mean distance from white [m 3] of each object's inner pixels, or of all where there are none."""
    every = np.flatnonzero(labels)
    means = []
    for pixels in (inner, every):
        member = labels[pixels] - 1
        number = np.bincount(member, minlength=count)
        sums = np.stack([np.bincount(member, ink[pixels, c], count) for c in range(3)], 1)
        means.append(sums / np.maximum(number, 1)[:, None])
    filled = np.bincount(labels[inner] - 1, minlength=count) > 0
    return np.where(filled[:, None], *means)


def _compare(ink: np.ndarray, labels: np.ndarray, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centres of mass [m 2] and overlaps [m 4].

    A pixel belongs to its object by the share of the object's own colour in it, over white, between 0 and 1.
    """
    b, h, w, count = *labels.shape, len(own)
    pixels = np.flatnonzero(labels)
    member = labels.ravel()[pixels] - 1
    share = (ink.reshape(-1, 3)[pixels] * (own / np.square(own).sum(1, keepdims=True))[member]).sum(1)
    share = np.clip(0.5 + CONTRAST * (share - 0.5), 0, 1)
    mass = np.maximum(np.bincount(member, share, count), 1)
    row, column = np.divmod(pixels % (h * w), w)
    centre = np.stack([np.bincount(member, share * (at + 0.5), count) / mass for at in (column, row)], 1)
    soft = np.zeros(b * h * w)
    soft[pixels] = share
    picture = np.zeros(count, dtype=int)
    picture[member] = pixels // (h * w)
    grid = ((np.arange(GRID) + 0.5) / GRID * 2 - 1) * REACH
    at = centre[:, :, None] - 0.5 + grid * np.sqrt(mass)[:, None, None]
    cut = _sample(soft.reshape(b, h, w), labels, picture, at[:, 0], at[:, 1])
    cell = (2 * REACH / GRID) ** 2
    common = np.stack([np.minimum(cut, t).sum((1, 2)) for t in _ideal()], 1) * cell
    return centre, common / (2 - common)


def _sample(soft: np.ndarray, labels: np.ndarray, picture: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Each object's share at columns x [m g] and rows y [m g], bilinear, 0 outside of it: [m g g]."""
    pad = ((0, 0), (1, 2), (1, 2))
    soft, labels = np.pad(soft, pad), np.pad(labels, pad)
    x, y = (np.clip(at, -1, size) + 1 for at, size in ((x, soft.shape[2] - 3), (y, soft.shape[1] - 3)))
    left, top = x.astype(int), y.astype(int)
    right, below = (x - left)[:, None, :], (y - top)[:, :, None]
    own = np.arange(1, len(picture) + 1)[:, None, None]
    total = np.zeros((len(picture), y.shape[1], x.shape[1]))
    for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
        where = picture[:, None, None], (top + i)[:, :, None], (left + j)[:, None, :]
        weight = (below if i else 1 - below) * (right if j else 1 - right)
        total += weight * soft[where] * (labels[where] == own)
    return total


@lru_cache(maxsize=1)
def _ideal() -> tuple[np.ndarray, ...]:
    """Each shape with area 1 and its centre of mass in the middle of the grid: [g g]."""
    grid = ((np.arange(GRID) + 0.5) / GRID * 2 - 1) * REACH
    cell = 2 * REACH / GRID
    ideal = []
    for shape in SHAPES:
        size = AREA[shape] ** -0.5
        distance = signed_distance(shape, grid[None, :], grid[:, None] + SINK[shape] * size, size)
        ideal.append(np.clip(0.5 - distance / cell, 0, 1))
    return tuple(ideal)
