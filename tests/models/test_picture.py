"""The kind "picture": three architectures, latents and pixels, saved and read back; damaged cards are refused."""

import json
from pathlib import Path

import pytest
import torch

from rewards.towers import WordPieces
from steer.flow_map import jump
from steer.models import ASSETS, Model, load_model, save_model
from steer.models.picture import NETWORKS, Pixels, build, load_decoder
from steer.objectives import Batch, SelfDistillation, Student, Uniform

SMALL = {
    "perceptron": {"width": 32, "depth": 1, "condition": 16, "queries": 2},
    "grid": {"width": 8, "depth": 1, "condition": 16, "queries": 2},
    "patches": {"patch": 16, "width": 24, "depth": 1, "heads": 2, "condition": 16, "queries": 2},
}
PIECES = WordPieces.from_words(["red", "circle", "left", "of", "star"], 8)


def make(kind: str) -> Model:
    """A model with random weights that are nowhere zero."""
    torch.manual_seed(0)
    decode = Pixels() if kind == "patches" else load_decoder(ASSETS / "shapes")
    shape = (3, 64, 64) if kind == "patches" else (384,)
    model = build(PIECES, SMALL[kind], kind, decode, shape, kind)
    for p in model.flow.parameters():  # type: ignore[attr-defined]
        torch.nn.init.normal_(p, std=0.1)
    return model


@pytest.fixture(params=sorted(NETWORKS))
def model(request: pytest.FixtureRequest) -> Model:
    """One of each architecture."""
    return make(request.param)


def test_it_is_saved_and_read_back(model: Model, tmp_path: Path, rng: torch.Generator) -> None:
    save_model(model, tmp_path)
    back, prompts = load_model(tmp_path), ["a red circle", "a star"]
    x = torch.randn(2, *model.shape, generator=rng)
    with torch.no_grad():
        pictures = [m.decode(jump(m.flow, x, 0.0, 1.0, m.encode(prompts))) for m in (model, back)]
    assert torch.allclose(*pictures, atol=1e-5)
    assert pictures[0].shape == (2, 3, 64, 64) and 0 <= pictures[0].min() and pictures[0].max() <= 1


def test_prompts_and_both_times_matter_and_rows_do_not_mix(model: Model, rng: torch.Generator) -> None:
    x, cond = torch.randn(2, *model.shape, generator=rng), model.encode(["a red circle", "a star left of a circle"])
    v = model.flow(x, 0.2, 0.7, cond)
    alone = torch.cat([model.flow(x[i : i + 1], 0.2, 0.7, {k: c[i : i + 1] for k, c in cond.items()}) for i in (0, 1)])
    assert torch.allclose(v, alone, atol=1e-5)
    for other in (
        model.flow(x, 0.2, 0.9, cond),
        model.flow(x, 0.3, 0.7, cond),
        model.flow(x, 0.2, 0.7, model.encode(["", ""])),
    ):
        assert (v - other).abs().max() > 1e-4


def test_the_lagrangian_loss_reaches_every_weight(model: Model, rng: torch.Generator) -> None:
    flow = model.flow
    assert isinstance(flow, torch.nn.Module)
    ids = model.encode.ids(["a red circle"] * 8)  # type: ignore[attr-defined]
    objective = SelfDistillation(weighting=Uniform())
    loss, _ = objective(Student(flow), Batch(torch.randn(8, *model.shape, generator=rng), {"ids": ids}), rng)
    loss.backward()
    assert loss.isfinite()
    assert not [name for name, p in flow.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


def test_latents_of_a_picture_give_it_back() -> None:
    from steer.data.shapes import load

    x = torch.from_numpy(load(16, seed=7).images.copy()).permute(0, 3, 1, 2) / 255
    decode = load_decoder(ASSETS / "shapes")
    with torch.no_grad():
        error = (decode(decode.encode(x)) - x).square().mean()
    assert -10 * error.log10() > 36  # decibels


def test_pixels_give_back_what_they_were_made_of() -> None:
    x = torch.rand(2, 3, 8, 8)
    assert torch.allclose(Pixels()(Pixels().encode(x)), x, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "os.system"}, "architecture='os.system' is not known"),
        ({"kind": "pickle"}, "kind='pickle' is not known"),
        ({"network": {"evil": 1}}, r"network=\{'evil': 1\} makes no network"),
        ({"network": None}, "network=None makes no network"),
    ],
)
def test_a_card_of_something_else_is_refused(change: dict, message: str, tmp_path: Path) -> None:
    save_model(make("grid"), tmp_path)
    card = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps({**card, **change}))
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path)


def test_a_perceptron_needs_flat_latents() -> None:
    with pytest.raises(ValueError, match="network='perceptron' is for flat latents"):
        build(PIECES, {}, "perceptron", Pixels(), (3, 64, 64), "mine")
