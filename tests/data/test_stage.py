"""Drawings on a stage: hue, background and place against their closed forms."""

import colorsys

import pytest
import torch

from steer.data import emoji
from steer.data.stage import STAGE, hue_plane, place, rotate_hue, show
from steer.data.variations import BACKGROUNDS, HUES, Variation, to_stage


def layers_of(*rows: int) -> torch.Tensor:
    data = emoji.load()
    x = torch.cat([torch.tensor(data.images[list(rows)]), torch.tensor(data.coverage[list(rows)])[..., None]], -1)
    return x.permute(0, 3, 1, 2).double() / 255


def test_rotate_hue_is_the_hsv_rotation() -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.rand(4, 3, 5, 5, generator=rng, dtype=torch.float64)
    degrees = torch.tensor([0.0, 70.0, -130.0, 359.0], dtype=torch.float64)
    turned = rotate_hue(x, degrees)
    for i in range(4):
        for r in range(5):
            for c in range(5):
                h, s, v = colorsys.rgb_to_hsv(*x[i, :, r, c].tolist())
                expected = colorsys.hsv_to_rgb((h + degrees[i].item() / 360) % 1, s, v)
                assert turned[i, :, r, c].tolist() == pytest.approx(expected, abs=1e-9)


def test_an_empty_stage_leaves_the_picture() -> None:
    x = layers_of(10, 2000, 4000)
    assert torch.equal(show(x, torch.zeros(3, STAGE, dtype=torch.float64)), x[:, :3])


@pytest.mark.parametrize("name", BACKGROUNDS)
def test_the_background_shows_where_nothing_covers(name: str) -> None:
    x = layers_of(100)
    picture = show(x, to_stage([Variation(background=name)]).double())
    corner, inside = picture[0, :, 0, 0], x[0, 3] == 1
    assert corner.tolist() == pytest.approx(BACKGROUNDS[name], abs=0.041)
    assert torch.allclose(picture[0][:, inside], x[0, :3][:, inside], atol=1e-12)


@pytest.mark.parametrize("word", HUES)
def test_the_main_hue_becomes_the_word(word: str) -> None:
    x = layers_of(*[i for i, c in enumerate(emoji.load().captions) if c == "red heart"])
    plane = hue_plane(show(x, to_stage([Variation(hue=word)] * len(x)).double()))
    degrees = torch.rad2deg(torch.atan2(plane[:, 1], plane[:, 0]))
    error = (degrees - HUES[word] + 180) % 360 - 180
    assert error.abs().max() < 3


@pytest.mark.parametrize("row", [-1, 0, 1])
@pytest.mark.parametrize("column", [-1, 0, 1])
def test_a_small_drawing_sits_where_it_is_told(row: int, column: int) -> None:
    disc = ((torch.arange(64) - 31.5).square()[:, None] + (torch.arange(64) - 31.5).square() < 28**2).double()
    layers = torch.stack([1 - disc, 1 - disc, 1 - disc, disc])[None]
    ink = place(layers, torch.tensor([[row, column, 1.0]]).double())[0, 3]
    assert ink.sum().item() == pytest.approx(disc.sum().item() * 0.36, rel=0.03)
    rows, columns = torch.arange(64.0).double()[:, None], torch.arange(64.0).double()[None]
    centre = [(ink * axis).sum() / ink.sum() for axis in (rows, columns)]
    assert [c.item() for c in centre] == pytest.approx([31.5 + 0.36 * 32 * row, 31.5 + 0.36 * 32 * column], abs=0.5)


def test_the_stage_has_gradients_that_match_differences() -> None:
    x = layers_of(50)
    stage = torch.tensor([[-0.6, -0.9, -0.3, 0.4, -0.5, 0.6, 0.35, 0.3]], dtype=torch.float64, requires_grad=True)

    def score(s: torch.Tensor) -> torch.Tensor:
        return (show(x, s) * torch.linspace(0, 1, 64).double()).sum()

    (gradient,) = torch.autograd.grad(score(stage), stage)
    for i in range(STAGE):
        step = torch.zeros_like(stage)
        step[0, i] = 1e-5
        difference = (score(stage.detach() + step) - score(stage.detach() - step)) / 2e-5
        assert gradient[0, i].item() == pytest.approx(difference.item(), rel=0.02, abs=0.05)
        assert abs(difference.item()) > 1e-3


def test_a_picture_does_not_depend_on_its_batch() -> None:
    """Another that is moved or painted does not blur it, nor change its colours."""
    layers = torch.rand(3, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    stage = torch.zeros(3, 8)
    stage[1, 3], stage[2, 6] = 0.5, 1.0
    together = show(layers, stage)
    alone = torch.cat([show(layers[i : i + 1], stage[i : i + 1]) for i in range(3)])
    assert torch.allclose(together, alone, atol=1e-6)
    assert torch.allclose(together[0], layers[0, :3], atol=1e-6)
