"""What each process of tests/test_spreading.py and tests/test_many.py does, and how to start it: FOLDER NAME[:MORE] ...

What a process saw goes to FOLDER/NAME-RANK.pt.
"""

import dataclasses
import os
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from colours import colour_model, redness
from torch import Tensor

import rewards
import steer
from steer.chunks import Chunks
from steer.flow_map import Chunked, Cond
from steer.interpolants import Time
from steer.methods import SMC
from steer.models import Model
from steer.posterior import Learned
from steer.problem import Scores
from steer.spreading import Spread, shares_here
from steer.stopping import Stopped

HERE = Path(__file__).parent
RANK, WORLD = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
HOLD = 0.004  # seconds that a call of the network takes at least, for a signal to find the run in the middle
METHODS: dict[str, Any] = {
    **dict.fromkeys(("best_of_n", "smc", "smc_sde", "tds", "fmtt", "beam", "guidance"), {"steps": 2}),
    "noise_smc": {"budget": 30},
    "posterior": {"method": SMC(steps=2, twist=1.0, lookahead=Learned(k=2))},  # cond has a gradient
}


def environment(rank: int, world: int, port: int = 0) -> dict[str, str]:
    """What torchrun tells a process."""
    told = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": f"{HERE}:{HERE.parent}"}
    if world > 1:
        told |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
        told |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    return os.environ | told


def start(world: int, folder: Path, *names: str) -> list[subprocess.Popen[str]]:
    """So many processes that know of each other."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, __file__, str(folder), *names]
    return [
        subprocess.Popen(command, env=environment(rank, world, port), stderr=subprocess.PIPE, text=True)
        for rank in range(world)
    ]


def finish(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        _, text = process.communicate(timeout=120)
        assert process.returncode == 0, text


def torchrun(world: int, folder: Path, name: str) -> subprocess.CompletedProcess[str]:
    """The processes as a user starts them."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}", __file__]
    return subprocess.run(
        [*command, str(folder), name], env=environment(0, 1), capture_output=True, text=True, timeout=100
    )


def saw(folder: Path, name: str, rank: int) -> Any:  # noqa: ANN401
    return torch.load(folder / f"{name}-{rank}.pt", weights_only=False)


def told(out: steer.Samples) -> dict[str, Any]:
    """What must not depend on the number of processes, and the report."""
    images = {name: getattr(out, name) for name in ("images", "unsteered", "rewards", "unsteered_rewards", "log_w")}
    return images | vars(out.trace) | {"report": out.report}


def methods() -> dict[str, Any]:
    """The embedded model and its CLIP in float64, where no rounding can turn a choice of a resampling around.

    Three rows of two prompts, or five of one: shares are uneven, and some processes have none.
    """
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]  # which CLIP makes of pictures
    model: Any = steer.load_model("emoji", "cpu")
    clip = rewards.Clip()
    for part in (model.flow, model.decode.autoencoder, clip.towers(torch.device("cpu")).model):
        part.double()
    found = {}
    for name, more in METHODS.items():
        n, prompts = (3, ["a red heart", "a fox"]) if name in ("smc", "beam") else (5, ["a red heart"])
        given = {"method": name, "reward": clip, "model": model, "seed": 0, "progress": False, **more}
        found[name] = told(steer.sample(prompts, n=n, spread="particles", **given))
    torch.set_default_dtype(torch.float32)
    return found


def gradients() -> dict[str, Any]:
    """Outputs and gradients of a map in x, a time and cond, and of a reward that rejects; for 1 to 9 rows."""
    shares, found = shares_here("cpu")[0], {}

    def flow(x: Tensor, s: Time, t: Time, cond: Cond = None) -> Tensor:
        assert cond is not None and len(cond["number"]) == len(x)
        return (x * cond["a"]).sin() * torch.as_tensor(t).reshape(-1, 1) + cond["number"][:, None]

    def bent(images: Tensor) -> Tensor:
        r = images[:, 0].square().mean((1, 2))
        return torch.where(r > 0.26, r, -torch.inf)

    for b in range(1, 10):
        rng = torch.Generator().manual_seed(b)
        x, a = (torch.randn(b, 3, generator=rng).requires_grad_() for _ in range(2))
        t = torch.rand(b, generator=rng).requires_grad_()
        v = Spread(Chunked(flow, 2), shares)(x, 0.0, t, {"a": a, "number": torch.arange(b)})
        score = rewards.Function(bent, differentiable=True)
        r = Scores(colour_model(), ["a"], score, Chunks(2, 2, 1), shares)(x[None])[0]
        value = (v * torch.arange(1.0, b + 1)[:, None]).square().sum() + torch.where(r.isfinite(), r, 0).sum()
        found[b] = [u.detach() for u in (v, r, *torch.autograd.grad(value, (x, a, t)))]
    return found


def seedless() -> dict[str, Any]:
    """Without a seed, the processes must draw one together."""
    return told(steer.sample("a", reward=redness, model=colour_model(), n=5, spread="particles", progress=False))


def metered() -> dict[str, Any]:
    """How many pictures a black box is asked for, and how many rows the network, with gradients once more."""
    seen: list[int] = []

    def black_box(images: Tensor) -> list[float]:
        seen.append(len(images))
        return redness(images).tolist()

    given = {"temperature": 1.0, "seed": 0, "spread": "particles", "progress": False}
    score = rewards.Function(black_box, differentiable=False)
    search = steer.sample("a", reward=score, model=colour_model(), method="tree_search", n=5, budget=60, **given)
    again = steer.sample("a", reward=redness, model=colour_model(), method="guidance", n=4, checkpoint=True, **given)
    return {"seen": sum(seen), "search": search.report["cost"], "again": again.report["cost"]}


def broken(how: str) -> None:
    """The last process fails in its second call of the reward, or is gone."""
    calls = [0]

    def score(images: Tensor) -> Tensor:
        calls[0] += 1
        if RANK == WORLD - 1 and calls[0] == 2:
            if how == "exit":
                os._exit(3)
            raise ValueError("no such picture here")
        return redness(images)

    reward = rewards.Function(score, differentiable=True)
    steer.sample("a", reward=reward, model=colour_model(), method="smc", n=4, spread="particles", progress=False)


def prompts() -> list[str]:
    """Sixty, the last ten of which stood there before."""
    return [f"picture {i % 50} of a {'näive ' * (i % 2)}fox" for i in range(60)]


def slow_model(status: str = "") -> Model:
    """One that takes its time; in the last process it ends it with a status, if there is one."""
    model, calls = colour_model(), [0]

    def flow(x: Tensor, s: Time, t: Time, cond: Cond = None) -> Tensor:
        calls[0] += 1
        time.sleep(HOLD)
        if status and RANK == WORLD - 1 and calls[0] > 20:
            os._exit(int(status))
        return model.flow(x, s, t, cond)

    return dataclasses.replace(model, flow=flow)


def many(folder: str, status: str = "") -> None:
    """Sixty prompts, two at once."""
    given = {"method": "smc", "n": 3, "steps": 2, "seed": 0, "batch": 2, "progress": False}
    steer.sample_many(prompts(), out=folder, reward=redness, model=slow_model(status), **given)


SCENARIOS: dict[str, Callable[..., Any]] = {
    f.__name__: f for f in (methods, gradients, seedless, metered, broken, many)
}


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    folder, *names = sys.argv[1:]
    for name, *more in (text.split(":") for text in names):
        found = SCENARIOS[name](*([folder] if name == "many" else []), *more)
        if found is not None:
            torch.save(found, Path(folder) / f"{name}-{RANK}.pt")


if __name__ == "__main__":
    try:
        main()
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(stopped.status)
