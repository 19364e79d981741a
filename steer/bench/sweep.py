"""Every method on every task with a known answer, at 4 to 128 calls for each particle kept, over ten seeds.

A method claims the law where it estimates log Z; all others are heuristics, whose distance from the target is shown for
what it is. On the learned map only what needs no exact map claims anything: weighted draws and noise SMC.
"""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from steer import settings
from steer.bench import peers
from steer.bench.problems import PROBLEMS, Problem
from steer.interpolants import Linear
from steer.methods import BestOfN
from steer.methods.noise_smc import NoiseSMC
from steer.metrics import sliced_w1
from steer.particles import gather
from steer.resampling import systematic

Row = dict[str, Any]
Tried = Any  # a steer.methods.Method, or None for the peer
CALLS: dict[str, tuple[int, ...]] = {
    "mild ring": (4, 8, 16),
    "hard ring": (8, 16, 32),
    "inverse 16-D": (16, 32, 64),
    "inverse 64-D": (32, 64, 128),
    "rare mode": (8, 32, 128),
    "mode selection": (4, 8, 16),
    "double well": (4, 8, 16),
    "learned ring": (8, 16, 32),
}
"""Calls for each particle kept."""
MORE = {"inverse 16-D": 2.0, "rare mode": 2.0, "mode selection": 0.5, "double well": 0.5}
"""Particles, as a multiple of `Size.n`."""
LAW, EXACT_MAP, HEURISTIC, NOT_RUN = "law", "law of an exact map", "heuristic", "not run"


@dataclass(frozen=True)
class Size:
    """How much is run.

    Attributes:
        n, seeds: particles (of most tasks) and seeds of a method that claims the law.
        few, repeats: particles and seeds of a heuristic, whose error is hardly a matter of chance.
        reference: exact draws to which samples are compared.
        tasks: names in `steer.bench.problems.PROBLEMS`.
        most: calls, at most.
    """

    n: int = 1024
    seeds: int = 10
    few: int = 256
    repeats: int = 4
    reference: int = 2000
    tasks: tuple[str, ...] = tuple(PROBLEMS)
    most: int = 128


FAST = Size(n=64, seeds=3, few=16, repeats=2, reference=300, tasks=("mild ring", "hard ring"), most=8)


@dataclass(frozen=True)
class Outcome:
    """What each seed says of the target; the seeds are the first axis."""

    log_z: Tensor
    reward: Tensor
    mean: Tensor
    shares: Tensor
    sliced_w1: Tensor


def sweep(size: Size, tick: Callable[[str], None] = lambda line: None) -> list[Row]:
    """One row a task, method and number of calls, see `row`; what could not be run is a row that says why."""
    rows: list[Row] = []
    for task in size.tasks:
        tick(task)
        problem = PROBLEMS[task]()
        rows += over_calls(problem, peers.NAME, None, (peers.STEPS,), size)
        for name in settings.names("method"):
            calls = [c for c in CALLS[task] if c <= size.most]
            rows += over_calls(problem, name, settings.build("method", name), calls, size)
    return rows


def over_calls(problem: Problem, name: str, method: Tried, budgets: Iterable[int], size: Size) -> list[Row]:
    """The rows of one method, with its verdict in each; None is the peer."""
    rows, before = [], None
    for calls in budgets:
        head: Row = {"task": problem.name, "method": name, "calls": calls}
        try:
            kind, used, n, outcome, seconds = attempt(problem, method, calls, size)
        except ValueError as error:
            rows.append(head | {"kind": NOT_RUN, "note": str(error)})
            continue
        head |= {"kind": kind, "used": used, "n": n, "seeds": len(outcome.log_z)}
        rows.append(head | figures(problem, outcome, _floor(problem, n, size.reference)) | {"seconds": seconds})
        if kind == LAW:
            rows[-1]["converged"] = converged(problem, outcome, before)
            rows[-1]["bias"] = bias(problem, outcome)
        before = outcome
    return rows


@lru_cache(maxsize=4)
def _floor(problem: Problem, n: int, reference: int) -> float:
    return floor(problem, n, reference)


def attempt(problem: Problem, method: Tried, calls: int, size: Size) -> tuple[str, float, int, Outcome, float]:
    """What the method claims, calls used, particles, outcome, seconds a seed; ValueError if the budget is too small."""
    n = round(size.n * MORE.get(problem.name, 1.0))
    if method is None:
        if not peers.installed():
            raise ValueError(peers.MISSING)
        start = time.perf_counter()
        runs = [peers.bootstrap(problem, n, seed, calls) for seed in range(size.seeds)]
        seconds = (time.perf_counter() - start) / size.seeds
        x, log_w = (torch.stack(part) for part in ([run[0] for run in runs], [run[1] for run in runs]))
        log_z = torch.tensor([run[2] for run in runs]).double()
        kind, outcome = LAW if problem.exact else EXACT_MAP, measure(problem, x, log_w, log_z, size.reference)
        return kind, calls, n, outcome, seconds
    claims = bool(solve(problem, method, calls, 4, 1)[2].isfinite().all())
    n, seeds = (n, size.seeds) if claims else (size.few, size.repeats)
    start = time.perf_counter()
    x, log_w, log_z, spent = solve(problem, method, calls, n, seeds)
    seconds = (time.perf_counter() - start) / seeds
    kind = HEURISTIC if not claims else LAW if problem.exact or needs_no_exact_map(method) else EXACT_MAP
    return kind, spent / n, n, measure(problem, x, log_w, log_z, size.reference), seconds


def needs_no_exact_map(method: Tried) -> bool:
    """Whether its law is that of the map's own samples in one jump, whatever the map's error."""
    return isinstance(method, BestOfN | NoiseSMC)


def solve(problem: Problem, method: Tried, calls: int, n: int, seeds: int) -> tuple[Tensor, Tensor, Tensor, float]:
    """Samples [seeds n d], log-weights, log Z [seeds] and calls spent, each seed as it would be alone.

    Best-of-n spends its calls on more particles, of which n are drawn by their weights.
    """
    rng = [torch.Generator().manual_seed(seed) for seed in range(seeds)]
    if isinstance(method, BestOfN):
        method, rows = BestOfN(temperature=method.temperature), n * calls
    else:
        method, rows = method.with_budget(calls * n, n), n
    x0 = torch.stack([torch.randn(rows, problem.d, generator=g) for g in rng])
    particles, trace = method(problem.flow, Linear(), problem.reward, x0, rng=rng)
    x, log_w = particles.x, particles.log_w
    if rows > n:
        chosen = systematic(log_w, rng=rng)[:, calls // 2 :: calls]
        x, log_w = gather(x, chosen), torch.full_like(log_w[:, :n], -math.log(n))
    return x.double(), log_w.double(), trace.log_z.double(), float(trace.calls.double().mean())


def measure(problem: Problem, x: Tensor, log_w: Tensor, log_z: Tensor, reference: int) -> Outcome:
    """What samples x [seeds n d] with log-weights and log Z [seeds] say of the target."""
    w, rng = log_w.exp(), torch.Generator().manual_seed(99)
    exact = problem.draw(reference, rng)
    nearest = torch.cdist(x, problem.modes.expand(len(x), -1, -1)).argmin(-1)
    shares = torch.zeros(len(x), len(problem.modes), dtype=x.dtype).scatter_add(1, nearest, w)
    rewards = torch.where(w > 0, problem.reward(x), 0)
    distances = [sliced_w1(x[i], exact, log_w[i], directions=32, rng=rng) for i in range(len(x))]
    return Outcome(log_z, (w * rewards).sum(1), (w[..., None] * x).sum(1), shares, torch.stack(distances))


def floor(problem: Problem, n: int, reference: int, repeats: int = 8) -> float:
    """The sliced W1 that n exact draws have, on the average."""
    rng = torch.Generator().manual_seed(98)
    x = torch.stack([problem.draw(n, rng) for _ in range(repeats)])
    flat = x.new_full(x.shape[:2], -math.log(n))
    return float(measure(problem, x, flat, flat[:, 0], reference).sliced_w1.mean())


def figures(problem: Problem, outcome: Outcome, lowest: float) -> Row:
    """Errors, averaged over the seeds.

    sliced_w1, and over what exact draws have; mode_tv, total variation of the modes' weights; mean_error, root mean
    square over coordinates of the mean's error in standard deviations of the target; log_z_bias and log_z_rmse; reward
    and reward_exact, E[r]; mode_error, of the weight of the target's greatest mode, relative and root mean square.
    """
    error = outcome.log_z - problem.log_z
    top = int(problem.mode_weights.argmax())
    off = outcome.shares[:, top] / problem.mode_weights[top] - 1
    return {
        "sliced_w1": float(outcome.sliced_w1.mean()),
        "over_floor": float(outcome.sliced_w1.mean()) / lowest,
        "mode_tv": float((outcome.shares - problem.mode_weights).abs().sum(1).mean() / 2),
        "mode_error": float(off.square().mean().sqrt()),
        "mean_error": float((((outcome.mean - problem.mean) / problem.std) ** 2).mean(1).sqrt().mean()),
        "log_z_bias": float(error.mean()),
        "log_z_rmse": float(error.square().mean().sqrt()),
        "reward": float(outcome.reward.mean()),
        "reward_exact": problem.reward_mean,
    }


def bias(problem: Problem, outcome: Outcome) -> float:
    """The greatest error in standard errors, of E[Z_hat] = Z, E[r] and the weight of the greatest mode."""
    top = int(problem.mode_weights.argmax())
    ratio = (outcome.log_z - problem.log_z).exp() - 1
    off = [ratio, outcome.reward - problem.reward_mean, outcome.shares[:, top] - problem.mode_weights[top]]
    return max(abs(standard_errors(x)) for x in off)


def converged(problem: Problem, outcome: Outcome, before: Outcome | None) -> bool:
    """Whether the seeds agree on log Z to .1, none lacks a mode, and fewer calls did not say otherwise.

    A mode counts whose weight is above .05. Fewer calls, the number before, say otherwise where log Z or
    E[r] differ by 3 standard errors.
    """
    if before is None or not float(outcome.log_z.std()) <= 0.1:
        return False
    if bool((outcome.shares[:, problem.mode_weights > 0.05] == 0).any()):
        return False
    pairs = ((outcome.log_z, before.log_z), (outcome.reward, before.reward))
    return all(abs(float(a.mean() - b.mean())) <= 3 * math.hypot(_error(a), _error(b)) for a, b in pairs)


def standard_errors(x: Tensor) -> float:
    """The mean of x [seeds] over its standard error, as the normal quantile that is as rare as Student's."""
    size, error = float(x.mean()), _error(x)
    if abs(size) <= 1e-3 or error == 0:  # truths are known to three digits
        return 0.0 if abs(size) <= 1e-3 else math.inf
    free = len(x) - 1
    z = math.sqrt(free * math.log1p((size / error) ** 2 / free)) * (8 * free + 1) / (8 * free + 3)
    return math.copysign(z, size)


def _error(x: Tensor) -> float:
    return float(x.std()) / math.sqrt(len(x))
