"""Two real processes on gloo do what one does; and whole states where weights are spread over processes."""

# ruff: noqa: ANN401 (settings of any kind)

import json
import os
import shutil
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import Network, losses, objective, same, trainer
from torch import nn
from training_processes import LONG, play

from steer import checkpoints
from steer.distributed import full_state, load_full_state, whole

HERE = Path(__file__).parent
FSDP = {
    "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT", "FSDP_OFFLOAD_PARAMS": "false",
}  # fmt: skip
Told = dict[str, Any]


def launch(home: Path, *names: str, **more: str) -> dict[str, list[Told]]:
    """What each of two processes saw in some scenarios, as `torchrun --nproc-per-node 2` would start them."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in ("0", "1"):
        told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
        told |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true", **more}
        told["PYTHONPATH"] = f"{HERE}:{HERE.parent}"
        command = [sys.executable, str(HERE / "training_processes.py"), str(home), *names]
        processes.append(subprocess.Popen(command, env=os.environ | told, stderr=subprocess.PIPE, text=True))
    for process in processes:
        _, text = process.communicate(timeout=120)
        assert process.returncode == 0, text
    return {name: [json.loads((home / f"{name}-{rank}.json").read_text()) for rank in (0, 1)] for name in names}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def two(home: Path) -> dict[str, list[Told]]:
    """All scenarios, in one pair of processes."""
    return launch(home, "lsd", "fm", "parts", "seeds", "apart", "stop", "bad", "tuned", "tuned_exactly")


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The same in this process."""
    return cache(lambda name: play(tmp_path_factory.mktemp("one"), name))


def distance(a: list[float], b: list[float]) -> float:
    assert len(a) == len(b) > 0
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("name", ["lsd", "fm", "parts", "seeds"])
def test_two_processes_are_one(name: str, two: dict[str, list[Told]], one: Any) -> None:
    """Objectives with a jvp and without, accumulated parts, and processes whose networks began with other weights."""
    alone = one(name)
    assert len(alone["losses"]) == (6 if name == "seeds" else 30)
    assert distance(alone["losses"][:5], alone["losses"][1:6]) > 0.1
    for told in two[name]:
        assert told["error"] is None
        assert distance(told["losses"], alone["losses"]) < 1e-5
        assert distance(told["weights"], alone["weights"]) < 1e-5
        assert distance(told["average"], alone["average"]) < 1e-5
    assert two[name][0]["weights"] == two[name][1]["weights"]


@pytest.mark.parametrize("name", ["tuned", "tuned_exactly"])
def test_fine_tuning_by_two_processes(name: str, two: dict[str, list[Told]], one: Any) -> None:
    """Each draws and scores half of the prompts of 15 rounds; the rows, and what is learned from them, are the same."""
    alone = one(name)
    assert alone["error"] is None and len(alone["losses"]) == 30
    assert distance(alone["weights"], [v for p in Network().parameters() for v in p.flatten().tolist()]) > 0.05
    for told in two[name]:
        assert told["error"] is None
        assert distance(told["losses"], alone["losses"]) < 1e-5 * max(1, *alone["losses"])
        assert distance(told["weights"], alone["weights"]) < 1e-5
        assert distance(told["average"], alone["average"]) < 1e-5
    first, second = two[name]
    assert first["weights"] == second["weights"] and distance(first["local"], second["local"]) > 0.01


def test_parts_are_the_batch(one: Any) -> None:
    assert distance(one("parts")["losses"], one("lsd")["losses"]) < 1e-5


def test_the_equality_says_something(two: dict[str, list[Told]], one: Any) -> None:
    """Each process has other rows, and without the exchange of gradients both go astray."""
    first, second = two["lsd"]
    alone = one("lsd")["losses"]
    assert distance(first["local"], second["local"]) > 0.1
    mean = [(a + b) / 2 for a, b in zip(first["local"], second["local"], strict=True)]
    assert distance(mean, first["losses"]) < 1e-6
    a, b = two["apart"]
    assert distance(a["weights"], b["weights"]) > 0.01
    assert distance(a["losses"], alone[:6]) > 1e-3 and distance(b["losses"], alone[:6]) > 1e-3


def test_one_process_goes_on_where_two_were(two: dict[str, list[Told]], one: Any, home: Path) -> None:
    assert two["lsd"][0]["error"] is None
    for later in checkpoints.found(home / "lsd")[1:]:
        shutil.rmtree(later)
    again = trainer(home / "lsd", goal=noted("lsd"), **LONG)
    rest = losses(again)
    assert len(rest) == 20
    assert distance(rest, one("lsd")["losses"][10:]) < 1e-5
    assert distance([v for p in again.plain.parameters() for v in p.flatten().tolist()], one("lsd")["weights"]) < 1e-5


def noted(name: str) -> Any:
    """The objective as the processes have it."""
    from training_processes import goal

    return goal(name, [])


def test_a_signal_to_one_process_stops_both_with_one_checkpoint(two: dict[str, list[Told]], home: Path) -> None:
    for told in two["stop"]:
        assert told["status"] == 143 and told["error"].startswith("stopped as asked, after step 5 of 30")
    assert [path.name for path in checkpoints.found(home / "stop")] == ["step-00000005"]


def test_a_nan_in_the_rows_of_one_process_stops_both(two: dict[str, list[Told]]) -> None:
    texts = {told["error"] for told in two["bad"]}
    assert len(texts) == 1 and texts.pop().startswith("FloatingPointError: step")


def test_a_batch_that_two_processes_cannot_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate import Accelerator

    monkeypatch.setattr(Accelerator, "num_processes", 2)
    with pytest.raises(ValueError, match="batch must be a multiple of 2 processes times accumulate=3, got 16; take 18"):
        trainer(tmp_path, accumulate=3)


def test_a_plain_tensor_is_whole() -> None:
    x = torch.ones(3)
    assert whole(x) is x


@pytest.mark.slow
@pytest.mark.parametrize("name", ["forward", "central"])
def test_a_derivative_through_layers_that_are_spread_one_by_one(name: str, tmp_path: Path, one: Any) -> None:
    more = {"FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP", "FSDP_TRANSFORMER_CLS_TO_WRAP": "Linear"}
    for rank in launch(tmp_path, name, **FSDP, **more)[name]:
        assert rank["error"] is None and rank["spread"] > 3
        assert distance(rank["losses"], one(name)["losses"]) < (1e-5 if name == "forward" else 1e-3)


def test_the_state_goes_round(tmp_path: Path) -> None:
    """Names of weights, not their places; the optimiser's settings stay its own; without state nothing is made up."""
    run, other = trainer(tmp_path / "a"), trainer(tmp_path / "b", flow=Network(3), lr=0.5)
    for _ in range(3):
        run.update()
    tensors, groups = full_state(run.learner, run.optimiser)
    assert {"module.flow.net.0.weight", "state.flow.net.0.weight|exp_avg", "module.weight.net.0.bias"} <= tensors.keys()
    json.dumps(groups)
    gone = {k: v for k, v in tensors.items() if not k.startswith("state.flow.net.2.bias")}
    load_full_state(other.learner, other.optimiser, gone, groups)
    there = full_state(other.learner, other.optimiser)[0]
    assert same({k: v.clone() for k, v in gone.items()}, there)
    assert other.optimiser.param_groups[0]["lr"] == 0.5


def test_the_state_of_another_network_is_refused(tmp_path: Path) -> None:
    run = trainer(tmp_path / "a")
    run.update()
    tensors, groups = full_state(run.learner, run.optimiser)
    for flow in (Network(width=8), nn.Linear(2, 2)):
        other = trainer(tmp_path / "b", flow=flow, goal=objective("fm"))
        with pytest.raises(
            ValueError, match="(?s)the checkpoint is of another network or objective: .* in another folder"
        ):
            load_full_state(other.learner, other.optimiser, tensors, groups)


@pytest.mark.slow
def test_spread_weights_and_whole_checkpoints(tmp_path: Path, one: Any) -> None:
    """FSDP2: the same losses; its checkpoint serves one process, and that of one process serves it."""
    losses(trainer(tmp_path / "lsd", goal=noted("lsd"), **LONG), 15)
    told = launch(tmp_path, "lsd", **FSDP)
    for rank in told["lsd"]:
        assert rank["error"] is None and rank["kind"] == "DTensor"
        assert distance(rank["losses"], one("lsd")["losses"][10:]) < 1e-5
        assert distance(rank["weights"], one("lsd")["weights"]) < 1e-5
        assert distance(rank["average"], one("lsd")["average"]) < 1e-5
    shutil.rmtree(tmp_path / "lsd" / "checkpoints" / "step-00000030")
    again = trainer(tmp_path / "lsd", goal=noted("lsd"), **LONG)
    assert distance(losses(again), one("lsd")["losses"][20:]) < 1e-5
