"""Methods against laws that are known exactly: what they claim, and how far from it they are at a number of calls.

Tables: "exact", the two rings with few methods at 8 calls a particle; "aims", what is meant to hold; one a task, every
method at each number of calls; and all figures behind these. See `steer.bench.problems` for the tasks,
`steer.bench.sweep` for the figures.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steer.bench import peers
from steer.bench.problems import Problem, hard_ring, mild_ring
from steer.bench.sweep import EXACT_MAP, FAST, HEURISTIC, LAW, NOT_RUN, Size, sweep
from steer.flow_map import FlowMap, OdeFlowMap
from steer.interpolants import Linear
from steer.methods import SMC, BestOfN, Guidance
from steer.metrics import sliced_w1
from steer.particles import Particles, Trace
from steer.plots import COLOURS, blank, png

Row = dict[str, Any]
ALL = "all figures"
PEERS = 0.05 / 0.035  # the best sliced W1 over its floor on the mild ring in runs of other packages, 100 calls or more
WORDS = {
    "over_floor": "sliced W1 / that of exact draws", "mean_error": "error of the mean", "log_z_rmse": "error of log Z",
    "mode_error": "relative error of its weight",
}  # fmt: skip
TICKS = (4, 8, 16, 32, 64, 128)


@dataclass(frozen=True)
class Entry:
    """A method as it is run: on which flow map, with how many particles and calls (of a network) a particle kept."""

    name: str
    method: Any  # a steer.methods.Method
    flow: FlowMap
    particles: int
    calls: int


def entries(problem: Problem, n: int, calls: int) -> list[Entry]:
    """The methods, each at about `calls` network calls for every one of n particles returned."""
    ode = OdeFlowMap(lambda x, t, cond=None: problem.flow(x, t, t), steps=1)
    guided = Guidance().with_budget(calls, n=1)
    return [
        Entry("unsteered", BestOfN(temperature=math.inf), problem.flow, n, 1),
        Entry("best-of-n", BestOfN(), problem.flow, calls * n, calls),
        Entry("SMC", SMC(steps=calls), problem.flow, n, calls),
        Entry("SMC, no flow map (ODE steps)", SMC(steps=calls // 2), ode, n, calls),
        Entry("guidance", guided, problem.flow, n, calls),
        Entry("guidance, path weights", Guidance(guided.steps, weights="path"), problem.flow, n, calls),
    ]


def run(fast: bool = False) -> dict[str, list[Row]]:
    """The tables of this module; fast: fewer tasks, calls, particles and seeds."""
    rows = sweep(FAST if fast else Size(), lambda task: None)
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    return {"exact": rings(fast), **{task: by_calls(rows, task) for task in tasks}, "aims": aims(rows), ALL: rows}


def rings(fast: bool = False) -> list[Row]:
    """One row for each ring and method, averaged over the seeds (8; 2 of a quarter of the size when fast).

    Keys: problem, method, n, calls (a particle), seeds, sliced_w1 and its floor (exact draws of the same number against
    the same reference), log_z_error (mean over seeds less the truth), log_z_rmse, reward and reward_exact, mode_tv
    (total variation of the mode weights), ess (at the end, as a share of the particles), seconds a run. NaN where a
    method makes no estimate.
    """
    n, seeds, reference = (256, 2, 1000) if fast else (1024, 8, 4000)
    return [
        _row(problem, entry, n, list(_runs(problem, entry, seeds, reference)))
        for problem in (mild_ring(), hard_ring())
        for entry in entries(problem, n, calls=8)
    ]


def _runs(problem: Problem, entry: Entry, seeds: int, reference: int) -> Iterator[dict[str, float]]:
    for seed in range(seeds):
        rng = torch.Generator().manual_seed(seed)
        x0 = torch.randn(1, entry.particles, 2, generator=rng, dtype=torch.float64)
        start = time.perf_counter()
        particles, trace = entry.method(entry.flow, Linear(), problem.reward, x0, rng=rng)
        seconds = time.perf_counter() - start
        result = measure(problem, particles, trace, reference, rng)
        steered = math.isfinite(entry.method.temperature)
        yield result | {"seconds": seconds, "log_z_error": result["log_z_error"] if steered else math.nan}


def measure(
    problem: Problem, particles: Particles, trace: Trace, reference: int, rng: torch.Generator
) -> dict[str, float]:
    """Distances of one run (p = 1) from the exact tilted law."""
    x, log_w = particles.x[0], particles.log_w[0]
    exact, ideal = problem.draw(reference, rng), problem.draw(x.shape[0], rng)
    weight = log_w.exp()
    return {
        "sliced_w1": float(sliced_w1(x, exact, log_w, rng=rng)),
        "floor": float(sliced_w1(ideal, exact, rng=rng)),
        "log_z_error": float(trace.log_z[0]) - problem.log_z,
        "reward": float((weight * problem.reward(x)).sum()),
        "reward_exact": problem.reward_mean,
        "mode_tv": float((mode_weights(problem, x, weight) - problem.mode_weights).abs().sum() / 2),
        "ess": float(trace.ess[-1, 0]) / x.shape[0],
    }


def mode_weights(problem: Problem, x: Tensor, weight: Tensor) -> Tensor:
    """Weight of the points nearest to each mode [k]."""
    nearest = torch.cdist(x, problem.modes).argmin(-1)
    return torch.zeros_like(problem.mode_weights).index_add(0, nearest, weight)


def _row(problem: Problem, entry: Entry, n: int, runs: list[dict[str, float]]) -> Row:
    mean = {key: math.fsum(run[key] for run in runs) / len(runs) for key in runs[0]}
    rmse = math.sqrt(math.fsum(run["log_z_error"] ** 2 for run in runs) / len(runs))
    head = {"problem": problem.name, "method": entry.name, "n": n, "calls": entry.calls, "seeds": len(runs)}
    return head | mean | {"log_z_rmse": rmse}


def by_calls(rows: list[Row], task: str) -> list[Row]:
    """One row a method: sliced W1 over its floor at each number of calls, all errors at the most of them, a verdict.

    The verdict of a method that claims the law: "ok", or "biased" where it has converged and is off by more than 4
    standard errors, or "not converged". A method that could not be run says why.
    """
    mine = [row for row in rows if row["task"] == task]
    budgets = sorted({row["calls"] for row in mine})
    table = []
    for name in dict.fromkeys(row["method"] for row in mine):
        of = {row["calls"]: row for row in mine if row["method"] == name}
        done = {calls: row for calls, row in of.items() if row["kind"] != NOT_RUN}
        last = done[max(done)] if done else {}
        head: Row = {"method": name, "claims": last.get("kind", NOT_RUN)}
        head |= {f"x floor, {calls}": done[calls]["over_floor"] if calls in done else None for calls in budgets}
        head |= {key: last.get(key) for key in ("mode_tv", "mean_error", "log_z_bias", "log_z_rmse", "reward")}
        table.append(head | {"reward_exact": mine_exact(mine), "verdict": verdict(last) if done else _why(of)})
    return table


def mine_exact(rows: list[Row]) -> float | None:
    """E[r] of the task."""
    return next((row["reward_exact"] for row in rows if "reward_exact" in row), None)


def verdict(row: Row) -> str:
    """What a row says of its method's claim; see `by_calls`."""
    if row["kind"] in (HEURISTIC, EXACT_MAP):
        return "-"
    if not row["converged"]:
        return "not converged"
    return "ok" if row["bias"] <= 4 else f"biased: {row['bias']:.1f} standard errors"


def _why(of: dict[int, Row]) -> str:
    return next(iter(of.values()))["note"]


def aims(rows: list[Row]) -> list[Row]:
    """What is meant to hold of this run, each with the best method's figures; nothing of tasks that were not run."""
    peer = [
        r["over_floor"] for r in rows if (r["task"], r["method"]) == ("mild ring", peers.NAME) and "over_floor" in r
    ]
    table = [
        _aim(rows, "mild ring", 10, {"over_floor": min([PEERS, *peer])}),
        _aim(rows, "hard ring", 16, {"over_floor": 2.0}),
        _aim(rows, "inverse 16-D", 64, {"mean_error": 0.08, "log_z_rmse": 0.1}),
        _aim(rows, "inverse 64-D", 128, {"mean_error": 0.15, "log_z_rmse": 0.15}),
        _aim(rows, "rare mode", 128, {"mode_error": 0.2}),
        _unbiased(rows),
    ]
    return [row for row in table if row]


def _aim(rows: list[Row], task: str, calls: int, bounds: dict[str, float]) -> Row | None:
    """The method that claims the law and comes nearest to all bounds, at so many calls, or more than half."""
    ours = [r for r in rows if r["task"] == task and r["kind"] == LAW and r["method"] != peers.NAME]
    ours = [r for r in ours if calls / 2 < r["used"] <= calls]
    if not ours:
        return None

    def share(row: Row) -> float:
        worst = max(row[key] / bound for key, bound in bounds.items())
        return math.inf if math.isnan(worst) else worst

    best = min(ours, key=share)
    theirs = next((r for r in rows if (r["task"], r["method"]) == (task, peers.NAME) and "over_floor" in r), {})
    return {
        "task": f"{task}, {calls} calls",
        "aim": ", ".join(f"{WORDS[key]} <= {bound:.3g}" for key, bound in bounds.items()),
        "ours": ", ".join(f"{best[key]:.3g}" for key in bounds),
        "method": f"{best['method']}, {best['calls']} calls",
        "particles, 100 calls": ", ".join(f"{theirs[key]:.3g}" for key in bounds) if theirs else None,
        "met": "yes" if share(best) <= 1 else "no",
    }


def _unbiased(rows: list[Row]) -> Row | None:
    tried = [r for r in rows if r["kind"] == LAW and r.get("converged") and r["method"] != peers.NAME]
    if not tried:
        return None
    worst = max(tried, key=lambda row: row["bias"])
    return {
        "task": f"the worst of {len(tried)} converged claims of a law",
        "aim": "standard errors <= 4",
        "ours": f"{worst['bias']:.2g}",
        "method": f"{worst['method']}, {worst['task']}, {worst['calls']} calls",
        "met": "yes" if worst["bias"] <= 4 else "no",
    }


def plot(tables: dict[str, list[Row]]) -> bytes:
    """PNG: for each task sliced W1 over its floor against calls; lines claim the law, grey dots are heuristics."""
    rows = [row for row in tables[ALL] if row["kind"] != NOT_RUN]
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    claims = list(dict.fromkeys(row["method"] for row in rows if row["kind"] != HEURISTIC))
    columns = min(4, len(tasks))
    figure = blank(3.6 * columns + 2, 3.1 * -(-len(tasks) // columns), dpi=130)
    panels = figure.subplots(-(-len(tasks) // columns), columns, squeeze=False).flatten()
    for axes, task in zip(panels, tasks, strict=False):
        _panel(axes, [row for row in rows if row["task"] == task], claims)
        axes.set_title(task)
    panels[0].set_ylabel("sliced W1 / that of exact draws")
    panels[0].set_xlabel("network calls a particle")
    drawn = {label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(drawn.values(), drawn.keys(), loc="outside right upper", frameon=False)
    return png(figure)


def _panel(axes: Any, rows: list[Row], claims: list[str]) -> None:  # noqa: ANN401 (matplotlib is optional)
    """One task, both axes logarithmic."""
    weak = [row for row in rows if row["kind"] == HEURISTIC]
    axes.plot([r["used"] for r in weak], [r["over_floor"] for r in weak], ".", color="0.75", label="heuristics")
    for i, name in enumerate(claims):
        of = [row for row in rows if row["method"] == name and row["kind"] != HEURISTIC]
        style = ("*" if name == peers.NAME else "o") + ("-", "--", ":")[i // len(COLOURS) % 3]
        x, y = [row["used"] for row in of], [row["over_floor"] for row in of]
        axes.plot(x, y, style, color=COLOURS[i % len(COLOURS)], markersize=3.5, linewidth=1, label=name)
    axes.axhline(1, color="0.5", linewidth=0.8)
    axes.set(xscale="log", yscale="log", xlim=(2.5, 160))
    axes.set_xticks(TICKS, [str(t) for t in TICKS])
    axes.minorticks_off()
