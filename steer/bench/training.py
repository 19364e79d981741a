"""What the objectives teach a small network of the plane, and what a step of each costs.

Tables: "residuals", what each identity leaves over on an exact flow map; "ring", sliced W1 to the eight Gaussians of
`steer.bench.problems.ring` after trainings of equal cost; "checkerboard", KL beside published figures; "cost", a step
of each objective on the embedded model's network over one of plain flow matching.

All trainings begin at the same random weights of the same network and make the same number of network calls, counted as
`steer.bench.plane.Counted` does, under the same settings of the loop. All rows count alike: weights learned beside the
map raise the rows whose residual is small, which takes longer trainings than these, and adaptive ones move the point
that a regression tends to; the published choice of MeanFlow has a row of its own. What distils is taught by the exact
velocity, whose calls are not counted.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from steer import settings
from steer.analytic import GaussianMixture
from steer.bench import plane, step_cost
from steer.bench.problems import ring
from steer.data.mixture import Checkerboard, Points
from steer.flow_map import Cond, FlowMap
from steer.interpolants import Linear, Time
from steer.objectives import (
    Batch,
    Derivative,
    FlowMatching,
    Objective,
    SelfDistillation,
    Student,
    Uniform,
)
from steer.objectives.base import draw_rows
from steer.objectives.self_distillation import eulerian, lagrangian, progressive
from steer.plots import COLOURS, blank, png
from steer.training import Settings

Row = dict[str, Any]
STEPS = (1, 2, 4, 8)
EULER = (1, 2, 4, 8, 16, 50)
NAMES: dict[Any, str] = {"lagrangian": "LSD", "midpoint": "PSD-M", "uniform": "PSD-U"}
BOARD_STEPS = (1, 2, 4, 8, 16)
AIM = 1.5  # of sliced W1 over its floor, at 2 steps
PUBLISHED: list[Row] = [
    {"objective": "LSD, third-party reproduction", "training": "125k steps of 100k points", "kl, 1": 0.458,
     "kl, 2": 0.430, "kl, 4": 0.352, "kl, 8": 0.265, "kl, 16": 0.251},
    {"objective": "PSD-M, third-party reproduction", "training": "125k steps of 100k points", "kl, 1": 1.589,
     "kl, 2": 0.893, "kl, 4": 0.520, "kl, 8": 0.322, "kl, 16": 0.267},
    {"objective": "LSD, arXiv:2505.18825", "training": "125k steps of 100k points", "kl, 4": 0.07, "kl, 8": 0.07,
     "kl, 16": 0.07},
]  # fmt: skip
"""KL of others by histograms of their own; the paper's is where its curve levels off."""
PEER: Row = {"objective": "MeanFlow, published code, 8,000 steps (measured elsewhere)", "w1, 1": 0.23}


@dataclass(frozen=True)
class Size:
    """How much is run: network calls of a training on the ring and on the board, samples, sets of samples, rows."""

    ring: float = 4e6
    board: float = 4e7
    n: int = 4096
    sets: int = 8
    board_n: int = 200_000
    batch: int = 256
    board_batch: int = 1024
    width: int = 128
    repeats: int = 9


FAST = Size(ring=2e4, board=2e4, n=1024, sets=1, board_n=20_000, width=64, repeats=1)


@dataclass(frozen=True)
class ExactVelocity:
    """The velocity of a mixture's flow as a teacher: v_{t,t} for any s."""

    law: GaussianMixture

    def __call__(self, x: Tensor, s: Time, t: Time, cond: Cond = None) -> Tensor:
        """b_t(x) [b d]."""
        return self.law.velocity(x, t)


def run(fast: bool = False) -> dict[str, list[Row]]:
    """The tables of this module; fast: the same with trainings too short to learn much."""
    size = FAST if fast else Size()
    return {
        "residuals": residuals(64, modes=1) if fast else residuals(256),
        "ring": on_ring(size),
        "checkerboard": on_checkerboard(size),
        "cost": step_cost.table(costly(fast), size.repeats, 16 if fast else 256),
    }


def objectives(teacher: FlowMap, published: bool = False) -> dict[str, Objective]:
    """All objectives but those of posterior maps, by name; what distils takes the teacher.

    published: whether rows are weighted as the objective's own setting says, or all alike.
    """
    made: dict[str, Objective] = {}
    for name in settings.names("objective"):
        if not name.startswith("posterior"):
            goal = settings.build("objective", name)
            made[name] = goal(teacher=teacher) if isinstance(goal, partial) else goal
    return made if published else {name: plain(goal) for name, goal in made.items()}


def costly(fast: bool) -> Callable[[FlowMap], dict[str, Objective]]:
    """What is timed, with a given teacher: all, or those with an aim."""
    return lambda teacher: {
        name: goal
        for name, goal in objectives(teacher, published=True).items()
        if name in step_cost.AIMS or (not fast and name != "flow_matching")
    }


def plain(objective: Any) -> Any:  # noqa: ANN401 (an objective)
    """The objective with equal weights in place of learned or adaptive ones."""
    if isinstance(objective.weighting, Uniform):
        return objective
    return replace(objective, weighting=Uniform(getattr(objective.weighting, "least", None)))


def loop(objective: Objective, flow: FlowMap, calls: float, batch: int) -> Settings:
    """The settings of a training with so many network calls."""
    steps = max(int(calls / batch / plane.calls_a_row(objective, flow)), 1)
    return Settings(steps=steps, batch=batch, lr=3e-3, ema=(0.995,), tracker=None, save_every=steps, log_every=steps)


def residuals(n: int, modes: int = 3) -> list[Row]:
    """The largest number that each identity leaves over on the exact map of a mixture, at n points, in float64.

    The map of several modes is solved for, to about 1e-9 here; that of one is in closed form. The teacher is the map's
    own diagonal, or the velocity in closed form, as a distillation has it. A MeanFlow
    has no residual of its own: it is the Eulerian one with a velocity that is right on the average alone.
    """
    law, rng = ring(modes, radius=2.0, std=0.5), torch.Generator().manual_seed(0)
    s, t = torch.rand(2, n, generator=rng, dtype=torch.float64).sort(0).values
    rows = draw_rows(Linear(), Batch(law.sample(n, rng=rng)), s, t, rng)
    to_data = replace(rows, t=torch.ones_like(t))
    h, half = torch.rand(n, generator=rng, dtype=torch.float64), torch.full((n,), 0.5, dtype=torch.float64)
    own = Student(law.flow(tolerance=1e-9))
    taught, mode = replace(own, average=ExactVelocity(law)), Derivative("forward")
    left: dict[str, Callable[[], Tensor]] = {
        "lagrangian": lambda: lagrangian(own, rows, mode),
        "eulerian": lambda: eulerian(own, rows, mode),
        "midpoint": lambda: progressive(own, rows, half),
        "uniform": lambda: progressive(own, rows, h),
        "lagrangian, exact teacher": lambda: lagrangian(taught, rows, mode),
        "eulerian, exact teacher": lambda: eulerian(taught, rows, mode),
        "eulerian to t = 1 (consistency), exact teacher": lambda: eulerian(taught, to_data, mode),
    }
    return [{"identity": name, "largest residual": float(f().abs().max()), "aim": 1e-6} for name, f in left.items()]


def told(run_: Settings) -> str:
    """How long a training was."""
    return f"{run_.steps} steps of {run_.batch} points"


def on_ring(size: Size) -> list[Row]:
    """One row an objective: sliced W1 at 1 to 8 steps, and at 2 over the floor; the same of flow matching by Euler.

    The floor is that of as many exact draws. Consistency models go on by fresh noise, all others by jumps.
    """
    law, rng = ring(), torch.Generator().manual_seed(1)
    std = float(law.cov.diagonal().mean().sqrt())
    floor = plane.distance(law, [law.sample(size.n, rng=rng) for _ in range(4 * size.sets)], rng)
    rows: list[Row] = [{"objective": "exact draws (the floor)"} | {f"w1, {k}": floor for k in STEPS}]
    teacher = ExactVelocity(law.to(torch.float32))
    goals = objectives(teacher)
    goals["mean_flow, published weights"] = objectives(teacher, published=True)["mean_flow"]
    for name, goal in goals.items():
        start, flow = time.perf_counter(), plane.new(std, width=size.width)
        run_ = loop(goal, flow, size.ring, size.batch)
        flow = plane.train(goal, law, flow, run_)
        row: Row = {"objective": name, "training": told(run_), "seconds": time.perf_counter() - start}
        if isinstance(goal, FlowMatching):
            rows.append({**row, "objective": f"{name}, Euler"} | _euler(law, flow, size))
        else:
            rows.append(row | _jumps(law, flow, size, renoised="consistency" in name))
            rows[-1]["of the floor, 2"] = rows[-1]["w1, 2"] / floor
    return [*rows, PEER]


def _jumps(law: GaussianMixture, flow: FlowMap, size: Size, renoised: bool) -> Row:
    rng = torch.Generator().manual_seed(2)
    return {
        f"w1, {k}": plane.distance(law, [plane.draw(flow, size.n, k, rng, renoised) for _ in range(size.sets)], rng)
        for k in STEPS
    }


def _euler(law: GaussianMixture, flow: FlowMap, size: Size) -> Row:
    rng = torch.Generator().manual_seed(2)
    return {
        f"w1, {k}": plane.distance(law, [plane.euler(flow, size.n, k, rng) for _ in range(size.sets)], rng)
        for k in EULER
    }


def on_checkerboard(size: Size) -> list[Row]:
    """KL of the histograms of samples at 1 to 16 steps, of exact draws, and as published."""
    board, rng = Checkerboard(), torch.Generator().manual_seed(3)
    exact = Points(board, seed=5).rows(range(size.board_n))[0]
    floor = plane.histogram_kl(board, exact)
    rows: list[Row] = [{"objective": "exact draws (the floor)"} | {f"kl, {k}": floor for k in BOARD_STEPS}]
    for identity in NAMES:
        goal = SelfDistillation(identity, weighting=Uniform())
        flow = plane.new(board.std, width=size.width)
        run_ = loop(goal, flow, size.board, size.board_batch)
        flow = plane.train(goal, board, flow, run_)
        kl = {f"kl, {k}": plane.histogram_kl(board, plane.draw(flow, size.board_n, k, rng)) for k in BOARD_STEPS}
        rows.append({"objective": NAMES[identity], "training": told(run_)} | kl)
    return [*rows, *PUBLISHED]


def plot(tables: dict[str, list[Row]]) -> bytes:
    """PNG: sliced W1 against steps, a line an objective, flow matching by Euler steps dashed, the floor grey."""
    figure = blank(7.5, 4.2, dpi=130)
    axes = figure.subplots()
    floor, *rows = tables["ring"]
    for i, row in enumerate(rows):
        steps = [int(key.removeprefix("w1, ")) for key in row if key.startswith("w1, ")]
        euler, style = "Euler" in row["objective"], ("o-", "s--", "^:")[i // len(COLOURS) % 3]
        axes.plot(
            steps, [row[f"w1, {k}"] for k in steps], "*" if row is PEER else ".--" if euler else style,
            color="0.4" if row is PEER or euler else COLOURS[i % len(COLOURS)], markersize=7 if row is PEER else 3.5,
            linewidth=1, label=row["objective"].split(" (")[0],
        )  # fmt: skip
    axes.axhline(floor["w1, 2"], color="0.5", linewidth=0.8, label=floor["objective"])
    axes.set(
        xscale="log",
        yscale="log",
        ylim=(0.8 * floor["w1, 2"], 5),
        xlabel="network calls a sample",
        ylabel="sliced W1 to the ring",
    )
    axes.set_xticks(EULER, [str(k) for k in EULER])
    axes.minorticks_off()
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return png(figure)
