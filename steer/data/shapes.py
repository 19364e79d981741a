"""Pictures of coloured shapes with captions, such as "a red circle left of a blue square": endless, and no download.

64 x 64, on white; `rewards.scenes` holds the language and what is held out of training, `rewards.shapes` decides
exactly whether a picture shows its caption. Row i depends on the seed and i alone, so any process draws the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from rewards.scenes import (
    CATEGORIES,
    COLOURS,
    HELD_PAIRS,
    RELATIONS,
    SHAPES,
    SINK,
    Scene,
    caption,
    is_held_out,
    scenes,
    signed_distance,
)

__all__ = ["CATEGORIES", "Drawn", "Pictures", "Shapes", "draw", "load", "prompts"]

SIDE = 64
SMALLEST, LARGEST = 14.0, (30.0, 28.0, 24.0, 21.0)  # sides of the boxes; the largest by the number of objects
MARGIN, GAP = 1.0, 3.0  # pixels between boxes and the edge; between two boxes
ALONG, ACROSS = 14.0, 2.0  # a relation holds by at least so much, and by so much more than the offset across it
MIXTURE = {
    "single": 1, "colour": 1, "count, colour free": 0.5, "count, colour told": 0.5, "two": 1, "attribution": 1,
    "position": 1, "full": 1,
}  # fmt: skip
PATCH = 32  # a window that holds the largest object with its smooth edge
TRIES = 24  # placements tried at once
CHUNK = 64  # pictures painted at once, so that they stay in the processor's cache
_CORNERS = [(i, j) for i in range(4) for j in range(i + 1, 4)]


@dataclass(frozen=True)
class Drawn:
    """Pictures, and what is in them, for at most four objects each.

    images: uint8 [b 64 64 3].
    shapes, colours: int [b 4], into `SHAPES` and `COLOURS`; -1 where there is no object.
    places: float [b 4 3], the middle of each bounding box (x from the left, y from the top) and its side, in pixels.
    """

    images: np.ndarray = field(repr=False)
    shapes: np.ndarray = field(repr=False)
    colours: np.ndarray = field(repr=False)
    places: np.ndarray = field(repr=False)

    @property
    def centres(self) -> np.ndarray:
        """The centres of mass [b 4 2], x and y."""
        sink = np.array([SINK[s] for s in SHAPES])[self.shapes] * self.places[..., 2]
        return self.places[..., :2] + np.stack([np.zeros_like(sink), sink], -1)


@dataclass(frozen=True)
class Pictures:
    """Pictures uint8 [n 64 64 3], their captions, and the category of each."""

    images: np.ndarray = field(repr=False)
    captions: list[str] = field(repr=False)
    categories: list[str] = field(repr=False)

    def __len__(self) -> int:
        return len(self.captions)


@dataclass(frozen=True)
class Table:
    """Scenes as numbers: shapes and colours [s 4] (-1: no object; a free colour), the relation's axis [s 2] (0: none),
    and whether all objects share a colour [s].
    """

    scenes: tuple[Scene, ...]
    captions: tuple[str, ...]
    shapes: np.ndarray
    colours: np.ndarray
    axes: np.ndarray
    alike: np.ndarray


def _table(some: Sequence[Scene]) -> Table:
    colours = list(COLOURS)
    shape, colour = np.full((len(some), 4), -1), np.full((len(some), 4), -1)
    for i, scene in enumerate(some):
        for j, thing in enumerate(scene.objects):
            shape[i, j] = SHAPES.index(thing.shape)
            colour[i, j] = colours.index(thing.colour) if thing.colour else -1
    axes = np.array([RELATIONS[s.relation] if s.relation else (0, 0) for s in some]).reshape(-1, 2)
    alike = np.array([s.count > 1 for s in some], dtype=bool)
    return Table(tuple(some), tuple(caption(s) for s in some), shape, colour, axes, alike)


@lru_cache(maxsize=1)
def _training() -> tuple[Table, np.ndarray, np.ndarray]:
    """All scenes of training, the first of each part of `MIXTURE`, and how many it has."""
    parts = []
    for part in MIXTURE:
        category, _, colour = part.partition(", ")
        seen = [s for s in scenes(category) if not is_held_out(s)]
        parts.append([s for s in seen if not colour or (s.things[0].colour is None) == (colour == "colour free")])
    counts = np.array([len(part) for part in parts])
    return _table([s for part in parts for s in part]), counts.cumsum() - counts, counts


@lru_cache(maxsize=1)
def _free_colours() -> np.ndarray:
    """The colours [shapes, 7] that a shape may have where its colour is free."""
    free = [[i for i, c in enumerate(COLOURS) if (c, shape) not in HELD_PAIRS] for shape in SHAPES]
    return np.array(free)


def _mix(z: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood: Fast splittable pseudorandom number generators, 2014)."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _keys(seed: int, index: Sequence[int] | np.ndarray) -> np.ndarray:
    """One 64-bit key a row."""
    word = np.array([seed % 2**64], dtype=np.uint64)
    return _mix(_mix(word + np.uint64(0x9E3779B97F4A7C15)) + np.asarray(index, dtype=np.int64).astype(np.uint64))


def _uniforms(keys: np.ndarray, start: int, count: int) -> np.ndarray:
    """Numbers start to start + count of the stream of each key, in [0,1): [b count]."""
    steps = np.arange(start + 1, start + count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return (_mix(keys[:, None] + steps) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _fits(shapes: np.ndarray, axes: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Whether no boxes are nearer than `GAP` and the relation holds clearly, for places [b tries 4 3]: [b tries]."""
    good = np.ones(places.shape[:2], dtype=bool)
    for i, j in _CORNERS:
        apart = np.abs(places[:, :, i, :2] - places[:, :, j, :2]).max(-1)
        near = apart < (places[:, :, i, 2] + places[:, :, j, 2]) / 2 + GAP
        good &= ~(near & (shapes[:, None, j] >= 0))
    sink = np.array([SINK[s] for s in SHAPES])[shapes[:, None, :2]] * places[:, :, :2, 2]
    x, y = (places[:, :, 0, k] - places[:, :, 1, k] for k in (0, 1))
    y = y + sink[..., 0] - sink[..., 1]
    along = x * axes[:, None, 0] + y * axes[:, None, 1]
    across = np.abs(np.where(axes[:, None, 0] != 0, y, x))
    return good & ((axes[:, None] == 0).all(-1) | (along >= np.maximum(ALONG, across + ACROSS)))


def _place(shapes: np.ndarray, axes: np.ndarray, keys: np.ndarray, start: int) -> np.ndarray:
    """The first placement [b 4 3] in each row's stream that fits: uniform over those that do."""
    places, left, size = np.zeros((len(keys), 4, 3)), np.arange(len(keys)), TRIES * 12
    largest = np.array(LARGEST)[(shapes >= 0).sum(1) - 1]
    while len(left):
        u = _uniforms(keys[left], start, size).reshape(-1, TRIES, 4, 3)
        sides = SMALLEST + u[..., 2] * (largest[left, None, None] - SMALLEST)
        low = sides / 2 + MARGIN
        tried = np.stack([low + u[..., 0] * (SIDE - 2 * low), low + u[..., 1] * (SIDE - 2 * low), sides], -1)
        good = _fits(shapes[left], axes[left], tried)
        done = good.any(1)
        places[left[done]] = tried[done, good[done].argmax(1)]
        left, start = left[~done], start + size
    return places


def _paint(shapes: np.ndarray, colours: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Pictures uint8 [b 64 64 3]; an edge pixel's share of colour is the clipped signed distance of its middle."""
    ink = 255 - np.array(list(COLOURS.values()), dtype=np.float32)
    canvas = np.full((len(shapes), SIDE, SIDE, 3), 255, dtype=np.float32)
    window = np.arange(PATCH)
    corner = np.clip(np.floor(places[..., :2] - PATCH / 2).astype(int), 0, SIDE - PATCH)
    for slot in range(shapes.shape[1]):
        for k, shape in enumerate(SHAPES):
            rows = np.flatnonzero(shapes[:, slot] == k)
            if not len(rows):
                continue
            at = corner[rows, slot, :, None] + window
            offset = (at + 0.5 - places[rows, slot, :2, None]).astype(np.float32)
            size = places[rows, slot, 2].astype(np.float32)[:, None, None]
            cover = np.clip(0.5 - signed_distance(shape, offset[:, 0, None, :], offset[:, 1, :, None], size), 0, 1)
            patch = cover[..., None] * ink[colours[rows, slot]][:, None, None]
            canvas[rows[:, None, None], at[:, 1, :, None], at[:, 0, None, :]] -= patch
    return np.rint(canvas).astype(np.uint8)


def _draw(table: Table, which: np.ndarray, keys: np.ndarray, start: int) -> Drawn:
    """One picture for each scene that `which` picks, from number `start` of its stream on."""
    shapes, colours = table.shapes[which], table.colours[which]
    u = _uniforms(keys, start, 4)
    u = np.where(table.alike[which, None], u[:, :1], u)
    free = _free_colours()
    drawn = free[shapes, (u * free.shape[1]).astype(int)]
    colours = np.where(shapes < 0, -1, np.where(colours < 0, drawn, colours))
    places = _place(shapes, table.axes[which], keys, start + 4)
    cuts = [slice(i, i + CHUNK) for i in range(0, len(keys), CHUNK)]
    images = [_paint(shapes[c], colours[c], places[c]) for c in cuts]
    empty = np.zeros((0, SIDE, SIDE, 3), np.uint8)
    return Drawn(np.concatenate(images) if images else empty, shapes, colours, places)


def draw(some: Sequence[Scene], seed: int = 0) -> Drawn:
    """One random picture of each scene, held out or not; colours that a scene leaves free are never held out."""
    return _draw(_table(some), np.arange(len(some)), _keys(seed, np.arange(len(some))), 0)


@dataclass(frozen=True)
class Shapes:
    """Captioned pictures without end, the categories equally often, nothing that is held out."""

    seed: int = 0

    def rows(self, index: Sequence[int]) -> tuple[np.ndarray, list[str]]:
        """Pictures uint8 [b 64 64 3] and captions of some rows, from 0 on; a row is the same in any company.

        Raises:
            ValueError: a row below 0.
        """
        table, which, keys = self._choose(index)
        return _draw(table, which, keys, 2).images, [table.captions[i] for i in which]

    def scenes(self, index: Sequence[int]) -> list[Scene]:
        """What the captions of some rows say, without painting them."""
        table, which, _ = self._choose(index)
        return [table.scenes[i] for i in which]

    def _choose(self, index: Sequence[int]) -> tuple[Table, np.ndarray, np.ndarray]:
        rows = np.asarray(index, dtype=np.int64)
        if (rows < 0).any():
            raise ValueError(f"index must hold rows from 0 on, got {rows.min()}")
        keys = _keys(self.seed, rows)
        table, first, counts = _training()
        u = _uniforms(keys, 0, 2)
        edges = np.cumsum(list(MIXTURE.values())) / sum(MIXTURE.values())
        part = np.searchsorted(edges, u[:, 0], side="right")
        return table, first[part] + (u[:, 1] * counts[part]).astype(int), keys


def load(n: int = 1000, seed: int = 0) -> Pictures:
    """The first n rows of `Shapes(seed)`, to look at."""
    data = Shapes(seed)
    images, captions = data.rows(range(n))
    return Pictures(images, captions, [scene.category for scene in data.scenes(range(n))])


def prompts(split: str, n: int, seed: int = 0) -> list[str]:
    """Captions for a benchmark, the categories in turn, each without repetition as long as it has new ones.

    split: "seen" in training, or "held-out" (where `single` and `two` have none).

    Raises:
        ValueError: an unknown split, or n below 1.
    """
    if split not in ("seen", "held-out"):
        raise ValueError(f"split={split!r} is unknown; known: 'seen', 'held-out'")
    if n < 1:
        raise ValueError(f"n={n} must be at least 1")
    pools = [[s for s in scenes(c) if is_held_out(s) == (split == "held-out")] for c in CATEGORIES]
    rng = np.random.default_rng(seed)
    orders = [[pool[i] for i in rng.permutation(len(pool))] for pool in pools if pool]
    turns = (divmod(i, len(orders)) for i in range(n))
    return [caption(orders[k][turn % len(orders[k])]) for turn, k in turns]
