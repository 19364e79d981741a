import dataclasses
import math
from dataclasses import dataclass

import pytest
import torch
from conftest import z_score
from torch import Tensor
from torch.testing import assert_close

from steer.analytic import GaussianMixture
from steer.draws import Rng, draws_like
from steer.flow_map import Cond, FlowMap, jump
from steer.interpolants import Interpolant, Linear, Time
from steer.methods import PosteriorGuidance
from steer.particles import length
from steer.posterior import Glass
from steer.run import Run

SLOPE = torch.tensor([1.0, -0.5]).double()
COV = torch.tensor([[0.8, 0.3], [0.3, 0.5]]).double()
LAW = GaussianMixture(torch.ones(1).double(), torch.tensor([[0.4, -0.2]]).double(), COV[None])


def noise(p: int, n: int, rng: torch.Generator) -> Tensor:
    """p prompts of n particles in the plane."""
    return torch.randn(p, n, 2, generator=rng, dtype=torch.float64)


def slope(x: Tensor) -> Tensor:
    """A linear reward."""
    return x @ SLOPE


@dataclass(frozen=True)
class Exact:
    """K draws of p(x1 | x_t) of a mixture as it is known; a function of x and the noise where it is one Gaussian."""

    law: GaussianMixture
    k: int = 4
    calls: int = 0

    def noise(self, x: Tensor, *, rng: Rng) -> Tensor:
        """Standard normal [k p n d]."""
        return draws_like(x, self.k, rng)

    def __call__(
        self,
        flow: FlowMap,
        path: Interpolant,
        x: Tensor,
        t: Time,
        *,
        cond: Cond = None,
        rng: Rng | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """The draws."""
        return self.weighted(flow, path, x, t, rng=rng, noise=noise)[0]

    def weighted(
        self,
        flow: FlowMap,
        path: Interpolant,
        x: Tensor,
        t: Time,
        *,
        cond: Cond = None,
        rng: Rng | None = None,
        noise: Tensor | None = None,
        event: int = 1,
    ) -> tuple[Tensor, None]:
        """The draws, all of the same weight."""
        assert isinstance(rng, torch.Generator)
        law = self.law.posterior(x, t, path)
        if law.weights.shape[-1] > 1:
            return law.sample(self.k, rng=rng).movedim(-2, 0), None
        noise = self.noise(x, rng=rng) if noise is None else noise
        root = torch.linalg.cholesky(law.covs[..., 0, :, :])
        return law.means[..., 0, :] + (root @ noise[..., None])[..., 0], None


def posterior_cov(path: Interpolant, t: float) -> Tensor:
    """Of p(x1 | x_t) under LAW [d d]."""
    return LAW.posterior(torch.zeros(1, 2).double(), t, path).covs[0, 0]


@pytest.mark.parametrize("t", [0.1, 0.5, 0.8])
def test_mfm_g_shifts_the_mean_of_a_gaussian_exactly(t: float, path: Interpolant, rng: torch.Generator) -> None:
    """For a linear reward D* - D = Cov(x1 | x_t) a / T, with any number of draws."""
    x = noise(2, 3, rng)
    method = PosteriorGuidance(temperature=0.5, lookahead=Exact(LAW, 1))
    shift = method._shift(Run(LAW.flow(path), path, slope, x, rng=rng), x, t)
    assert_close(shift, (posterior_cov(path, t) @ SLOPE / 0.5).expand(2, 3, 2))


@pytest.mark.parametrize("t", [0.0, 0.1, 0.5, 0.8])
def test_mfm_gf_agrees_with_mfm_g_on_average(t: float, path: Interpolant, rng: torch.Generator) -> None:
    """To the bias of a ratio of k draws, which falls as 1/k and makes the shift too short; also at pure noise."""
    x, truth = noise(1, 1500, rng), posterior_cov(path, t) @ SLOPE
    found = {}
    for k in (2, 400):
        method = PosteriorGuidance(gradient=False, lookahead=Exact(LAW, k))
        found[k] = method._shift(Run(LAW.flow(path), path, slope, x, rng=rng), x, t)[0]
    assert_close(found[400].mean(0), truth, rtol=0.03, atol=0.005)
    assert slope(found[2]).mean() < 0.9 * slope(truth)


@pytest.mark.parametrize("gradient", [True, False])
def test_the_guided_flow_meets_the_tilted_law_of_a_gaussian(gradient: bool, path: Interpolant) -> None:
    """With exact draws, no bound and short steps every sample moves by C a / T, and errors fall with the steps."""
    rng, errors, shift = torch.Generator().manual_seed(1), [], COV @ SLOPE / 0.7
    x0 = noise(1, 100, rng)
    plain = jump(LAW.flow(path), x0[0], 0.0, 1.0)
    for steps in (6, 24):
        method = PosteriorGuidance(
            steps, 0.7, gradient, Exact(LAW, 2 if gradient else 200), max_ratio=math.inf, last_time=0.98
        )
        out, _ = method(LAW.flow(path), path, slope, x0, rng=rng)
        errors.append(float((out.x[0].mean(0) - plain.mean(0) - shift).norm() / shift.norm()))
    assert errors[1] < 0.5 * errors[0] and errors[1] < 0.1


@pytest.mark.parametrize("churn", [1.0, 3.0])
def test_the_guided_sde_meets_the_tilted_mean_of_a_gaussian(churn: float, path: Interpolant) -> None:
    """With noise in the steps too, where the push is eta + eps and part of it is noised away again."""
    x0, errors, shift = noise(1, 50, torch.Generator().manual_seed(1)), [], COV @ SLOPE / 0.7
    for steps in (20, 80):
        method = PosteriorGuidance(steps, lookahead=Exact(LAW, 1), churn=churn, max_ratio=math.inf, last_time=0.98)
        steered, plain = (
            dataclasses.replace(method, temperature=t)(
                LAW.flow(path), path, slope, x0, rng=torch.Generator().manual_seed(3)
            )[0].x[0]
            for t in (0.7, math.inf)
        )
        errors.append(float((steered - plain - shift).norm(dim=-1).max() / shift.norm()))
    assert errors[1] < 0.4 * errors[0] and errors[1] < 0.12


def test_mfm_gf_meets_the_tilted_law_of_a_mixture(mixture: GaussianMixture, rng: torch.Generator) -> None:
    """Modes take their weights too, which a plug-in gradient at one guessed end cannot make them do."""
    reward = SLOPE * 1.5
    target, _ = mixture.tilt(torch.zeros(2, 2), reward)
    method = PosteriorGuidance(20, 1.0, False, Exact(mixture, 128), max_ratio=math.inf, last_time=0.95)
    out, _ = method(mixture.flow(tolerance=1e-4), Linear(), lambda x: x @ reward, noise(1, 600, rng), rng=rng)
    assert (out.x[0].mean(0) - target.mean).norm() < 0.15 < 0.5 < (mixture.mean - target.mean).norm()
    left = [float((x[:, 0] < -0.5).double().mean()) for x in (out.x[0], target.sample(20_000, rng=rng))]
    assert left[0] == pytest.approx(left[1], abs=0.03)


@pytest.mark.parametrize(("churn", "max_ratio"), [(0.5, math.inf), (1.0, 0.7), (math.inf, 1.0)])
@pytest.mark.parametrize("gradient", [True, False])
def test_path_weights_are_exact(
    gradient: bool, churn: float, max_ratio: float, path: Interpolant, rng: torch.Generator
) -> None:
    """Whatever draws, bound and noise: E[Z_hat] = Z, and weighted means are those of the tilted law."""
    target, log_z = LAW.tilt(torch.zeros(2, 2), SLOPE)
    method = PosteriorGuidance(
        2, 1.0, gradient, Glass(2, 1), churn=churn, weights="path", max_ratio=max_ratio, normalise=churn == 1.0
    )
    out, trace = method(LAW.flow(path), path, slope, noise(600, 20, rng), rng=rng)
    z = trace.log_z.exp()
    assert z_score(z, log_z.exp()) < 4
    assert z_score(z[:, None] * (out.log_w.exp()[..., None] * out.x).sum(1), log_z.exp() * target.mean) < 4


@pytest.mark.parametrize("gradient", [True, False])
def test_at_infinite_temperature_it_is_the_flow(gradient: bool, path: Interpolant, rng: torch.Generator) -> None:
    x0 = noise(2, 4, rng)
    out, trace = PosteriorGuidance(4, math.inf, gradient)(LAW.flow(path), path, slope, x0, rng=rng)
    assert_close(out.x.flatten(0, 1), jump(LAW.flow(path), x0.flatten(0, 1), 0.0, 1.0))
    assert trace.push is not None and trace.push.max() < 1e-9


@pytest.mark.parametrize("gradient", [True, False])
def test_a_push_is_never_longer_than_the_bound(gradient: bool, rng: torch.Generator) -> None:
    """However steep the reward; normalised it has the length of the flow's own move, whatever the reward's scale."""
    x, method = noise(1, 30, rng), PosteriorGuidance(gradient=gradient, max_ratio=0.5)

    def push(method: PosteriorGuidance, scale: float) -> Tensor:
        run = Run(LAW.flow(), Linear(), lambda x: scale * slope(x), x, rng=torch.Generator().manual_seed(2))
        return method._step(run, x, 0.3, 0.5)[0] - own

    own = x + 0.2 * LAW.flow()(x[0], 0.3, 0.5)
    assert_close(length(push(method, 1e8)) <= 0.5 * length(own - x) * (1 + 1e-9), torch.ones(1, 30, 1).bool())
    scaled = dataclasses.replace(method, normalise=True, max_ratio=1.0)
    assert_close(length(push(scaled, 1e-3)), length(own - x))


def test_the_gradient_at_pure_noise_is_that_of_the_earliest_time(path: Interpolant, rng: torch.Generator) -> None:
    x, earliest = noise(1, 3, rng), path.when(1 / 25)
    method = PosteriorGuidance(lookahead=Exact(LAW, 1))
    shift = method._shift(Run(LAW.flow(path), path, slope, x, rng=rng), x, 0.0)
    assert_close(shift, (posterior_cov(path, earliest) @ SLOPE).expand(1, 3, 2))
    assert_close(shift[0, 0], COV @ SLOPE, rtol=0.01, atol=0)


def test_mfm_gf_takes_any_reward_and_rejections(rng: torch.Generator) -> None:
    """A step function of the samples, -inf for half of them: the rest is in the half that is allowed."""
    reward = lambda x: torch.where(x[..., 0] > 0.4, (x[..., 1] > 0).double(), -math.inf)  # noqa: E731
    method = PosteriorGuidance(8, gradient=False, lookahead=Exact(LAW, 32), max_ratio=math.inf, last_time=0.95)
    assert not method.needs_gradient
    out, _ = method(LAW.flow(), Linear(), reward, noise(1, 300, rng), rng=rng)
    plain = jump(LAW.flow(), noise(1, 300, rng)[0], 0.0, 1.0)
    assert (out.x[0, :, 0] > 0.4).double().mean() > 0.9 > 0.6 > (plain[:, 0] > 0.4).double().mean()


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"weights": "path"}, "weights='path' with churn=0: .*use churn > 0"),
        ({"weights": "none"}, "weights must be one of uniform, path, got 'none'"),
        ({"churn": -1.0}, "churn must be at least 0, got -1.0"),
        ({"max_ratio": math.nan}, "max_ratio must be at least 0, got nan"),
        ({"eta_max": math.inf}, "eta_max must be between 0 and inf, got inf"),
        ({"last_time": 1.0}, "last_time must be between 0 and 1, got 1.0"),
    ],
)
def test_bad_settings_raise(kwargs: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        PosteriorGuidance(**kwargs)
