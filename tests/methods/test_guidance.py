import math

import pytest
import torch
from conftest import z_score
from torch import Tensor
from torch.testing import assert_close

from steer.analytic import GaussianMixture
from steer.bench.problems import hard_ring, mild_ring, ring
from steer.interpolants import Interpolant, Linear
from steer.methods import BestOfN, Guidance

SLOPE = torch.tensor([1.0, -0.5]).double()


def noise(p: int, n: int, rng: torch.Generator) -> Tensor:
    """p prompts of n particles in the plane."""
    return torch.randn(p, n, 2, generator=rng, dtype=torch.float64)


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("std", [0.5, 2.0])
def test_exact_on_a_gaussian_with_a_linear_reward(
    steps: int, std: float, path: Interpolant, rng: torch.Generator
) -> None:
    """Undamped and unbounded, the samples themselves have the tilted law N(m + C a, C), at any number of steps."""
    cov = std**2 * torch.eye(2).double()
    law = GaussianMixture(torch.ones(1).double(), torch.ones(1, 2).double(), cov[None])
    method = Guidance(steps, temperature=0.5, data_std=std, damping=False, max_ratio=math.inf)
    out, _ = method(law.flow(path), path, lambda x: x @ SLOPE, noise(1, 4000, rng), rng=rng)
    target, _ = law.tilt(torch.zeros(2, 2), SLOPE / 0.5)
    moments = torch.cat([target.mean, target.mean**2 + target.cov.diagonal()])
    assert z_score(torch.cat([out.x[0], out.x[0] ** 2], -1), moments) < 4


@pytest.mark.parametrize("max_ratio", [0.7, math.inf])
def test_path_weights_are_exact(
    max_ratio: float, mixture: GaussianMixture, path: Interpolant, rng: torch.Generator
) -> None:
    """Whatever the push: E[Z_hat] = Z, and weighted means are those of the tilted law."""
    target, log_z = mixture.tilt(torch.zeros(2, 2), SLOPE)
    method = Guidance(2, weights="path", max_ratio=max_ratio)
    out, trace = method(mixture.flow(path, 1e-3), path, lambda x: x @ SLOPE, noise(100, 20, rng), rng=rng)
    z = trace.log_z.exp()
    assert z_score(z, log_z.exp()) < 4
    weighted = z[:, None] * (out.log_w.exp()[..., None] * out.x).sum(1)
    assert z_score(weighted, log_z.exp() * target.mean) < 4


def test_without_strength_it_is_the_plain_model(mixture: GaussianMixture, rng: torch.Generator) -> None:
    method = Guidance(2, strength=0.0, weights="path")
    out, trace = method(mixture.flow(tolerance=1e-4), Linear(), lambda x: x @ SLOPE, noise(1, 2000, rng), rng=rng)
    assert_close(trace.ess[0], torch.full((1,), 2000.0).double())
    assert z_score(out.x[0], mixture.mean) < 4


@pytest.mark.parametrize("steepness", [1.0, 4.0])
def test_rewards_rise_on_the_ring_without_leaving_it(steepness: float, rng: torch.Generator) -> None:
    problem, x0 = {1.0: mild_ring, 4.0: hard_ring}[steepness](), noise(1, 200, rng)
    flow = problem.flow
    plain, _ = BestOfN()(flow, Linear(), problem.reward, x0, rng=rng)
    out, _ = Guidance(6)(flow, Linear(), problem.reward, x0, rng=rng)
    assert out.rewards is not None and plain.rewards is not None
    gain = out.rewards.mean() - plain.rewards.mean()
    assert gain > 0.5 * plain.rewards.std() / steepness**0.5
    off = torch.cdist(out.x[0], ring().means).amin(-1) > 4 * 0.3
    assert off.double().mean() < 0.01


def test_a_push_is_never_longer_than_the_bound(rng: torch.Generator) -> None:
    """However steep the reward: on standard normal data the map is the identity, so the end tells the push."""
    law = GaussianMixture(torch.ones(1).double(), torch.zeros(1, 2).double(), torch.eye(2).double()[None])
    x0 = noise(1, 50, rng)
    ends = [
        Guidance(1, strength=s, max_ratio=0.5, damping=False)(
            law.flow(), Linear(), lambda x: 1e8 * x[..., 0], x0, rng=torch.Generator().manual_seed(3)
        )[0].x
        for s in (0.0, 1.0)
    ]
    start = Guidance().last_time
    spread = math.hypot(1 - start, start)  # the last jump divides by this
    shift = (ends[1] - ends[0])[0] * spread
    move = law.flow()(x0[0], 0.0, 1.0) * start
    assert_close(shift.norm(dim=-1), 0.5 * move.norm(dim=-1), atol=1e-7, rtol=0)


def test_damping_caps_the_strength(mixture: GaussianMixture) -> None:
    """lam / (1 + 2 lam s^2) tends to 1 / (2 s^2) however low the temperature, and to lam at the data end."""
    steep = Guidance(temperature=1e-9)
    assert steep._lam(Linear(), 0.0) == pytest.approx(0.5)
    assert Guidance(temperature=2.0)._lam(Linear(), 1 - 1e-9) == pytest.approx(0.5)
    assert Guidance(damping=False, strength=3.0)._lam(Linear(), 0.0) == 3.0


def test_particles_do_not_push_each_other(mixture: GaussianMixture, rng: torch.Generator) -> None:
    x0, flow = noise(1, 6, rng), mixture.flow(tolerance=1e-10)
    reward = lambda x: (x @ SLOPE).exp()  # noqa: E731
    both = [Guidance(1)(flow, Linear(), reward, x, rng=torch.Generator().manual_seed(1))[0].x for x in (x0, x0[:, :1])]
    assert_close(both[0][:, :1], both[1], atol=1e-7, rtol=0)


def test_a_reward_without_a_gradient_raises(mixture: GaussianMixture, rng: torch.Generator) -> None:
    with pytest.raises(ValueError, match="torch can differentiate.*use SMC"):
        Guidance(1)(mixture.flow(), Linear(), lambda x: (x[..., 0] > 0).double(), noise(1, 3, rng), rng=rng)


def test_it_works_under_no_grad_and_leaves_no_graph(mixture: GaussianMixture, rng: torch.Generator) -> None:
    with torch.no_grad():
        out, _ = Guidance(1)(mixture.flow(tolerance=1e-4), Linear(), lambda x: x @ SLOPE, noise(1, 3, rng), rng=rng)
    assert not out.x.requires_grad and not out.log_w.requires_grad


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"strength": -1.0}, "strength.*got -1.0"),
        ({"max_ratio": -0.1}, "max_ratio.*got -0.1"),
        ({"data_std": 0.0}, "data_std.*got 0.0"),
        ({"last_time": 0.0}, "last_time.*got 0.0"),
        ({"weights": "none"}, "weights.*got 'none'"),
    ],
)
def test_bad_settings_raise(kwargs: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Guidance(**kwargs)
