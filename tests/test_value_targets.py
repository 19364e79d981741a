"""Shifts that rows tell of against those known in closed form: b of the tilted law less b of the law itself."""

import dataclasses
import math
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from steer.analytic import GaussianMixture
from steer.collecting import Actor
from steer.interpolants import Interpolant, Linear, Trigonometric
from steer.particles import Reward
from steer.posterior import Glass
from steer.value_targets import EARLIEST, LATEST, Adjoints, PosteriorDraws


def line(weights: list[float], means: list[float], variances: list[float]) -> GaussianMixture:
    """A mixture on the line."""
    columns = [torch.tensor(values, dtype=torch.float64) for values in (weights, means, variances)]
    return GaussianMixture(columns[0], columns[1][:, None], columns[2][:, None, None])


GAUSSIAN = line([1.0], [0.0], [0.64])
MIXTURE = line([0.4, 0.6], [-1.0, 1.2], [0.1, 0.3])


def tilted(law: GaussianMixture, quadratic: float, linear: float) -> GaussianMixture:
    """The law times exp(-quadratic x^2 / 2 + linear x)."""
    return law.tilt(torch.tensor([[quadratic]]).double(), torch.tensor([linear]).double())[0]


def true_shift(before: GaussianMixture, after: GaussianMixture, x: Tensor, t: Any, path: Interpolant) -> Tensor:  # noqa: ANN401
    return after.velocity(x, t, path) - before.velocity(x, t, path)


class Fit(NamedTuple):
    """Weighted least squares of y on 1, x: coefficients and standard errors (robust to unequal variances)."""

    value: Tensor
    error: Tensor


def regression(x: Tensor, y: Tensor, w: Tensor) -> Fit:
    """Of y [n] on 1 and x [n], weights w [n]."""
    a = torch.stack([torch.ones_like(x), x], 1)
    inverse = torch.linalg.inv(a.mT @ (w[:, None] * a))
    value = inverse @ (a.mT @ (w * y))
    score = a * (w * (y - a @ value))[:, None]
    return Fit(value, (inverse @ (score.mT @ score) @ inverse).diagonal().sqrt())


def agree(x: Tensor, y: Tensor, w: Tensor) -> float:
    """How many standard errors a fit of what should have mean 0 given x lies from 0."""
    fit = regression(x, y, w)
    return float((fit.value.abs() / fit.error).max())


def rows(way: Any, actor: Actor, n: int, p: int = 1) -> dict[str, Tensor]:  # noqa: ANN401
    """Rows of all prompts in one axis, with "x1"."""
    rng = [torch.Generator().manual_seed(seed) for seed in range(p)]
    x0 = torch.stack([torch.randn(n, 1, generator=g, dtype=torch.float64) for g in rng])
    out = way(actor, x0, None, rng=rng, shared=torch.Generator().manual_seed(50))
    return {name: value.flatten(0, 1) for name, value in {"x1": out.x1, **out.more}.items()}


def actor(
    before: GaussianMixture, after: GaussianMixture, reward: Reward, path: Interpolant, temperature: float = 1.0
) -> Actor:
    """Whose map in training is that of the tilted law already."""
    current, reference = after.flow(path, 1e-9), before.flow(path, 1e-9)
    return Actor(current, current, reference, reward, temperature, path)


def square(x: Tensor) -> Tensor:
    """The reward -x^2, its law for data N(0, s^2) a Gaussian again."""
    return -(x[..., 0] ** 2)


@pytest.mark.parametrize("path", [Linear(), Trigonometric()], ids=["linear", "trigonometric"])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_adjoints_on_paths_of_the_tilted_law_regress_to_its_velocity(path: Interpolant, temperature: float) -> None:
    """Linear-quadratic: eta dV/dx is linear in x, at each of the kept times."""
    after = tilted(GAUSSIAN, 2 / temperature, 0.0)
    found = rows(Adjoints(steps=200, keep=8), actor(GAUSSIAN, after, square, path, temperature), 8000)
    times, slopes = found["time"].unique(), []
    assert len(times) == 8
    for t in times.tolist():
        at = found["time"] == t
        x, shift = found["point"][at], found["shift"][at, 0]
        slope = true_shift(GAUSSIAN, after, torch.ones(1, 1).double(), t, path).item()
        fit = regression(x[:, 0], shift, torch.ones(len(x)).double())
        assert abs(fit.value[1] - slope) < 1e-2 + 3 * fit.error[1] and abs(fit.value[0]) < 4 * fit.error[0] + 1e-12
        slopes.append(slope)
    assert min(slopes) < -0.3  # far from no tilt


def test_adjoints_of_a_mixture_regress_to_the_tilt_at_any_reward() -> None:
    """Where the value is no quadratic: what the shift misses has mean 0 given x, in each coefficient of a fit."""
    path, after = Linear(), tilted(MIXTURE, 0.0, 1.5)
    found = rows(Adjoints(steps=100, keep=6), actor(MIXTURE, after, lambda x: 1.5 * x[..., 0], path), 3000)
    for t in found["time"].unique().tolist():
        at = found["time"] == t
        x = found["point"][at]
        off = (found["shift"][at] - true_shift(MIXTURE, after, x, t, path))[:, 0]
        bound = 0.02 * found["shift"][at].square().mean().sqrt()  # what so many steps leave
        fit = regression(x[:, 0], off, torch.ones(len(x)).double())
        assert (fit.value.abs() < 3 * fit.error + bound).all()


@pytest.mark.parametrize("steps", [2, 5, 40])
def test_adjoints_of_a_gaussian_have_no_step_error(steps: int, path: Interpolant) -> None:
    """The adjoint over beta goes as one over the variance of p_t, from its end: minus the reward's gradient."""
    after = tilted(GAUSSIAN, 2.0, 0.0)
    found = rows(Adjoints(steps=steps, keep=steps + 1), actor(GAUSSIAN, after, square, path), 6)
    t = found["time"][:, None]
    alpha, beta = path.alpha(t), path.beta(t)
    gap = alpha * path.dbeta(t) - path.dalpha(t) * beta
    exact = -alpha * gap * 2 * found["x1"] * 0.64 / (alpha**2 + beta**2 * 0.64)
    assert (found["shift"] - exact).abs().max() < 1e-9 < exact.abs().max()


def test_adjoints_weigh_times_as_published_within_bounds() -> None:
    """1 / eta, in terms of errors in units of data: t / (1 - t)^3 on the linear path."""
    found = rows(Adjoints(steps=20, keep=21), actor(GAUSSIAN, GAUSSIAN, square, Linear()), 2)
    t, w = found["time"], found["weight"]
    assert torch.allclose(w, (t / (1 - t).clamp_min(1e-3) ** 3).clamp(0.05, 4.0)) and len(w.unique()) > 5


def test_adjoints_keep_times_of_all_rounds_between_noise_and_data() -> None:
    found = rows(Adjoints(steps=6, keep=7), actor(GAUSSIAN, GAUSSIAN, square, Linear()), 2)
    times = found["time"].unique()
    assert times[0] == 0 and times[-1] == 1 and ((times.diff() > 0.05) & (times.diff() < 0.35)).all()
    end = found["time"] == 1
    assert torch.equal(found["point"][end], found["x1"][end]) and (found["shift"][end] == 0).all()
    assert torch.equal(found["reward"], square(found["x1"])) and found["shift"].isfinite().all()
    with pytest.raises(ValueError, match="keep must lie between 1 and steps . 1 = 7, got 8"):
        Adjoints(steps=6, keep=8)


def test_a_reward_without_a_gradient_is_told_what_to_take() -> None:
    flat = lambda x: x[..., 0].detach()  # noqa: E731
    who = actor(GAUSSIAN, GAUSSIAN, flat, Linear())
    with pytest.raises(ValueError, match="adjoint matching needs a differentiable reward; take objective=nft or wei"):
        rows(Adjoints(steps=2, keep=1), who, 2)
    with pytest.raises(ValueError, match="gradient=True needs a differentiable reward; take objective=tilt"):
        rows(PosteriorDraws(gradient=True), who, 4)


def test_rejected_ends_push_nowhere() -> None:
    positive = lambda x: x[..., 0].masked_fill(x[..., 0] < 0, -math.inf)  # noqa: E731
    found = rows(Adjoints(steps=4, keep=5), actor(GAUSSIAN, GAUSSIAN, positive, Linear()), 40)
    gone = found["x1"][:, 0] < 0
    assert gone.any() and (found["shift"][gone] == 0).all() and found["shift"].isfinite().all()
    assert (found["shift"][~gone & (found["time"] < 1)] > 0).all()


def draws(way: PosteriorDraws, temperature: float, path: Interpolant, reward: Reward, n: int) -> dict[str, Tensor]:
    who = actor(MIXTURE, MIXTURE, reward, path, temperature)
    return rows(way, who, n)


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("k", [2, 6])
def test_posterior_draws_regress_to_the_tilt(gradient: bool, k: int) -> None:
    """By weighted least squares at each time: the optimum of the objective is the velocity of the tilted law."""
    path, temperature = Linear(), 0.5
    after = tilted(MIXTURE, 0.0, 1 / temperature)
    way = PosteriorDraws(Glass(k=k, steps=24), times=4, steps=1, gradient=gradient)
    found = draws(way, temperature, path, lambda x: x[..., 0], 12_000)
    times = found["time"].unique().tolist()
    assert len(times) == 4
    for t in times:
        at = found["time"] == t
        x, w, shift = found["point"][at], found["weight"][at], found["shift"][at]
        expected = true_shift(MIXTURE, after, x, t, path)
        assert agree(x[:, 0], (shift - expected)[:, 0], w) < 4
        assert agree(x[:, 0], shift[:, 0], w) > 8


@pytest.mark.parametrize("gradient", [False, True])
def test_posterior_draws_of_a_quadratic_reward_within_bins(gradient: bool) -> None:
    path, after = Trigonometric(), tilted(MIXTURE, 2.0, 0.0)
    way = PosteriorDraws(Glass(k=4, steps=24), times=2, steps=1, gradient=gradient)
    found = draws(way, 1.0, path, square, 12_000)
    for t in found["time"].unique().tolist():
        at = found["time"] == t
        x, w = found["point"][at], found["weight"][at]
        off = w * (found["shift"][at] - true_shift(MIXTURE, after, x, t, path))[:, 0]
        for part in x[:, 0].argsort().chunk(8):
            assert off[part].mean().abs() < 4 * off[part].std() / len(part) ** 0.5


class Ends(Glass):
    """Two draws, 1 and -1, wherever one looks from; `log_w` are their log-weights."""

    log_w: tuple[float, float] | None = None

    def weighted(self, flow: Any, path: Any, x: Tensor, t: Any, **more: Any) -> tuple[Tensor, Tensor | None]:  # noqa: ANN401
        z = torch.stack([torch.ones_like(x), -torch.ones_like(x)])
        told = None if self.log_w is None else torch.tensor(self.log_w).double()[:, None, None].expand_as(z[..., 0])
        return z, told


def test_x1_is_one_of_the_draws_in_proportion_to_their_weights() -> None:
    found = draws(PosteriorDraws(Ends(k=2), steps=1), 1.0, Linear(), lambda x: x[..., 0] / 2, 4000)
    high, low = math.exp(0.5), math.exp(-0.5)
    w = torch.tensor([high / ((high + low) / 2), low / high])
    share, expected = (found["x1"] == 1).double().mean(), w[0] / w.sum()
    assert (share - expected).abs() < 4 * (expected * (1 - expected) / 4000) ** 0.5
    assert torch.allclose(found["weight"], w.mean().double()) and ((found["x1"].abs() == 1).all())


def test_times_lie_in_parts_of_their_own_between_the_ends() -> None:
    found = draws(PosteriorDraws(Glass(k=2, steps=2), times=5), 1.0, Linear(), lambda x: x[..., 0], 11)
    times = found["time"].unique_consecutive()
    assert len(times) == 5 and EARLIEST < times[0] and times[-1] < LATEST
    places = (times - EARLIEST) / (LATEST - EARLIEST) * 5
    assert torch.equal(places.floor(), torch.arange(5.0).double())
    few = draws(PosteriorDraws(Glass(k=2, steps=2), times=5), 1.0, Linear(), lambda x: x[..., 0], 2)
    assert len(few["time"].unique()) == 2


def of_all(r: Tensor) -> Tensor:
    """Log of the mean of exp(r) over the draws and points of each prompt [p], for r [k p m]."""
    return r.transpose(0, 1).flatten(1).logsumexp(1) - math.log(r.shape[0] * r.shape[2])


def test_weights_are_over_the_mean_of_the_other_draws_or_of_all_of_the_prompt() -> None:
    """Two draws of two points: [k p m]."""
    r = torch.tensor([[[0.0, 5.0]], [[1.0, 5.0]]]).double()
    everyone = (1 + math.e + 2 * math.exp(5)) / 4
    expected = torch.tensor([[[1 / everyone, 1.0]], [[math.e / everyone, 1.0]]]).double()
    assert torch.allclose(PosteriorDraws().weights(r, of_all(r)).exp(), expected)
    alone = r[:, :, :1].expand(2, 1, 3) * 1000  # far beyond what exp can hold
    found = PosteriorDraws().weights(alone, of_all(alone))
    assert found.isfinite().all() and torch.allclose(found[0], torch.full((1, 3), -1000.0).double())
    assert torch.allclose(found[1], torch.full((1, 3), math.log(2)).double())


def test_weights_of_one_prompt_do_not_depend_on_another() -> None:
    r = torch.randn(4, 2, 5, generator=torch.Generator().manual_seed(0)).double()
    both = PosteriorDraws().weights(r, of_all(r))
    alone = PosteriorDraws().weights(r[:, 1:], of_all(r[:, 1:]))
    assert torch.equal(both[:, 1:], alone) and not torch.equal(both[:, 0], both[:, 1])


@pytest.mark.parametrize("gone", [[(0, 0)], [(0, 0), (1, 0)], [(i, j) for i in range(2) for j in range(3)]])
def test_rejected_draws_have_weight_zero_and_give_no_nan(gone: list[tuple[int, int]]) -> None:
    r = torch.arange(6.0).view(2, 1, 3)
    for i, j in gone:
        r[i, 0, j] = -math.inf
    found = PosteriorDraws().weights(r, of_all(r))
    assert not found.isnan().any() and torch.equal(found == -math.inf, r == -math.inf)


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("most", [0.5, -3.0])
def test_rows_of_a_reward_that_rejects(gradient: bool, most: float) -> None:
    """Also where it rejects almost everything: those rows have weight zero and no shift."""
    reward = lambda x: torch.where(x[..., 0] > most, -math.inf, x[..., 0])  # noqa: E731
    way = PosteriorDraws(Glass(k=2, steps=4), gradient=gradient)
    found = draws(way, 1.0, Linear(), reward, 200)
    none = found["weight"] == 0
    assert none.any() and all(found[name].isfinite().all() for name in ("x1", "point", "time", "shift", "weight"))
    assert (found["shift"][none] == 0).all()
    assert (found["x1"][~none] <= most).all()


def test_a_look_ahead_of_one_draw_has_no_others() -> None:
    with pytest.raises(ValueError, match="lookahead must make at least two draws .k=2., got Glass.k=1"):
        PosteriorDraws(Glass(k=1))
    with pytest.raises(ValueError, match="times must be at least 1, got 0"):
        PosteriorDraws(times=0)
    assert dataclasses.replace(PosteriorDraws(), times=2).rows(7) == 7


def test_weights_of_the_draws_themselves_count() -> None:
    """A draw of weight zero is never right, whatever its reward."""
    ends = Ends(k=2)
    object.__setattr__(ends, "log_w", (0.0, -math.inf))
    found = draws(PosteriorDraws(ends, steps=1), 1.0, Linear(), lambda x: -x[..., 0], 200)
    assert (found["x1"] == 1).all() and found["shift"].isfinite().all() and (found["weight"] > 0).all()
