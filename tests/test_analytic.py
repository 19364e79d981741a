import math

import pytest
import torch
from conftest import z_score
from torch import Tensor
from torch.testing import assert_close

from steer.analytic import GaussianMixture, integrate
from steer.bench.problems import ring
from steer.flow_map import jump, velocity
from steer.interpolants import Interpolant, Linear, data_from_velocity

EXACT = {"atol": 1e-8, "rtol": 0.0}


def laws(mixture: GaussianMixture) -> list[GaussianMixture]:
    """A gentle mixture, a ring with far and narrow modes, and a single Gaussian."""
    return [mixture, ring(), GaussianMixture(torch.ones(1).double(), mixture.means[:1], mixture.covs[:1])]


@pytest.fixture(params=[0, 1, 2], ids=["three", "ring", "single"])
def law(request: pytest.FixtureRequest, mixture: GaussianMixture) -> GaussianMixture:
    """Each of the laws."""
    return laws(mixture)[request.param]


def noise(n: int, rng: torch.Generator) -> Tensor:
    """Standard normal points in the plane."""
    return torch.randn(n, 2, generator=rng, dtype=torch.float64)


def test_semigroup(law: GaussianMixture, path: Interpolant, rng: torch.Generator) -> None:
    x, flow = noise(64, rng), law.flow(path)
    assert_close(jump(flow, jump(flow, x, 0.0, 0.45), 0.45, 1.0), jump(flow, x, 0.0, 1.0), **EXACT)


def test_backwards_undoes_forwards(law: GaussianMixture, path: Interpolant, rng: torch.Generator) -> None:
    x, flow = noise(64, rng), law.flow(path)
    assert_close(jump(flow, jump(flow, x, 0.0, 1.0), 1.0, 0.0), x, **EXACT)


@pytest.mark.parametrize("t", [0.1, 0.7])
def test_lagrangian_identity(mixture: GaussianMixture, path: Interpolant, t: float, rng: torch.Generator) -> None:
    """d/dt X_{s,t} = v_{t,t}(X_{s,t}), by forward differentiation, both ways in time."""
    check_lagrangian(mixture, path, 0.3, t, rng)


def test_lagrangian_identity_on_far_and_narrow_modes(rng: torch.Generator) -> None:
    check_lagrangian(ring(), Linear(), 0.6, 1.0, rng)


def test_lagrangian_identity_on_the_diagonal(law: GaussianMixture, path: Interpolant, rng: torch.Generator) -> None:
    check_lagrangian(law, path, 0.4, 0.4, rng)


def check_lagrangian(law: GaussianMixture, path: Interpolant, s: float, t: float, rng: torch.Generator) -> None:
    """The identity at 32 points."""
    x, flow, end = noise(32, rng), law.flow(path), torch.tensor(t, dtype=torch.float64)
    landed, derivative = torch.func.jvp(lambda t: jump(flow, x, s, t), (end,), (torch.ones_like(end),))
    assert_close(derivative, velocity(flow, landed, t), **EXACT)


@pytest.mark.parametrize("index", [0, 2], ids=["three", "single"])
def test_eulerian_identity(index: int, mixture: GaussianMixture, path: Interpolant, rng: torch.Generator) -> None:
    """d/ds X_{s,t}(x) + grad X_{s,t} v_{s,s} = 0."""
    x, flow, s = noise(32, rng), laws(mixture)[index].flow(path), torch.tensor(0.3, dtype=torch.float64)
    direction = velocity(flow, x, 0.3)
    _, change = torch.func.jvp(lambda s, x: jump(flow, x, s, 0.6), (s, x), (torch.ones_like(s), direction))
    assert_close(change, torch.zeros_like(x), **EXACT)


def test_tangent_condition(law: GaussianMixture, path: Interpolant, rng: torch.Generator) -> None:
    """v_{s,t} -> b_t as s -> t, without cancellation."""
    x, flow = noise(32, rng), law.flow(path)
    for gap in (1e-3, 1e-6, 1e-12):
        assert (flow(x, 0.5 - gap / 2, 0.5 + gap / 2) - flow(x, 0.5, 0.5)).abs().max() < 1e3 * gap + 1e-10


def test_one_gaussian_by_its_closed_form_is_the_integrated_one(path: Interpolant, rng: torch.Generator) -> None:
    cov = torch.tensor([[0.5, 0.3], [0.3, 0.4]]).double()
    one = GaussianMixture(torch.ones(1).double(), torch.ones(1, 2).double(), cov[None])
    two = GaussianMixture(torch.ones(2).double(), torch.ones(2, 2).double(), cov.expand(2, 2, 2))
    x = noise(16, rng)
    for s, t in [(0.0, 1.0), (0.8, 0.1), (0.2, 0.2)]:
        assert_close(one.flow(path)(x, s, t), two.flow(path)(x, s, t), **EXACT)


def test_row_times_equal_one_by_one(law: GaussianMixture, path: Interpolant, rng: torch.Generator) -> None:
    x, flow = noise(6, rng), law.flow(path)
    s, t = torch.rand(2, 6, generator=rng, dtype=torch.float64)
    t[0] = s[0]
    each = torch.cat([flow(x[i : i + 1], float(s[i]), float(t[i])) for i in range(6)])
    assert_close(flow(x, s, t), each, **EXACT)


def test_flow_carries_noise_to_data(law: GaussianMixture, path: Interpolant, rng: torch.Generator) -> None:
    x1 = jump(law.flow(path, 1e-6), noise(4000, rng), 0.0, 1.0)
    got = torch.cat([x1, x1[:, :, None].mul(x1[:, None]).flatten(1)], -1)
    wanted = torch.cat([law.mean, (law.cov + law.mean[:, None] * law.mean).flatten()])
    assert z_score(got, wanted) < 4


def test_density_follows_the_flow(mixture: GaussianMixture, rng: torch.Generator) -> None:
    """log p_t(X_{s,t}(x)) = log p_s(x) - log |det grad X_{s,t}(x)|."""
    x, flow = noise(8, rng).requires_grad_(), mixture.flow()
    landed = jump(flow, x, 0.2, 0.9)
    rows = [torch.autograd.grad(landed[:, i].sum(), x, retain_graph=True)[0] for i in range(2)]
    volume = torch.linalg.det(torch.stack(rows, 1)).log()
    assert_close(mixture.marginal(0.9).log_prob(landed), mixture.marginal(0.2).log_prob(x) - volume, **EXACT)


def test_gradient_passes_through_the_map(law: GaussianMixture, rng: torch.Generator) -> None:
    x, flow = noise(5, rng).requires_grad_(), law.flow()
    (gradient,) = torch.autograd.grad(jump(flow, x, 0.1, 1.0)[:, 0].sum(), x)
    step = 1e-5 * torch.eye(2).double()[:, None]
    ahead, behind = (jump(flow, (x.detach() + h).flatten(0, 1), 0.1, 1.0)[:, 0].view(2, 5) for h in (step, -step))
    slope = (ahead - behind) / 2e-5
    assert_close(gradient, slope.T, atol=1e-4, rtol=1e-4)


def test_float32_is_the_rounded_float64(law: GaussianMixture, rng: torch.Generator) -> None:
    x, flow = noise(16, rng).float(), law.flow()
    got = flow(x, 0.0, 1.0)
    assert got.dtype == torch.float32 and torch.equal(got, flow(x.double(), 0.0, 1.0).float())


def test_extrapolation_is_of_high_order() -> None:
    """du/dtau = u: ten digits and more, and the tolerance is kept."""
    one = torch.ones(1, 1).double()
    for tolerance in (1e-6, 1e-12):
        assert abs(float(integrate(lambda tau, u: u, one, tolerance)) - math.e) < 10 * tolerance


def test_hopeless_stiffness_raises() -> None:
    one = torch.ones(1, 1).double()
    with pytest.raises(RuntimeError, match="too stiff"):
        integrate(lambda tau, u: torch.full_like(u, (0.4 - tau) ** -2), one, 1e-10)


def test_velocity_at_the_ends(law: GaussianMixture, path: Interpolant, rng: torch.Generator) -> None:
    x = noise(8, rng)
    at_noise = path.dalpha(0.0) * x + path.dbeta(0.0) * law.mean
    at_data = path.dbeta(1.0) * x
    assert_close(law.velocity(x, 0.0, path), at_noise)
    assert_close(law.velocity(x, 1.0, path), at_data)


@pytest.mark.parametrize("t", [0.0, 0.4, 0.95])
def test_posterior_against_bayes(law: GaussianMixture, path: Interpolant, t: float, rng: torch.Generator) -> None:
    """log p(x1 | x_t) = log p(x1) + log N(x_t; beta x1, alpha^2) - log p_t(x_t)."""
    x_t, x1 = law.marginal(t, path).sample(4, rng=rng), law.sample(4, rng=rng)
    alpha, beta = path.alpha(t), path.beta(t)
    forward = -((x_t - beta * x1) ** 2).sum(-1) / (2 * alpha**2) - math.log(2 * math.pi * alpha**2)
    bayes = law.log_prob(x1) + forward - law.marginal(t, path).log_prob(x_t)
    assert_close(law.posterior(x_t, t, path).log_prob(x1), bayes)


def test_posterior_mean_is_the_denoiser(law: GaussianMixture, path: Interpolant, rng: torch.Generator) -> None:
    x, t = noise(6, rng), torch.linspace(0, 0.9, 6, dtype=torch.float64)
    assert_close(law.posterior(x, t, path).mean, data_from_velocity(path, x, law.velocity(x, t, path), t))


def test_posterior_of_one_point_and_of_many(law: GaussianMixture, rng: torch.Generator) -> None:
    x = noise(3, rng)
    many, one = law.posterior(x, 0.5), law.posterior(x[1], 0.5)
    assert many.means.shape == (3, *law.means.shape) and one.means.shape == law.means.shape
    assert_close(many.covs[1], one.covs)
    draws = many.sample(20_000, rng=rng)
    assert draws.shape == (3, 20_000, 2) and z_score(draws[1], one.mean) < 4


def test_posterior_at_the_end_raises(mixture: GaussianMixture) -> None:
    for t in (1.0, torch.tensor([1.0, 0.5])):
        with pytest.raises(ValueError, match="is a point"):
            mixture.posterior(torch.zeros(2, 2).double(), t)


def test_tilt_is_the_reweighted_density(law: GaussianMixture, rng: torch.Generator) -> None:
    a, h = torch.tensor([[0.6, 0.5], [-0.1, -0.2]]).double(), torch.tensor([0.5, -1.0]).double()
    tilted, log_z = law.tilt(a, h)
    x = noise(9, rng)
    factor = x @ h - ((x @ a) * x).sum(-1) / 2
    assert_close(tilted.log_prob(x), law.log_prob(x) + factor - log_z)
    assert tilted.weights.sum() == pytest.approx(1)


def test_tilt_log_z_against_draws(mixture: GaussianMixture, rng: torch.Generator) -> None:
    a, h = torch.eye(2).double(), torch.tensor([0.5, -1.0]).double()
    x = mixture.sample(100_000, rng=rng)
    weight = (x @ h - (x**2).sum(-1) / 2).exp()
    assert z_score(weight, mixture.tilt(a, h)[1].exp()) < 4


def test_ring_has_the_known_log_z() -> None:
    a, h = torch.diag(torch.tensor([0.2, 0.0])).double(), torch.tensor([0.5, 1.0]).double()
    assert ring().tilt(a, h)[1].item() == pytest.approx(2.457, abs=5e-4)
    assert ring().tilt(4 * a, 4 * h)[1].item() == pytest.approx(14.861, abs=5e-4)


def test_a_tilt_that_diverges_raises(mixture: GaussianMixture) -> None:
    with pytest.raises(ValueError, match="diverges"):
        mixture.tilt(-100 * torch.eye(2), torch.zeros(2))


def test_log_prob_integrates_to_one(mixture: GaussianMixture) -> None:
    axis = torch.linspace(-6, 6, 301, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    assert mixture.log_prob(grid).exp().sum() * (axis[1] - axis[0]) ** 2 == pytest.approx(1, abs=1e-6)


def test_samples_have_the_mixture_s_moments(mixture: GaussianMixture, rng: torch.Generator) -> None:
    x = mixture.sample(100_000, rng=rng)
    assert z_score(torch.cat([x, x**2], -1), torch.cat([mixture.mean, mixture.cov.diagonal() + mixture.mean**2])) < 4


def test_score_is_the_gradient_of_the_marginal(law: GaussianMixture, path: Interpolant, rng: torch.Generator) -> None:
    x = noise(6, rng).requires_grad_()
    (exact,) = torch.autograd.grad(law.marginal(0.7, path).log_prob(x).sum(), x)
    assert_close(law.score(x.detach(), 0.7, path), exact)


@pytest.mark.parametrize(
    ("weights", "means", "covs", "match"),
    [
        (torch.ones(2), torch.zeros(3, 2), torch.eye(2).expand(3, 2, 2), "need weights"),
        (torch.tensor([1.0, -0.5]), torch.zeros(2, 2), torch.eye(2).expand(2, 2, 2), "at least 0"),
        (torch.ones(2), torch.zeros(2, 2), torch.zeros(2, 2, 2), "positive definite"),
    ],
)
def test_what_is_no_mixture_raises(weights: Tensor, means: Tensor, covs: Tensor, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        GaussianMixture(weights, means, covs)


def test_velocity_of_a_batch_of_mixtures_raises(mixture: GaussianMixture) -> None:
    with pytest.raises(ValueError, match="one mixture"):
        mixture.posterior(torch.zeros(3, 2).double(), 0.5).velocity(torch.zeros(3, 2).double(), 0.5, Linear())
