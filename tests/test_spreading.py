"""One run over several processes is the run of one; real ones, on gloo."""

import time
from collections.abc import Callable
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from colours import colour_model, redness
from sampling_processes import METHODS, SCENARIOS, finish, saw, start, torchrun
from torch.testing import assert_close

import steer
from steer.spreading import Shares

SEVERAL = [2, pytest.param(4, marks=pytest.mark.slow)]
ALL = ("methods", "gradients", "seedless", "metered")
Seen = Callable[[int, str], list[Any]]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """What each of so many processes saw of a scenario; all scenarios are in one run of them."""

    @cache
    def home(world: int) -> Path:
        folder = tmp_path_factory.mktemp(f"of-{world}")
        finish(start(world, folder, *ALL))
        return folder

    return lambda world, name: [saw(home(world), name, rank) for rank in range(world)]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("world", SEVERAL)
def test_a_method_over_processes_is_the_method(name: str, world: int, seen: Seen) -> None:
    """Pictures, weights, log Z, effective sizes and who was resampled; and costs: each row once, whoever had it."""
    alone = seen(1, "methods")[0][name]
    shown = ("images", "unsteered", "rewards", "unsteered_rewards", "log_w", "log_z", "ess")
    for mine in (found[name] for found in seen(world, "methods")):
        for key in shown:
            assert_close(mine[key], alone[key], atol=1e-6, rtol=0, equal_nan=True)
        for key in ("forward", "backward", "reward_calls", "resampled", "ancestors"):
            assert mine[key].tolist() == alone[key].tolist()
        counts = ("network_forward", "network_backward", "calls", "reward_calls")
        costs = [{key: found["report"]["cost"]["steered"][key] for key in counts} for found in (mine, alone)]
        assert costs[0] == costs[1]
        assert mine["report"]["held_out"] == pytest.approx(alone["report"]["held_out"], abs=1e-4)
    assert alone["rewards"].std() > 1e-3  # they say something


@pytest.mark.parametrize("world", SEVERAL)
def test_the_processes_agree_bit_for_bit_and_exchange_alike(world: int, seen: Seen) -> None:
    found = seen(world, "methods")
    for name in METHODS:
        assert all(torch.equal(mine[name]["images"], found[0][name]["images"]) for mine in found)
        processes = [mine[name]["report"]["cost"]["processes"] for mine in found]
        assert {told["number"] for told in processes} == {len(found)}
        assert len({told["received_bytes"] for told in processes}) == 1 and processes[0]["received_bytes"] > 0


def test_what_is_received_is_what_the_docstring_says(seen: Seen) -> None:
    """best_of_n of 5 particles in 2 processes, and 8 plain ones: halves, rounded up, of 8 bytes a number."""
    told = seen(2, "methods")[0]["best_of_n"]["report"]["cost"]["processes"]
    d, pixels, plain = steer.load_model("emoji", "cpu").shape[0], 3 * 64 * 64, 8
    network = 4 * plain // 2 * d + 2 * 3 * d  # four calls for plain pictures, two for steered ones
    scores, pictures, judged = plain // 2 + 3, 2 * 3 * pixels, 2 * 3
    assert told["received_bytes"] == 8 * (network + scores + pictures + judged)


@pytest.mark.parametrize("world", SEVERAL)
def test_gradients_and_rejections_of_uneven_shares(world: int, seen: Seen) -> None:
    (alone,) = seen(1, "gradients")
    assert any((r == -torch.inf).any() for _, r, *_ in alone.values())
    for found, b in ((found, b) for found in seen(world, "gradients") for b in alone):
        for mine, truth in zip(found[b], alone[b], strict=True):
            assert_close(mine, truth, atol=1e-6, rtol=1e-5)


def test_one_process_has_the_gradients_of_autograd(seen: Seen) -> None:
    """A closed form: d/da of the squared sum of k (sin(x a) t + number) is 2 k^2 v cos(x a) x t."""
    (alone,) = seen(1, "gradients")
    for b, (v, _, _, da, _) in alone.items():
        rng = torch.Generator().manual_seed(b)
        x, a = (torch.randn(b, 3, generator=rng) for _ in range(2))
        t, k = torch.rand(b, generator=rng)[:, None], torch.arange(1.0, b + 1)[:, None]
        assert_close(v, (x * a).sin() * t + k - 1)
        assert_close(da, 2 * k.square() * v * (x * a).cos() * x * t)


@pytest.mark.parametrize("world", SEVERAL)
def test_a_seed_that_nobody_gave_is_the_same_in_all(world: int, seen: Seen) -> None:
    first, *others = seen(world, "seedless")
    for mine in others:
        assert mine["report"]["seed"] == first["report"]["seed"]
        assert torch.equal(mine["images"], first["images"]) and torch.equal(mine["log_w"], first["log_w"])


@pytest.mark.parametrize("world", SEVERAL)
def test_no_picture_is_scored_twice_and_rows_count_once(world: int, seen: Seen) -> None:
    (alone,), found = seen(1, "metered"), seen(world, "metered")
    assert sum(mine["seen"] for mine in found) == alone["seen"] == 8 + alone["search"]["steered"]["reward_calls"]
    for mine in found:
        again = mine["again"]["steered"]
        assert again["network_recomputed"] == again["network_backward"] > 0


@pytest.mark.parametrize(("how", "cause"), [("raise", "no such picture here"), ("exit", "exitcode  : 3")])
def test_a_process_that_fails_ends_all(how: str, cause: str, tmp_path: Path) -> None:
    began = time.perf_counter()
    done = torchrun(2, tmp_path, f"broken:{how}")
    assert done.returncode != 0 and time.perf_counter() - began < 60
    assert cause in done.stderr and "rank      : 1" in done.stderr
    assert "process 0 of 2 has lost another one" in done.stderr or "Signal 15 (SIGTERM)" in done.stderr


@pytest.mark.parametrize("world", [1, 2, 3, 5, 8])
def test_shares_are_a_partition(world: int) -> None:
    shares = [Shares(rank, world) for rank in range(world)]
    for rows in range(1, 20):
        assert list(chain(*(range(rows)[one.mine(rows)] for one in shares))) == list(range(rows))
        numbers = torch.arange(rows)
        parts = [numbers[one.even(rows)] for one in shares]
        assert len({len(part) for part in parts}) == 1 and torch.equal(torch.cat(parts)[:rows], numbers)


def test_one_process_asked_to_spread_does_what_it_does_otherwise() -> None:
    given: dict[str, Any] = {"reward": redness, "model": colour_model(), "n": 5, "seed": 0, "progress": False}
    plain, spread = (steer.sample("a", method="tds", spread=s, **given) for s in (None, "particles"))
    assert torch.equal(plain.images, spread.images) and "processes" not in spread.report["cost"]


def test_what_the_first_process_raises_is_raised() -> None:
    def fails() -> None:
        raise KeyError("mine")

    assert Shares().agree(lambda: 3) == 3
    with pytest.raises(KeyError, match="mine"):
        Shares().agree(fails)


def test_unknown_ways_to_spread() -> None:
    with pytest.raises(ValueError, match="spread='prompts' must be 'particles'"):
        steer.sample("a", reward=redness, model=colour_model(), spread="prompts", progress=False)


def test_every_scenario_is_run() -> None:
    assert {*ALL, "broken", "many"} == set(SCENARIOS)
