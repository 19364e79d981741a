"""Drawn scenes: their language, what is held out, and that rows depend on nothing but the seed and their number."""

from collections import Counter

import numpy as np
import pytest

from rewards import scenes as language
from rewards.scenes import (
    CATEGORIES,
    COLOURS,
    HELD_COUNT,
    HELD_PAIRS,
    HELD_TRIPLES,
    OPPOSITE,
    RELATIONS,
    SHAPES,
    WORDS,
    caption,
    is_held_out,
    parse,
    scenes,
)
from steer.data import shapes
from steer.data.shapes import Shapes, draw, load, prompts

ALL = [scene for category in CATEGORIES for scene in scenes(category)]
SOME = ALL[:: len(ALL) // 600]


def test_every_caption_is_its_own_and_reads_back() -> None:
    assert len({caption(scene) for scene in ALL}) == len(ALL) == 4 + 32 + 12 + 96 + 12 + 32 * 31 + 48 + 32 * 31 * 4
    assert all(parse(caption(scene)) == scene and scene.category in CATEGORIES for scene in ALL)
    assert Counter(scene.category for scene in ALL) == {c: len(scenes(c)) for c in CATEGORIES}
    used = {word for scene in ALL for word in caption(scene).split()}
    assert used == set(WORDS) and sorted(WORDS) == WORDS and len(WORDS) <= 40


@pytest.mark.parametrize(
    ("text", "category"),
    [
        ("a star", "single"), ("An  Orange star ", "colour"), ("three stars", "count"), ("two green stars", "count"),
        ("a circle and a square", "two"), ("a red circle and a blue square", "attribution"),
        ("a circle left of a square", "position"), ("a red star below an orange star", "full"),
    ],
)  # fmt: skip
def test_categories(text: str, category: str) -> None:
    assert parse(text).category == category


@pytest.mark.parametrize(
    "text", ["", "a fox", "a star and a star", "a orange star", "one star", "five stars", "a red star and a square"]
)
def test_what_is_no_caption(text: str) -> None:
    with pytest.raises(ValueError, match="is no caption of shapes; write one such as"):
        parse(text)


def test_what_is_held_out() -> None:
    assert {shape for _, shape in HELD_PAIRS} == set(SHAPES) and len({c for c, _ in HELD_PAIRS}) == 4
    assert {(b, OPPOSITE[r], a) for a, r, b in HELD_TRIPLES} == HELD_TRIPLES
    assert 0.15 < len(HELD_TRIPLES) / (len(SHAPES) ** 2 * len(RELATIONS)) < 0.25
    for text in ("an orange circle", "two pink stars", "three squares", "three red squares", "a star left of a circle"):
        assert is_held_out(parse(text))
    for text in ("a circle", "two squares", "three stars", "a red circle left of a blue square", "a star and a circle"):
        assert not is_held_out(parse(text))


def test_colours_are_well_apart() -> None:
    rgb = np.array([*COLOURS.values(), (255, 255, 255)]) / 255
    apart = np.linalg.norm(rgb[:, None] - rgb, axis=-1) + 9 * np.eye(len(rgb))
    assert apart.min() > 0.4 and apart[-1].min() > 0.6


def test_rows_depend_on_the_seed_and_their_number_alone() -> None:
    images, captions = Shapes(3).rows(range(300))
    few = [299, 7, 0, 7, 130]
    again, words = Shapes(3).rows(few)
    assert (again == images[few]).all() and words == [captions[i] for i in few]
    other, _ = Shapes(4).rows(range(300))
    assert (other != images).any((1, 2, 3)).all()
    assert len({image.tobytes() for image in images}) == 300
    far, _ = Shapes(3).rows([10**9, 10**12])
    assert far.shape == (2, 64, 64, 3) and Shapes(3).rows([])[0].shape == (0, 64, 64, 3)
    with pytest.raises(ValueError, match="rows from 0 on, got -1"):
        Shapes().rows([0, -1])


def test_known_rows_stay_as_they_are() -> None:
    """The same pictures on every machine and in every version: a training can be repeated."""
    images, captions = Shapes(0).rows(range(4))
    assert captions == ["four circles", "a circle", "a square above a star", "a black circle and a blue square"]
    assert np.abs(images.mean((1, 2, 3)) - [232.782, 247.315, 244.440, 215.101]).max() < 0.01


def test_categories_are_equally_often() -> None:
    counts = Counter(scene.category for scene in Shapes(1).scenes(range(14000)))
    assert set(counts) == set(CATEGORIES)
    assert all(abs(n - 2000) < 4.5 * (14000 / 7 * 6 / 7) ** 0.5 for n in counts.values())


def test_nothing_held_out_is_drawn_even_where_it_is_free() -> None:
    table, which, keys = Shapes(2)._choose(range(3000))
    drawn = shapes._draw(table, which, keys, 2)
    there = drawn.shapes >= 0
    pairs = {(list(COLOURS)[c], SHAPES[s]) for s, c in zip(drawn.shapes[there], drawn.colours[there], strict=True)}
    assert len(pairs) == len(COLOURS) * len(SHAPES) - 4 and not pairs & HELD_PAIRS
    assert not any(is_held_out(scene) for scene in Shapes(2).scenes(range(3000)))
    alike = (drawn.shapes == SHAPES.index(HELD_COUNT[1])).sum(1)
    assert (alike != HELD_COUNT[0]).all() and set(alike) == {0, 1, 2, 4}


def test_objects_are_inside_apart_and_related_as_told() -> None:
    drawn = draw(SOME, seed=5)
    middle, side = drawn.places[..., :2], drawn.places[..., 2:]
    there = drawn.shapes >= 0
    assert (there.sum(1) == [len(scene.objects) for scene in SOME]).all()
    assert ((middle - side / 2)[there] >= 1).all() and ((middle + side / 2)[there] <= 63).all()
    assert side[there].min() >= 14 and 29 < side[there].max() <= 30
    for i in range(4):
        for j in range(i):
            gap = (np.abs(middle[:, i] - middle[:, j]) - (side[:, i] + side[:, j]) / 2).max(-1)
            assert (gap[there[:, i] & there[:, j]] >= 3).all()
    for scene, (first, second) in zip(SOME, drawn.centres[:, :2], strict=True):
        if scene.relation:
            axis = np.array(RELATIONS[scene.relation])
            along, across = (first - second) @ axis, abs((first - second) @ axis[::-1])
            assert along >= 14 and along > across


def test_pictures_hold_the_ink_that_they_should() -> None:
    """The share of ink, in each picture, is that of the areas in closed form."""
    drawn = draw(SOME, seed=6)
    area = np.array([language.AREA[s] for s in SHAPES])[drawn.shapes] * drawn.places[..., 2] ** 2
    ink = 255 - np.array(list(COLOURS.values()))[drawn.colours]
    there = (drawn.shapes >= 0)[..., None]
    expected = (area[..., None] * ink * there).sum(1)
    found = (255 - drawn.images.astype(float)).sum((1, 2))
    assert np.abs(found - expected).max() < 0.06 * expected.max()
    np.testing.assert_allclose(found.sum(1), expected.sum(1), rtol=0.06)
    edges = drawn.images[:, [0, -1]].min(), drawn.images[:, :, [0, -1]].min()
    assert min(edges) > 200  # no more than the smooth edge of a corner


def test_objects_of_a_count_share_a_colour_that_varies() -> None:
    drawn = draw([parse("four stars")] * 200, seed=1)
    assert (drawn.colours == drawn.colours[:, :1]).all()
    assert set(drawn.colours[:, 0]) == set(range(8)) - {list(COLOURS).index("pink")}


@pytest.mark.parametrize(("split", "categories"), [("seen", 7), ("held-out", 5)])
def test_prompts_are_balanced_and_new_as_long_as_they_can_be(split: str, categories: int) -> None:
    some = prompts(split, 40 * categories, seed=1)
    by = Counter(parse(text).category for text in some)
    assert set(by.values()) == {40} and len(by) == categories
    assert all(is_held_out(parse(text)) == (split == "held-out") for text in some)
    for category in by:
        mine = [text for text in some if parse(text).category == category]
        pool = sum(is_held_out(s) == (split == "held-out") for s in scenes(category))
        assert len(set(mine)) == min(40, pool) and max(Counter(mine).values()) == -(-40 // pool)
    assert prompts(split, 9, seed=1) == some[:9] != prompts(split, 9, seed=2)


def test_prompts_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="split='test' is unknown"):
        prompts("test", 3)
    with pytest.raises(ValueError, match="n=0"):
        prompts("seen", 0)


def test_load_gives_the_first_rows() -> None:
    data = load(20, seed=4)
    images, captions = Shapes(4).rows(range(20))
    assert (data.images == images).all() and data.captions == captions and len(data) == 20
    assert data.categories == [parse(text).category for text in captions]
