import math

import pytest
import torch
from conftest import z_score
from torch import Tensor

from steer.chains import MOVES, Chain, Move, Noises, coefficients, next_lam
from steer.interpolants import Linear
from steer.particles import Reward
from steer.run import Run

PULL = torch.tensor([1.5, -1.0]).double()


def still(x: Tensor, s: object, t: object, cond: object = None) -> Tensor:
    """A flow whose jump is the identity: x1 is x0."""
    return 0 * x


def bowl(x: Tensor) -> Tensor:
    """Exp of it makes N(0, I) the law N(PULL / 4, I / 4)."""
    return x @ PULL - 1.5 * (x**2).sum(-1)


def chain(x: Tensor, rng: torch.Generator, move: Move, reward: Reward = bowl, **settings: float) -> Chain:
    """A chain on the noises x [p n d] of the still flow, with a fixed step unless told."""
    run = Run(still, Linear(), reward, x, rng=rng)
    return Chain(run, move, 1.0, **{"acceptance": 0.0, **settings})  # pyright: ignore[reportArgumentType]


def ends(x: Tensor, links: Chain, lam: float, moves: int) -> Tensor:
    """Where that many moves at lam lead."""
    at, weights = links.look(x), x.new_full(x.shape[:2], 1 / x.shape[1])
    for _ in range(moves):
        at = links.move(at, x.new_full((len(x), 1), lam), weights)
    return at.x


def target(p: int, n: int, lam: float, rng: torch.Generator) -> Tensor:
    """Exact draws of N(0, I) exp(lam bowl)."""
    width = 1 + 3 * lam
    return lam * PULL / width + torch.randn(p, n, 2, generator=rng, dtype=torch.float64) / width**0.5


def off(x: Tensor, lam: float) -> float:
    """Largest distance of the first two moments from those of N(0, I) exp(lam bowl), in standard errors."""
    mean, width = lam * PULL / (1 + 3 * lam), 1 + 3 * lam
    x = x.flatten(0, 1)
    return max(z_score(x, mean), z_score((x - mean) ** 2, 1 / width), z_score((x - mean).prod(-1), 0.0))


@pytest.mark.parametrize("step", [0.05, 0.6, 1.0])
def test_pcn_without_reward_keeps_plain_noise_at_any_step(step: float, rng: torch.Generator) -> None:
    """Also the correlation with where it came from is sqrt(1 - beta^2): every proposal is accepted."""
    x = torch.randn(1, 20_000, 2, generator=rng, dtype=torch.float64)
    links = chain(x, rng, "pcn", lambda x: torch.where(x[..., 0] > 0, bowl(x), -math.inf), step=step)
    y = ends(x, links, 0.0, 3)
    assert off(y, 0.0) < 4 and z_score(y[0] ** 4, 3.0) < 4
    assert z_score((x * y)[0], (1 - step**2) ** 1.5) < 4
    assert torch.stack(links.accepted).sub(1).abs().max() < 1e-9


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize(("lam", "step", "most"), [(1.0, 0.9, 10.0), (0.4, 0.5, 1.0), (1.0, 0.7, 0.3)])
def test_moves_keep_the_tilted_law(move: Move, lam: float, step: float, most: float, rng: torch.Generator) -> None:
    x = target(1, 40_000, lam, rng)
    links = chain(x, rng, move, step=step, most=most)
    y = ends(x, links, lam, 3)
    assert off(y, lam) < 4
    assert all(0.05 < float(rate) < 0.99 for rate in links.accepted)


@pytest.mark.parametrize("most", [0.2, math.inf])
@pytest.mark.parametrize("move", MOVES)
def test_the_acceptance_is_the_ratio_of_densities(move: Move, most: float, rng: torch.Generator) -> None:
    """Of normal densities written out, for a reward that is no polynomial; a lam and a step for each prompt."""
    x, y = torch.randn(2, 2, 5, 3, generator=rng, dtype=torch.float64)
    links = chain(x, rng, move, lambda x: 3 * x.sin().sum(-1) + x[..., 0] ** 3, most=most)
    links.step = torch.tensor([[0.3], [0.8]]).double()
    lam, beta = torch.tensor([[0.5], [1.0]]).double(), links.step[..., None]
    rho, kappa = coefficients(move, beta)

    def log_joint(start: Noises, end: Noises) -> Tensor:
        pull = torch.zeros_like(x) if start.gradient is None else kappa * lam[..., None] * start.gradient
        pull = pull * (most * beta * 3**0.5 / pull.norm(dim=-1, keepdim=True).clamp(min=1e-30)).clamp(max=1)
        proposal = -(((end.x - rho * start.x - pull) / beta) ** 2) / 2
        return lam * start.value + (proposal - start.x**2 / 2).sum(-1)

    at, new = links.look(x), links.look(y)
    assert (links.log_ratio(at, new, lam) - log_joint(new, at) + log_joint(at, new)).abs().max() < 1e-9


def test_pcnl_accepts_all_where_the_reward_is_linear(rng: torch.Generator) -> None:
    """In any dimension, with any step and lam: its proposal is then reversible for N(lam h, I)."""
    x = torch.randn(1, 50, 300, generator=rng, dtype=torch.float64)
    links = chain(x, rng, "pcnl", lambda x: 0.2 * x.sum(-1), step=0.6, most=math.inf)
    ends(x, links, 0.4, 3)
    assert torch.stack(links.accepted).sub(1).abs().max() < 1e-9


@pytest.mark.parametrize("move", ["pcnl", "mala"])
def test_a_faulty_acceptance_would_show(move: Move, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the proposals' ratio, and without any acceptance."""
    x, right = target(1, 40_000, 1.0, rng), Chain.log_ratio

    def without_proposals(self: Chain, at: Noises, new: Noises, lam: Tensor) -> Tensor:
        return lam * (new.value - at.value)

    for faulty in (without_proposals, lambda *given: torch.zeros_like(right(*given))):
        monkeypatch.setattr(Chain, "log_ratio", faulty)
        assert off(ends(x, chain(x, rng, move, step=0.9, most=10.0), 1.0, 3), 1.0) > 6


@pytest.mark.parametrize("move", MOVES)
def test_the_tilted_law_is_reached_from_plain_noise(move: Move, rng: torch.Generator) -> None:
    x = torch.randn(1, 10_000, 2, generator=rng, dtype=torch.float64)
    assert off(ends(x, chain(x, rng, move, step=0.8), 1.0, 30), 1.0) < 4


@pytest.mark.parametrize(("move", "rate"), [("pcn", 0.3), ("pcnl", 0.574), ("mala", 0.4)])
def test_the_step_tunes_to_the_acceptance_of_each_prompt(move: Move, rate: float, rng: torch.Generator) -> None:
    """Of a reward that is steeper in the second prompt, which then moves less."""
    x, steep = target(2, 2000, 1.0, rng), torch.tensor([[3.0], [300.0]]).double()
    links = chain(x, rng, move, lambda x: -steep * (x**2).sum(-1), step=0.5, acceptance=rate)
    ends(x, links, 1.0, 40)
    late = torch.stack(links.accepted[-10:])
    assert (late.mean(0) - rate).abs().max() < 0.05
    assert links.step[1] < links.step[0] / 2


def test_what_is_rejected_is_never_moved_to(rng: torch.Generator) -> None:
    def half(x: Tensor) -> Tensor:
        return torch.where(x[..., 0] > 0, 0.0 * x[..., 1], -math.inf)

    x = torch.randn(1, 5000, 2, generator=rng, dtype=torch.float64)
    x[..., 0].abs_()
    y = ends(x, chain(x, rng, "pcn", half, step=0.7), 1.0, 4)
    assert (y[..., 0] > 0).all() and z_score(y[0] ** 2, 1.0) < 4
    assert z_score(y[0, :, 0], math.sqrt(2 / math.pi)) < 4


def test_lam_rises_evenly_where_that_is_easy_and_by_the_conditional_size_where_not(rng: torch.Generator) -> None:
    v = torch.randn(1, 1000, generator=rng, dtype=torch.float64)
    values, zero = torch.cat([0.1 * v, 100 * v, 100 * v]), torch.zeros(3, 1).double()
    values[2, :500] = -math.inf  # these do not count
    lam = next_lam(torch.zeros(3, 1000).double(), values, zero, 0.9, 5)
    assert lam[0].item() == pytest.approx(0.2)
    for row, alive in ((1, values[1]), (2, values[2, 500:])):
        w = (lam[row] * alive).exp()
        assert float(w.mean() ** 2 / (w**2).mean()) == pytest.approx(0.9, abs=1e-3)


def test_lam_arrives_in_time_and_waits_where_all_are_rejected(rng: torch.Generator) -> None:
    values = 1e6 * torch.randn(2, 50, generator=rng, dtype=torch.float64)
    values[1] = -math.inf
    lam, seen = torch.zeros(2, 1).double(), []
    for left in (4, 3, 2, 1):
        lam = next_lam(torch.zeros(2, 50).double(), values, lam, 0.9, left)
        seen.append(lam.clone())
    assert 0 < seen[0][0] < seen[1][0] < seen[2][0] < seen[3][0] == 1 and lam[1] == 0
    assert seen[2][0].log() / seen[1][0].log() == pytest.approx(0.5)  # even factors
