"""How many pictures a second one process and two draw: prompts shared out, or the pictures of one prompt.

Each launch is torchrun's, with one thread a process, on gloo. Launches of one process and of two take turns, in each
the ways take turns, and the least time of each is compared, since what else the machine does only adds. With as many
idle cores as processes the most that two can be is twice one; "busiest" is the processor time of the process that has
most to do, which tells what that would be where cores are not idle. "exchange" is the share of the time in which the
first process exchanges rows or waits for the other.
`python -m steer.bench.scale FOLDER PROMPTS N STEPS TURNS` is one process.

The second table is `steer.bench.judge`'s: how many pictures a second a judge over HTTP scores.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import torch

from steer.bench.judge import vlm_throughput
from steer.distributed import process_state

Row = dict[str, Any]
PROMPTS = ("a red heart", "a fox", "a house", "a cup")
WORLDS = (1, 2)
KINDS = ("seconds", "busiest")
NOTHING = {"exchange_seconds": 0.0, "received_bytes": 0}


@dataclass(frozen=True)
class Size:
    """Prompts, particles of each, steps of the method; turns of the launches, and in them; requests to the judge."""

    prompts: int = 2
    n: int = 64
    steps: int = 8
    turns: int = 2
    requests: int = 256


FAST = Size(prompts=2, n=4, steps=2, turns=1, requests=16)


def run(fast: bool = False) -> dict[str, list[Row]]:
    """Two tables: pictures a second by processes, and of a judge over HTTP."""
    size = FAST if fast else Size()
    launches = [launch(world, size) for _ in range(size.turns) for world in WORLDS]
    return {"scale": table(launches), "judge": vlm_throughput(size.requests)}


def table(launches: list[Row]) -> list[Row]:
    """A row for each way and number of processes: the least times of all launches, and rates over those of one process.

    "one process" is `steer.sample` as it is; "particles" in one process shows what being able to share costs.
    """
    rows: list[Row] = []
    for way, base in (("one process", "one process"), ("particles", "one process"), ("prompts", "prompts")):
        for world in WORLDS:
            if seen := [told for told in launches if told["processes"] == world and way in told["seconds"]]:
                first = [told for told in launches if told["processes"] == 1]
                (seconds, alone), (busiest, alone_busy) = (
                    (min(told[kind][way] for told in seen), min(told[kind][base] for told in first))
                    for kind in ("seconds", "busiest")
                )
                pictures = seen[0]["pictures"]["prompts" if way == "prompts" else "particles"]
                row = {"way": way, "processes": world, "pictures": pictures, "seconds": seconds, "busiest": busiest}
                row |= {"pictures a second": pictures / seconds, "of one process": alone / seconds}
                row["of one, by the busiest"] = alone_busy / busiest
                if way == "particles":
                    exchange = min(told["exchange"] for told in seen)
                    row |= {"exchange": exchange / seconds, "received MB": seen[0]["bytes"] / 1e6}
                rows.append(row)
    return rows


def launch(world: int, size: Size) -> Row:
    """What so many processes measured."""
    root = str(Path(__file__).resolve().parents[2])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    environment["PYTHONPATH"] = os.pathsep.join([root, environment.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
        given = [str(x) for x in astuple(size)[:4]]
        done = subprocess.run(
            [*command, "-m", "steer.bench.scale", folder, *given], env=environment, capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"the processes of the benchmark failed: {done.stderr[-2000:]}")
        return json.loads((Path(folder) / "told.json").read_text(encoding="utf8"))


def measure(folder: Path, prompts: int, n: int, steps: int, turns: int) -> None:
    """What each process does; the first writes down what it took until all were done."""
    import rewards
    from steer import load_model, sample, sample_many

    state = process_state(cpu=True)
    given = {
        "reward": rewards.get("clip"), "model": load_model("emoji", "cpu"), "method": "tds", "n": n, "steps": steps,
        "seed": 0, "device": "cpu", "progress": False,
    }  # fmt: skip
    ways: dict[str, Callable[[Path], Any]] = {
        "particles": lambda out: sample(PROMPTS[0], spread="particles", **given),
        "prompts": lambda out: sample_many(PROMPTS[:prompts], out=out, batch=1, **given),
    }
    if state.num_processes == 1:
        ways["one process"] = lambda out: sample(PROMPTS[0], **given)
    taken: dict[str, list[Row]] = {way: [] for way in ways}
    for turn in range(turns + 1):  # the first loads what is loaded once
        for way, draw in ways.items():
            taken[way].append(timed(lambda draw=draw, turn=turn: draw(folder / str(turn)), state))
    counted = {way: rows[1:] for way, rows in taken.items()}
    if state.is_main_process:
        least = {kind: {way: min(row[kind] for row in rows) for way, rows in counted.items()} for kind in KINDS}
        exchanges = [row["found"].report["cost"].get("processes", NOTHING) for row in counted["particles"]]
        row = {"processes": state.num_processes, "pictures": {"particles": n, "prompts": prompts * n}, **least}
        row |= {"exchange": min(told["exchange_seconds"] for told in exchanges)}
        row |= {"bytes": exchanges[0]["received_bytes"]}
        (folder / "told.json").write_text(json.dumps(row), encoding="utf8")


def timed(draw: Callable[[], Any], state: Any) -> Row:  # noqa: ANN401 (accelerate's)
    """What it gives, its seconds until all processes are done, and the most processor time that one of them took."""
    from accelerate.utils import gather

    state.wait_for_everyone()
    start, busy = time.perf_counter(), time.process_time()
    found = draw()
    mine = torch.tensor([time.process_time() - busy])
    most: Any = gather(mine)  # for which they wait
    return {"found": found, "seconds": time.perf_counter() - start, "busiest": float(most.max())}


def main() -> None:
    """One process."""
    torch.set_num_threads(1)
    folder, *numbers = sys.argv[1:]
    measure(Path(folder), *map(int, numbers))


if __name__ == "__main__":
    main()
