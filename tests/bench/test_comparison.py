"""The comparison of methods: who takes part, at which number of particles, and what its columns say."""

import io

import pytest
import torch
from PIL import Image
from torch import Tensor

import rewards
import steer
from steer import settings
from steer.bench import comparison
from steer.methods import SMC
from steer.models import Model
from steer.posterior import Glass

CAPTIONS = ["red heart", "fox"]


@pytest.fixture(scope="module")
def model() -> Model:
    return steer.load_model("emoji", "cpu")


def test_particles_are_halved_until_the_budget_can_be_divided() -> None:
    assert comparison.most_particles(settings.build("method", "best_of_n"), 16) == 4
    assert comparison.most_particles(settings.build("method", "guidance"), 256) == 16
    assert (
        comparison.most_particles(settings.build("method", "guidance"), 8) == 2
    )  # one step costs four calls a particle
    assert comparison.most_particles(SMC(lookahead=Glass(k=4, steps=8)), 16) is None


def test_a_black_box_is_left_to_methods_without_a_gradient(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "measure", lambda *arguments: {"measured": arguments[3]})
    rows = comparison.compare(model, CAPTIONS, rewards.get("jpeg-size"), (16,))
    free = [name for name in settings.names("method") if not settings.build("method", name).needs_gradient]
    assert [row["method"] for row in rows] == free
    assert [row.get("measured") for row in rows] == [
        name if row["n"] else None for name, row in zip(free, rows, strict=True)
    ]
    everyone = comparison.compare(model, CAPTIONS, rewards.get("clip"), (16,))
    assert [row["method"] for row in everyone] == settings.names("method")


def test_columns_are_those_of_a_run(model: Model) -> None:
    row = comparison.measure(model, CAPTIONS, rewards.get("clip"), "best_of_n", 4, 16)
    given = {"reward": "clip", "model": model, "method": "best_of_n", "n": 4, "budget": 16, "seed": 2}
    with torch.no_grad():
        out = steer.sample(CAPTIONS, progress=False, **given)
    judge = rewards.get("clip-judge")

    def judged(i: int, images: Tensor) -> Tensor:
        return judge(images, [CAPTIONS[i]] * len(images))

    after = [judged(i, out.images[i]) for i in range(2)]
    best = [s[r.argmax()] for s, r in zip(after, out.rewards, strict=True)]
    plain = [judged(i, out.unsteered[i]).mean() for i in range(2)]
    weighted = [(s * w.exp()).sum() for s, w in zip(after, out.log_w, strict=True)]
    assert row["calls"] == 16 and row["distinct"] == 1
    assert row["judge, best"] == pytest.approx(float(sum(best)) / 2, rel=1e-4)
    assert row["judge, weighted"] == pytest.approx(float(sum(weighted)) / 2, rel=1e-4)
    assert row["judge, plain"] == pytest.approx(float(sum(plain)) / 2, rel=1e-4)
    assert row["optimised, best"] == pytest.approx(out.rewards.amax(1).mean().item(), rel=1e-4)
    assert row["wins"] == sum(float(b > p) for b, p in zip(best, plain, strict=True)) / 2


def test_the_plot_has_a_panel_for_each_table_and_figure() -> None:
    row = {"budget": 16, "method": "smc", "optimised, best": 2.0, "optimised, plain": 1.0, "judge, best": 3.0}
    rows = [row | {"judge, plain": 2.5}, {"budget": 16, "method": "diamond", "n": None}]
    wide, one = (Image.open(io.BytesIO(comparison.dots(tables))) for tables in ({"a": rows, "b": rows}, {"a": rows}))
    assert wide.width == 2 * one.width and wide.height == one.height
    assert len(set(one.convert("L").tobytes())) > 10  # something is drawn
