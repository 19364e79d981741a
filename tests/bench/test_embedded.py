"""The figures of the embedded model: what they count is checked on pictures whose answer is known."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

import steer
from steer.bench import embedded, measuring
from steer.data import emoji
from steer.models import Model


@pytest.fixture(scope="module")
def model() -> Model:
    return steer.load_model("emoji", "cpu")


def test_captions_are_distinct_and_spread_over_the_groups() -> None:
    data = emoji.load()
    group_of = dict(zip(data.captions, data.groups, strict=True))
    captions = embedded.spread_captions(90)
    assert len(set(captions)) == 90 and captions == embedded.spread_captions(90)
    assert captions != embedded.spread_captions(90, seed=1)
    counts = [sum(group_of[c] == g for c in captions) for g in set(data.groups)]
    assert min(counts) >= 0.5 * 90 / len(counts)


def test_luminance_is_averaged_over_boxes_of_four() -> None:
    images = torch.rand(2, 3, 64, 64)
    red, green, blue = images.unbind(1)
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    assert torch.allclose(embedded.small(images)[1, 17], luminance[1, 4:8, 4:8].mean(), atol=1e-6)


def test_a_model_that_draws_the_shipped_pictures_is_always_nearest(model: Model) -> None:
    captions = embedded.spread_captions(12, seed=4)
    pictures = torch.stack([embedded.real([c])[0][0] for c in captions])

    def copy(x: Tensor) -> Tensor:
        return pictures.repeat_interleave(len(x) // len(pictures), 0)

    def noise(x: Tensor) -> Tensor:
        return torch.rand(len(x), 3, 64, 64, generator=torch.Generator().manual_seed(0))

    copies, noises = (dataclasses.replace(model, decode=decode) for decode in (copy, noise))
    assert embedded.nearest(copies, captions)["share"] == 1.0
    assert embedded.nearest(noises, captions)["share"] == 0.0  # type: ignore[comparison-overlap]


def test_the_judge_finds_captions_far_above_chance() -> None:
    images, captions = embedded.real(embedded.spread_captions(40, seed=5))
    chance = 5 / len(set(emoji.load().captions))
    assert embedded.hits(images, captions) > 50 * chance
    wrong = [*captions[1:], captions[0]]
    assert embedded.hits(images, wrong) < embedded.hits(images, captions) / 2 + 0.2


def test_sizes_are_those_of_the_files(model: Model) -> None:
    rows = {row["what"]: row for row in embedded.sizes(model)}
    count = sum(p.numel() for p in model.flow.parameters()) / 1e6  # type: ignore[attr-defined]
    assert rows["flow map"]["million parameters"] == pytest.approx(count) and count <= 15
    assert 5 < float(str(rows["weights of emoji and its CLIPs"]["MB"])) < 45
    assert 1 < float(str(rows["weights of shapes"]["MB"])) < 12


@pytest.mark.slow
def test_the_whole_benchmark_runs(tmp_path: Path) -> None:
    tables, _ = measuring.measure("embedded", tmp_path, fast=True)
    assert all(rows for rows in tables.values()) and len(tables) == 8
