"""The bench of fine-tuning: its truths are true, its captions are apart, what it counts is what is called."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from rewards.scenes import is_held_out, parse, scenes
from steer.bench import finetune_cost, finetune_exact, finetune_pictures
from steer.bench.problems import BlobFlow
from steer.data.shapes import draw
from steer.flow_map import Cond
from steer.interpolants import Time
from steer.models import load_model
from steer.settings import build, names


def test_lean_adjoints_of_a_gaussian_have_no_step_error() -> None:
    for steps in (5, 20):
        (row,) = finetune_exact.linear_quadratic(100_000, steps)
        assert row["largest error of the slope at t = .2, .4, .6, .8"] < 0.02


def test_an_untuned_exact_map_is_as_far_from_the_target_as_its_data() -> None:
    """And from its own data it has the distance of as many exact draws."""
    task = finetune_exact.tasks()[0]
    exact = BlobFlow(task.law.weights, task.law.means, 0.3)

    def flow(x: Tensor, s: Time, t: Time, cond: Cond = None) -> Tensor:
        return exact(x, s, t).to(x.dtype)

    row = finetune_exact.untuned(task, flow)
    assert row["sliced W1 to its own data"] < 0.12 and row["sliced W1"] > 2
    assert row["E[r]"] == pytest.approx(-0.8, abs=0.1) and row["TV"] > 0.65
    assert row["exact"] == pytest.approx(3.758, abs=1e-3)


def test_draws_of_the_target_are_at_the_floor() -> None:
    for task in finetune_exact.tasks():
        rng, d = torch.Generator().manual_seed(0), task.law.means.shape[1]
        x = task.problem.draw(8192, rng).float()
        ends = iter([x])  # a map whose samples are these

        def flow(x: Tensor, s: Time, t: Time, cond: Cond = None, ends: object = ends) -> Tensor:
            return (next(ends) - x) * finetune_exact.CALLS if s == 0 else torch.zeros_like(x)  # type: ignore[call-overload]

        row = finetune_exact.figures(task, flow)
        assert row["relative error"] < 0.02 and row["TV"] < 0.02, (task.problem.name, d)
        assert row["sliced W1"] < 2 * row["floor"] + 0.02


def test_all_objectives_are_in_the_table() -> None:
    assert {*finetune_exact.EXACT, *finetune_exact.OTHERS} == set(names("tuning")) - {"dpo", "search"}
    assert all(build("tuning", name).exact for name in finetune_exact.EXACT)
    assert not any(build("tuning", name).exact for name in finetune_exact.OTHERS)


def test_captions_that_judge_are_not_tuned_on() -> None:
    tuned, held = finetune_pictures.split()
    assert not set(tuned) & set(held) and len(set(held)) == len(held)
    assert {parse(c).category for c in held} == {"colour", "count"}
    assert any(is_held_out(parse(c)) for c in held) and any(not is_held_out(parse(c)) for c in held)
    each = [sum(parse(c).category == kind for c in tuned) for kind in finetune_pictures.KINDS]
    assert min(each) > 0.7 * max(each)


def test_entropies_of_drawn_pictures_and_of_one_repeated() -> None:
    told = [s for s in scenes("single") if s.things[0].colour is None][:2]
    many = torch.stack([_pictures(draw([s] * 200, seed=1).images) for s in told])
    spread = finetune_pictures.entropies(many, told)
    assert spread["entropy of colours"] > 0.95 and min(spread["entropy of places"], spread["entropy of sizes"]) > 0.75
    one = finetune_pictures.entropies(many[:, :1].expand(2, 50, *many.shape[2:]), told)
    assert max(one.values()) < 0.4


def _pictures(images: object) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255  # type: ignore[arg-type]


def test_the_bare_calls_are_those_that_a_round_makes(tmp_path: Path) -> None:
    """Samples at 4 calls, the reward once; two updates of one call with a gradient, one of the average, and jumps."""
    model = load_model("emoji", "cpu")
    trainer = finetune_cost.made(model, build("tuning", "nft"), 4, tmp_path, batch=8)
    calls = finetune_cost.record(trainer)
    a_sample, an_update = 4 + 1, 1 + 1 + 1 + (2 + 1)  # the reference for the KL; two teachers and a jump
    assert len(calls) == a_sample + 2 * an_update
    before = {k: v.clone() for k, v in trainer.plain.flow.state_dict().items()}
    finetune_cost.replay(calls)
    assert all(torch.equal(v, before[k]) for k, v in trainer.plain.flow.state_dict().items())
