"""Trainings killed at random moments (SIGKILL): do they go on, and end with the weights of one that nobody killed?

The deaths fall in the middle of steps and of checkpoints alike: a checkpoint of some megabytes is written every other
step. A run is a real process; all are forked from one that has imported everything, so that a life is short.
`python -m steer.bench.killing N SEED` is that one.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from steer import checkpoints
from steer.flow_map import Cond
from steer.interpolants import Time, like

Row = dict[str, object]
STEPS, SAVE_EVERY = 40, 2


class Wide(nn.Module):
    """A perceptron in the plane, wide enough for a checkpoint of megabytes."""

    def __init__(self, width: int = 512) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            inner = [nn.Linear(4, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2)]
        self.net = nn.Sequential(*inner)

    def forward(self, x: Tensor, s: Time, t: Time, cond: Cond = None) -> Tensor:
        """v_{s,t}(x) [b 2]."""
        return self.net(torch.cat([x, *(like(u, x).expand(len(x), 1) for u in (s, t))], 1))


class Ring:
    """Points on a circle."""

    null: Cond = None

    def __len__(self) -> int:
        return 1000

    def __call__(self, index: Sequence[int]) -> tuple[Tensor, Cond]:
        """x1 [b 2]."""
        angle = torch.as_tensor(index) * 2.4
        return torch.stack([angle.cos(), angle.sin()], 1), None


def kills(n: int, seed: int = 0) -> list[Row]:
    """A row a kill: where it fell, from which step the next life goes on, whether all checkpoints are whole.

    The last row tells of the end: whether weights, averages and moments are those of an undisturbed run, bit for bit.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}  # neither survives a fork
    command = [sys.executable, "-m", "steer.bench.killing", str(n), str(seed)]
    root = str(Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = os.pathsep.join([root, environment.get("PYTHONPATH", "")])
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the run of kills failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def train(folder: Path) -> None:
    """The run that is killed."""
    from steer.objectives import SelfDistillation
    from steer.training import Settings, Trainer

    settings = Settings(steps=STEPS, batch=32, save_every=SAVE_EVERY, keep=2, log_every=5, tracker=None)
    Trainer(Wide(), SelfDistillation(), Ring(), settings, folder, progress=False).run()


def _lives(n: int, seed: int, home: Path) -> list[Row]:
    """One run after another until n of them were killed; then the last is let to its end."""
    dice, rows = random.Random(seed), []
    train(home / "whole")  # which imports all that a life needs
    truth, start = _state(home / "whole"), time.perf_counter()
    _life(home / "again", None)
    long, run, equal = time.perf_counter() - start, 0, _same(_state(home / "again"), truth)
    while len(rows) < n:
        folder, wait = home / f"run-{run}", dice.uniform(0, long / 2)
        if not _life(folder, wait):
            rows.append({"kill": len(rows) + 1, "run": run, "after": wait, **_found(folder)})
        else:  # complete before its time: it must be right, and the next kills are for another
            equal, run = equal and _same(_state(folder), truth), run + 1
    _life(home / f"run-{run}", None)
    equal = equal and _same(_state(home / f"run-{run}"), truth)
    return [*rows, {"kill": "end", "run": run, "step": STEPS, "equal": equal}]


def _life(folder: Path, wait: float | None) -> bool:
    """A process that trains in the folder, killed after some seconds; returns whether it came to its end."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            train(folder)
            status = 0
        finally:
            os._exit(status)
    if wait is not None:
        time.sleep(wait)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise RuntimeError(f"a run in {folder} failed, when it should have gone on")
    return os.WIFEXITED(status)


def _found(folder: Path) -> Row:
    """What a kill left: each checkpoint is read whole, or raises."""
    torn = any((folder / "checkpoints").glob(".step-*.part"))
    steps = [checkpoints.read(path)[1]["step"] for path in checkpoints.found(folder)]
    return {"step": max(steps, default=0), "inside": "checkpoint" if torn else "step", "whole": len(steps)}


def _state(folder: Path) -> dict[str, Tensor]:
    return checkpoints.read(checkpoints.found(folder)[-1])[0]


def _same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def main() -> None:
    """Print the rows as one line of JSON."""
    torch.set_num_threads(1)
    n, seed = map(int, sys.argv[1:3])
    with tempfile.TemporaryDirectory() as home:
        print(json.dumps(_lives(n, seed, Path(home))))


if __name__ == "__main__":
    main()
