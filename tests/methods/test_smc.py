import math

import pytest
import torch
from conftest import z_score
from torch import Tensor
from torch.testing import assert_close

from steer.analytic import GaussianMixture
from steer.flow_map import jump
from steer.interpolants import Interpolant, Linear
from steer.methods import SMC
from steer.moves import restart
from steer.resampling import RESAMPLERS

SLOPE = torch.tensor([1.5, -1.0]).double()


def slope(x: Tensor) -> Tensor:
    """A linear reward."""
    return x @ SLOPE.to(x)


def noise(p: int, n: int, rng: torch.Generator) -> Tensor:
    """p prompts of n particles in the plane: here p independent runs."""
    return torch.randn(p, n, 2, generator=rng, dtype=torch.float64)


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("ess_threshold", [0.0, 0.5, 1.0])
def test_z_is_unbiased_and_the_tilted_law_is_met(
    steps: int, ess_threshold: float, mixture: GaussianMixture, path: Interpolant, rng: torch.Generator
) -> None:
    """E[Z_hat] = Z and E[Z_hat sum w f] = Z E*[f], at any number of steps, resampling never, at times or always.

    Weights dropped without a resampling, a last weight lost, a tensor left ungathered, +log N in log Z, or increments
    added twice, each breaks one of the two.
    """
    target, log_z = mixture.tilt(torch.zeros(2, 2), SLOPE)
    method = SMC(steps, ess_threshold=ess_threshold)
    out, trace = method(mixture.flow(path, 1e-4), path, slope, noise(200, 16, rng), rng=rng)
    z = trace.log_z.exp()
    assert z_score(z, log_z.exp()) < 4
    weighted = z[:, None] * (out.log_w.exp()[..., None] * out.x).sum(1)
    assert z_score(weighted, log_z.exp() * target.mean) < 4
    assert trace.resampled[:-1].any() == (ess_threshold > 0 and steps > 1) and not trace.resampled[-1].any()


@pytest.mark.parametrize("name", sorted(RESAMPLERS))
def test_every_resampler_is_unbiased(name: str, mixture: GaussianMixture, rng: torch.Generator) -> None:
    _, log_z = mixture.tilt(torch.zeros(2, 2), SLOPE)
    method = SMC(3, resample=name, ess_threshold=0.9)
    _, trace = method(mixture.flow(tolerance=1e-4), Linear(), slope, noise(300, 16, rng), rng=rng)
    assert z_score(trace.log_z.exp(), log_z.exp()) < 4


def test_a_resampler_may_be_a_function(mixture: GaussianMixture, rng: torch.Generator) -> None:
    def best(log_w: Tensor, *, rng: torch.Generator) -> Tensor:
        return log_w.argmax(-1, keepdim=True).expand_as(log_w)

    method = SMC(3, ess_threshold=1.0, resample=best)
    _, trace = method(mixture.flow(tolerance=1e-4), Linear(), slope, noise(2, 8, rng), rng=rng)
    assert trace.resampled[0].all()
    assert (trace.ancestors == trace.ancestors[:, :1]).all()


def test_one_particle_is_the_unguided_sampler(
    mixture: GaussianMixture, path: Interpolant, rng: torch.Generator
) -> None:
    method, x = SMC(4), noise(3, 1, rng)
    out, trace = method(mixture.flow(path), path, slope, x, rng=torch.Generator().manual_seed(2))
    plain, times, rng = x[:, 0], method.times, torch.Generator().manual_seed(2)
    for s, t in zip(times, times[1:], strict=False):
        plain = restart(mixture.flow(path), path, plain, s, t, rng=rng)
    plain = jump(mixture.flow(path), plain, times[-1], 1.0)
    assert_close(out.x[:, 0], plain, atol=1e-8, rtol=0)
    assert_close(trace.log_z, slope(plain), atol=1e-7, rtol=0)
    assert (out.log_w == 0).all()


def test_times_and_schedule() -> None:
    times = SMC(5, last_time=0.6).times
    assert times[0] == 0 and times[-1] == pytest.approx(0.6) and times == sorted(times)
    assert SMC(1).times == [0.0]


def test_log_z_of_a_constant_reward_is_that_constant(mixture: GaussianMixture, rng: torch.Generator) -> None:
    method = SMC(4, temperature=0.5, ess_threshold=1.0)
    _, trace = method(mixture.flow(tolerance=1e-4), Linear(), lambda x: 0 * x[..., 0] + 3, noise(2, 64, rng), rng=rng)
    assert_close(trace.log_z, torch.full((2,), 6.0).double())


def test_steep_rewards_do_not_overflow_in_float32(mixture: GaussianMixture, rng: torch.Generator) -> None:
    method = SMC(6, temperature=1e-3)
    out, trace = method(mixture.flow(tolerance=1e-4), Linear(), slope, noise(2, 64, rng).float(), rng=rng)
    assert out.log_w.exp().isfinite().all() and trace.log_z.isfinite().all() and (trace.log_z > 500).all()


def test_hard_constraints_keep_z_unbiased(mixture: GaussianMixture, rng: torch.Generator) -> None:
    """A reward of 0 or -inf: Z is the chance to be accepted. Killing at half-made samples would lower it."""
    chance = (mixture.sample(200_000, rng=rng)[:, 0] > 0.8).double().mean()

    def inside(x: Tensor) -> Tensor:
        return torch.where(x[..., 0] > 0.8, 0.0, -math.inf)

    method = SMC(4, ess_threshold=0.7)
    out, trace = method(mixture.flow(tolerance=1e-4), Linear(), inside, noise(300, 32, rng), rng=rng)
    assert trace.resampled.any() and z_score(trace.log_z.exp(), chance) < 4
    assert (out.x[out.log_w > -math.inf][:, 0] > 0.8).all()


def test_all_rejected_raises_and_names_the_prompt(mixture: GaussianMixture, rng: torch.Generator) -> None:
    def harsh(x: Tensor) -> Tensor:
        return x[..., 0] + torch.tensor([[0.0], [-math.inf]])

    with pytest.raises(ValueError, match="every particle of prompt row 1"):
        SMC(3)(mixture.flow(tolerance=1e-4), Linear(), harsh, noise(2, 8, rng), rng=rng)


def test_prompts_are_steered_apart(mixture: GaussianMixture, rng: torch.Generator) -> None:
    """Opposite rewards in one batch: each prompt follows its own."""
    sign = torch.tensor([[1.0], [-1.0]]).double()
    out, trace = SMC(6)(
        mixture.flow(tolerance=1e-4), Linear(), lambda x: 4 * sign * x[..., 0], noise(2, 500, rng), rng=rng
    )
    means = (out.log_w.exp()[..., None] * out.x).sum(1)[:, 0]
    for k in (0, 1):
        target, log_z = mixture.tilt(torch.zeros(2, 2), torch.stack([4 * sign[k, 0], torch.zeros(()).double()]))
        assert abs(means[k] - target.mean[0]) < 0.3 and abs(trace.log_z[k] - log_z) < 1


def test_ancestors_follow_the_survivors(mixture: GaussianMixture, rng: torch.Generator) -> None:
    """With a last restart close to the data, what survives is still near its ancestor's own end."""
    flow, x0 = mixture.flow(tolerance=1e-6), noise(1, 200, rng)
    method = SMC(2, temperature=0.3, ess_threshold=1.0, last_time=0.9999)
    out, trace = method(flow, Linear(), slope, x0, rng=rng)
    ends = jump(flow, x0[0], 0.0, 1.0)
    assert trace.resampled[0, 0] and len(trace.ancestors.unique()) < 150
    assert (out.x[0] - ends[trace.ancestors[0]]).norm(dim=-1).max() < 0.05


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"ess_threshold": 1.5}, "ess_threshold.*got 1.5"),
        ({"resample": "best"}, "'systematic'.*got 'best'"),
        ({"last_time": 1.0}, "last_time.*got 1.0"),
        ({"schedule": lambda u: u / 2}, r"schedule\(1\) = 0.5"),
    ],
)
def test_bad_settings_raise(kwargs: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        SMC(**kwargs)
