"""What is written down of a run: means, one line a step however often it was killed, no half lines."""

# ruff: noqa: ANN401 (settings of any kind)

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import losses, trainer

from steer.tracking import Means


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def without_speed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "steps_per_second"} for row in rows]


def test_a_line_holds_the_means_since_the_last(tmp_path: Path) -> None:
    seen = losses(trainer(tmp_path, log_every=5))
    rows = lines(tmp_path)
    assert [row["step"] for row in rows] == [5, 10, 12]
    truth = [sum(seen[a:b]) / (b - a) for a, b in ((0, 5), (5, 10), (10, 12))]
    assert [row["loss"] for row in rows] == pytest.approx(truth, rel=1e-5)
    assert all({"diagonal", "lagrangian", "norm", "lr", "steps_per_second"} <= row.keys() for row in rows)


@pytest.mark.parametrize("every", [1, 3, 5])
def test_after_kills_the_log_is_that_of_an_undisturbed_run(every: int, tmp_path: Path) -> None:
    """Also where a line's steps lie on both sides of a checkpoint."""
    losses(trainer(tmp_path / "a", log_every=every))
    for kill in (7, 11, None):
        losses(trainer(tmp_path / "b", log_every=every), kill)
    assert without_speed(lines(tmp_path / "b")) == without_speed(lines(tmp_path / "a"))


def test_a_half_written_line_is_dropped(tmp_path: Path) -> None:
    losses(trainer(tmp_path, log_every=2), 7)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    losses(trainer(tmp_path, log_every=2))
    assert [row["step"] for row in lines(tmp_path)] == [2, 4, 6, 8, 10, 12]


def test_a_step_is_judged_in_its_own_line(tmp_path: Path) -> None:
    losses(trainer(tmp_path, judge=lambda flow, folder, step: {"score": step / 2}, sample_every=5, log_every=100))
    assert [(row["step"], row.get("score")) for row in lines(tmp_path)] == [(5, 2.5), (10, 5.0), (12, None), (12, 6.0)]


def test_means_of_figures_that_some_steps_lack() -> None:
    means = Means()
    for k in range(4):
        means.add({"loss": float(k)} | ({"rare": torch.tensor(2.0 * k)} if k % 2 else {}))
    half = Means()
    half.load(json.loads(json.dumps(means.state())))
    for told in (means, half):
        told.add({"loss": 4.0})
        assert told.take() == {"loss": 2.0, "rare": 4.0} and told.take() == {}


def test_a_readable_line_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The losses, and what a judge finds; and at the start of a run that goes on, from where."""
    judged: dict[str, Any] = {"judge": lambda flow, folder, step: {"score": step / 2}, "sample_every": 6}
    losses(trainer(tmp_path, log_every=4, progress=True, **judged), 7)
    first = capfd.readouterr().out
    losses(trainer(tmp_path, log_every=4, progress=True, **judged))
    said = (first + capfd.readouterr().out).splitlines()
    assert [re.sub(r"loss \S+, \S+ steps a second|\d+ s$", "-", line) for line in said] == [
        "step 4: -, -", "step 6: score 3, -", "goes on from step 4", "step 6: score 3, -", "step 8: -, -",
        "step 12: -, -", "step 12: score 6, -",
    ]  # fmt: skip
    assert f"step 12: loss {lines(tmp_path)[-2]['loss']:.4g}, " in said[-2]


def test_without_progress_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    trainer(tmp_path, log_every=1).run()
    assert capfd.readouterr() == ("", "")
