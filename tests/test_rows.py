"""Rows of data as networks take them: the right caption with the right picture, the same from any call."""

from pathlib import Path

import torch

from steer.data.shapes import Shapes
from steer.models import ASSETS, load_model
from steer.models.picture import Pixels, build, load_decoder
from steer.rows import EmojiRows, LatentRows, PixelRows, vocabulary

CAPTIONS = Shapes().rows(range(200))[1]


def test_latents_belong_to_their_pictures_and_captions(tmp_path: Path) -> None:
    decode, pieces = load_decoder(ASSETS / "shapes"), vocabulary(CAPTIONS)
    model = build(pieces, {"width": 8, "depth": 1}, "grid", decode, (384,), "small")
    rows = LatentRows(Shapes(), model, 300, tmp_path / "rows.safetensors")
    x1, cond = rows([299, 3])
    pictures, captions = Shapes().rows([299, 3])
    expected = decode.encode(torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255)
    assert torch.allclose(x1, expected, atol=0.01)  # kept in half precision
    assert cond is not None and torch.equal(cond["ids"], pieces(captions))
    again = LatentRows(Shapes(1), model, 300, tmp_path / "rows.safetensors")  # from the file: the seed is not read
    assert torch.equal(again([5])[0], rows([5])[0])


def test_pixels_are_read_as_they_are_needed() -> None:
    model = build(
        vocabulary(CAPTIONS), {"width": 24, "heads": 2, "depth": 1, "patch": 16}, "patches", Pixels(), (3, 64, 64), "m"
    )
    x1, cond = PixelRows(Shapes(), model, 1000)([7])
    expected = torch.from_numpy(Shapes().rows([7])[0][0]).permute(2, 0, 1).float()
    assert torch.allclose((x1[0] + 1) / 2 * 255, expected, atol=1e-3)
    assert cond is not None and cond["ids"].shape == (1, 16)


def test_emoji_rows_tell_of_their_stage() -> None:
    rows = EmojiRows(load_model("emoji"), 60, plain=0.0, told=1.0)
    x1, cond = rows(range(60))
    assert x1.shape == (60, 776) and cond is not None
    moved = x1[:, -8:].abs().sum(1) > 0
    assert bool(moved.all())  # plain=0: every row is varied
    whole = EmojiRows(load_model("emoji"), 60, plain=1.0)
    assert float(whole(range(60))[0][:, -8:].abs().max()) == 0


def test_a_vocabulary_spells_what_it_does_not_hold() -> None:
    pieces = vocabulary(["a red circle", "a red star"])
    assert len(pieces.encode("red circle")) == 2 and len(pieces.encode("blue")) == 4
