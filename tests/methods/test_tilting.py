import math
from collections.abc import Callable

import pytest
import torch
from conftest import Counting, z_score
from torch import Tensor
from torch.testing import assert_close

from steer.analytic import GaussianMixture
from steer.flow_map import Cond, FlowMap, jump
from steer.interpolants import Interpolant, Linear, Time
from steer.methods import FMTT, FlowMapTilting
from steer.moves import euler_kernel

SLOPE = torch.tensor([1.5, -1.0]).double()
LAW = GaussianMixture(
    torch.ones(1).double(), torch.tensor([[0.4, -0.2]]).double(), torch.tensor([[[0.8, 0.3], [0.3, 0.5]]]).double()
)


def slope(x: Tensor) -> Tensor:
    """A linear reward."""
    return x @ SLOPE.to(x)


def noise(p: int, n: int, rng: torch.Generator) -> Tensor:
    """p prompts of n particles in the plane: here p independent runs."""
    return torch.randn(p, n, 2, generator=rng, dtype=torch.float64)


def crooked(x: Tensor, s: Time, t: Time, cond: Cond = None) -> Tensor:
    """The exact velocity of LAW on the diagonal, but jumps that are wrong the more, the longer they are."""
    return LAW.flow()(x, s, t) + 0.6 * (t - s) * x


def chain_law(steps: int, path: Interpolant, flow: FlowMap) -> GaussianMixture:
    """The Gaussian that `steps` Euler steps and the last jump make of noise, without any reward: all are affine."""
    mean, cov = torch.zeros(2).double(), torch.eye(2).double()
    points = torch.cat([torch.zeros(1, 2), torch.eye(2)]).double()
    times = [k / (steps + 1) for k in range(steps + 1)]
    kernels = [euler_kernel(flow, path, points, s, t, epsilon=1 - s) for s, t in zip(times, times[1:], strict=False)]
    for image, std in [*kernels, (jump(flow, points, times[-1], 1.0), 0.0)]:
        slopes = (image[1:] - image[0]).mT
        mean, cov = slopes @ mean + image[0], slopes @ cov @ slopes.mT + std**2 * torch.eye(2)
    return GaussianMixture(torch.ones(1).double(), mean[None], (cov + cov.mT)[None] / 2)


@pytest.mark.parametrize("steps", [2, 6])
@pytest.mark.parametrize(
    "kwargs",
    [
        {"ess_threshold": 0.0},
        {"ess_threshold": 1.0, "resamplings": 100},
        {"chi": 0.0, "max_ratio": math.inf},
        {"chi": 3.0, "max_ratio": 0.3},
    ],
)
def test_path_weights_are_exact_for_the_chain_they_weigh(
    steps: int, kwargs: dict, path: Interpolant, rng: torch.Generator
) -> None:
    """At any number of steps, drift, bound and resampling: E[Z_hat] = Z and E[Z_hat sum w x] = Z E*[x]."""
    target, log_z = chain_law(steps, path, LAW.flow(path)).tilt(torch.zeros(2, 2), SLOPE)
    out, trace = FlowMapTilting(steps, **kwargs)(LAW.flow(path), path, slope, noise(300, 16, rng), rng=rng)
    z = trace.log_z.exp()
    assert z_score(z, log_z.exp()) < 4
    weighted = z[:, None] * (out.log_w.exp()[..., None] * out.x).sum(1)
    assert z_score(weighted, log_z.exp() * target.mean) < 4


def test_the_chain_s_law_is_the_model_s_in_small_steps(path: Interpolant) -> None:
    errors = [(chain_law(steps, path, LAW.flow(path)).mean - LAW.mean).norm() for steps in (8, 16, 32)]
    errors += [(chain_law(steps, path, LAW.flow(path)).cov - LAW.cov).norm() for steps in (8, 16, 32)]
    assert errors[1] < 0.7 * errors[0] or errors[0] < 1e-6
    assert errors[2] < 0.7 * errors[1] or errors[1] < 1e-6
    assert errors[4] < 0.7 * errors[3] and errors[5] < 0.7 * errors[4]


def test_both_weights_agree_in_small_steps(rng: torch.Generator) -> None:
    """The same drift (chi = 0), no bound, two ways to weigh: their log Z differ by step errors alone."""

    def gap(steps: int) -> float:
        z = []
        for weights in ("path", "continuous"):
            method = FlowMapTilting(steps, weights=weights, chi=0.0, max_ratio=math.inf)
            _, trace = method(LAW.flow(), Linear(), slope, noise(30, 500, rng), rng=rng)
            z.append(trace.log_z.exp().mean().log())
        return float((z[0] - z[1]).abs())

    assert gap(2) > 0.1 and gap(50) < 0.03


def test_a_crooked_map_spoils_continuous_weights_alone(rng: torch.Generator) -> None:
    _, log_z = chain_law(20, Linear(), crooked).tilt(torch.zeros(2, 2), SLOPE)
    _, trace = FlowMapTilting(20)(crooked, Linear(), slope, noise(300, 16, rng), rng=rng)
    assert z_score(trace.log_z.exp(), log_z.exp()) < 4
    method = FlowMapTilting(20, weights="continuous", max_ratio=math.inf)
    _, trace = method(crooked, Linear(), slope, noise(300, 16, rng), rng=rng)
    assert z_score(trace.log_z.exp(), log_z.exp()) > 8


@pytest.mark.parametrize("weights", ["path", "continuous"])
def test_log_z_of_a_constant_reward_is_that_constant(weights: str, rng: torch.Generator) -> None:
    method = FlowMapTilting(5, temperature=0.5, weights=weights)
    _, trace = method(LAW.flow(), Linear(), lambda x: 0 * x[..., 0] + 3, noise(2, 32, rng), rng=rng)
    assert_close(trace.log_z, torch.full((2,), 6.0).double())


def test_hard_constraints_keep_z_unbiased(rng: torch.Generator) -> None:
    """A reward of 0 or -inf: Z is the chance to be accepted. Killing at half-made samples would lower it."""
    law = chain_law(4, Linear(), LAW.flow())
    chance = 0.5 * math.erfc((1.0 - law.mean[0]) / (2 * law.cov[0, 0]).sqrt())

    def inside(x: Tensor) -> Tensor:
        return torch.where(x[..., 0] > 1.0, 0 * x[..., 0], -math.inf)

    method = FlowMapTilting(4, ess_threshold=1.0)
    out, trace = method(LAW.flow(), Linear(), inside, noise(300, 32, rng), rng=rng)
    assert z_score(trace.log_z.exp(), chance) < 4
    assert (out.x[out.log_w > -math.inf][:, 0] > 1.0).all()


def test_the_paper_s_drift_saves_weight(rng: torch.Generator) -> None:
    """On a steep reward chi = 1.05 leaves over twice the effective size of none, and of four times as much."""
    sizes = []
    for chi in (0.0, 1.05, 4.2):
        method = FlowMapTilting(20, temperature=0.5, ess_threshold=0.0, chi=chi, max_ratio=math.inf)
        _, trace = method(LAW.flow(), Linear(), slope, noise(20, 200, rng), rng=rng)
        sizes.append(trace.ess[-1].mean())
    assert sizes[1] > 2 * sizes[0] and sizes[1] > 2 * sizes[2]


def test_search_keeps_the_best_and_clones_them(rng: torch.Generator) -> None:
    """One event of five steps, at the third look: the best three of seven, 3, 2 and 2 times, each prompt its own."""
    seen = []

    def reward(x: Tensor) -> Tensor:
        seen.append(slope(x).detach())
        return slope(x)

    method = FlowMapTilting(4, mode="search", clones=3, resamplings=1)
    out, trace = method(LAW.flow(), Linear(), reward, noise(5, 7, rng), rng=rng)
    best = seen[2].topk(3).indices
    assert torch.equal(trace.ancestors, best.repeat(1, 3)[:, :7])
    assert trace.resampled[:, 0].tolist() == [False, False, True, False, False]
    assert trace.log_z.isnan().all() and (out.log_w.diff() == 0).all()


def test_search_finds_higher_rewards_than_drift_alone(rng: torch.Generator) -> None:
    means = []
    for clones in (1, 2):
        method = FlowMapTilting(10, mode="search", clones=clones)
        out, _ = method(LAW.flow(), Linear(), slope, noise(20, 64, rng), rng=rng)
        means.append(slope(out.x).mean(1))
    assert z_score(means[1] - means[0], 0.0) > 4 and means[1].mean() > means[0].mean()


def test_steep_rewards_do_not_throw_samples_off_the_data(dtype: torch.dtype, rng: torch.Generator) -> None:
    """The bound: even at temperature 1e-4 samples stay within reach. Continuous weights say that they are spoilt."""
    for weights in ("path", "continuous"):
        method = FlowMapTilting(10, temperature=1e-4, weights=weights)
        out, trace = method(LAW.flow(), Linear(), slope, noise(2, 32, rng).to(dtype), rng=rng)
        assert out.x.norm(dim=-1).max() < 20 and trace.push is not None and trace.push.max() > 100
        assert trace.log_z.isfinite().all() == (weights == "path")


def test_cost(counting: Callable[[FlowMap], Counting], rng: torch.Generator) -> None:
    """A velocity and a gradient look (3) a step, but no gradient at t = 0, and the last jump."""
    _, trace = FlowMapTilting(7)(counting(LAW.flow()), Linear(), slope, noise(1, 3, rng), rng=rng)
    assert trace.calls.tolist() == [3 * (4 * 7 - 1)]
    assert FMTT is FlowMapTilting and FMTT().with_budget(27 * 3, 3).steps == 7
    with pytest.raises(ValueError, match="the least is 21"):
        FMTT().with_budget(20, 3)


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"mode": "find"}, "mode must be one of sample, search, got 'find'"),
        ({"weights": "none"}, "weights must be one of path, continuous, got 'none'"),
        ({"chi": -1.0}, "chi must be at least 0, got -1"),
        ({"weights": "continuous", "chi": 1.0}, "chi must be 0 .* got 1.0; use weights='path'"),
        ({"clones": 0}, "clones must be at least 1, got 0"),
        ({"ess_threshold": 2.0}, "ess_threshold.*got 2"),
    ],
)
def test_bad_settings_raise(kwargs: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        FlowMapTilting(**kwargs)
