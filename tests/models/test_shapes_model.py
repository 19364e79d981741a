"""The embedded model of shapes: small, sharp, right in part, and better the more it is asked; the verifier decides."""

import pytest
import torch

from rewards.shapes import ShapesVerifier
from steer.bench.embedded import plain
from steer.data.shapes import prompts
from steer.models import ASSETS, Model, load_model


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model("shapes", device="cpu")


def right(model: Model, captions: list[str], calls: int) -> torch.Tensor:
    """Whether each of 8 pictures of each caption is right [p 8]."""
    images = plain(model, captions, 8, calls)
    return torch.stack([ShapesVerifier().check(x, [c] * 8) for x, c in zip(images, captions, strict=True)]).double()


def test_it_is_small() -> None:
    assert sum(p.stat().st_size for p in (ASSETS / "shapes").iterdir()) < 12e6


def test_pictures_are_right_in_part_and_more_calls_help(model: Model) -> None:
    """Also where a combination of words was in no training picture; a caption of another picture is not shown."""
    seen, held = prompts("seen", 14, seed=3), prompts("held-out", 10, seed=3)
    one, four = (right(model, seen, calls).mean().item() for calls in (1, 4))
    assert 0.1 < one < four < 0.8
    assert right(model, held, 4).mean() > 0.05
    images = plain(model, seen, 8, 4)
    others = [*seen[1:], seen[0]]
    wrong = [ShapesVerifier().check(x, [c] * 8).double().mean() for x, c in zip(images, others, strict=True)]
    assert torch.stack(wrong).mean() < four / 4


def test_pictures_are_sharp(model: Model) -> None:
    """The white ground is white and most pixels of objects have one of the palette's colours."""
    from rewards.scenes import COLOURS

    images = plain(model, prompts("seen", 14, seed=4), 4, 4).flatten(0, 1)
    palette = torch.tensor(list(COLOURS.values())) / 255
    pixels = images.permute(0, 2, 3, 1).reshape(-1, 3)
    far = torch.cdist(pixels, torch.cat([palette, torch.ones(1, 3)])).amin(1)
    inside = (pixels < 0.9).any(1)
    assert (far[~inside] < 0.1).double().mean() > 0.99 and (far[inside] < 0.15).double().mean() > 0.75
