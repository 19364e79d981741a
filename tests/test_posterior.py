import math

import pytest
import torch
from conftest import Counting, z_score
from torch import Tensor
from torch.testing import assert_close

from steer.analytic import GaussianMixture
from steer.flow_map import Cond
from steer.interpolants import Interpolant, Linear, Time
from steer.lookahead import Rollout, soft_value, value_score
from steer.posterior import Glass, Learned, Renoised

SLOPE = torch.tensor([1.0, -0.5]).double()
POINT = torch.tensor([[0.4, 0.2], [-0.5, 0.1]]).double()


def moments(x: Tensor) -> Tensor:
    """First and second moments, and the chance of one side [... 5]."""
    return torch.cat([x, x**2, (x[..., :1] > 0).double()], -1)


@pytest.mark.parametrize("t", [0.0, 0.3, 0.7])
def test_glass_draws_the_posterior(t: float, mixture: GaussianMixture, path: Interpolant, rng: torch.Generator) -> None:
    x1 = Glass(k=3000, steps=60)(mixture.flow(path), path, POINT, t, rng=rng)
    exact = moments(mixture.posterior(POINT, t, path).sample(300_000, rng=rng)).mean(1)
    assert x1.shape == (3000, 2, 2) and z_score(moments(x1), exact) < 4.5


@pytest.mark.parametrize("t", [0.0, 0.3, 0.6])
def test_renoised_draws_with_their_weights_are_the_posterior(
    t: float, mixture: GaussianMixture, path: Interpolant, rng: torch.Generator
) -> None:
    """Self-normalised means over batches of draws; the trapezoid between two times, as published, misses by far."""
    look = Renoised(k=4000, nodes=4)
    flow = mixture.flow(path, 1e-6)
    exact = moments(mixture.posterior(POINT, t, path).sample(300_000, rng=rng)).mean(1)
    means = []
    for _ in range(8):
        z, log_w = look.weighted(flow, path, POINT, t, rng=rng)
        w = torch.zeros(z.shape[:2]).double() if log_w is None else log_w
        means.append((w.softmax(0)[..., None] * moments(z)).sum(0))
    assert z_score(torch.stack(means), exact) < 5.5


def test_renoised_draws_are_resampled_when_called(mixture: GaussianMixture, rng: torch.Generator) -> None:
    look = Renoised(k=4000, nodes=3)
    exact = mixture.posterior(POINT, 0.6).mean
    plain, _ = Renoised(k=4000).weighted(mixture.flow(tolerance=1e-6), Linear(), POINT, 0.6, rng=rng)
    drawn = look(mixture.flow(tolerance=1e-6), Linear(), POINT, 0.6, rng=rng)
    assert (drawn.mean(0) - exact).norm() < 0.15 < (plain.mean(0) - exact).norm()


@pytest.mark.parametrize("look", [Glass(3, 2), Renoised(3), Learned(3), Learned(3, 2), Rollout(3)])
def test_calls_are_what_they_say(look: Glass | Renoised | Learned | Rollout) -> None:
    flow = Counting(lambda x, s, t, cond=None: 0 * x)
    x = torch.ones(5, 2)
    x1 = look(flow, Linear(), x, 0.5, rng=torch.Generator().manual_seed(0))
    assert x1.shape == ((1 if isinstance(look, Rollout) else 3), 5, 2) and flow.forward == 5 * look.calls


@pytest.mark.parametrize("look", [Glass(3, 2), Renoised(3), Rollout(3)])
def test_at_the_end_every_guess_is_x(look: Glass | Renoised | Rollout, mixture: GaussianMixture) -> None:
    x1 = look(mixture.flow(), Linear(), POINT, 1.0, rng=torch.Generator().manual_seed(0))
    assert_close(x1, POINT.expand_as(x1))


def test_rollout_is_the_jump_under_an_exact_map(mixture: GaussianMixture, path: Interpolant) -> None:
    x1 = Rollout(3)(mixture.flow(path), path, POINT, 0.3)
    assert_close(x1[0], POINT + 0.7 * mixture.flow(path)(POINT, 0.3, 1.0), atol=1e-8, rtol=0)


def test_given_noise_stands_for_the_draws(mixture: GaussianMixture) -> None:
    flow = mixture.flow(tolerance=1e-6)
    for look in (Glass(3, 4), Renoised(3), Learned(3)):
        seeds = [torch.Generator().manual_seed(4) for _ in range(2)]
        noise = look.noise(POINT, rng=seeds[0])
        a, _ = look.weighted(flow, Linear(), POINT, 0.5, noise=noise)
        b, _ = look.weighted(flow, Linear(), POINT, 0.5, rng=seeds[1])
        assert torch.equal(a, b)


@pytest.mark.parametrize("steps", [1, 3])
def test_a_learned_posterior_map_is_given_its_context(steps: int, rng: torch.Generator) -> None:
    """A map of one Gaussian's posterior, written by hand, is called with x_t and t beside the prompt's own cond."""
    gaussian = GaussianMixture(torch.ones(1).double(), torch.zeros(1, 2).double(), 0.5 * torch.eye(2).double()[None])

    def posterior_map(z: Tensor, s: Time, t: Time, cond: Cond = None) -> Tensor:
        """Of the flow from N(0, 1) to N(m, var): all points keep their place in units of the spread."""
        assert cond is not None and cond["own"].shape == (len(z), 1) and round(float((t - s) * steps), 9) == 1
        law = gaussian.posterior(cond["x_t"], float(cond["t"][0]))
        var = law.covs[:, 0, 0, :1]
        before, after = (((1 - u) ** 2 + u**2 * var).sqrt() for u in (s, t))
        return (t * law.mean + after / before * (z - s * law.mean) - z) / (t - s)

    cond = {"own": torch.zeros(2, 1)}
    x1 = Learned(20_000, steps)(posterior_map, Linear(), POINT, 0.4, cond=cond, rng=rng)
    law = gaussian.posterior(POINT, 0.4)
    assert z_score(x1, law.mean) < 4 and z_score(x1**2, law.mean**2 + law.covs[:, 0, 0, :1]) < 4


def test_value_score_is_the_gradient_of_the_exact_value(
    mixture: GaussianMixture, path: Interpolant, rng: torch.Generator
) -> None:
    """beta/alpha^2 (tilted mean - mean) against autograd through the closed form of V."""
    t, x = 0.6, POINT.clone().requires_grad_()
    _, value = mixture.posterior(x, t, path).tilt(torch.zeros(2, 2), SLOPE)
    (exact,) = torch.autograd.grad(value.sum(), x)
    x1 = mixture.posterior(POINT, t, path).sample(200 * 4000, rng=rng).view(2, 200, 4000, 2).permute(1, 2, 0, 3)
    found = torch.stack([value_score(path, part, part @ SLOPE, t) for part in x1])
    assert z_score(found, exact) < 4.5


def test_both_ways_to_the_gradient_agree(mixture: GaussianMixture, rng: torch.Generator) -> None:
    """Reparametrised draws of one Gaussian: the mean of softmax(r) grad r against the gradient-free form."""
    gaussian = GaussianMixture(torch.ones(1).double(), torch.zeros(1, 2).double(), 0.5 * torch.eye(2).double()[None])
    x = POINT.clone().requires_grad_()
    x1 = Glass(k=20_000, steps=40)(gaussian.flow(), Linear(), x, 0.5, rng=rng)
    (through,) = torch.autograd.grad(soft_value(x1 @ SLOPE).sum(), x)
    without = value_score(Linear(), x1.detach(), x1.detach() @ SLOPE, 0.5)
    assert_close(through, without, atol=0.06, rtol=0)


def test_value_score_ignores_rejections_and_takes_weights() -> None:
    x1 = torch.tensor([[[1.0]], [[3.0]], [[9.0]]])
    r = torch.tensor([[0.0], [math.log(3.0)], [-math.inf]])
    assert_close(value_score(Linear(), x1, r, 0.5), 2 * torch.tensor([[2.5 - 13 / 3]]))
    only = torch.tensor([[0.0], [0.0], [-math.inf]])
    assert_close(value_score(Linear(), x1, r, 0.5, log_w=only), 2 * torch.tensor([[2.5 - 2.0]]))
    assert (value_score(Linear(), x1, torch.full((3, 1), -math.inf), 0.5) == 0).all()


@pytest.mark.parametrize(
    ("kind", "kwargs", "match"),
    [
        (Glass, {"k": 0}, "k must be at least 1, got 0"),
        (Glass, {"steps": 0}, "steps must be at least 1, got 0"),
        (Renoised, {"back": 1.0}, "back.*got 1.0"),
        (Renoised, {"nodes": 0}, "nodes.*0"),
        (Learned, {"k": -1}, "k must be at least 1, got -1"),
        (Rollout, {"jumps": 0}, "jumps must be at least 1, got 0"),
    ],
)
def test_bad_settings_raise(kind: type, kwargs: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        kind(**kwargs)
