import math

import pytest
import torch
from torch.testing import assert_close

from steer.metrics import distinct, diversity, sliced_w1


def test_sliced_w1_in_one_dimension_is_the_area_between_the_distribution_functions(rng: torch.Generator) -> None:
    x, y = torch.tensor([[0.0], [1.0]]).double(), torch.tensor([[0.0], [1.0], [3.0]]).double()
    # F - G is 1/2 - 1/3 on [0, 1] and 1 - 2/3 on [1, 3]
    assert sliced_w1(x, y, rng=rng).item() == pytest.approx(1 / 6 + 2 / 3)


def test_sliced_w1_of_a_shift(rng: torch.Generator) -> None:
    """In the plane a shift by c costs |c| E|cos| = 2 |c| / pi."""
    x = torch.randn(50, 2, generator=rng, dtype=torch.float64)
    moved = sliced_w1(x, x + torch.tensor([3.0, 4.0]), directions=20_000, rng=rng)
    assert moved.item() == pytest.approx(10 / math.pi, rel=0.02)


def test_weights_count_like_copies(rng: torch.Generator) -> None:
    x, y = torch.randn(2, 6, 3, generator=rng, dtype=torch.float64)
    copies = torch.cat([x, x[:2], x[:1]])
    log_w = torch.tensor([3.0, 2.0, 1.0, 1.0, 1.0, 1.0]).double().log() + 7  # not normalised
    got = sliced_w1(x, y, log_w, rng=torch.Generator().manual_seed(1))
    assert_close(got, sliced_w1(copies, y, rng=torch.Generator().manual_seed(1)))


def test_sliced_w1_of_a_law_with_itself_is_zero(rng: torch.Generator) -> None:
    x = torch.randn(20, 2, generator=rng, dtype=torch.float64)
    assert sliced_w1(x, x[torch.randperm(20, generator=rng)], rng=rng) < 1e-12


def test_rejected_points_do_not_count(rng: torch.Generator) -> None:
    x = torch.tensor([[0.0], [100.0]])
    assert sliced_w1(x, x[:1], torch.tensor([0.0, -math.inf]), rng=rng) == 0


def test_distinct_counts_each_prompt_s_ancestors() -> None:
    assert_close(distinct(torch.tensor([[3, 0, 3, 3], [0, 1, 2, 3], [2, 2, 2, 2]])), torch.tensor([0.5, 1.0, 0.25]))


def test_diversity_of_hand_made_pictures() -> None:
    """Prompt 0 holds grey 0 and 1, prompt 1 holds grey 3 twice."""
    images = torch.tensor([[0.0, 1.0], [3.0, 3.0]])[..., None, None, None].expand(2, 2, 3, 4, 4)
    within, between = diversity(images)
    assert_close(within, torch.tensor([1.0, 0.0]).double())
    assert_close(between, torch.tensor([2.5, 2.5]).double())


def test_diversity_of_what_has_no_pairs_is_nan() -> None:
    within, between = diversity(torch.rand(1, 1, 3, 4, 4))
    assert within.isnan().all() and between.isnan().all()
