import math

import pytest
import torch
from conftest import z_score
from torch import Tensor
from torch.testing import assert_close

from steer.analytic import GaussianMixture
from steer.flow_map import jump
from steer.interpolants import Linear
from steer.methods import TreeSearch
from steer.methods.tree import _Tree, draw

SLOPE = torch.tensor([1.5, -1.0]).double()


def slope(x: Tensor) -> Tensor:
    """A linear reward."""
    return x @ SLOPE


def near(x: Tensor) -> Tensor:
    """High around one rare point."""
    return -10 * (x**2).sum(-1)


class Recorded:
    """A reward that keeps what it has seen."""

    def __init__(self) -> None:
        self.x: list[Tensor] = []

    def __call__(self, x: Tensor) -> Tensor:
        """The linear reward."""
        self.x.append(x)
        return slope(x)


def noise(p: int, n: int, rng: torch.Generator) -> Tensor:
    """p prompts of n particles in the plane."""
    return torch.randn(p, n, 2, generator=rng, dtype=torch.float64)


@pytest.mark.parametrize("iterations", [1, 6, 24])
def test_z_is_unbiased_and_the_tilted_law_is_met(
    iterations: int, mixture: GaussianMixture, rng: torch.Generator
) -> None:
    """At any size. Children that share their node's weight equally, as if they were drawn from it, make Z too low."""
    target, log_z = mixture.tilt(torch.zeros(2, 2), SLOPE)
    method = TreeSearch(iterations, steps=3)
    out, trace = method(mixture.flow(tolerance=1e-3), Linear(), slope, noise(200, 4, rng), rng=rng)
    z = trace.log_z.exp()
    assert z_score(z, log_z.exp()) < 4
    assert z_score(z[:, None] * out.x.mean(1), log_z.exp() * target.mean) < 4


def test_mode_weights_are_those_of_the_tilted_law(mixture: GaussianMixture, rng: torch.Generator) -> None:
    target, _ = mixture.tilt(torch.zeros(2, 2), SLOPE)

    def shares(x: Tensor) -> Tensor:
        nearest = torch.cdist(x, target.means.expand(*x.shape[:-2], 3, 2)).argmin(-1)
        return torch.stack([(nearest == i).double().mean(-1) for i in range(3)], -1)

    flow, x0 = mixture.flow(tolerance=1e-2), noise(16, 8, rng)
    out, _ = TreeSearch(30)(flow, Linear(), slope, x0, rng=rng)
    assert_close(shares(out.x).mean(0), shares(target.sample(100_000, rng=rng)), atol=0.06, rtol=0)


def test_log_z_of_a_constant_reward_is_that_constant(mixture: GaussianMixture, rng: torch.Generator) -> None:
    method, flow = TreeSearch(12, steps=3, temperature=0.5), mixture.flow(tolerance=1e-2)
    _, trace = method(flow, Linear(), lambda x: 0 * x[..., 0] + 3, noise(2, 4, rng), rng=rng)
    assert_close(trace.log_z, torch.full((2,), 6.0).double())


def test_hard_constraints_keep_z_unbiased(mixture: GaussianMixture, rng: torch.Generator) -> None:
    chance = (mixture.sample(200_000, rng=rng)[:, 0] > 0.8).double().mean()
    x0, flow = noise(200, 6, rng), mixture.flow(tolerance=1e-3)
    out, trace = TreeSearch(12, steps=3)(
        flow, Linear(), lambda x: torch.where(x[..., 0] > 0.8, 0.0, -math.inf).double(), x0, rng=rng
    )
    assert z_score(trace.log_z.exp(), chance) < 4 and (out.x[..., 0] > 0.8).all()


@pytest.mark.parametrize("mode", ["sample", "search"])
def test_a_longer_run_begins_with_the_same_tree(mode: str, mixture: GaussianMixture) -> None:
    x0, flow, seen = noise(2, 3, torch.Generator().manual_seed(1)), mixture.flow(tolerance=1e-3), []
    for iterations in (4, 11):
        reward = Recorded()
        TreeSearch(iterations, steps=3, mode=mode)(  # pyright: ignore[reportArgumentType]
            flow, Linear(), reward, x0, rng=torch.Generator().manual_seed(2)
        )
        seen.append(torch.cat(reward.x, 1))
    assert seen[0].shape[1] == 12 and torch.equal(seen[0], seen[1][:, :12])


def test_search_returns_the_n_best_of_all_ends(mixture: GaussianMixture, rng: torch.Generator) -> None:
    reward = Recorded()
    method, flow = TreeSearch(10, steps=3, mode="search"), mixture.flow(tolerance=1e-3)
    out, trace = method(flow, Linear(), reward, noise(2, 3, rng), rng=rng)
    assert_close(out.rewards, slope(torch.cat(reward.x, 1)).topk(3).values)
    assert trace.log_z.isnan().all() and (out.log_w == -math.log(3)).all()


@pytest.mark.parametrize(("ucb", "kept"), [(0.0, [0, 0, 0, 0]), (1e6, [0, 1, 2, 3])])
def test_the_bound_trades_the_best_node_for_untried_ones(
    ucb: float, kept: list[int], mixture: GaussianMixture, rng: torch.Generator
) -> None:
    """With a second level close to the data, children are worth what their parents are."""
    reward, flow = Recorded(), mixture.flow(tolerance=1e-5)
    TreeSearch(2, steps=2, mode="search", ucb=ucb, last_time=0.99999)(flow, Linear(), reward, noise(2, 4, rng), rng=rng)
    first, second = (slope(x).sort(descending=True).values for x in reward.x)
    assert_close(second, first[:, kept], atol=1e-3, rtol=0)


def test_ancestors_are_the_samples_of_the_same_noise(mixture: GaussianMixture, rng: torch.Generator) -> None:
    reward, flow = Recorded(), mixture.flow(tolerance=1e-5)
    method = TreeSearch(2, steps=2, mode="search", ucb=0.0, last_time=0.99999)
    out, trace = method(flow, Linear(), reward, noise(2, 4, rng), rng=rng)
    assert (trace.ancestors == 0).all()  # the best noise, and three of its four children
    assert (out.x - out.x[:, :1]).abs().max() < 1e-3


def test_values_are_the_soft_means_of_their_subtrees() -> None:
    """Against the recursion itself, on a tree of three levels with two rejected ends."""
    tree, inf = _Tree(torch.zeros(1, 2, 1).double(), iterations=5, steps=3), math.inf
    rewards = torch.tensor([1.0, -2.0, 0.5, -inf, 3.0, -1.0, 0.0, 2.0, 700.0, -inf]).double()
    parents = [None, [0, 0], [2, 3], None, [6, 0]]  # iterations 3 and 4 are of levels 0 and 1 again
    for i, parent in enumerate(parents):
        index = None if parent is None else torch.tensor([parent])
        tree.add(
            index, torch.zeros(1, 2, 1).double(), rewards[None, 2 * i : 2 * i + 2], torch.zeros(1, 2).double(), 2.0
        )
    children = {v: [2 * i + j for i, p in enumerate(parents) if p for j in (0, 1) if p[j] == v] for v in range(10)}

    def value(v: int) -> Tensor:
        both = torch.stack([rewards[v] / 2, *(value(c) for c in children[v])])
        return both.logsumexp(0) - math.log(len(both))

    assert_close(tree.value[0], torch.stack([value(v) for v in range(10)]))
    assert tree.count[0].tolist() == [1 + len(children[v]) for v in range(10)]


def test_draw_is_in_proportion_to_the_weights(rng: torch.Generator) -> None:
    log_w = torch.tensor([0.0, 1.0, -math.inf, 2.0, 0.5, -1.0]).double().expand(20_000, 6)
    chosen = draw(log_w, 3, rng=rng)
    copies = torch.stack([(chosen == j).double().sum(-1) for j in (0, 1, 3, 4)], 1)
    assert z_score(copies, 3 * log_w[0].softmax(0)[[0, 1, 3, 4]]) < 4 and (chosen != 2).all()


@pytest.mark.parametrize("calls", [16, 48])
def test_search_finds_more_than_best_of_n(calls: int, mixture: GaussianMixture, rng: torch.Generator) -> None:
    flow, x0 = mixture.flow(tolerance=1e-2), noise(16, 4, rng)
    plain = near(jump(flow, noise(16 * 4, calls, rng).flatten(0, 1), 0.0, 1.0)).view(16, -1).amax(-1)
    out, _ = TreeSearch(mode="search").with_budget(4 * calls, 4)(flow, Linear(), near, x0, rng=rng)
    assert out.rewards is not None and out.rewards.amax(-1).mean() > plain.mean()


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"iterations": 0}, "iterations.*got 0"),
        ({"mode": "walk"}, "mode.*got 'walk'"),
        ({"explore": 0.0}, "explore.*got 0.0"),
        ({"ucb": -1.0}, "ucb.*got -1.0"),
        ({"last_time": 1.0}, "last_time.*got 1.0"),
    ],
)
def test_bad_settings_raise(kwargs: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        TreeSearch(**kwargs)
