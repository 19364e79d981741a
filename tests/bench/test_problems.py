"""The truths of the tasks, found a second time: by weighted draws of the prior, quadrature, or another flow map."""

import math
from functools import cache

import pytest
import torch
from conftest import z_score
from torch import Tensor
from torch.testing import assert_close

from steer.analytic import GaussianMixture
from steer.bench.problems import PROBLEMS, BlobFlow, Problem, blobs, draws, ring
from steer.flow_map import denoise, jump, velocity
from steer.interpolants import Linear

WEIGHED = ["mild ring", "mode selection", "double well", "learned ring", "hard ring"]  # prior draws reach the target
EVERY = pytest.mark.parametrize("name", PROBLEMS)


@cache
def problem(name: str) -> Problem:
    """A task, built once."""
    return PROBLEMS[name]()


def estimates(p: Problem, x: Tensor) -> tuple[Tensor, Tensor]:
    """Z_hat / Z of batches of prior draws x [b n d], and their weighted E[r]."""
    r = p.reward(x)
    return (r - p.log_z).exp().mean(1), (r.softmax(1) * r).sum(1)


@pytest.mark.parametrize("name", WEIGHED)
def test_log_z_and_reward_against_weighted_draws_of_the_prior(name: str, rng: torch.Generator) -> None:
    p = problem(name)
    x = p.prior(400_000, rng).unflatten(0, (20, -1))
    ratio, reward = estimates(p, x)
    assert z_score(ratio, 1.0) < 4 and ratio.std() < 0.2
    assert z_score(reward, p.reward_mean) < 4


@EVERY
def test_draws_have_the_stated_mean_width_reward_and_modes(name: str, rng: torch.Generator) -> None:
    p = problem(name)
    x = p.draw(20_000, rng)
    assert x.shape == (20_000, p.d)
    batches = x.unflatten(0, (20, -1))
    assert z_score(batches.mean(1), p.mean) < 5 and z_score(p.reward(batches).mean(1), p.reward_mean) < 4
    assert_close(x.std(0), p.std, rtol=0.05, atol=0)
    shares = torch.bincount(torch.cdist(x, p.modes).argmin(-1), minlength=len(p.modes)) / 20_000
    assert_close(shares.double(), p.mode_weights, atol=0.015, rtol=0)


@pytest.mark.parametrize("name", ["inverse 16-D", "inverse 64-D", "rare mode"])
def test_log_z_where_the_prior_is_far_against_tilted_draws(name: str, rng: torch.Generator) -> None:
    """``log Z = log p(x) + r(x) - log q(x)`` at every x, here with q fitted to the draws: one Gaussian a mode."""
    p = problem(name)
    assert isinstance(p.flow, BlobFlow)
    data = blobs(p.flow.weights, p.flow.means, p.flow.std)
    x = p.draw(2000, rng)
    joint = data.log_prob(x) + p.reward(x)
    fitted = nearest_gaussians(x, p)
    assert abs(float((joint - fitted).median()) - p.log_z) < 0.1
    assert float((joint - fitted - p.log_z).abs().quantile(0.9)) < 0.6


def nearest_gaussians(x: Tensor, p: Problem) -> Tensor:
    """Log-density at x of one Gaussian a mode, fitted to draws of it."""
    y = p.draw(60_000, torch.Generator().manual_seed(5))
    near = torch.cdist(y, p.modes).argmin(-1)
    parts = [y[near == i] for i in range(len(p.modes)) if (near == i).sum() > 50 * p.d]
    weights = torch.tensor([len(part) for part in parts]).double()
    covs = torch.stack([part.mT.cov() for part in parts])
    return GaussianMixture(weights, torch.stack([part.mean(0) for part in parts]), covs).log_prob(x)


@pytest.mark.parametrize("name", ["inverse 16-D", "inverse 64-D", "rare mode"])
def test_weighted_prior_draws_are_no_use(name: str, rng: torch.Generator) -> None:
    p = problem(name)
    r = p.reward(p.prior(100_000, rng))
    rare = float(p.mode_weights.max()) == pytest.approx(0.8, abs=0.01)
    w = r.softmax(0)
    assert float(1 / (w**2).sum()) / 100_000 < 1e-3 or (rare and float(w @ r) < p.reward_mean - 1)


def test_the_rare_mode_has_its_mass_under_the_flow_map() -> None:
    """By quadrature over the noise: the map, not just the mixture, gives that mode 1e-6."""
    p = problem("rare mode")
    z = torch.linspace(3, 8, 20_001).double()
    x = jump(p.flow, torch.stack([z, torch.zeros_like(z)], 1), 0.0, 1.0)[:, 0]
    edge = float(z[(x > 0).nonzero()[0, 0]])
    exact = 1e-6 + 0.5 * math.erfc(4 / 2**0.5)  # and the first one's own tail beyond 0
    assert math.log(0.5 * math.erfc(edge / 2**0.5) / exact) == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize("d", [1, 2, 20])
def test_the_fast_flow_map_is_the_exact_one(d: int, rng: torch.Generator) -> None:
    means = 2 * torch.randn(3, d, generator=rng, dtype=torch.float64)
    data = ring() if d == 2 else blobs(torch.tensor([0.2, 0.3, 0.5]), means, 0.6)
    fast, exact = BlobFlow(data.weights, data.means, float(data.covs[0, 0, 0].sqrt())), data.flow(tolerance=1e-7)
    noise = torch.randn(300, d, generator=rng, dtype=torch.float64)
    for s, t in ((0.0, 1.0), (0.3, 1.0), (0.7, 0.2), (0.9, 1.0)):
        x = (1 - s) * noise + s * data.sample(300, rng=rng)
        assert float((jump(fast, x, s, t) - jump(exact, x, s, t)).abs().mean()) < 2e-3
    assert_close(velocity(fast, x, 0.4), data.velocity(x, 0.4))
    assert_close(denoise(fast, Linear(), x, 0.4), data.posterior(x, 0.4).mean)
    times = torch.rand(2, 300, generator=rng, dtype=torch.float64)
    assert_close(fast(x, times[0], times[0]), data.velocity(x, times[0]))
    each = torch.cat([fast(x[i : i + 1], float(times[0, i]), float(times[1, i])) for i in range(5)])
    assert_close(fast(x, times[0], times[1])[:5], each)


def test_the_fast_flow_map_has_the_exact_gradient(rng: torch.Generator) -> None:
    data = blobs(torch.tensor([0.4, 0.6]), torch.tensor([[-1.0, 0.5], [1.0, 0.0]]), 0.7)
    x = torch.randn(50, 2, generator=rng, dtype=torch.float64, requires_grad=True)
    maps = (BlobFlow(data.weights, data.means, 0.7), data.flow(tolerance=1e-9))
    fast, exact = (torch.autograd.grad(jump(flow, x, 0.1, 1.0).sum(), x)[0] for flow in maps)
    assert_close(fast, exact, atol=5e-3, rtol=5e-3)


def test_draws_have_the_law_of_the_mixture(mixture: GaussianMixture, rng: torch.Generator) -> None:
    x = draws(mixture, 50_000, rng)
    assert z_score(x, mixture.mean) < 4
    assert_close(x.mT.cov(), mixture.cov, atol=0.05, rtol=0)


def test_the_reward_of_the_rings_is_the_published_one() -> None:
    x = torch.tensor([[2.0, 3.0]]).double()
    assert_close(problem("mild ring").reward(x), torch.tensor([-0.4 + 1.0 + 3.0]).double())
    assert_close(problem("hard ring").reward(x), torch.tensor([4 * 3.6]).double())
    known = torch.tensor([0.017, 0.347, 0.613, 0.022, 0, 0, 0, 0.001]).double()
    assert_close(problem("mild ring").mode_weights, known, atol=2e-3, rtol=0)
    assert problem("mild ring").log_z == pytest.approx(2.457, abs=1e-3)
    assert problem("hard ring").log_z == pytest.approx(14.861, abs=1e-3)
    assert problem("mild ring").reward_mean == pytest.approx(3.759, abs=1e-3)


def test_the_learned_map_is_near_the_ring_but_not_it(rng: torch.Generator) -> None:
    p = problem("learned ring")
    off = torch.cdist(p.prior(20_000, rng), ring().means).amin(-1)
    assert 0.2 < float(off.median()) < 0.5 and not p.exact and abs(p.log_z - problem("mild ring").log_z) > 5e-3
