"""Methods against a law that is known exactly: a ring of Gaussians tilted by a quadratic reward.

Eight Gaussians of standard deviation .3 on a circle of radius 4, with the exact flow map of the linear path, and
``r(x) = steepness (-0.1 x0^2 + 0.5 x0 + x1)``. The tilted law is a mixture again, with log Z = 2.457 for steepness 1
and 14.861 for steepness 4, whose weight lies almost wholly on a single mode.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from steer.analytic import GaussianMixture
from steer.flow_map import FlowMap, OdeFlowMap
from steer.interpolants import Linear
from steer.methods import SMC, BestOfN, Guidance, Method
from steer.metrics import sliced_w1
from steer.particles import Particles, Trace

QUADRATIC, LINEAR = torch.diag(torch.tensor([0.2, 0.0])).double(), torch.tensor([0.5, 1.0]).double()


@dataclass(frozen=True)
class Problem:
    """A data law, a reward, and the exact tilted law with its log Z."""

    name: str
    data: GaussianMixture
    reward: Callable[[Tensor], Tensor]
    target: GaussianMixture
    log_z: float


@dataclass(frozen=True)
class Entry:
    """A method as it is run: on which flow map, with how many particles and calls (of a network) a particle kept."""

    name: str
    method: Method
    flow: FlowMap
    particles: int
    calls: int


def ring(modes: int = 8, radius: float = 4.0, std: float = 0.3) -> GaussianMixture:
    """Equal Gaussians on a circle, in float64."""
    angle = torch.arange(modes, dtype=torch.float64) * (2 * math.pi / modes)
    means = radius * torch.stack([angle.cos(), angle.sin()], -1)
    return GaussianMixture(torch.ones_like(angle), means, (std**2 * torch.eye(2).double()).expand(modes, 2, 2))


def ring_problem(steepness: float = 1.0) -> Problem:
    """The ring tilted by ``exp(steepness (-0.1 x0^2 + 0.5 x0 + x1))``."""
    data = ring()
    quadratic, linear = steepness * QUADRATIC, steepness * LINEAR
    target, log_z = data.tilt(quadratic, linear)

    def reward(x: Tensor) -> Tensor:
        return x @ linear.to(x) - ((x @ quadratic.to(x)) * x).sum(-1) / 2

    return Problem(f"ring, reward x {steepness:g}", data, reward, target, float(log_z))


def entries(problem: Problem, n: int, calls: int) -> list[Entry]:
    """The methods, each at about `calls` network calls for every one of n particles returned."""
    exact = problem.data.flow(tolerance=1e-6)
    ode = OdeFlowMap(lambda x, t, cond=None: problem.data.velocity(x, t), steps=1)
    guided = Guidance().with_budget(calls, n=1)
    return [
        Entry("unsteered", BestOfN(temperature=math.inf), exact, n, 1),
        Entry("best-of-n", BestOfN(), exact, calls * n, calls),
        Entry("SMC", SMC(steps=calls), exact, n, calls),
        Entry("SMC, no flow map (ODE steps)", SMC(steps=calls // 2), ode, n, calls),
        Entry("guidance", guided, exact, n, calls),
        Entry("guidance, path weights", Guidance(guided.steps, weights="path"), exact, n, calls),
    ]


def run(fast: bool = False) -> list[dict[str, object]]:
    """One row for each problem and method, averaged over the seeds (8; 2 of a quarter of the size when fast).

    Keys: problem, method, n, calls (a particle), seeds, sliced_w1 and its floor (exact draws of the same number against
    the same reference), log_z_error (mean over seeds less the truth), log_z_rmse, reward and reward_exact, mode_tv
    (total variation of the mode weights), ess (at the end, as a share of the particles), seconds a run. NaN where a
    method makes no estimate.
    """
    n, seeds, reference = (256, 2, 1000) if fast else (1024, 8, 4000)
    rows = []
    for problem in (ring_problem(1.0), ring_problem(4.0)):
        for entry in entries(problem, n, calls=8):
            rows.append(_row(problem, entry, n, list(_runs(problem, entry, seeds, reference))))
    return rows


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
    exact = problem.target.sample(reference, rng=rng)
    ideal = problem.target.sample(x.shape[0], rng=rng)
    weight = log_w.exp()
    return {
        "sliced_w1": float(sliced_w1(x, exact, log_w, rng=rng)),
        "floor": float(sliced_w1(ideal, exact, rng=rng)),
        "log_z_error": float(trace.log_z[0]) - problem.log_z,
        "reward": float((weight * problem.reward(x)).sum()),
        "reward_exact": float(expected_reward(problem)),
        "mode_tv": float((mode_weights(problem, x, weight) - problem.target.weights).abs().sum() / 2),
        "ess": float(trace.ess[-1, 0]) / x.shape[0],
    }


def expected_reward(problem: Problem) -> Tensor:
    """E[r] under the target: r is quadratic, so its mean over a Gaussian is r(m) plus its curvature times C / 2."""
    curvature = torch.func.hessian(problem.reward)(problem.target.means[0])
    each = problem.reward(problem.target.means) + (curvature * problem.target.covs).sum((-1, -2)) / 2
    return (problem.target.weights * each).sum()


def mode_weights(problem: Problem, x: Tensor, weight: Tensor) -> Tensor:
    """Weight of the points nearest to each mode [k]."""
    nearest = torch.cdist(x, problem.target.means).argmin(-1)
    return torch.zeros_like(problem.target.weights).index_add(0, nearest, weight)


def _row(problem: Problem, entry: Entry, n: int, runs: list[dict[str, float]]) -> dict[str, object]:
    mean = {key: math.fsum(run[key] for run in runs) / len(runs) for key in runs[0]}
    rmse = math.sqrt(math.fsum(run["log_z_error"] ** 2 for run in runs) / len(runs))
    head: dict[str, object] = {
        "problem": problem.name,
        "method": entry.name,
        "n": n,
        "calls": entry.calls,
        "seeds": len(runs),
    }
    return head | mean | {"log_z_rmse": rmse}
