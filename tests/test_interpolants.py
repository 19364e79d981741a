import math

import pytest
import torch
from conftest import PATHS
from torch import Tensor
from torch.testing import assert_close

from steer import interpolants
from steer.analytic import GaussianMixture
from steer.interpolants import VP, Interpolant, Linear, Trigonometric, interpolate, like, posterior_variance

TIMES = torch.linspace(0, 1, 11, dtype=torch.float64)


def test_ends_are_noise_and_data(path: Interpolant) -> None:
    ends = [path.alpha(0.0), path.beta(0.0), path.alpha(1.0), path.beta(1.0)]
    assert ends == [1, 0, 0, 1]


@pytest.mark.parametrize("name", ["alpha", "beta"])
def test_derivatives_match_jvp(path: Interpolant, name: str) -> None:
    _, derivative = torch.func.jvp(getattr(path, name), (TIMES,), (torch.ones_like(TIMES),))
    assert_close(derivative, getattr(path, "d" + name)(TIMES), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", ["alpha", "beta", "dalpha", "dbeta"])
def test_floats_and_tensors_agree(path: Interpolant, name: str) -> None:
    floats = [getattr(path, name)(t) for t in TIMES.tolist()]
    assert all(isinstance(f, float) for f in floats)
    assert_close(torch.tensor(floats, dtype=torch.float64), getattr(path, name)(TIMES))


@pytest.mark.parametrize("path", [Trigonometric(), VP()])
def test_variance_is_preserved(path: Interpolant) -> None:
    assert_close(path.alpha(TIMES) ** 2 + path.beta(TIMES) ** 2, torch.ones_like(TIMES))


def test_vp_has_the_linear_signal_to_noise_ratio() -> None:
    assert_close(VP().beta(TIMES[:-1]) / VP().alpha(TIMES[:-1]), TIMES[:-1] / (1 - TIMES[:-1]))


def gaussian(path: Interpolant, x: Tensor, t: float, m: float = 0.7, c: float = 0.3) -> tuple[Tensor, ...]:
    """velocity, E[x1|x_t], E[x0|x_t] and score for x1 ~ N(m, c)."""
    a, b = path.alpha(t), path.beta(t)
    s = a * a + b * b * c
    data, noise = m + b * c / s * (x - b * m), a / s * (x - b * m)
    return path.dalpha(t) * noise + path.dbeta(t) * data, data, noise, -(x - b * m) / s


@pytest.mark.parametrize("t", [0.0, 0.3, 0.99, 1.0])
def test_conversions_against_a_gaussian(path: Interpolant, t: float, dtype: torch.dtype) -> None:
    x = torch.linspace(-2, 2, 12, dtype=dtype).reshape(4, 3)
    if t == 1:  # there E[x1|x_t] = x itself, and the posterior mean of the noise is 0
        assert_close(gaussian(path, x, t)[1], x)
    v, data, noise, score = gaussian(path, x, t)
    tolerance = {"atol": 1e-4, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 1e-12, "rtol": 1e-12}
    assert_close(interpolants.data_from_velocity(path, x, v, t), data, **tolerance)
    assert_close(interpolants.noise_from_velocity(path, x, v, t), noise, **tolerance)
    assert_close(interpolants.velocity_from_data(path, x, data, t), v, **tolerance)
    if t < 1:
        assert_close(interpolants.score_from_velocity(path, x, v, t), score, **tolerance)
    if t > 0:
        assert_close(interpolants.velocity_from_noise(path, x, noise, t), v, **tolerance)
        assert_close(interpolants.velocity_from_score(path, x, score, t), v, **tolerance)


def test_what_an_end_does_not_tell_is_nan_not_a_number_made_up() -> None:
    x = torch.ones(2, 3)
    assert interpolants.score_from_velocity(Linear(), x, x, 1.0).isnan().all()
    assert interpolants.velocity_from_noise(Linear(), x, x, 0.0).isnan().all()


def test_gradient_is_finite_at_the_end(path: Interpolant) -> None:
    x = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
    interpolants.velocity_from_data(path, x, 2 * x, torch.tensor([0.5, 1.0])).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()


def test_row_times_equal_one_by_one(path: Interpolant, rng: torch.Generator) -> None:
    x0, x1 = torch.randn(2, 5, 3, 2, generator=rng)
    t = torch.rand(5, generator=rng)
    each = torch.stack([interpolate(path, x0[i], x1[i], float(t[i])) for i in range(5)])
    assert_close(interpolate(path, x0, x1, t), each)


def test_times_that_do_not_lead_x_raise() -> None:
    with pytest.raises(ValueError, match=r"times of shape \(3,\)"):
        like(torch.ones(3), torch.ones(4, 2))


@pytest.mark.parametrize("t", [0.0, 0.2, 0.9, 1.0])
def test_when_is_the_inverse_of_beta_over_alpha(path: Interpolant, t: float) -> None:
    ratio = path.beta(t) / path.alpha(t) if t < 1 else math.inf
    assert path.when(ratio) == pytest.approx(t, abs=1e-12)


def test_all_paths_are_values() -> None:
    assert [type(p)() for p in PATHS] == PATHS and math.isclose(Trigonometric().dbeta(0.0), math.pi / 2)


@pytest.mark.parametrize("t", [0.0, 0.3, 0.9])
def test_posterior_variance_is_that_of_gaussian_data(t: float, path: Interpolant) -> None:
    law = GaussianMixture(torch.ones(1).double(), torch.zeros(1, 1).double(), torch.full((1, 1, 1), 0.49).double())
    exact = law.posterior(torch.ones(1, 1).double(), t, path).covs.item()
    assert posterior_variance(path, t, 0.7) == pytest.approx(exact)
