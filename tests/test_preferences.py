"""Preference pairs that are given: a folder's lines and pictures, and their latents."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from steer.data.shapes import load
from steer.interpolants import Linear, like
from steer.models import Model, load_model
from steer.models.picture import Pixels
from steer.objectives import Batch, Preference, Student
from steer.preferences import PairRows, encode, read
from steer.training import Renewed
from steer.tuned import raw

PROMPTS = ["a red circle", "two blue squares"]
TINY = Model(lambda x, s, t, cond=None: 0 * x, Linear(), lambda prompts: None, Pixels(), (3, 4, 4), "tiny")


@pytest.fixture(scope="module")
def shapes() -> Model:
    return load_model("shapes", device="cpu")


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    """Four pictures of the data [4 3 64 64]."""
    images = load(4, seed=7).images
    return torch.from_numpy(images.copy()).permute(0, 3, 1, 2).float() / 255


def write(folder: Path, images: Tensor, lines: list[Any]) -> None:
    """Pictures 0.png, 1.png, ..., and the lines of pairs.jsonl: texts as they are, others as JSON."""
    for i, image in enumerate(images):
        Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy()).save(folder / f"{i}.png")
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / "pairs.jsonl").write_text("\n".join(texts) + "\n", encoding="utf8")


def line(winner: int = 0, loser: int = 1, prompt: str = PROMPTS[0]) -> dict[str, str]:
    return {"prompt": prompt, "winner": f"{winner}.png", "loser": f"{loser}.png"}


def squares(count: int = 4) -> Tensor:
    """Pictures whose numbers PNG can hold [count 3 4 4]."""
    return torch.arange(count * 48).reshape(count, 3, 4, 4).remainder(256).float() / 255


def test_a_folder_s_lines_are_pairs(tmp_path: Path) -> None:
    write(tmp_path, squares(), [line(), "", "   ", line(3, 2, "ein Käfer")])
    pairs = read(tmp_path)
    assert [prompt for prompt, _, _ in pairs] == [PROMPTS[0], "ein Käfer"]
    found = torch.stack([torch.stack(pair[1:]) for pair in pairs])
    assert torch.equal(found, squares()[torch.tensor([[0, 1], [3, 2]])])


def test_pictures_of_a_folder_below_and_of_other_modes_are_read(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    Image.fromarray(np.full((4, 4), 51, np.uint8)).save(tmp_path / "more" / "grey.png")
    Image.fromarray(np.full((4, 4, 4), 102, np.uint8), "RGBA").save(tmp_path / "alpha.png")
    write(tmp_path, squares(0), [{"prompt": "x", "winner": "more/grey.png", "loser": "more/../alpha.png"}])
    ((_, winner, loser),) = read(tmp_path)
    assert torch.equal(winner, torch.full((3, 4, 4), 0.2)) and torch.equal(loser, torch.full((3, 4, 4), 0.4))


@pytest.mark.parametrize(
    "bad",
    [
        {"prompt": "x", "winner": "0.png"},
        {"prompt": "x", "loser": "0.png"},
        {"winner": "0.png", "loser": "1.png"},
        ["x", "0.png", "1.png"],
        "3",
        "{not json",
    ],
)
def test_a_line_that_is_no_pair_is_named(bad: object, tmp_path: Path) -> None:
    write(tmp_path, squares(), [line(), "", bad])
    with pytest.raises(ValueError, match=r"pairs.jsonl, line 3: not an object with prompt, winner, loser \("):
        read(tmp_path)


@pytest.mark.parametrize("name", ["5.png", "pairs.jsonl", "."])
def test_a_picture_that_cannot_be_read_is_named(name: str, tmp_path: Path) -> None:
    write(tmp_path, squares(), [line(), {"prompt": "x", "winner": "0.png", "loser": name}])
    with pytest.raises(ValueError, match=f"pairs.jsonl, line 2: '{name}' (cannot be read|lies outside of the folder)"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["../secret.png", "more/../../secret.png", "{absolute}", "link.png"])
def test_pictures_outside_of_the_folder_are_not_read(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "pairs"
    folder.mkdir()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "secret.png")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    name = name.format(absolute=tmp_path / "secret.png")
    write(folder, squares(), [{"prompt": "x", "winner": name, "loser": "0.png"}])
    with pytest.raises(ValueError, match="pairs.jsonl, line 1: .*secret.png' lies outside|line 1: 'link.png' lies out"):
        read(folder)


def test_what_holds_no_pair_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="^pairs='.*' has no pairs.jsonl; write lines of .*'prompt'"):
        PairRows.of(tmp_path, TINY, TINY.encode)
    write(tmp_path, squares(0), [])
    for nothing in (str(tmp_path), []):
        with pytest.raises(ValueError, match="pairs holds no pair; give at least one"):
            PairRows.of(nothing, TINY, TINY.encode)


def test_a_model_that_cannot_encode_is_named() -> None:
    blind = Model(TINY.flow, Linear(), TINY.encode, lambda x: x, (3, 4, 4), "blind")
    with pytest.raises(ValueError, match="model='blind' cannot encode pictures"):
        PairRows([("x", *squares(2))], blind, blind.encode)


def test_pictures_of_other_sizes_are_told(shapes: Model) -> None:
    small, large = torch.zeros(3, 64, 64), torch.zeros(3, 128, 128)
    told = lambda texts: raw(shapes, texts)  # noqa: E731
    with pytest.raises(
        ValueError, match=r"pairs holds pictures of shapes \[\(3, 64, 64\), \(3, 128, 128\)\]; give all"
    ):
        PairRows([("x", small, small), ("y", small, large)], shapes, told)
    with pytest.raises(ValueError, match=r"\(3, 128, 128\), whose latents .* are not those of model='shapes'"):
        PairRows([("x", large, large)], shapes, told)


def test_rows_are_winners_with_their_losers_beside() -> None:
    images = squares()
    told = lambda prompts: {"n": torch.tensor([len(q) for q in prompts])}  # noqa: E731
    rows = PairRows([("a", images[0], images[1]), ("bcd", images[2], images[3])], TINY, told)
    x1, cond = rows([1, 0, 1])
    assert isinstance(rows, Renewed) and len(rows) == 2 and cond is not None
    assert torch.equal(x1, 2 * images[[2, 0, 2]] - 1) and cond["n"].tolist() == [3, 1, 3]
    more = rows.more([1, 0, 1])
    assert list(more) == ["loser"] and torch.equal(more["loser"], 2 * images[[3, 1, 3]] - 1)
    assert PairRows.of(rows, TINY, told) is rows
    assert rows.renew(0, None, None, None) == {} and rows.state() == ({}, {})
    rows.load({}, {}, torch.device("cpu"))
    assert torch.equal(rows([1])[0], x1[:1])
    with pytest.raises(ValueError, match="preference pairs come without a reward; take objective=dpo"):
        rows.reward(x1, torch.zeros(3))


def test_latents_of_pairs_decode_to_their_pictures(shapes: Model, pictures: Tensor, tmp_path: Path) -> None:
    write(tmp_path, pictures, [line(), line(3, 2, PROMPTS[1])])
    rows = PairRows.of(tmp_path, shapes, lambda texts: raw(shapes, texts))
    x1, cond = rows([0, 1])
    assert cond is not None and torch.equal(cond["ids"], shapes.encode.ids(PROMPTS))  # type: ignore[attr-defined]
    assert x1.shape == (2, *shapes.shape) and not x1.requires_grad
    with torch.no_grad():
        seen = torch.cat([shapes.decode(x1), shapes.decode(rows.more([0, 1])["loser"])])
    error = (seen[:, None] - pictures[None]).square().mean((2, 3, 4)).sqrt()
    assert error.argmin(1).tolist() == [0, 3, 1, 2] and error.amin(1).max() < 0.05


def test_pictures_are_encoded_alike_in_any_company(shapes: Model, pictures: Tensor) -> None:
    many = pictures[torch.arange(130) % 4]
    assert torch.allclose(encode(shapes, many)[[0, 1, 129]], encode(shapes, pictures[[0, 1, 1]]), atol=1e-4)


def test_drawings_are_encoded_with_a_plain_stage(pictures: Tensor) -> None:
    emoji = load_model("emoji", device="cpu")
    x = encode(emoji, pictures)
    assert x.shape == (4, *emoji.shape) and torch.equal(x[0, -8:], x[3, -8:]) and not torch.equal(x[0], x[3])


def test_the_loss_of_given_pairs_tells_who_wins(rng: torch.Generator) -> None:
    """Maps that carry all noise to the winner, or to the loser, against a reference that stays."""
    rows = PairRows([("a", torch.ones(3, 4, 4), torch.zeros(3, 4, 4))] * 16, TINY, TINY.encode)
    x1, more = rows(range(16))[0], rows.more(range(16))
    found = {}
    for name, end in (("winner", x1), ("loser", more["loser"])):
        flow = lambda x, s, t, cond=None, end=end: (end - x) / like(1 - t, x)  # noqa: E731
        model = Student(flow, reference=TINY.flow)
        found[name] = Preference(jumps=0.0)(model, Batch(x1, None, None, more), rng)
    assert found["winner"][0] < math.log(2) < found["loser"][0]
    assert found["winner"][1]["right"] == 1 and found["loser"][1]["right"] == 0
