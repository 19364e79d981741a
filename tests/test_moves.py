import pytest
import torch
from conftest import Counting, z_score
from torch import Tensor
from torch.testing import assert_close

from steer.analytic import GaussianMixture
from steer.interpolants import Interpolant, Linear
from steer.moves import Kernel, early_stop, euler_kernel, ode, renoise, restart, restart_kernel, sde, sde_kernel

MOVES = [restart, ode, sde]


def moments(x: Tensor) -> Tensor:
    """First and second moments of each point, and the chance of one side: [n 5]."""
    return torch.cat([x, x**2, (x[:, :1] > 0).double()], -1)


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize(("s", "t"), [(0.0, 0.5), (0.3, 0.9), (0.5, 1.0)])
def test_marginals_are_kept_in_one_long_step(
    move: type[restart], s: float, t: float, mixture: GaussianMixture, path: Interpolant, rng: torch.Generator
) -> None:
    n = 4000
    x = mixture.marginal(s, path).sample(n, rng=rng)
    moved = move(mixture.flow(path, 1e-6), path, x, s, t, rng=rng)
    wanted = moments(mixture.marginal(t, path).sample(400_000, rng=rng)).mean(0)
    assert z_score(moments(moved), wanted) < 4.5


def test_restart_moves_back_too(mixture: GaussianMixture, rng: torch.Generator) -> None:
    x = mixture.marginal(0.8).sample(4000, rng=rng)
    back = restart(mixture.flow(), Linear(), x, 0.8, 0.3, rng=rng)
    wanted = moments(mixture.marginal(0.3).sample(400_000, rng=rng)).mean(0)
    assert z_score(moments(back), wanted) < 4.5


def test_restart_with_a_known_end_makes_no_call(mixture: GaussianMixture) -> None:
    flow, x1 = Counting(mixture.flow()), torch.ones(5, 2, dtype=torch.float64)
    seeds = [torch.Generator().manual_seed(1) for _ in range(2)]
    given = restart(flow, Linear(), 0 * x1, 0.2, 0.6, rng=seeds[0], x1=x1)
    assert flow.calls == 0
    z = torch.randn(5, 2, generator=seeds[1], dtype=torch.float64)
    assert_close(given, 0.6 * x1 + 0.4 * z)


def test_restart_to_the_end_is_the_jump(mixture: GaussianMixture, path: Interpolant, rng: torch.Generator) -> None:
    x = torch.randn(5, 2, generator=rng, dtype=torch.float64)
    assert_close(restart(mixture.flow(path), path, x, 0.2, 1.0, rng=rng), ode(mixture.flow(path), path, x, 0.2, 1.0))


def test_sde_ranges_from_the_ode_to_the_restart(mixture: GaussianMixture, path: Interpolant) -> None:
    x = torch.ones(5, 2, dtype=torch.float64)
    flow, seeds = mixture.flow(path), [torch.Generator().manual_seed(1) for _ in range(3)]
    assert_close(sde(flow, path, x, 0.2, 0.6, rng=seeds[0], churn=0.0), ode(flow, path, x, 0.2, 0.6))
    churned = sde(flow, path, x, 0.2, 0.6, rng=seeds[1], churn=100.0)
    assert_close(churned, restart(flow, path, x, 0.2, 0.6, rng=seeds[2]))


def test_memoryless_sde_forgets_where_it_started(rng: torch.Generator) -> None:
    """churn = 1 in short steps is the memoryless SDE: the end is independent of x at t = 0; the ODE's is not."""
    gaussian = GaussianMixture(torch.ones(1).double(), torch.ones(1, 1).double(), torch.full((1, 1, 1), 0.5).double())
    start = torch.randn(4000, 1, generator=rng, dtype=torch.float64)
    x, times = start, torch.linspace(0, 1, 65).tolist()
    for s, t in zip(times, times[1:], strict=False):
        x = sde(gaussian.flow(), Linear(), x, s, t, rng=rng)
    correlation = torch.corrcoef(torch.cat([start, x], -1).T)[0, 1]
    assert abs(float(correlation)) < 0.15
    assert z_score(torch.cat([x, x**2], -1), torch.tensor([1.0, 1.5]).double()) < 4


def test_renoise_is_the_forward_kernel(path: Interpolant, rng: torch.Generator) -> None:
    """Given x1 the pair (x_t, x_u) has Cov = alpha_u^2 beta_t / beta_u."""
    t, u, n = 0.3, 0.7, 40_000
    noise = torch.randn(n, 1, generator=rng, dtype=torch.float64)
    x_u = path.beta(u) + path.alpha(u) * noise
    x_t = renoise(path, x_u, u, t, rng=rng)
    off = torch.cat([x_t - path.beta(t), (x_t - path.beta(t)) ** 2, (x_t - path.beta(t)) * (x_u - path.beta(u))], -1)
    joint = path.alpha(u) ** 2 * path.beta(t) / path.beta(u)
    assert z_score(off, torch.tensor([0.0, path.alpha(t) ** 2, joint]).double()) < 4


@pytest.mark.parametrize(
    ("s", "t", "churn", "match"), [(0.5, 0.2, 1.0, "moves forward"), (0.2, 0.5, -1.0, "churn must be")]
)
def test_sde_rejects(s: float, t: float, churn: float, match: str, mixture: GaussianMixture) -> None:
    with pytest.raises(ValueError, match=match):
        sde(mixture.flow(), Linear(), torch.ones(1, 2), s, t, rng=torch.Generator(), churn=churn)


@pytest.mark.parametrize(("s", "t"), [(0.0, 0.4), (0.4, 0.6), (0.5, 1.0)])
def test_early_stop_draws_the_transition(
    s: float, t: float, mixture: GaussianMixture, path: Interpolant, rng: torch.Generator
) -> None:
    """p(x_t | x_s) of the memoryless process: draw x1 ~ p(x1 | x_s), then the bridge between both views."""
    x = torch.tensor([[0.3, -0.2]], dtype=torch.float64)
    n = 3000
    drawn = early_stop(mixture.flow(path), path, x.expand(n, 2), s, t, rng=rng, steps=40)
    x1 = mixture.posterior(x, s, path).sample(400_000, rng=rng)[0]
    wanted = x1
    if t < 1:
        old, new = ((path.beta(u) / path.alpha(u)) ** 2 for u in (s, t))
        z = torch.randn(x1.shape, generator=rng, dtype=torch.float64)
        seen = (new - old) * x1 + (new - old) ** 0.5 * z + (path.beta(s) / path.alpha(s) ** 2) * x
        wanted = path.beta(t) * seen / new
    assert z_score(moments(drawn), moments(wanted).mean(0)) < 4.5


def test_early_stop_moves_forward_only(mixture: GaussianMixture, rng: torch.Generator) -> None:
    with pytest.raises(ValueError, match="moves forward"):
        early_stop(mixture.flow(), Linear(), torch.ones(1, 2), 0.5, 0.5, rng=rng)


def test_short_euler_steps_keep_the_marginals(
    mixture: GaussianMixture, path: Interpolant, rng: torch.Generator
) -> None:
    x, times = mixture.marginal(0.2, path).sample(3000, rng=rng)[None], torch.linspace(0.2, 0.6, 101).tolist()
    for s, t in zip(times, times[1:], strict=False):
        x, _ = euler_kernel(mixture.flow(path), path, x, s, t, epsilon=0.5).draw(rng)
    wanted = moments(mixture.marginal(0.6, path).sample(400_000, rng=rng)).mean(0)
    assert z_score(moments(x[0]), wanted) < 4.5


def test_kernels_are_the_moves(mixture: GaussianMixture, path: Interpolant) -> None:
    x, flow = torch.ones(1, 5, 2, dtype=torch.float64), mixture.flow(path)
    seeds = [torch.Generator().manual_seed(1) for _ in range(4)]
    again, log_w = sde_kernel(flow, path, x, 0.2, 0.6, churn=0.5).draw(seeds[0])
    assert_close(again, sde(flow, path, x, 0.2, 0.6, rng=seeds[1], churn=0.5))
    assert (log_w == 0).all()
    x1 = 2 * x
    assert_close(restart_kernel(path, x1, 0.6).draw(seeds[2])[0], restart(flow, path, x, 0.2, 0.6, rng=seeds[3], x1=x1))


def test_the_weight_of_a_shift_is_exact(rng: torch.Generator) -> None:
    """E[w f(x)] under the shifted kernel is E[f(x)] under the plain one, and E[w] = 1."""
    mean = torch.tensor([0.5, -1.0]).double().expand(1, 200_000, 2)
    x, log_w = Kernel(mean, 0.7).draw(rng, torch.tensor([0.6, -0.3]).double())
    w = log_w[0].exp()
    wanted = torch.tensor([1.0, 0.5, -1.0, 0.25 + 0.49]).double()
    assert z_score(torch.stack([w, w * x[0, :, 0], w * x[0, :, 1], w * x[0, :, 0] ** 2], -1), wanted) < 4


def test_a_shift_without_noise_has_no_weight(rng: torch.Generator) -> None:
    with pytest.raises(ValueError, match="without noise"):
        Kernel(torch.zeros(1, 2, 2), 0.0).draw(rng, torch.ones(1, 2, 2))
