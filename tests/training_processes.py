"""What each process of tests/test_distributed.py does: FOLDER NAME ...; what it saw goes to FOLDER/NAME-RANK.json."""

# ruff: noqa: ANN401 (settings of any kind)

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tiny import Network, Rows, losses, objective, trainer

from steer.adapters import Reference
from steer.experience import Experience, Rounds
from steer.objectives import NegativeAware, SelfDistillation, ShiftMatching, Student
from steer.objectives.derivative import Derivative
from steer.prompts import Prompts
from steer.training import Stopped, Trainer
from steer.value_targets import PosteriorDraws

LONG = {"steps": 30, "batch": 32, "save_every": 10, "keep": 9, "log_every": 10}


def goal(name: str, local: list[float]) -> Any:
    """An objective that notes what this process alone has for a loss."""
    return noting(objective(name), local)


def noting(inner: Any, local: list[float]) -> Any:
    """An objective that does so."""

    def noted(*arguments: Any) -> Any:
        loss, more = inner(*arguments)
        local.append(float(loss.detach()))
        return loss, more

    noted.weighting = getattr(inner, "weighting", None)  # type: ignore[attr-defined]
    return noted


def plain(
    folder: Path, local: list[float], name: str, kill: int | None = None, **more: Any
) -> tuple[Trainer, list[float]]:
    run = trainer(folder, goal=goal(name, local), **LONG | more)
    return run, losses(run, kill)


def apart(folder: Path, local: list[float]) -> tuple[Trainer, list[float]]:
    """As "lsd", but no process hears of the others' gradients."""
    run = trainer(folder, goal=goal("lsd", local), **LONG)
    update: Callable[[], dict[str, Any]] = run.update

    def alone() -> dict[str, Any]:
        with getattr(run.learner, "no_sync", contextlib.nullcontext)():
            return update()

    run.update = alone  # type: ignore[method-assign]
    return run, losses(run, 6)


def stop(folder: Path, local: list[float]) -> tuple[Trainer, list[float]]:
    """The last process alone is told to stop, in its fifth step."""
    run = trainer(folder, goal=goal("lsd", local), **LONG)
    update: Callable[[], dict[str, Any]] = run.update

    def told() -> dict[str, Any]:
        if run.step == 4 and run.accelerator.is_last_process:
            os.kill(os.getpid(), signal.SIGTERM)
        return update()

    run.update = told  # type: ignore[method-assign]
    return run, losses(run)


def bad(folder: Path, local: list[float]) -> tuple[Trainer, list[float]]:
    """A row that is not finite comes to one process only."""
    return plain(folder, local, "lsd", data=Rows(bad=[trainer(folder, **LONG).order(2)[-1]]))


def blocks(folder: Path, local: list[float], derivative: str) -> tuple[Trainer, list[float]]:
    """With a jvp, or differences, through a network whose layers may be spread one by one."""
    run = trainer(folder, goal=SelfDistillation(derivative=Derivative(derivative)), **LONG)  # type: ignore[arg-type]
    return run, losses(run)


def near(x: torch.Tensor) -> torch.Tensor:
    """A reward of points [p m 2]: how near they are to one."""
    return -(x - torch.tensor([1.0, -0.5])).square().sum(-1)


def tuned(folder: Path, local: list[float], objective: Any) -> tuple[Trainer, list[float]]:
    """Fine-tuning: each process draws and scores its share of a round's prompts, and learns from all of them."""
    flow, labels = Network(), {"left": 0, "right": 1, "below": 2}
    reference = Reference(flow)
    data = Experience(
        Prompts([*labels, "above"]), lambda texts: {"label": torch.eye(3)[[labels.get(q, 0) for q in texts]]},
        objective.collector, lambda texts: near, (2,), reference,
        rounds=Rounds(prompts=4, group=4, updates=2, replay=2, chunk=4), temperature=0.5,
    )  # fmt: skip
    student = Student(flow, reference=reference)
    run = trainer(folder, flow=flow, data=data, goal=noting(objective, local), student=student, **LONG)
    return run, losses(run)


SCENARIOS: dict[str, Callable[..., tuple[Trainer, list[float]]]] = {
    "lsd": lambda folder, local: plain(folder, local, "lsd"),
    "fm": lambda folder, local: plain(folder, local, "fm"),
    "parts": lambda folder, local: plain(folder, local, "lsd", accumulate=2),
    "seeds": lambda folder, local: plain(folder, local, "lsd", 6, flow=Network(int(os.environ.get("RANK", 0)))),
    "apart": apart,
    "stop": stop,
    "bad": bad,
    "forward": lambda folder, local: blocks(folder, local, "forward"),
    "tuned": lambda folder, local: tuned(folder, local, NegativeAware(beta=0.5)),
    "tuned_exactly": lambda folder, local: tuned(folder, local, ShiftMatching(PosteriorDraws(gradient=True))),
    "central": lambda folder, local: blocks(folder, local, "central"),
}


def spread_on_cpu() -> None:
    """Accelerate spreads weights over accelerators alone, where torch can over CPUs: let it take these for those."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def play(home: Path, name: str) -> dict[str, Any]:
    """One scenario; what it came to."""
    local: list[float] = []
    told: dict[str, Any] = {"error": None}
    run = None
    try:
        run, told["losses"] = SCENARIOS[name](home / name, local)
    except Stopped as stopped:
        told |= {"error": str(stopped), "status": stopped.status}
    except Exception as error:
        told["error"] = f"{type(error).__name__}: {error}"
    if run is not None:
        from steer.distributed import whole

        told["weights"] = [v for p in run.plain.parameters() for v in whole(p.detach()).flatten().tolist()]
        told["kind"] = type(next(run.learner.parameters())).__name__
        told["spread"] = sum(type(m).__name__.startswith("FSDP") for m in run.plain.modules())
        told["average"] = [v for p in run.averages.first.parameters() for v in p.flatten().tolist()]
    return told | {"local": local}


def main() -> None:
    home, *names = sys.argv[1:]
    torch.set_num_threads(1)
    if os.environ.get("ACCELERATE_USE_FSDP"):
        spread_on_cpu()
    for name in names:
        told = play(Path(home), name)
        path = Path(home) / f"{name}-{os.environ.get('RANK', '0')}.json"
        path.write_text(json.dumps(told))


if __name__ == "__main__":
    main()
