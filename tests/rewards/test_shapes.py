"""The verifier of shapes: what it finds in pictures made by hand, and how often it errs."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

import rewards
from rewards.objects import Finder
from rewards.scenes import AREA, COLOURS, SHAPES, SINK, Scene, Thing, caption, parse, signed_distance
from rewards.shapes import ShapesVerifier
from steer.bench.verifier import calibration, changed

VERIFIER = ShapesVerifier()


def picture(*things: tuple[str, str, float, float, float], side: int = 64) -> Tensor:
    """Things as (shape, colour, x, y, size) on white: [3 h w]; what comes later lies on top."""
    at = np.arange(side) + 0.5
    canvas = np.ones((side, side, 3))
    for shape, colour, x, y, size in things:
        cover = np.clip(0.5 - signed_distance(shape, at[None] - x, at[:, None] - y, size), 0, 1)[..., None]
        canvas = canvas * (1 - cover) + cover * np.array(COLOURS[colour]) / 255
    return torch.from_numpy(canvas).permute(2, 0, 1).float()


def score(shown: Tensor, prompt: str) -> float:
    (said,), (right,) = VERIFIER(shown[None], [prompt]).tolist(), VERIFIER.check(shown[None], [prompt]).tolist()
    assert (said == 1) == right and 0 <= said <= 1
    return said


CIRCLE, SQUARE = ("circle", "red", 18.0, 30.0, 20.0), ("square", "blue", 46.0, 34.0, 20.0)
STARS = [("star", "green", x, y, 18.0) for x, y in ((14, 14), (46, 20), (30, 46))]


@pytest.mark.parametrize(
    ("things", "prompt", "share"),
    [
        ([CIRCLE], "a circle", 1), ([CIRCLE], "a red circle", 1), ([CIRCLE], "a blue circle", 2 / 3),
        ([CIRCLE], "a square", 2 / 3), ([CIRCLE], "a blue star", 1 / 3), ([], "a star", 0),
        ([CIRCLE, SQUARE], "a circle and a square", 1), ([CIRCLE, SQUARE], "a square and a circle", 1),
        ([CIRCLE, SQUARE], "a red circle and a blue square", 1),
        ([CIRCLE, SQUARE], "a blue circle and a red square", 3 / 5),
        ([CIRCLE, SQUARE], "a circle left of a square", 1), ([CIRCLE, SQUARE], "a square right of a circle", 1),
        ([CIRCLE, SQUARE], "a circle above a square", 5 / 6), ([CIRCLE, SQUARE], "a square left of a circle", 5 / 6),
        ([CIRCLE, SQUARE], "a red circle left of a blue square", 1),
        ([CIRCLE, SQUARE], "a red circle left of a blue star", 5 / 6),
        ([CIRCLE, SQUARE], "a circle", 2 / 3), ([CIRCLE], "a red circle left of a blue square", 2 / 6),
        (STARS, "three stars", 1), (STARS, "three green stars", 1), (STARS, "three pink stars", 4 / 7),
        (STARS, "two green stars", 4 / 5), (STARS, "four stars", 6 / 9), (STARS, "a green star", 2 / 3),
    ],
)  # fmt: skip
def test_the_share_of_assertions_met(things: list[tuple], prompt: str, share: float) -> None:
    assert score(picture(*things), prompt) == pytest.approx(share)


def test_the_same_shape_twice_is_told_apart_by_colour() -> None:
    shown = picture(("star", "red", 16, 32, 24), ("star", "blue", 46, 30, 24))
    assert score(shown, "a red star left of a blue star") == 1
    assert score(shown, "a blue star right of a red star") == 1
    assert score(shown, "a blue star left of a red star") == pytest.approx(5 / 6)


def test_relations_are_of_centres_of_mass() -> None:
    """A triangle's mass lies below the middle of its box: here the boxes say "left", the masses say "above"."""
    size, sink = 28.0, SINK["triangle"] * 28
    shown = picture(("circle", "red", 18, 18, 14), ("triangle", "blue", 34, 18 + 16 - sink / 2, size))
    assert score(shown, "a circle above a triangle") == 1
    assert score(shown, "a circle left of a triangle") < 1


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [14.0, 21.3, 30.0])
def test_area_and_centre_of_mass_in_closed_form(shape: str, size: float) -> None:
    at = (np.arange(640) + 0.5) / 10 - 32
    inside = signed_distance(shape, at[None, :], at[:, None], size) < 0
    assert inside.sum() / 100 == pytest.approx(AREA[shape] * size**2, rel=0.01)
    assert (inside.sum(1) * at).sum() / inside.sum() == pytest.approx(SINK[shape] * size, abs=0.04)
    assert (inside.sum(0) * at).sum() / inside.sum() == pytest.approx(0, abs=1e-9)
    across = np.flatnonzero(inside.any(0))
    assert (across[-1] - across[0] + 1) / 10 == pytest.approx(size, abs=0.35)


def test_a_speck_is_ignored_and_a_larger_one_is_an_object() -> None:
    dirty = picture(CIRCLE)
    dirty[:, 50:53, 50:55] = 0
    assert score(dirty, "a red circle") == 1
    dirty[:, 50:54, 50:54] = 0
    assert score(dirty, "a red circle") == pytest.approx(2 / 3)


def test_things_that_touch_are_not_two() -> None:
    touching = picture(("circle", "red", 20, 32, 20), ("square", "blue", 39, 32, 20))
    assert score(touching, "a red circle and a blue square") <= 2 / 5


def test_one_object_in_two_colours_has_none() -> None:
    half = picture(("square", "red", 32, 32, 24))
    half[:, 32:] = picture(("square", "blue", 32, 32, 24))[:, 32:]
    assert score(half, "a square") == score(half, "a red square") == pytest.approx(2 / 3)
    mostly = picture(("square", "red", 32, 32, 24))
    mostly[:, 40:] = picture(("square", "blue", 32, 32, 24))[:, 40:]
    assert Finder()(mostly.permute(1, 2, 0).numpy()[None]).purity == pytest.approx(19 / 22)
    assert score(mostly, "a red square") == 1


def test_colours_far_from_all_are_none() -> None:
    grey = 1 - (1 - picture(("circle", "black", 32, 32, 24))) * 0.5
    assert score(grey, "a circle") == score(grey, "a black circle") == pytest.approx(2 / 3)


def shapes_that_are_none() -> dict[str, np.ndarray]:
    """Black drawings that resemble one of the four shapes."""
    y, x = np.mgrid[:64, :64] + 0.5 - 32
    return {
        "diamond": abs(x) + abs(y) < 14, "ring": (np.hypot(x, y) < 13) & (np.hypot(x, y) > 6),
        "ellipse": np.hypot(x, 1.7 * y) < 16, "bar": (abs(x) < 16) & (abs(y) < 9),
        "cross": (np.minimum(abs(x), abs(y)) < 4) & (np.maximum(abs(x), abs(y)) < 13),
        "half circle": (np.hypot(x, y) < 15) & (y < 0), "upside down": (abs(x) * 1.9 + y < 8) & (y > -16),
    }  # fmt: skip


@pytest.mark.parametrize("name", shapes_that_are_none())
def test_other_shapes_are_none(name: str) -> None:
    canvas = torch.from_numpy(np.where(shapes_that_are_none()[name], 0.0, 1.0)).float().expand(3, 64, 64)
    for shape in SHAPES:
        assert score(canvas, f"a {shape}") == pytest.approx(2 / 3)


def test_another_background_is_one_large_object() -> None:
    shown = picture(CIRCLE)
    shown = torch.where(shown.mean(0) > 0.95, torch.tensor(0.3), shown)
    assert score(shown, "a red circle") < 1


def test_noise_and_white_score_low_and_finite() -> None:
    noise = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    prompts = ["a star", "four red circles", "a circle above a square", "a red circle left of a blue square"]
    assert (VERIFIER(noise, prompts) < 0.7).all() and not VERIFIER.check(noise, prompts).any()
    assert VERIFIER(torch.ones(4, 3, 64, 64), prompts).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("side", [32, 64, 96, 128, 256])
def test_pictures_of_another_size_get_the_same_verdict(side: int) -> None:
    scale = side / 64
    things = [(s, c, x * scale, y * scale, d * scale) for s, c, x, y, d in (CIRCLE, SQUARE)]
    assert score(picture(*things, side=side), "a red circle left of a blue square") == 1


def test_a_prompt_that_is_no_caption_says_what_is_one() -> None:
    with pytest.raises(ValueError, match="'a read circle' is no caption of shapes; write one such as 'a red circle'"):
        VERIFIER(picture(CIRCLE)[None], ["a read circle"])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"ink": 0.0}, "ink=0.0 must lie"), ({"purity": 1.5}, "purity=1.5"), ({"speck": 0}, "speck=0"),
        ({"overlap": (0.8, 0.8)}, "overlap=.* 4 numbers"),
    ],
)  # fmt: skip
def test_settings_out_of_range(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Finder(**wrong)


def test_it_is_a_built_in_black_box() -> None:
    assert rewards.get("shapes") == VERIFIER
    assert rewards.probe_differentiable(VERIFIER, picture(CIRCLE)[None], ["a star"]) is False


@pytest.mark.parametrize(
    "text", ["a star", "a red star", "two stars", "a red star and a blue star", "a red star left of a blue circle"]
)
def test_changed_captions_differ_in_one_word(text: str) -> None:
    before = text.replace("an ", "a ").split()
    new = changed(parse(text))
    assert len(new) == len(set(new)) and parse(text) not in new
    for scene in new:
        after = caption(scene).replace("an ", "a ").replace("left of", "left").replace("right of", "right").split()
        same = " ".join(before).replace("left of", "left").split()
        assert sum(a != b for a, b in zip(same, after, strict=True)) == 1


def test_both_error_rates_are_nought_on_drawings_clean_blurred_noisy_and_shifted() -> None:
    rows = calibration(140, seed=7)
    assert len(rows) == 7
    for row in rows:
        errors = [value for key, value in row.items() if key.startswith("false")]
        assert len(errors) == 3 and max(errors) <= (0.01 if "JPEG" in str(row["pictures"]) else 0)


@pytest.mark.slow
def test_error_rates_on_many() -> None:
    for row in calibration(7000, seed=11):
        assert row["false negatives"] <= (0.005 if "JPEG" in str(row["pictures"]) else 0.0005)
        assert row["false positives, another scene"] <= 0.0005 and row["false positives, one word"] <= 0.0005


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Scene((Thing("hexagon"),)), "shape='hexagon'"),
        (lambda: Scene((Thing("star", "white"),)), "colour='white'"),
        (lambda: Scene((Thing("star"), Thing("star"))), "two that differ"),
        (lambda: Scene((Thing("star"), Thing("star", "red"))), "both have a colour"),
        (lambda: Scene((Thing("star"),), 5), "count=5"), (lambda: Scene((Thing("star"),), 1, "above"), "needs two"),
        (lambda: replace(parse("a star and a circle"), relation="under"), "relation='under'"),
    ],
)  # fmt: skip
def test_scenes_that_no_caption_tells(make: Callable[[], Scene], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
