"""A small language of pictures, "a red circle left of a blue square": what its captions say, word for word.

Seven kinds of captions, in the manner of GenEval (arXiv:2310.11513), over 8 colours and 4 shapes:

    single       a star                              colour       a yellow triangle
    count        three stars, two green stars        two          a circle and a square
    attribution  a red circle and a blue square      position     a circle left of a square
    full         a red circle left of a blue square

A picture shows its caption if it holds these objects, on white, and no others. Some combinations are held out of
training, so that a model's accuracy on them is its skill to compose: four colours of a shape and one number of a shape
are in no training picture, and about a fifth of the relations between two shapes in no training caption.
"""

import difflib
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations, product

import numpy as np

COLOURS = {
    "red": (214, 15, 25), "orange": (255, 115, 0), "yellow": (255, 230, 0), "green": (13, 153, 51),
    "blue": (25, 76, 242), "purple": (115, 25, 166), "pink": (255, 102, 191), "black": (0, 0, 0),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "star")
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
NUMBERS = {2: "two", 3: "three", 4: "four"}
CATEGORIES = ("single", "colour", "count", "two", "attribution", "position", "full")
WORDS = sorted({
    "a", "an", "and", *COLOURS, *SHAPES, *(f"{s}s" for s in SHAPES), *NUMBERS.values(),
    *(word for relation in RELATIONS for word in relation.split()),
})  # fmt: skip

HELD_PAIRS = frozenset({("orange", "circle"), ("purple", "square"), ("blue", "triangle"), ("pink", "star")})
HELD_COUNT = (3, "square")
_HELD_ONE_WAY = (
    ("star", "left of", "circle"), ("square", "left of", "triangle"), ("square", "left of", "square"),
    ("circle", "above", "star"), ("triangle", "above", "square"), ("star", "above", "triangle"),
)  # fmt: skip
HELD_TRIPLES = frozenset({*_HELD_ONE_WAY, *((b, OPPOSITE[r], a) for a, r, b in _HELD_ONE_WAY)})

# Of each shape in a box of side 1: its area, and how far its centre of mass lies below the middle of the box.
AREA = {"circle": np.pi / 4, "square": 1.0, "triangle": 3**0.5 / 4, "star": 0.310271}
SINK = {"circle": 0.0, "square": 0.0, "triangle": 3**0.5 / 12, "star": 0.050203}


@dataclass(frozen=True)
class Thing:
    """One object: a shape, and a colour or None where the caption leaves it free."""

    shape: str
    colour: str | None = None


@dataclass(frozen=True)
class Scene:
    """What a caption says: one thing, several of it, or two (perhaps with a relation of the first to the second).

    Raises:
        ValueError: what no caption says, such as two things alike.
    """

    things: tuple[Thing, ...]
    count: int = 1
    relation: str | None = None

    def __post_init__(self) -> None:
        for thing in self.things:
            if thing.shape not in SHAPES:
                raise ValueError(f"shape={thing.shape!r} is unknown; known: {', '.join(SHAPES)}")
            if thing.colour is not None and thing.colour not in COLOURS:
                raise ValueError(f"colour={thing.colour!r} is unknown; known: {', '.join(COLOURS)}")
        if self.relation is not None and self.relation not in RELATIONS:
            raise ValueError(f"relation={self.relation!r} is unknown; known: {', '.join(RELATIONS)}")
        if len(self.things) not in (1, 2) or len(set(self.things)) < len(self.things):
            raise ValueError(f"things={self.things} must be one thing, or two that differ")
        if len({thing.colour is None for thing in self.things}) == 2:
            raise ValueError(f"things={self.things} must both have a colour, or neither")
        if self.count not in ((1, *NUMBERS) if len(self.things) == 1 else (1,)):
            raise ValueError(f"count={self.count} must be 1 to 4 for one thing and 1 for two")
        if self.relation and len(self.things) == 1:
            raise ValueError(f"relation={self.relation!r} needs two things, got one")

    @property
    def category(self) -> str:
        """One of `CATEGORIES`."""
        told = self.things[0].colour is not None
        if len(self.things) == 1:
            return "count" if self.count > 1 else "colour" if told else "single"
        return ("full" if told else "position") if self.relation else "attribution" if told else "two"

    @property
    def objects(self) -> tuple[Thing, ...]:
        """The objects in the picture, one by one."""
        return self.things * self.count


def caption(scene: Scene) -> str:
    """The words for a scene, such as "an orange star"; `parse` reads them back."""
    if scene.count > 1:
        thing = scene.things[0]
        return " ".join(filter(None, (NUMBERS[scene.count], thing.colour, thing.shape + "s")))
    return f" {scene.relation or 'and'} ".join(_noun(thing) for thing in scene.things)


def _noun(thing: Thing) -> str:
    words = f"{thing.colour} {thing.shape}" if thing.colour else thing.shape
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


@lru_cache
def scenes(category: str) -> tuple[Scene, ...]:
    """All scenes of a category, in a fixed order.

    Raises:
        ValueError: the category is unknown.
    """
    if category not in CATEGORIES:
        raise ValueError(f"category={category!r} is unknown; known: {', '.join(CATEGORIES)}")
    plain = [Thing(shape) for shape in SHAPES]
    coloured = [Thing(shape, colour) for shape, colour in product(SHAPES, COLOURS)]
    if category in ("single", "colour"):
        return tuple(Scene((thing,)) for thing in (plain if category == "single" else coloured))
    if category == "count":
        return tuple(Scene((thing,), count) for thing, count in product(plain + coloured, NUMBERS))
    pairs = list(permutations(plain if category in ("two", "position") else coloured, 2))
    relations = RELATIONS if category in ("position", "full") else (None,)
    return tuple(Scene(pair, 1, relation) for pair, relation in product(pairs, relations))


@lru_cache
def _by_caption() -> dict[str, Scene]:
    return {caption(scene): scene for category in CATEGORIES for scene in scenes(category)}


def parse(text: str) -> Scene:
    """The scene that a caption tells of; capitals and spaces do not matter.

    Raises:
        ValueError: no caption of a scene; the message names the nearest one.
    """
    known, words = _by_caption(), " ".join(text.lower().split())
    if words not in known:
        near = difflib.get_close_matches(words, known, 1, 0)[0]
        raise ValueError(
            f"prompt {text!r} is no caption of shapes; write one such as {near!r}, 'two green stars' or 'a red circle "
            f"left of a blue square', with the words {', '.join(WORDS)}"
        )
    return known[words]


def is_held_out(scene: Scene) -> bool:
    """Whether a scene tells of a combination held out of training: a colour with a shape, a relation between two shapes
    (told from either side), or a number of a shape.
    """
    pairs = {(thing.colour, thing.shape) for thing in scene.things}
    shapes = [thing.shape for thing in scene.things]
    related = scene.relation is not None and (shapes[0], scene.relation, shapes[1]) in HELD_TRIPLES
    return bool(pairs & HELD_PAIRS) or related or (scene.count, shapes[0]) == HELD_COUNT


def signed_distance(shape: str, x: np.ndarray, y: np.ndarray, size: np.ndarray | float) -> np.ndarray:
    """Below 0 inside the shape, above 0 outside, of slope 1 across its edges; y points down.

    x, y: from the middle of its bounding box, a square of side `size` (a triangle is equilateral, a star the regular
    one: both are as wide as the box and less high). A triangle is where all of three straight lines are kept, a star
    where at least four of five are.
    """
    if shape == "circle":
        return np.sqrt(x * x + y * y) - size / 2
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - size / 2
    if shape == "triangle":
        height = 3**0.5 / 2 * size
        return np.maximum(3**0.5 / 2 * np.abs(x) - y / 2 - height / 4, y - height / 2)
    radius = size / (2 * np.sin(2 * np.pi / 5))
    y = y - SINK["star"] * size
    top, second = np.full(np.broadcast(x, size).shape, -np.inf, x.dtype), None
    for angle in 2 * np.pi * np.arange(5) / 5:
        line = x * np.sin(angle).astype(x.dtype) - y * np.cos(angle).astype(x.dtype)
        second = np.minimum(top, line) if second is None else np.maximum(second, np.minimum(top, line))
        top = np.maximum(top, line)
    return second - radius * np.cos(2 * np.pi / 5)
