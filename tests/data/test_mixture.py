"""Points in the plane: known words, moments in standard errors, exact densities, and rows that need no state."""

import math
import warnings

import numpy as np
import pytest
import torch
from scipy import stats

from steer.analytic import GaussianMixture
from steer.bench.problems import ring
from steer.data.mixture import Checkerboard, Points, _mix, uniforms

N = 200_000


def near(value: float, truth: float, error: float, sigmas: float = 4.0) -> None:
    assert abs(value - truth) < sigmas * error, f"{value} is {(value - truth) / error:.1f} standard errors from {truth}"


def test_the_words_are_those_of_splitmix64() -> None:
    """The published first words of the sequence with seed 0 and 1234567."""
    gamma = 0x9E3779B97F4A7C15
    for seed, first in ((0, 0xE220A8397B1DCDAF), (1234567, 6457827717110365317)):
        assert int(_mix(np.array([(seed + gamma) % 2**64], np.uint64))[0]) == first


def test_uniforms_are_uniform_and_independent() -> None:
    u = uniforms(3, torch.arange(N), 4)
    assert 0 < u.min() and u.max() < 1
    for column in u.T:
        assert stats.kstest(column.numpy(), "uniform").pvalue > 1e-4
    together = torch.cat([u, u.roll(1, 0), uniforms(4, torch.arange(N), 4)], 1)
    correlation = torch.corrcoef(together.T) - torch.eye(12)
    assert correlation.abs().max() < 5 / math.sqrt(N)


@pytest.mark.parametrize("law", [ring(), Checkerboard()], ids=["ring", "checkerboard"])
def test_a_row_depends_on_the_seed_and_its_number_alone(law: GaussianMixture | Checkerboard) -> None:
    data = Points(law)
    x, nothing = data.rows([5, 2**31 - 2, 5, 0])
    assert nothing is None and x.dtype == torch.get_default_dtype()
    for i, row in zip([5, 2**31 - 2, 5, 0], x, strict=True):
        assert torch.equal(Points(law, seed=0).rows(torch.tensor([i]))[0][0], row)
    assert len({tuple(p) for p in data.rows(range(1000))[0].tolist()}) == 1000
    assert not torch.isin(Points(law, seed=1).rows(range(1000))[0], data.rows(range(1000))[0]).any()


def test_moments_of_the_ring() -> None:
    law = ring()
    x = Points(law).rows(range(N))[0].double()
    std = law.cov.diagonal().sqrt()
    for j in range(2):
        near(x[:, j].mean().item(), law.mean[j].item(), std[j].item() / math.sqrt(N))
    square = x.square().sum(-1)
    near(square.mean().item(), 16 + 2 * 0.09, square.std().item() / math.sqrt(N))
    shares = torch.bincount(torch.cdist(x, law.means).argmin(-1), minlength=8) / N
    assert (shares - 1 / 8).abs().max() < 4 * math.sqrt(7 / 64 / N)


def test_moments_of_a_skew_mixture() -> None:
    """Unequal weights, one of them zero, and correlated coordinates."""
    covs = torch.tensor([[[1.0, 0.8], [0.8, 1.0]], [[1.0, 0.0], [0.0, 1.0]], [[0.2, -0.1], [-0.1, 0.5]]])
    law = GaussianMixture(torch.tensor([0.3, 0.0, 0.7]), torch.tensor([[-2.0, 1.0], [90.0, 0.0], [1.0, 0.0]]), covs)
    x = Points(law, seed=7).rows(range(N))[0].double()
    assert x.abs().max() < 20
    centred = x - law.mean
    for j in range(2):
        near(x[:, j].mean().item(), law.mean[j].item(), centred[:, j].std().item() / math.sqrt(N))
        for k in range(2):
            product = centred[:, j] * centred[:, k]
            near(product.mean().item(), law.cov[j, k].item(), product.std().item() / math.sqrt(N))
    surprise = -law.log_prob(x.to(law.means))
    other = -law.log_prob(law.sample(N, rng=torch.Generator().manual_seed(0)))
    near((surprise.mean() - other.mean()).item(), 0, math.sqrt(2 / N) * surprise.std().item())


@pytest.mark.parametrize("law", [Checkerboard(), Checkerboard(4.0), Checkerboard(1.0, 6)], ids=str)
def test_the_checkerboard_is_uniform_on_its_squares(law: Checkerboard) -> None:
    x = Points(law).rows(range(N))[0].double()
    assert law.filled(x).all()
    cell = ((x + law.half_width) / law.side).floor().long()
    counts = torch.zeros(law.squares, law.squares).index_put((cell[:, 0], cell[:, 1]), torch.ones(N), accumulate=True)
    row, column = torch.meshgrid(torch.arange(law.squares), torch.arange(law.squares), indexing="ij")
    black = (row + column) % 2 == 0
    assert (counts[~black] == 0).all()
    share = 2 / law.squares**2
    assert (counts[black] / N - share).abs().max() < 4 * math.sqrt(share * (1 - share) / N)
    for j in range(2):
        assert stats.kstest(x[:, j].numpy(), "uniform", (-law.half_width, 2 * law.half_width)).pvalue > 1e-4
        near(x[:, j].square().mean().item(), law.std**2, law.std**2 * math.sqrt(4 / 5 / N))
    product = x[:, 0] * x[:, 1]
    near(product.mean().item(), 3 / law.squares**2 * law.std**2, product.std().item() / math.sqrt(N))


@pytest.mark.parametrize("law", [Checkerboard(), Checkerboard(4.0), Checkerboard(1.0, 6)], ids=str)
def test_the_checkerboard_density_sums_to_one(law: Checkerboard) -> None:
    m = 60 * law.squares  # midpoints of a grid that the squares divide
    axis = (torch.arange(m, dtype=torch.float64) + 0.5) / m * 4 * law.half_width - 2 * law.half_width
    p = Points(law).log_prob(torch.cartesian_prod(axis, axis)).exp()
    assert p.sum().item() * (4 * law.half_width / m) ** 2 == pytest.approx(1, rel=1e-12)


def test_no_point_is_lost_at_an_edge() -> None:
    """The least and the largest numbers of every square, rounded to float32, keep a density."""
    tiny = 2.0**-54
    grid = torch.tensor([tiny, 1 - 2**-53], dtype=torch.float64)
    for law in (Checkerboard(), Checkerboard(4.0), Checkerboard(0.1, 8)):
        k = law.squares**2 // 2
        squares = (torch.arange(k, dtype=torch.float64) + 0.5) / k
        u = torch.cartesian_prod(squares, grid, grid, grid)
        assert law.log_prob(law.place(u).float()).isfinite().all()


def test_the_standard_board_has_unit_variance() -> None:
    assert Checkerboard().std == pytest.approx(1, rel=1e-15)
    corner = torch.tensor([[-1.7, -1.7], [1.7, -1.7], [1.7, 1.7], [-2.0, -1.7]])
    assert Checkerboard().filled(corner).tolist() == [True, False, True, False]


def test_bad_arguments_are_named() -> None:
    for make, says in (
        (lambda: Checkerboard(0.0), "half_width must be above 0, got 0.0"),
        (lambda: Checkerboard(1.0, 5), "squares must be an even number, at least 2, got 5"),
        (lambda: Points("ring"), "law must be a Checkerboard"),
        (lambda: Points(GaussianMixture(torch.ones(1), torch.ones(1, 3), torch.eye(3)[None])), "two dimensions"),
        (lambda: Points(Checkerboard(), 0), "n must be a whole number from 1"),
        (lambda: Points(Checkerboard(), seed=-1), "seed must be a whole number from 0 to"),
        (lambda: Points(Checkerboard(), 10).rows([3, 10]), "rows from 0 to 9, got 10"),
        (lambda: Points(Checkerboard(), 10).rows([-1]), "got -1"),
    ):
        with pytest.raises(ValueError, match=says):
            make()
    assert len(Points(Checkerboard(), 10)) == 10


def test_large_seeds_wrap_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        u = uniforms(2**63 - 1, torch.arange(10), 4)
    assert not torch.isin(u, uniforms(2**63 - 2, torch.arange(10), 4)).any()
