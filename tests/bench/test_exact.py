import math
from typing import cast

import pytest
import torch
from torch.testing import assert_close

from steer.bench.exact import expected_reward, measure, mode_weights, ring_problem, run
from steer.particles import Particles, Trace

PROBLEMS = pytest.mark.parametrize("steepness", [1.0, 4.0])


@pytest.fixture(scope="module")
def rows() -> list[dict[str, object]]:
    """The fast table."""
    return run(fast=True)


@PROBLEMS
def test_expected_reward_against_draws(steepness: float, rng: torch.Generator) -> None:
    problem = ring_problem(steepness)
    r = problem.reward(problem.target.sample(200_000, rng=rng))
    assert abs(float(r.mean() - expected_reward(problem))) < 4 * float(r.std()) / 200_000**0.5


def test_the_reward_is_the_published_one() -> None:
    x = torch.tensor([[2.0, 3.0]]).double()
    assert_close(ring_problem(1.0).reward(x), torch.tensor([-0.4 + 1.0 + 3.0]).double())
    assert_close(ring_problem(4.0).reward(x), torch.tensor([4 * 3.6]).double())


def test_known_mode_weights_of_the_target(rng: torch.Generator) -> None:
    problem = ring_problem(1.0)
    known = torch.tensor([0.017, 0.347, 0.613, 0.022, 0, 0, 0, 0.001]).double()
    assert_close(problem.target.weights, known, atol=1e-3, rtol=0)
    x = problem.target.sample(50_000, rng=rng)
    assert_close(mode_weights(problem, x, torch.full((50_000,), 1 / 50_000).double()), known, atol=0.01, rtol=0)


def test_exact_draws_measure_at_the_floor(rng: torch.Generator) -> None:
    problem = ring_problem(4.0)
    x, flat = problem.target.sample(1000, rng=rng)[None], torch.full((1, 1000), -math.log(1000)).double()
    size, none = torch.full((1, 1), 1000.0), torch.zeros(1)
    trace = Trace(none, size, size > 1e9, torch.full((1,), 14.861), none, none, none, flat)
    result = measure(problem, Particles(x, flat), trace, 2000, rng)
    assert result["sliced_w1"] < 3 * result["floor"] and result["mode_tv"] < 0.05 and result["ess"] == 1
    assert abs(result["log_z_error"]) < 1e-3


def test_rows_are_complete_and_cost_what_they_say(rows: list[dict[str, object]]) -> None:
    assert len(rows) == 12 and all(row.keys() == rows[0].keys() for row in rows)
    assert {row["calls"] for row in rows if row["method"] == "SMC"} == {8}
    assert all(cast(int, row["calls"]) <= 8 for row in rows)


def test_steering_beats_the_plain_model(rows: list[dict[str, object]]) -> None:
    for name in {row["problem"] for row in rows}:
        of = {row["method"]: row for row in rows if row["problem"] == name}
        plain = cast(float, of["unsteered"]["reward"])
        assert all(cast(float, row["reward"]) > plain + 0.3 for method, row in of.items() if method != "unsteered")
        assert cast(float, of["SMC"]["sliced_w1"]) < 0.1 * cast(float, of["unsteered"]["sliced_w1"])
        assert math.isnan(cast(float, of["unsteered"]["log_z_error"]))


@pytest.mark.slow
def test_smc_meets_the_exact_law_at_eight_calls() -> None:
    """Figures of the README: sliced W1 near its floor, log Z right on the mean over eight seeds."""
    of = {row["problem"]: row for row in run() if row["method"] == "SMC"}
    mild, hard = of["ring, reward x 1"], of["ring, reward x 4"]
    assert cast(float, mild["sliced_w1"]) <= 0.075 and abs(cast(float, mild["log_z_error"])) <= 0.06
    assert cast(float, hard["sliced_w1"]) <= 0.06 and abs(cast(float, hard["log_z_error"])) <= 0.25
