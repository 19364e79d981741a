"""Words for variations."""

import random

from steer.data import emoji
from steer.data.variations import Variation, describe, random_variation, subject, to_stage


def test_everything_told() -> None:
    dice = random.Random(0)
    fox = Variation(hue="blue", background="yellow", small=True, row=1, column=-1)
    assert describe("fox", fox, 1.0, dice) == "small blue fox on a yellow background at the bottom left"
    assert describe("red heart", Variation(hue="blue"), 1.0, dice) == "blue heart"
    assert describe("red heart", Variation(), 1.0, dice) == "red heart"
    assert describe("fox", fox, 0.0, dice) == "fox"


def test_each_aspect_is_told_as_often_as_asked() -> None:
    dice = random.Random(1)
    told = [describe("fox", Variation(hue="blue", background="pink"), 0.75, dice) for _ in range(4000)]
    for word in ("blue", "pink"):
        share = sum(word in t for t in told) / 4000
        assert abs(share - 0.75) < 4 * (0.75 * 0.25 / 4000) ** 0.5


def test_subjects_come_from_every_level() -> None:
    data, dice = emoji.load(), random.Random(2)
    i = data.captions.index("fox")
    seen = {subject(data, i, dice) for _ in range(500)}
    assert {"fox", "animals", "nature", "mammals"} <= seen
    assert any(tag in seen for tag in data.tags[i])


def test_a_variation_changes_something_and_only_known_hues() -> None:
    dice = random.Random(3)
    drawn = [random_variation(dice, hue_known=False) for _ in range(300)]
    assert all(v != Variation() and v.hue is None for v in drawn)
    assert all(v.small for v in drawn if v.row or v.column)
    assert (to_stage(drawn).abs().sum(1) > 0).all() and (to_stage([Variation()]) == 0).all()
