import math

import pytest
import torch
from torch.testing import assert_close

from steer.analytic import GaussianMixture
from steer.interpolants import Interpolant
from steer.lookahead import Denoiser, Jump, soft_value


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
