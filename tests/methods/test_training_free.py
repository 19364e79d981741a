import dataclasses
import math

import pytest
import torch
from conftest import z_score
from torch import Tensor
from torch.testing import assert_close

from steer import settings
from steer.analytic import GaussianMixture
from steer.flow_map import Chunked, jump
from steer.interpolants import Interpolant, Linear
from steer.lookahead import Jump
from steer.methods import TrainingFreeGuidance
from steer.posterior import Glass
from steer.run import Run

SLOPE = torch.tensor([1.0, -0.5]).double()
CENTRE = torch.tensor([2.0, 1.0]).double()
MEAN, COV = torch.tensor([0.4, -0.2]).double(), torch.tensor([[0.8, 0.3], [0.3, 0.5]]).double()
LAW = GaussianMixture(torch.ones(1).double(), MEAN[None], COV[None])
NAMED = ["dps", "freedom", "universal", "tfg"]


def noise(p: int, n: int, rng: torch.Generator) -> Tensor:
    """p prompts of n particles in the plane."""
    return torch.randn(p, n, 2, generator=rng, dtype=torch.float64)


def slope(x: Tensor) -> Tensor:
    """A linear reward."""
    return x @ SLOPE


def denoiser(path: Interpolant, t: float) -> Tensor:
    """J of ``E[x1 | x_t] = m + J (x - beta m)`` [d d] under LAW."""
    alpha, beta = path.alpha(t), path.beta(t)
    return beta * COV @ torch.linalg.inv(alpha**2 * torch.eye(2) + beta**2 * COV)


def chain(
    path: Interpolant, x: Tensor, steps: int, outer: float = 0.0, inner: float = 0.0, unit: bool = False
) -> Tensor:
    """DDIM of LAW, each step with ``outer J' a + inner beta' a`` on top; with `unit`, a of length |own move|."""
    times = [0.8 * k / steps for k in range(steps + 1)]
    for t, after in zip(times, times[1:], strict=False):
        back = denoiser(path, t)
        x1 = MEAN + (x - path.beta(t) * MEAN) @ back.mT
        plain = path.beta(after) * x1 + path.alpha(after) / path.alpha(t) * (x - path.beta(t) * x1)
        a = (plain - x).norm(dim=-1, keepdim=True) * SLOPE / SLOPE.norm() if unit else SLOPE.expand_as(x)
        x = plain + outer * a @ back + inner * path.beta(after) * a
    return jump(LAW.flow(path), x[0], 0.8, 1.0)[None]


@pytest.mark.parametrize("normalise", [False, True])
def test_dps_follows_the_gradient_through_the_denoiser(
    normalise: bool, path: Interpolant, rng: torch.Generator
) -> None:
    """In closed form; scaled to |y - A x1| (here: to one length in x1) it dies at pure noise, where J = 0."""
    x0 = noise(1, 5, rng)
    method = dataclasses.replace(
        settings.build("method", "dps"), steps=3, rho=0.6, temperature=0.5, max_ratio=math.inf, normalise=normalise
    )
    out, trace = method(LAW.flow(path), path, slope, x0, rng=rng)
    assert_close(out.x, chain(path, x0, 3, outer=0.6 if normalise else 0.6 / 3 / 0.5, unit=normalise))
    assert trace.push is not None and trace.push[0, 0] < 1e-9 < trace.push[1, 0]


def test_mu_alone_moves_the_guessed_end_and_never_differentiates_the_network(
    path: Interpolant, rng: torch.Generator
) -> None:
    x0 = noise(1, 5, rng)
    method = TrainingFreeGuidance(3, 0.5, rho=0.0, mu=0.9, inner=4, schedule="constant", max_ratio=math.inf)
    out, trace = method(LAW.flow(path), path, slope, x0, rng=rng)
    assert_close(out.x, chain(path, x0, 3, inner=4 * 0.9 / 3 / 0.5))
    assert trace.backward.tolist() == [0] and trace.calls.tolist() == [5 * 4]


def test_inner_steps_descend_one_after_the_other(rng: torch.Generator) -> None:
    """On -|x - c|^2 / 2 N steps leave the share (1 - mu)^N of the way to c."""
    x1 = noise(1, 4, rng)
    method = TrainingFreeGuidance(mu=0.3, inner=5, max_ratio=math.inf)
    run = Run(LAW.flow(), Linear(), lambda x: -((x - CENTRE) ** 2).sum(-1) / 2, x1, rng=rng)
    one = torch.ones(1, 4, 1).double()
    moved, asked = method._inner(run, x1, torch.zeros_like(x1)[None], one, one)
    assert_close(moved, (1 - 0.7**5) * (CENTRE - x1))
    assert_close(asked, moved)


def test_smoothing_is_the_soft_value_over_noise(rng: torch.Generator) -> None:
    """For -x^2 / 2 and sigma = 1 the smoothed gradient is -x / (1 + sigma^2), half the plain one."""
    x1 = noise(1, 4, rng)
    method = TrainingFreeGuidance(smoothing=1.0, draws=20_000)
    run = Run(LAW.flow(), Linear(), lambda x: -(x**2).sum(-1) / 2, x1, rng=rng)
    assert_close(method._slope(run, x1, method._blur(run, x1, 0.0)), -x1 / 2, atol=0.05, rtol=0)
    assert float(method._blur(run, x1, 0.5).std()) == pytest.approx(math.sqrt(0.5), rel=0.02)


def test_shares_are_the_published_schedules(path: Interpolant) -> None:
    """TFG's alpha_t = bar alpha_t / bar alpha_t-1, one less it, or 1; scaled to a sum of one."""
    times = [0.0, 0.2, 0.4]
    clean = [path.beta(t) ** 2 / (path.alpha(t) ** 2 + path.beta(t) ** 2) for t in times]
    shares = {s: TrainingFreeGuidance(2, schedule=s)._shares(path, times) for s in ("increase", "decrease", "constant")}
    assert shares["increase"] == pytest.approx([0, 1])
    assert shares["decrease"] == pytest.approx([1 / (2 - clean[1] / clean[2]), 1 - 1 / (2 - clean[1] / clean[2])])
    assert shares["constant"] == pytest.approx([0.5, 0.5])
    assert TrainingFreeGuidance(1)._shares(path, times[:2]) == [1.0]


def test_recurrence_without_strength_keeps_the_marginals(
    mixture: GaussianMixture, path: Interpolant, rng: torch.Generator
) -> None:
    """With exact jumps and fresh noise, however often the steps are repeated; each pass is one call."""
    method = TrainingFreeGuidance(3, rho=0.0, mu=0.0, recurrence=3, lookahead=Jump(), noise="restart")
    out, trace = method(mixture.flow(path, 1e-4), path, slope, noise(1, 2000, rng), rng=rng)
    moments = torch.cat([mixture.mean, mixture.mean**2 + mixture.cov.diagonal()])
    assert z_score(torch.cat([out.x[0], out.x[0] ** 2], -1), moments) < 4
    assert trace.forward.tolist() == [2000 * (1 + 3 * 2 + 1)]


def test_ddpm_noise_is_that_of_the_forward_process(path: Interpolant, rng: torch.Generator) -> None:
    """For data at 0 x_t = (beta_t / beta_t') x_t' + more noise, so E[x_t x_t'] = (beta_t / beta_t') alpha'^2."""
    point = GaussianMixture(torch.ones(1).double(), torch.zeros(1, 2).double(), 1e-12 * torch.eye(2).double()[None])
    t, after = 0.4, 0.6
    x = path.alpha(t) * noise(1, 4000, rng)
    run = Run(point.flow(path), path, slope, x, rng=rng)
    y, _ = TrainingFreeGuidance(rho=0.0, mu=0.0, noise="ddpm")._step(run, x, t, after, 1.0)
    assert z_score((x * y)[0], path.beta(t) / path.beta(after) * path.alpha(after) ** 2) < 4
    assert z_score((y**2)[0], path.alpha(after) ** 2) < 4


@pytest.mark.parametrize("name", NAMED)
def test_at_infinite_temperature_it_is_the_unguided_chain(name: str, rng: torch.Generator) -> None:
    x0, method = noise(1, 5, rng), settings.build("method", name)
    ends = [
        dataclasses.replace(method, **changed)(LAW.flow(), Linear(), slope, x0, rng=torch.Generator().manual_seed(1))
        for changed in ({"temperature": math.inf}, {"rho": 0.0, "mu": 0.0})
    ]
    assert_close(ends[0][0].x, ends[1][0].x)
    assert (ends[0][1].push == 0).all()
    if method.recurrence == 1:
        assert_close(ends[0][0].x, chain(Linear(), x0, 8))


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("max_ratio", [0.0, 0.5, 1.0])
def test_a_push_is_never_longer_than_the_bound(name: str, max_ratio: float, rng: torch.Generator) -> None:
    """However steep the reward: |x' - x'_plain| <= max_ratio |x'_plain - x|, and the trace says what was asked for."""
    x, method = noise(1, 50, rng), settings.build("method", name)
    run = Run(LAW.flow(), Linear(), lambda x: 1e8 * slope(x), x, rng=rng)
    plain, _ = dataclasses.replace(method, rho=0.0, mu=0.0)._step(run, x, 0.3, 0.4, 1.0)
    pushed, ratio = dataclasses.replace(method, max_ratio=max_ratio)._step(run, x, 0.3, 0.4, 1.0)
    assert ((pushed - plain).norm(dim=-1) <= max_ratio * (plain - x).norm(dim=-1) * (1 + 1e-9)).all()
    assert (ratio > (1 if name == "dps" else 1e6)).all()


def test_normalised_pushes_do_not_see_the_reward_s_scale(rng: torch.Generator) -> None:
    x0, method = noise(1, 5, rng), TrainingFreeGuidance(3, rho=0.5, mu=0.2, normalise=True, smoothing=0.0)
    small, big = (method(LAW.flow(), Linear(), lambda x, c=c: c * slope(x), x0, rng=rng)[0].x for c in (1e-3, 1e3))
    assert_close(small, big)
    free, _ = dataclasses.replace(method, normalise=False)(LAW.flow(), Linear(), slope, x0, rng=rng)
    assert (free.x - small).abs().min() > 1e-3


@pytest.mark.parametrize("name", NAMED)
def test_chunks_change_nothing(name: str, rng: torch.Generator) -> None:
    """Also where the reward's gradient is found inside of the network's."""
    x0, method = noise(2, 5, rng), dataclasses.replace(settings.build("method", name), steps=2, draws=3, smoothing=0.3)
    reward = lambda x: -((x - CENTRE) ** 4).sum(-1)  # noqa: E731
    whole, parts = (
        method(flow, Linear(), reward, x0, rng=torch.Generator().manual_seed(1))[0].x
        for flow in (LAW.flow(), Chunked(LAW.flow(), rows=4))
    )
    assert_close(whole, parts)


def test_without_strength_a_reward_needs_no_gradient(rng: torch.Generator) -> None:
    method, black_box = TrainingFreeGuidance(2, rho=0.0, mu=0.0), lambda x: (x[..., 0] > 0).double()
    assert not method.needs_gradient
    method(LAW.flow(), Linear(), black_box, noise(1, 3, rng), rng=rng)
    for changed in ({"rho": 1.0}, {"mu": 1.0}):
        guided = dataclasses.replace(method, **changed)
        assert guided.needs_gradient
        with pytest.raises(ValueError, match="torch can differentiate"):
            guided(LAW.flow(), Linear(), black_box, noise(1, 3, rng), rng=rng)


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"rho": -1.0}, "rho must be at least 0, got -1.0"),
        ({"mu": math.nan}, "mu must be at least 0, got nan"),
        ({"recurrence": 0}, "recurrence must be at least 1, got 0"),
        ({"schedule": "up"}, "schedule must be one of increase, decrease, constant, got 'up'"),
        ({"noise": "fresh"}, "noise must be one of ddim, ddpm, restart, got 'fresh'"),
        ({"last_time": 1.0}, "last_time must be between 0 and 1, got 1.0"),
        ({"lookahead": Glass()}, "lookahead must be .* use PosteriorGuidance"),
    ],
)
def test_bad_settings_raise(kwargs: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        TrainingFreeGuidance(**kwargs)
