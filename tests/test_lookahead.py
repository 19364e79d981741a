import math

import pytest
import torch
from torch.testing import assert_close

from steer.analytic import GaussianMixture
from steer.interpolants import Interpolant, Linear
from steer.lookahead import Denoiser, Jump, damping, mean_shift, soft_value, value_score


@pytest.mark.parametrize("look", [Denoiser(), Jump()])
def test_k_axis_is_always_there(look: Denoiser | Jump, mixture: GaussianMixture, path: Interpolant) -> None:
    x = torch.ones(3, 5, 2, dtype=torch.float64)
    assert look(mixture.flow(path), path, x, 0.5, rng=None).shape == (1, 3, 5, 2)


def test_denoiser_is_the_posterior_mean(mixture: GaussianMixture, path: Interpolant, rng: torch.Generator) -> None:
    x = torch.randn(9, 2, generator=rng, dtype=torch.float64)
    assert_close(Denoiser()(mixture.flow(path), path, x, 0.3)[0], mixture.posterior(x, 0.3, path).mean)


def test_both_look_aheads_are_x_at_the_end(mixture: GaussianMixture, path: Interpolant) -> None:
    x = torch.tensor([[0.3, -1.0]], dtype=torch.float64)
    assert_close(Jump()(mixture.flow(path), path, x, 1.0)[0], x)
    assert_close(Denoiser()(mixture.flow(path), path, x, 1.0)[0], x)


def test_soft_value_of_hand_computed_numbers(dtype: torch.dtype) -> None:
    r = torch.tensor([[0.0], [math.log(3.0)]], dtype=dtype)
    assert_close(soft_value(r), torch.tensor([math.log(2.0)], dtype=dtype))


def test_soft_value_lies_between_mean_and_maximum(rng: torch.Generator) -> None:
    r = torch.randn(6, 4, generator=rng, dtype=torch.float64)
    assert_close(soft_value(r, 1e-6), r.amax(0), atol=1e-4, rtol=0)
    assert_close(soft_value(r, 1e6), r.mean(0), atol=1e-4, rtol=0)
    assert_close(soft_value(r, math.inf), r.mean(0))


def test_soft_value_does_not_overflow_and_keeps_rejections() -> None:
    r = torch.tensor([[1e6, -math.inf, -math.inf], [1e6, 0.0, -math.inf]])
    assert_close(soft_value(r), torch.tensor([1e6, -math.log(2.0), -math.inf]))


def test_soft_value_rejects_a_temperature_of_zero() -> None:
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        soft_value(torch.zeros(2, 2), 0.0)


def test_soft_value_converges_from_below_to_the_exact_value(mixture: GaussianMixture, rng: torch.Generator) -> None:
    x = torch.tensor([[0.4, 0.2]], dtype=torch.float64)
    linear = torch.tensor([1.0, -0.5], dtype=torch.float64)
    posterior = mixture.posterior(x, 0.5)
    _, exact = posterior.tilt(torch.zeros(2, 2), linear)
    r = posterior.sample(64 * 2000, rng=rng)[0].view(2000, 64, 2) @ linear
    values = [soft_value(r[:, :k].T).mean() for k in (1, 4, 64)]
    assert values[0] < values[1] < values[2] and abs(float(values[2] - exact)) < 0.02


def test_mean_shift_is_finite_at_pure_noise_where_the_score_vanishes() -> None:
    x1, r = torch.tensor([[1.0], [3.0], [100.0]])[:, None], torch.tensor([[0.0], [0.0], [-math.inf]])
    assert_close(mean_shift(x1, r), torch.tensor([[2.0 - 104 / 3]]))
    assert_close(mean_shift(x1, r, math.inf), mean_shift(x1, r))
    assert (value_score(Linear(), x1, r, 0.0) == 0).all()


@pytest.mark.parametrize("std", [0.5, 2.0])
def test_damping_makes_a_plug_in_gradient_that_of_the_value(std: float, path: Interpolant) -> None:
    """For Gaussian data and the reward -lam |x1 - c|^2 at the denoiser's guess, at any time and steepness."""
    law = GaussianMixture(torch.ones(1).double(), torch.ones(1, 2).double(), std**2 * torch.eye(2).double()[None])
    centre, x = torch.tensor([3.0, -1.0]).double(), torch.tensor([[0.3, -0.8]]).double().requires_grad_()
    for t, lam in ((0.2, 0.5), (0.7, 30.0)):
        post = law.posterior(x, t, path)
        value = post.tilt(2 * lam * torch.eye(2).double(), 2 * lam * centre)[1] - lam * centre @ centre
        guess = -lam * (Denoiser()(law.flow(path), path, x, t)[0] - centre).square().sum()
        exact, plain = (torch.autograd.grad(v.sum(), x)[0] for v in (value, guess))
        assert_close(exact, damping(path, t, lam, std) * plain)
