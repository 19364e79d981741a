"""The tables over the tasks with known truth: who is in them, what they say of an exact sampler and of a broken one."""

import csv
import dataclasses
import io
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from steer import settings
from steer.bench import exact, measuring, peers, sweep
from steer.bench.problems import PROBLEMS, hard_ring, mild_ring
from steer.draws import Rng
from steer.flow_map import Cond, FlowMap
from steer.interpolants import Interpolant
from steer.methods import SMC, BestOfN
from steer.particles import Particles, Reward, Trace

SMALL = sweep.Size(n=1024, seeds=10, few=16, repeats=2, reference=500, tasks=("mild ring",), most=16)


@pytest.fixture(scope="module")
def tables() -> dict[str, list[dict[str, Any]]]:
    """The fast run."""
    return exact.run(fast=True)


@dataclasses.dataclass(frozen=True)
class Broken:
    """A method whose weights are lost on the way out, while its log Z claims that they are not."""

    method: SMC = SMC()
    needs_gradient: bool = False

    def __call__(
        self, flow: FlowMap, path: Interpolant, reward: Reward, x0: Tensor, cond: Cond = None, *, rng: Rng
    ) -> tuple[Particles, Trace]:
        """Equal weights, whatever they were."""
        out, trace = BestOfN()(flow, path, reward, x0, cond, rng=rng)
        return dataclasses.replace(out, log_w=torch.full_like(out.log_w, -math.log(out.x.shape[1]))), trace

    def with_budget(self, calls: int, n: int = 16) -> "Broken":
        """Itself."""
        return self


def test_exact_draws_measure_at_the_floor(rng: torch.Generator) -> None:
    problem = hard_ring()
    x, flat = problem.draw(1000, rng)[None], torch.full((1, 1000), -math.log(1000)).double()
    size, none = torch.full((1, 1), 1000.0), torch.zeros(1)
    trace = Trace(none, size, size > 1e9, torch.full((1,), 14.861), none, none, none, flat)
    result = exact.measure(problem, Particles(x, flat), trace, 2000, rng)
    assert result["sliced_w1"] < 3 * result["floor"] and result["mode_tv"] < 0.05 and result["ess"] == 1
    assert abs(result["log_z_error"]) < 1e-3


@pytest.mark.parametrize("name", ["mild ring", "rare mode", "double well"])
def test_exact_draws_are_not_called_biased(name: str) -> None:
    problem, rng = PROBLEMS[name](), torch.Generator().manual_seed(3)
    x = torch.stack([problem.draw(500, rng) for _ in range(10)])
    flat, log_z = x.new_full(x.shape[:2], -math.log(500)), problem.log_z + 0.02 * torch.randn(10, generator=rng)
    outcome = sweep.measure(problem, x, flat, log_z.double(), 1000)
    figures = sweep.figures(problem, outcome, sweep.floor(problem, 500, 1000))
    assert sweep.bias(problem, outcome) < 4 and sweep.converged(problem, outcome, outcome)
    assert 0.7 < figures["over_floor"] < 1.4 and figures["mode_tv"] < 0.05 and figures["mean_error"] < 0.08
    assert figures["reward"] == pytest.approx(figures["reward_exact"], abs=0.3)


def test_a_method_that_loses_its_weights_is_called_biased() -> None:
    rows = sweep.over_calls(mild_ring(), "broken", Broken(), (4, 8), SMALL)
    assert rows[-1]["kind"] == sweep.LAW and rows[-1]["converged"] and rows[-1]["bias"] > 4
    assert exact.verdict(rows[-1]).startswith("biased")
    told = exact.aims(rows)
    assert told[-1]["met"] == "no" and "broken" in told[-1]["method"]


def test_a_method_that_keeps_them_is_not() -> None:
    rows = sweep.over_calls(mild_ring(), "best_of_n", BestOfN(), (8, 16), SMALL)
    assert exact.verdict(rows[-1]) == "ok" and rows[-1]["over_floor"] < 1.5 and rows[-1]["mode_error"] < 0.1


def test_every_method_is_in_the_table_of_every_task(tables: dict[str, list[dict[str, Any]]]) -> None:
    for task in sweep.FAST.tasks:
        assert {row["method"] for row in tables[task]} == {*settings.names("method"), peers.NAME}
        for row in tables[task]:
            ran = any(value is not None for key, value in row.items() if key.startswith("x floor"))
            assert ran or "the least is" in row["verdict"] or row["verdict"] == peers.MISSING


def test_budgets_are_kept(tables: dict[str, list[dict[str, Any]]]) -> None:
    ran = [row for row in tables[exact.ALL] if row["kind"] != sweep.NOT_RUN]
    assert len(ran) > 20 and all(row["calls"] / 2 < row["used"] <= row["calls"] for row in ran)


def test_heuristics_claim_nothing(tables: dict[str, list[dict[str, Any]]]) -> None:
    kinds = {row["method"]: row["kind"] for row in tables[exact.ALL] if row["kind"] != sweep.NOT_RUN}
    assert all(kinds[name] == sweep.HEURISTIC for name in ("dps", "tfg", "guidance", "beam", "rollover", "reno"))
    assert all(kinds[name] == sweep.LAW for name in ("smc", "tds", "best_of_n", "noise_smc", "tree", "fk"))


def test_a_peer_that_is_missing_is_a_row_that_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "installed", lambda: False)
    rows = sweep.over_calls(mild_ring(), peers.NAME, None, (100,), SMALL)
    assert rows == [{"task": "mild ring", "method": peers.NAME, "calls": 100, "kind": "not run", "note": peers.MISSING}]
    assert exact.by_calls(rows, "mild ring")[0]["verdict"] == "not installed: pip install steer[bench]"


def test_the_peer_meets_the_law() -> None:
    pytest.importorskip("particles")
    problem = mild_ring()
    runs = [peers.bootstrap(problem, 500, seed, 50) for seed in range(4)]
    reward = torch.stack([(log_w.exp() * problem.reward(x)).sum() for x, log_w, _ in runs])
    assert float(reward.mean()) == pytest.approx(problem.reward_mean, abs=0.2)
    assert math.fsum(run[2] for run in runs) / 4 == pytest.approx(problem.log_z, abs=0.15)


def test_aims_say_no_where_they_are_missed() -> None:
    row = {"task": "hard ring", "method": "smc", "kind": sweep.LAW, "used": 16, "calls": 16, "bias": 1.0}
    assert [aim["met"] for aim in exact.aims([row | {"over_floor": 1.9}])] == ["yes"]
    assert [aim["met"] for aim in exact.aims([row | {"over_floor": 2.1}])] == ["no"]
    assert exact.aims([row | {"over_floor": 1.9, "used": 17}]) == []


def test_rings_are_complete_and_cost_what_they_say(tables: dict[str, list[dict[str, Any]]]) -> None:
    rows = tables["exact"]
    assert len(rows) == 12 and all(row.keys() == rows[0].keys() for row in rows)
    assert {row["calls"] for row in rows if row["method"] == "SMC"} == {8}
    assert all(row["calls"] <= 8 for row in rows)


def test_steering_beats_the_plain_model(tables: dict[str, list[dict[str, Any]]]) -> None:
    for name in {row["problem"] for row in tables["exact"]}:
        of = {row["method"]: row for row in tables["exact"] if row["problem"] == name}
        plain = of["unsteered"]["reward"]
        assert all(row["reward"] > plain + 0.3 for method, row in of.items() if method != "unsteered")
        assert of["SMC"]["sliced_w1"] < 0.1 * of["unsteered"]["sliced_w1"]
        assert math.isnan(of["unsteered"]["log_z_error"])


def test_all_rows_are_in_the_csv(tables: dict[str, list[dict[str, Any]]]) -> None:
    lines = list(csv.DictReader(io.StringIO(measuring.as_csv(tables).decode())))
    assert len(lines) == sum(map(len, tables.values()))
    mine = [line for line in lines if line["table"] == exact.ALL]
    assert [line["method"] for line in mine] == [row["method"] for row in tables[exact.ALL]]
    known = [str(row.get("log_z_rmse", "")) for row in tables[exact.ALL]]
    assert [line["log_z_rmse"] for line in mine] == known


def test_the_plot_is_a_picture(tables: dict[str, list[dict[str, Any]]]) -> None:
    pytest.importorskip("matplotlib")
    assert exact.plot(tables).startswith(b"\x89PNG")


@pytest.mark.slow
def test_smc_meets_the_exact_law_at_eight_calls() -> None:
    """Figures of the README: sliced W1 near its floor, log Z right on the mean over eight seeds."""
    of = {row["problem"]: row for row in exact.rings() if row["method"] == "SMC"}
    mild, hard = of["mild ring"], of["hard ring"]
    assert mild["sliced_w1"] <= 0.075 and abs(mild["log_z_error"]) <= 0.06
    assert hard["sliced_w1"] <= 0.06 and abs(hard["log_z_error"]) <= 0.25
