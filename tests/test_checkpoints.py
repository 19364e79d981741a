"""Checkpoints: whole or not there, the newest few kept, and what is said of damaged ones."""

# ruff: noqa: ANN401 (settings of any kind)

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import everything, losses, same, trainer

from steer import checkpoints

TENSORS = {
    "w": torch.arange(6.0).reshape(2, 3),
    "turned": torch.arange(6).reshape(2, 3).T,
    "half": torch.ones(3).half(),
}


def write(folder: Path, *steps: int, keep: int = 2) -> list[str]:
    for step in steps:
        checkpoints.write(folder, step, {k: v + step for k, v in TENSORS.items()}, {"fact": step}, keep)
    return [path.name for path in checkpoints.found(folder)]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write(tmp_path, 7)
    tensors, facts = checkpoints.read(tmp_path / "checkpoints" / "step-00000007")
    assert facts == {"step": 7, "fact": 7} and same(tensors, {k: v + 7 for k, v in TENSORS.items()})
    assert {k: v.dtype for k, v in tensors.items()} == {k: v.dtype for k, v in TENSORS.items()}


def test_views_and_tied_weights_are_written(tmp_path: Path) -> None:
    w = torch.arange(4.0)
    checkpoints.write(tmp_path, 1, {"a": w, "b": w, "part": w[1:3]}, {}, 1)
    assert same(checkpoints.read(checkpoints.found(tmp_path)[0])[0], {"a": w, "b": w, "part": w[1:3]})


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_are_kept(keep: int, tmp_path: Path) -> None:
    assert write(tmp_path, 5, 10, 15, 20, keep=keep) == ["step-00000010", "step-00000015", "step-00000020"][3 - keep :]
    assert len(list((tmp_path / "checkpoints").iterdir())) == keep


def test_a_step_written_again_and_later_ones_that_were_passed_over(tmp_path: Path) -> None:
    write(tmp_path, 5, 10)
    (tmp_path / "checkpoints" / "step-00000010" / "state.json").write_text("{")
    assert write(tmp_path, 7, keep=1) == ["step-00000007"]  # 10 cannot be read, and must not count among those kept
    write(tmp_path, 7, keep=1)
    assert checkpoints.read(checkpoints.found(tmp_path)[0])[1]["fact"] == 7


def test_what_a_killed_process_left_is_swept_and_never_read(tmp_path: Path) -> None:
    write(tmp_path, 5)
    left = tmp_path / "checkpoints" / ".step-00000010.part"
    left.mkdir()
    (left / "state.safetensors").write_bytes(b"half of it")
    state = checkpoints.newest(tmp_path)
    assert state is not None and state[1]["step"] == 5
    write(tmp_path, 15)
    assert not left.exists()


@pytest.mark.parametrize("damage", ["truncated", "empty", "no json", "half a json", "gone"])
def test_a_damaged_one_is_named_with_the_cure(damage: str, tmp_path: Path) -> None:
    write(tmp_path, 5)
    there = tmp_path / "checkpoints" / "step-00000005"
    hurt(there, damage)
    with pytest.raises(ValueError, match=rf"the checkpoint {there} is damaged \(.*\); remove this folder to go on"):
        checkpoints.newest(tmp_path)


def hurt(checkpoint: Path, damage: str) -> None:
    tensors, facts = checkpoint / "state.safetensors", checkpoint / "state.json"
    if damage == "truncated":
        tensors.write_bytes(tensors.read_bytes()[:-5])
    elif damage == "empty":
        tensors.write_bytes(b"")
    elif damage == "no json":
        facts.unlink()
    elif damage == "half a json":
        facts.write_text(facts.read_text()[:9])
    else:
        tensors.unlink()


@pytest.mark.parametrize("damage", ["truncated", "half a json"])
def test_a_run_goes_back_to_the_one_before_by_itself(damage: str, tmp_path: Path) -> None:
    whole = trainer(tmp_path / "a")
    truth = losses(whole)
    losses(trainer(tmp_path / "b"), 9)
    hurt(tmp_path / "b" / "checkpoints" / "step-00000008", damage)
    again = trainer(tmp_path / "b")
    with pytest.warns(UserWarning, match="step-00000008 is damaged .* going on from the one before"):
        assert losses(again) == truth[4:]
    assert same(everything(again), everything(whole))
    assert [p.name for p in checkpoints.found(tmp_path / "b")] == ["step-00000008", "step-00000012"]


def test_none_is_no_error(tmp_path: Path) -> None:
    assert checkpoints.newest(tmp_path) is None and checkpoints.found(tmp_path / "nowhere") == []


@pytest.mark.parametrize("where", ["save_file", "_to_disk"])
def test_a_full_disk_leaves_the_earlier_ones_whole(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        if where == "save_file":
            Path(arguments[1]).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    truth = losses(trainer(tmp_path / "whole"))
    with monkeypatch.context() as patch:
        run = trainer(tmp_path / "run")
        update = run.update

        def late() -> dict[str, Any]:
            if run.step == 6:
                patch.setattr(checkpoints, where, full)
            return update()

        run.update = late  # type: ignore[method-assign]
        with pytest.raises(
            OSError, match="the checkpoint of step 8 could not be written in .*No space left.*make room"
        ):
            run.run()
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000004"]
    assert losses(trainer(tmp_path / "run")) == truth[4:]


def test_a_real_full_disk(tmp_path: Path) -> None:
    """A limit on the size of files, which the writer meets half-way, as it meets the end of a disk."""
    import resource
    import signal

    write(tmp_path, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        with pytest.raises(OSError, match="the checkpoint of step 2 could not be written"):
            checkpoints.write(tmp_path, 2, {"w": torch.ones(100_000)}, {}, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
    assert write(tmp_path, 2, keep=1) == ["step-00000002"]


def test_json_is_strict(tmp_path: Path) -> None:
    checkpoints.write_json(tmp_path / "a.json", {"loss": float("nan"), "rows": [1.5, float("-inf")]})
    strict = json.loads((tmp_path / "a.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert strict == {"loss": "nan", "rows": [1.5, "-inf"]}
