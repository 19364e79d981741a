"""What stops a run: signals, with a checkpoint; numbers that are not finite, with the rows that they came of."""

# ruff: noqa: ANN401 (settings of any kind)

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny import Rows, objective, trainer

from steer.objectives import Student
from steer.objectives.base import Batch
from steer.training import Stopped


def test_an_interruption_stops_with_a_checkpoint_and_hands_the_signal_back(tmp_path: Path) -> None:
    run, before = trainer(tmp_path, steps=500), signal.getsignal(signal.SIGINT)
    update = run.update

    def interrupt() -> dict[str, Any]:
        if run.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return update()

    run.update = interrupt  # type: ignore[method-assign]
    with pytest.raises(Stopped, match="after step 3 of 500") as error:
        run.run()
    assert error.value.status == 130 and signal.getsignal(signal.SIGINT) == before
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000003"]


SCRIPT = """
import sys, time
from pathlib import Path
from tiny import Rows, trainer
from steer.training import Stopped

class Slow(Rows):
    def __call__(self, index):
        time.sleep(0.02)
        print("row", flush=True)
        return super().__call__(index)

try:
    trainer(Path(sys.argv[1]), data=Slow(), steps=100_000, save_every=100_000).run()
except Stopped as stopped:
    print(stopped, file=sys.stderr)
    sys.exit(stopped.status)
"""


def test_a_signal_to_a_real_process(tmp_path: Path) -> None:
    here = Path(__file__).parent
    environment = {"PYTHONPATH": f"{here}:{here.parent}", "OMP_NUM_THREADS": "1", "PATH": ""}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    assert process.stdout is not None
    for _ in range(5):
        process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 143, told
    (checkpoint,) = (tmp_path / "checkpoints").iterdir()
    step = json.loads((checkpoint / "state.json").read_text())["step"]
    last = told.strip().splitlines()[-1]
    assert last.startswith(
        f"stopped as asked, after step {step} of 100000; the same command goes on from the checkpoint"
    )


def test_a_nan_in_the_data_is_named(tmp_path: Path) -> None:
    run = trainer(tmp_path, data=Rows(bad=[37]), save_every=1, steps=50)
    at = next(step for step in range(50) if 37 in run.order(step))
    with pytest.raises(FloatingPointError) as error:
        run.run()
    text = str(error.value)
    assert text.startswith(f"step {at}: the loss is nan") and "rows [37] of the data" in text
    assert str(run.order(at)[:8]) in text and (f"step-{at:08d}" if at else "none yet") in text
    told = json.loads((tmp_path / "not_finite.json").read_text())
    assert told["step"] == at and told["rows"] == run.order(at) and told["rows_not_finite"] == [37]
    assert all(p.isfinite().all() for p in run.plain.parameters())  # nothing was learned from it


def test_an_infinite_gradient_of_good_data(tmp_path: Path) -> None:
    def goal(model: Student, batch: Batch, rng: Any) -> Any:
        loss, more = objective("fm")(model, batch, rng)
        return loss + (loss - loss.detach()).abs().sqrt(), more

    with pytest.raises(FloatingPointError, match="all its data are finite; last good checkpoint: none yet; lower lr"):
        trainer(tmp_path, goal=goal).run()
