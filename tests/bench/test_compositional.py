"""The compositional benchmark: how it counts, and that steering by the verifier helps."""

import math
from pathlib import Path

import pytest
import torch

from rewards.scenes import is_held_out, parse
from steer.bench import compositional, measuring
from steer.data.shapes import prompts
from steer.models import load_model

CAPTIONS = ["a star", "a red circle left of a blue square", "three squares"]


def found(*right: int) -> dict[str, torch.Tensor]:
    """Verdicts on three captions."""
    best = torch.tensor(right).double()
    return {"best": best, "weighted": best / 2, "calls": torch.full((3,), 12)}


def test_rows_hold_errors_beside_those_of_best_of_n() -> None:
    verdicts = {("best_of_n", 16): found(1, 0, 0), ("beam", 16): found(1, 1, 0), ("tree", 16): None}
    rows = compositional.overall(CAPTIONS, verdicts)
    assert [row["method"] for row in rows] == ["best_of_n", "beam", "tree"] and "right" not in rows[2]
    assert rows[1]["right"] == pytest.approx(2 / 3) and rows[1]["error / best_of_n"] == pytest.approx(0.5)
    assert rows[1]["right, weighted"] == pytest.approx(1 / 3) and rows[1]["calls"] == 12
    all_right = {("best_of_n", 16): found(1, 1, 1)}
    assert math.isnan(float(str(compositional.overall(CAPTIONS, all_right)[0]["error / best_of_n"])))
    (_, beam) = compositional.by_category(CAPTIONS, verdicts)
    assert (beam["single"], beam["full"], beam["count"]) == (1, 1, 0) and is_held_out(parse("three squares"))
    assert (beam["seen"], beam["held out"]) == (1, 0)


def test_steering_by_the_verifier_finds_right_pictures() -> None:
    model, captions = load_model("shapes", device="cpu"), prompts("seen", 7, seed=5)
    unsteered = compositional.plain_accuracy(model, captions, 8)
    assert [row["calls"] for row in unsteered] == [1, 2, 4, 8]
    best = compositional.steered(model, captions, "best_of_n", 64)
    assert best is not None and best["best"].mean() > unsteered[2]["all"] + 0.1
    assert compositional.steered(model, captions, "smc_sde", 2) is None


@pytest.mark.slow
def test_the_whole_benchmark_runs(tmp_path: Path) -> None:
    tables, _ = measuring.measure("compositional", tmp_path, fast=True)
    assert len(tables) == 4 and all(rows for rows in tables.values())
