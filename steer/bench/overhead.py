"""What steering costs beyond the network, the decoder and the reward that it calls, and how its cost grows.

"bare" makes the calls that the method makes, with batches of the same sizes and the same backward passes, and nothing
else: what a person would write who needs neither weights, nor costs, nor chunks. Runs of the two take turns, and the
least time of each is compared, since what else the machine does only adds.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

import rewards
from steer.flow_map import Cond, jump
from steer.interpolants import Time
from steer.methods import SMC, BestOfN, Guidance
from steer.models import Model, load_model
from steer.plots import BLUE, blank, png
from steer.posterior import Renoised
from steer.problem import Problem, generators

Row = dict[str, object]
PROMPTS = ["a red heart", "a fox", "a house", "a cup"]
METHODS = {"best_of_n": BestOfN(8), "smc": SMC(8), "guidance": Guidance(8)}
AIMS = {"best_of_n": 1.05, "smc": 1.05, "guidance": 1.10}
SIZES = {"n": (16, 32, 64, 128), "steps": (4, 8, 16, 32), "k": (2, 4, 8, 16)}


class Call(NamedTuple):
    """One call of the network, and whether a gradient went back through it."""

    x: Tensor
    s: Time
    t: Time
    cond: Cond
    gradient: bool


def run(fast: bool = False) -> dict[str, list[Row]]:
    """Two tables: ratios of wall time over bare calls, and seconds against n, steps and k."""
    model = load_model("emoji", "cpu")
    sizes = [(1, 8)] if fast else [(1, 64), (4, 16)]
    ratios = [ratio(model, name, p, n, 2 if fast else 9) for name in METHODS for p, n in sizes]
    return {"overhead": ratios, "growth": growth(model, 2 if fast else 4, 2 if fast else 5)}


def ratio(model: Model, name: str, p: int, n: int, repeats: int) -> Row:
    """Seconds of a method on p prompts of n particles, and of its bare calls, with the reward `clip`."""
    problem, rng = _problem(model, p)
    method, x0 = METHODS[name], problem.noise(n, rng)
    calls = record(problem, method, x0)
    every = name != "best_of_n"  # which scores the last ends alone
    whole, alone = least([lambda: _run(problem, method, x0), lambda: bare(problem, calls, every)], repeats)
    figures = {"seconds": whole, "bare": alone, "ratio": whole / alone, "aim": AIMS[name]}
    return {"method": name, "prompts": p, "n": n, **figures}


def growth(model: Model, points: int, repeats: int) -> list[Row]:
    """Seconds of SMC for one prompt as n, steps or the draws k of a look-ahead grow, and the line through them."""
    problem, rng = _problem(model, 1)
    made: dict[str, Callable[[int], tuple[SMC, int]]] = {
        "n": lambda value: (SMC(8), value),
        "steps": lambda value: (SMC(value), 16),
        "k": lambda value: (SMC(4, lookahead=Renoised(value)), 8),
    }
    rows: list[Row] = []
    for axis, make in made.items():
        values = SIZES[axis][:points]
        work = [partial(_run, problem, method, problem.noise(n, rng)) for method, n in map(make, values)]
        seconds = least(work, repeats)
        slope, start = line(values, seconds)
        for value, taken in zip(values, seconds, strict=True):
            rows.append(
                {"axis": axis, "value": value, "seconds": taken, "of the line": taken / (start + slope * value)}
            )
    return rows


def record(problem: Problem, method: Any, x0: Tensor) -> list[Call]:  # noqa: ANN401 (a steer.methods.Method)
    """The network's calls in a run."""
    calls: list[Call] = []
    flow = problem.model.flow

    def recorded(x: Tensor, s: Time, t: Time, cond: Cond = None) -> Tensor:
        calls.append(Call(x.detach(), s, t, cond, torch.is_grad_enabled()))
        return flow(x, s, t, cond)

    model = dataclasses.replace(problem.model, flow=recorded)
    _run(Problem(model, problem.prompts, problem.score, problem.device), method, x0)
    return calls


def bare(problem: Problem, calls: list[Call], every: bool) -> None:
    """The calls again, with decoder and reward after every one or the last, and the gradients that were taken."""
    texts = [q for q in problem.prompts for _ in range(len(calls[0].x) // len(problem.prompts))]
    for i, call in enumerate(calls):
        with torch.set_grad_enabled(call.gradient):
            x = call.x.requires_grad_(call.gradient)
            x1 = jump(problem.model.flow, x, call.s, call.t, call.cond)
            if every or i == len(calls) - 1:
                scores = problem.score(problem.model.decode(x1), texts)
                if call.gradient:
                    torch.autograd.grad(scores.sum(), x)


def line(x: tuple[int, ...], y: list[float]) -> tuple[float, float]:
    """Slope and start of the straight line nearest to the points, by the least squares of relative errors."""
    seen = torch.tensor(y).double()
    columns = torch.stack([torch.tensor(x).double(), torch.ones(len(x)).double()], 1) / seen[:, None]
    slope, start = torch.linalg.lstsq(columns, torch.ones(len(x), 1).double()).solution[:, 0].tolist()
    return slope, start


def least(work: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """The least seconds of each, in turns, after one turn that does not count."""
    times = [[_seconds(w) for w in work] for _ in range(repeats + 1)][1:]
    return [min(column) for column in zip(*times, strict=True)]


def plot(tables: dict[str, list[Row]]) -> bytes:
    """PNG of the second table: three panels of seconds, with the lines."""
    figure = blank(10, 3.2, dpi=150)
    for axes, axis in zip(figure.subplots(1, len(SIZES)), SIZES, strict=True):
        rows: list[Any] = [row for row in tables["growth"] if row["axis"] == axis]
        x, y = [row["value"] for row in rows], [row["seconds"] for row in rows]
        axes.plot(x, [row["seconds"] / row["of the line"] for row in rows], color="0.7", label="a straight line")
        axes.plot(x, y, "o", color=BLUE, label="SMC")
        axes.set(xlabel=axis, ylabel="seconds", xlim=(0, None), ylim=(0, None))
    figure.axes[0].legend(frameon=False)
    return png(figure)


def _problem(model: Model, p: int) -> tuple[Problem, list[torch.Generator]]:
    prompts = PROMPTS[:p]
    return Problem(model, prompts, rewards.get("clip"), torch.device("cpu")), generators(prompts, 0)


def _run(problem: Problem, method: Any, x0: Tensor) -> None:  # noqa: ANN401
    with torch.no_grad():
        problem.run(method, x0, generators(problem.prompts, 1), lambda rows: None, [4.0] * len(problem.prompts))


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
