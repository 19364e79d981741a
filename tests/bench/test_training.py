"""The bench of training: exact laws measure at their floor, calls are counted, an exact map errs by 0."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from steer.bench import plane, step_cost, training
from steer.bench.problems import BlobFlow, ring
from steer.data.mixture import Checkerboard, Points
from steer.flow_map import Cond
from steer.interpolants import Time
from steer.objectives import (
    AdaptiveWeight,
    Derivative,
    FlowMatching,
    LearnedWeight,
    MeanFlow,
    Objective,
    SelfDistillation,
    TerminalVelocity,
    Times,
    Uniform,
)
from steer.training import Settings

OFF = Times(diagonal=0.0)


@pytest.mark.parametrize(
    ("objective", "calls"),
    [
        (FlowMatching(), 3),
        (SelfDistillation("lagrangian", OFF), 2 + 2 + 1),
        (SelfDistillation("lagrangian", OFF, derivative=Derivative("central")), 3 * 3 + 1),
        (SelfDistillation("eulerian", OFF), 1 + 2 + 2 + 2),
        (SelfDistillation("midpoint", OFF), 3 + 1 + 1),
        (SelfDistillation("uniform", Times(diagonal=0.5)), (3 + 5) / 2),
        (MeanFlow(times=OFF), 2 + 2),
        (TerminalVelocity(times=OFF), 2 + 2 + 1 + 2),
    ],
)
def test_calls_are_those_that_the_objective_makes(objective: Objective, calls: float) -> None:
    """One a row, two in a jvp, two more where a gradient is kept."""
    assert plane.calls_a_row(objective, plane.new(1.0, width=8)) == calls


def test_trainings_make_equally_many_calls() -> None:
    flow = plane.new(1.0, width=8)
    for goal in training.objectives(training.ExactVelocity(ring().to(torch.float32))).values():
        settings = training.loop(goal, flow, 1e7, 256)
        made = settings.steps * settings.batch * plane.calls_a_row(goal, flow)
        assert made == pytest.approx(1e7, rel=0.01)


@pytest.mark.parametrize("modes", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_identities_hold_on_the_exact_map(modes: int) -> None:
    rows = training.residuals(16, modes)
    assert len(rows) == 7 and all(row["largest residual"] < row["aim"] for row in rows)


def test_exact_samplers_measure_at_the_floor() -> None:
    """The exact map in any number of jumps or restarts, and its velocity in many Euler steps; a wrong law does not."""
    law, rng = ring(), torch.Generator().manual_seed(0)
    exact = BlobFlow(law.weights, law.means, 0.3)

    def flow(x: Tensor, s: Time, t: Time, cond: Cond = None) -> Tensor:
        return exact(x.double(), s, t).to(x)

    floor = plane.distance(law, [law.sample(2000, rng=rng) for _ in range(4)], rng)
    for steps, renoised in ((1, False), (2, False), (2, True), (4, True)):
        sets = [plane.draw(flow, 2000, steps, rng, renoised) for _ in range(4)]
        assert plane.distance(law, sets, rng) < 1.6 * floor, (steps, renoised)
    assert plane.distance(law, [plane.euler(flow, 2000, 100, rng) for _ in range(4)], rng) < 2 * floor
    assert plane.distance(law, [plane.euler(flow, 2000, 1, rng)], rng) > 10 * floor


def test_kl_of_histograms() -> None:
    """Half the bins over n of exact draws; log 2 of draws on the whole board; log 4/3 where a quarter is missing."""
    board, n, rng = Checkerboard(), 200_000, torch.Generator().manual_seed(0)
    x = Points(board).rows(range(n))[0].double()
    bins = board.squares**2 * plane.BINS**2 / 2
    assert plane.histogram_kl(board, x) == pytest.approx(bins / 2 / n, rel=0.25)
    even = (2 * torch.rand(n, 2, generator=rng) - 1) * board.half_width
    assert plane.histogram_kl(board, even) == pytest.approx(math.log(2), rel=0.01)
    away = torch.where((torch.arange(n) % 4 == 0)[:, None], torch.full_like(x, 9.0), x)
    assert plane.histogram_kl(board, away) == pytest.approx(math.log(4 / 3), rel=0.02)


def test_other_weights_give_way_to_equal_ones() -> None:
    made = training.plain(SelfDistillation(weighting=LearnedWeight(least=0.1)))
    assert made == SelfDistillation(weighting=Uniform(0.1), derivative=made.derivative)
    assert training.plain(FlowMatching(weighting=AdaptiveWeight())) == FlowMatching()
    kept = FlowMatching()
    assert training.plain(kept) is kept


def test_a_short_training_learns_something() -> None:
    """From 3.5 at random weights to below 2 in 150 steps; the same seed, the same weights."""
    law, rng = ring(), torch.Generator().manual_seed(0)
    settings = Settings(steps=150, batch=64, lr=5e-3, ema=(0.9,), tracker=None, save_every=150)
    goal = SelfDistillation("midpoint", weighting=Uniform())
    before, flow = (plane.new(2.85, width=32) for _ in range(2))
    after = plane.train(goal, law, flow, settings)
    old, new = (plane.distance(law, [plane.draw(f, 1000, 2, rng)], rng) for f in (before, after))
    assert new < 0.6 * old


def test_what_a_step_holds_is_counted() -> None:
    a = torch.ones(1000)
    with step_cost.Held() as held:
        b = a * 2
        c = b + 1
        del b
        d = c.view(10, 100)
        del c
        e = d * 3
        e.add_(1)
    assert held.most == 2 * 4000 and held.now == 2 * 4000


def test_the_network_scales_with_the_data() -> None:
    """Data k times as wide far from the noise: the input is the same, the velocity grows as sqrt(1 + std^2)."""
    near, far = plane.new(1.0, width=8), plane.new(3.0, width=8)
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(far(3 * x, 1.0, 1.0) / math.sqrt(10), near(x, 1.0, 1.0) / math.sqrt(2))


@pytest.mark.slow
def test_the_fast_run_is_whole_and_draws() -> None:
    pytest.importorskip("matplotlib")
    tables = training.run(fast=True)
    assert list(tables) == ["residuals", "ring", "checkerboard", "cost"]
    names = set(training.objectives(training.ExactVelocity(ring())))
    assert {name for name in names if any(row["objective"].startswith(name) for row in tables["ring"])} == names
    assert all(row["of flow matching"] > 0.5 and row["peak MB"] > 1 for row in tables["cost"])
    assert training.plot(tables).startswith(b"\x89PNG")


def test_the_second_table_keeps_what_the_first_has() -> None:
    """Both modes of a derivative, where it is taken; nothing twice."""
    made = step_cost._modes({"lsd": SelfDistillation(), "psd_midpoint": SelfDistillation("midpoint")})
    assert list(made) == ["flow_matching", "lsd, forward", "lsd, central", "psd_midpoint"]
    assert replace(made["lsd, central"], derivative=made["lsd, forward"].derivative) == made["lsd, forward"]
