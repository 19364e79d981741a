"""Inverse problems: operators against what they are by definition, and the posterior against its closed form."""

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import z_score
from torch import Tensor
from torch.testing import assert_close

import rewards
from rewards.inverse import Blur, Box, Downsample, Grey, Measured, Motion, Operator, PhaseRetrieval, Pixels
from steer.analytic import GaussianMixture
from steer.interpolants import Linear
from steer.methods import SMC

LINEAR = [Box(), Pixels(0.3), Downsample(2), Downsample(3, "bicubic"), Blur(1.0), Motion(4, 30), Grey()]
ALL = [*LINEAR, PhaseRetrieval(), PhaseRetrieval(1.0)]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def adjoint(operator: Operator, y: Tensor, x: Tensor) -> Tensor:
    """A^T y, for A linear, by the gradient of <A x, y> anywhere."""
    x = x.clone().requires_grad_(True)
    return torch.autograd.grad((operator(x) * y).sum(), x)[0]


@pytest.mark.parametrize("operator", LINEAR, ids=lambda o: o.name)
def test_linear_operators_are_linear_and_have_adjoints(operator: Operator) -> None:
    """A(a x + b z) = a A x + b A z, and <A x, y> = <x, A^T y>."""
    x, z = draw(2, 3, 12, 12), draw(2, 3, 12, 12, seed=1)
    assert_close(operator(2 * x - 3 * z), 2 * operator(x) - 3 * operator(z))
    y = draw(*operator(x).shape, seed=2)
    assert_close((operator(x) * y).sum(), (x * adjoint(operator, y, z)).sum())


def test_phase_retrieval_is_not_linear_and_keeps_energy() -> None:
    """Parseval, with zeros added; blind to a sign and, where there is no edge, to a shift."""
    x = draw(2, 3, 8, 8)
    assert_close(PhaseRetrieval()(x).square().sum((1, 2, 3)), x.square().sum((1, 2, 3)))
    assert PhaseRetrieval(1.5)(x).shape == (2, 3, 12, 12)
    assert_close(PhaseRetrieval()(-x), PhaseRetrieval()(x))
    assert_close(PhaseRetrieval(1.0)(x.roll((2, 3), (2, 3))), PhaseRetrieval(1.0)(x))
    assert (PhaseRetrieval(1.0)(x.flip(1)) - PhaseRetrieval(1.0)(x)).abs().max() > 0.1


@pytest.mark.parametrize("operator", ALL, ids=lambda o: o.name)
def test_rows_do_not_mix(operator: Operator) -> None:
    x = draw(3, 3, 12, 12)
    assert_close(operator(x)[1:2], operator(x[1:2]), rtol=0, atol=1e-12)
    assert operator(x.float()).dtype == torch.float32


def test_a_box_hides_what_is_in_it() -> None:
    x = draw(1, 3, 8, 8)
    y = Box(0.25, 0.5, 0.5, 0.25)(x)
    assert y.shape == (1, 3, 64 - 4 * 2)
    inside = torch.zeros_like(x)
    inside[..., 2:6, 4:6] = 1
    assert_close(Box(0.25, 0.5, 0.5, 0.25)(x + inside), y)
    assert_close(y.sum(), (x * (1 - inside)).sum())


def test_pixels_are_as_many_as_asked_and_the_same_each_time() -> None:
    seen = Pixels(0.25, seed=3).seen(8, 10)
    assert int(seen.sum()) == 20 and torch.equal(seen, Pixels(0.25, seed=3).seen(8, 10))
    assert not torch.equal(seen, Pixels(0.25, seed=4).seen(8, 10))
    x = draw(1, 3, 8, 10)
    assert torch.equal(Pixels(0.25, seed=3)(x)[0, 1], x[0, 1][seen])


def test_downsampling_takes_means() -> None:
    x = draw(1, 3, 6, 4)
    assert_close(Downsample(2)(x)[0, 0, 2, 1], x[0, 0, 4:6, 2:4].mean())
    rise = torch.arange(24, dtype=torch.float64).expand(1, 3, 24, 24)
    inner = Downsample(4, "bicubic")(rise)[0, 0, 3, 2:4]  # a ramp stays a ramp, away from the edges
    assert_close(inner, torch.tensor([9.5, 13.5]).double())


def test_blurs_are_convolutions_with_their_kernels() -> None:
    point = torch.zeros(1, 3, 33, 33, dtype=torch.float64)
    point[..., 16, 16] = 1
    for operator in (Blur(1.5), Motion(6, 20)):
        seen, reach = operator(point)[0, 1], operator.kernel().shape[0] // 2
        assert_close(seen[16 - reach : 17 + reach, 16 - reach : 17 + reach], operator.kernel())
        assert_close(seen.sum(), torch.tensor(1.0).double())
    at = torch.arange(-16, 17).double()
    assert_close((Blur(1.5)(point)[0, 0].sum(0) * at**2).sum(), torch.tensor(1.5**2).double(), rtol=1e-3, atol=0)


def test_motion_goes_where_it_says() -> None:
    flat, up = Motion(4, 0).kernel(), Motion(4, 90).kernel()
    assert_close(flat[2], torch.full((5,), 0.2).double())
    assert_close(up, flat.T)
    y, x = Motion(9, 30).kernel().nonzero().T.double()
    assert ((x - x.mean()) * (y - y.mean())).sum() < 0  # up to the right: rows fall as columns rise


def test_grey_is_the_luminance() -> None:
    assert_close(
        Grey()(torch.eye(3).double()[..., None, None]).flatten(), torch.tensor([0.2126, 0.7152, 0.0722]).double()
    )
    assert_close(Grey()(torch.ones(1, 3, 2, 2)), torch.ones(1, 1, 2, 2))


@pytest.mark.parametrize("operator", LINEAR, ids=lambda o: o.name)
def test_the_gradient_is_the_weighted_residual_sent_back(operator: Operator) -> None:
    """grad log p(y | x) = A^T (y - A x) / sigma^2."""
    reward = Measured.of(operator, draw(3, 12, 12), 0.2, rng=torch.Generator().manual_seed(0))
    x = draw(2, 3, 12, 12, seed=5).requires_grad_(True)
    (gradient,) = torch.autograd.grad(reward(x, ["", ""]).sum(), x)
    assert_close(gradient, adjoint(operator, (reward.y - operator(x.detach())) / 0.2**2, x.detach()))


@pytest.mark.parametrize("operator", ALL, ids=lambda o: o.name)
def test_scores_are_log_densities_of_the_noise(operator: Operator) -> None:
    """With the constant that the class states, torch's own Gaussian; 0 for the picture that explains y exactly."""
    x, sigma = draw(2, 3, 12, 12), 0.3
    reward = Measured(operator, operator(x)[0], sigma)
    assert reward(x[:1], [""]).item() == 0
    constant = -reward.y.numel() * math.log(2 * math.pi * sigma**2) / 2
    truth = torch.distributions.Normal(operator(x)[1], sigma).log_prob(reward.y).sum()
    assert_close(reward(x, ["", ""])[1] + constant, truth)


def test_simulated_noise_has_the_stated_size() -> None:
    """|y - A x|^2 / sigma^2 is chi-squared with m degrees of freedom."""
    x = draw(3, 40, 40)
    y = Measured.of(Grey(), x, 0.1, rng=torch.Generator().manual_seed(0)).y
    chi, m = ((y - Grey()(x[None])[0]) / 0.1).square().sum(), y.numel()
    assert abs(chi - m) < 4 * (2 * m) ** 0.5
    again = Measured.of(Grey(), x, 0.1, rng=torch.Generator().manual_seed(0)).y
    assert torch.equal(y, again)


@pytest.mark.parametrize("operator", [Downsample(2), Box(0, 0, 0.5, 1.0), Grey()], ids=lambda o: o.name)
@pytest.mark.parametrize("method", [SMC(3), SMC(4, chain="sde", twist=1.0)], ids=["smc", "tds"])
def test_steering_meets_the_exact_posterior(method: SMC, operator: Operator, rng: torch.Generator) -> None:
    """A Gaussian picture of 2 x 2 pixels at temperature 1: E[Z_hat] = Z, and E[Z_hat sum w x] = Z E[x | y]."""
    root = draw(12, 12, seed=7)
    prior = GaussianMixture(
        torch.ones(1).double(), draw(1, 12, seed=8) / 2, (root @ root.T / 24 + torch.eye(12) / 4)[None]
    )
    sigma = 1.0
    truth = prior.sample(1, rng=rng).view(3, 2, 2)
    reward = Measured.of(operator, truth, sigma, rng=rng)
    a = torch.stack([operator(e.view(1, 3, 2, 2)).flatten() for e in torch.eye(12).double()], 1)
    y = reward.y.flatten()
    posterior, log_z = prior.tilt(a.T @ a / sigma**2, a.T @ y / sigma**2)
    z = (log_z - y.square().sum() / (2 * sigma**2)).exp()
    assert (posterior.mean - prior.mean).abs().max() > 0.1  # there is something to find

    def score(x: Tensor) -> Tensor:
        return reward(x.reshape(-1, 3, 2, 2), [""] * x[..., 0].numel()).view(x.shape[:-1])

    x0 = torch.randn(200, 32, 12, generator=rng, dtype=torch.float64)
    out, trace = method(prior.flow(), Linear(), score, x0, rng=rng)
    estimates = trace.log_z.exp()
    assert z_score(estimates, z) < 4
    weighted = estimates[:, None] * (out.log_w.exp()[..., None] * out.x).sum(1)
    assert z_score(weighted, z * posterior.mean) < 4


def test_it_is_a_reward_like_others() -> None:
    """Dtypes come back, rows stand alone, attributes are stated, any function is an operator."""
    small = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    reward = Measured.of(Downsample(4), small[0], 0.1, rng=torch.Generator().manual_seed(0))
    r = reward(small, ["a"] * 3)
    assert r.shape == (3,) and r.dtype == torch.float32 and rewards.is_differentiable(reward)
    assert reward.name == "measured downsample"
    assert_close(reward(small.flip(0), ["a"] * 3), r.flip(0))
    assert reward(small.double(), ["a"] * 3).dtype == torch.float64
    assert reward(small.bfloat16(), ["a"] * 3).dtype == torch.bfloat16
    own = Measured(lambda x: F.max_pool2d(x, 16)[:, :, 0, 0], torch.ones(3), 0.5, name="brightest")
    assert_close(own(small, ["a"] * 3), -2 * (small.amax((2, 3)) - 1).square().sum(1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Box(0.5, 0.5, 0.6, 0.2), "does not lie in the picture"), (lambda: Box(height=0), "does not lie"),
        (lambda: Pixels(0), "share=0"), (lambda: Downsample(1), "factor=1"), (lambda: Downsample(2, "near"), "mode="),
        (lambda: Blur(0), "std=0"), (lambda: Motion(-1), "length=-1"), (lambda: PhaseRetrieval(0.5), "oversample=0.5"),
        (lambda: Measured(Grey(), torch.zeros(1, 2, 2), 0), "sigma=0"),
        (lambda: Measured(Grey(), torch.full((1, 2, 2), torch.nan), 1), "y holds NaN"),
        (lambda: Downsample(3)(torch.zeros(1, 3, 8, 9)), "factor=3 does not divide the sides 8 x 9"),
        (lambda: Blur(3)(torch.zeros(1, 3, 8, 8)), "reaches 12 pixels"),
        (lambda: Box(0, 0, 1, 1)(torch.zeros(1, 3, 8, 8)), "'box' leaves no pixel"),
        (lambda: Measured(Grey(), torch.zeros(1, 2, 2), 1)(torch.zeros(1, 3, 4, 4), [""]), r"gives \[1, 4, 4\].*y is"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]
