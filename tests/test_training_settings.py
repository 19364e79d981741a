"""Settings of the loop: the rate by closed form, and what is refused before any work."""

# ruff: noqa: ANN401 (settings of any kind)

import json
import math
from pathlib import Path
from typing import Any

import pytest
from tiny import Rows, trainer

from steer.training import Settings


def test_rates_by_closed_form() -> None:
    cosine = Settings(steps=1000, lr=2.0, warm_up=0.1, final=0.05, tracker=None)
    assert cosine.rate(0) == 0.02 and cosine.rate(50) == pytest.approx(1.0) and cosine.rate(100) == 2.0
    assert cosine.rate(550) == pytest.approx(2 * (0.05 + 0.95 / 2))
    assert cosine.rate(325) == pytest.approx(2 * (0.05 + 0.95 * (1 + math.sqrt(0.5)) / 2))
    assert cosine.rate(1000) == pytest.approx(0.1)
    root = Settings(steps=900, lr=1.0, schedule="sqrt", warm_up=0.0, tracker=None)
    assert root.rate(0) == root.rate(299) == 1 and root.rate(600) == pytest.approx(math.sqrt(0.5))
    assert root.rate(899) == pytest.approx(math.sqrt(300 / 899))
    flat = Settings(steps=10, lr=0.3, schedule="constant", warm_up=0.0, tracker=None)
    assert {flat.rate(step) for step in range(10)} == {0.3}


def test_the_rate_is_that_of_the_step(tmp_path: Path) -> None:
    run = trainer(tmp_path, steps=10, warm_up=0.5, lr=0.04, log_every=1)
    run.run()
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["lr"] for row in rows] == pytest.approx([run.settings.rate(k) for k in range(10)], rel=1e-5)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"batch": 10, "accumulate": 4}, "batch must be a multiple of 1 processes times accumulate=4, got 10; take 12"),
        ({"tracker": "wandb"}, "tracker='wandb' is not installed; pip install wandb, or take tracker=null"),
        ({"tracker": "mlflow"}, "tracker must be one of tensorboard, wandb, None, got 'mlflow'"),
        ({"ema": (0.9, 0.9)}, "none twice"),
        ({"ema": ()}, "at least one"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"lr": float("nan")}, "lr must be above 0, got nan"),
        ({"drop": 1.5}, "drop must be a share between 0 and 1, got 1.5"),
        ({"betas": (0.9, 1.0)}, "betas must be two numbers"),
        ({"schedule": "linear"}, "schedule must be one of cosine, constant, sqrt, got 'linear'"),
        ({"data": Rows(0)}, "data must hold at least one row"),
    ],
)
def test_what_cannot_be_is_said_before_any_work(
    changed: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steer.training_settings.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path / "out", **changed)
    assert not (tmp_path / "out").exists()
