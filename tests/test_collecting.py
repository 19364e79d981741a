"""How samples are gathered: advantages and pairs by hand, laws of what comes, and that prompts are independent."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from conftest import PATHS, z_score
from torch import Tensor
from torch.testing import assert_close

from steer.analytic import GaussianMixture
from steer.collecting import Actor, Advantages, Chain, Noise, Pairs, Samples, Steered, finite_rewards, log_density
from steer.flow_map import jump
from steer.interpolants import Interpolant, Linear
from steer.methods import BestOfN, TreeSearch
from steer.moves import Kernel
from steer.posterior import Glass
from steer.value_targets import Adjoints, PosteriorDraws

WAYS: list[Any] = [
    Noise(),
    Samples(steps=2),
    Pairs(steps=2),
    Steered(),
    Steered(best=3),
    Steered(TreeSearch(iterations=3), best=1),
    Chain(steps=3),
    Chain("restart", steps=2, churn=0.5),
    Adjoints(steps=3, keep=2),
    PosteriorDraws(Glass(k=2, steps=2), times=3),
    PosteriorDraws(Glass(k=2, steps=2), steps=1, times=9, gradient=True),
]


def first(x: Tensor) -> Tensor:
    """A reward: the first number."""
    return x[..., 0]


def actor(mixture: GaussianMixture, path: Interpolant | None = None, **more: Any) -> Actor:  # noqa: ANN401
    flow = mixture.flow(path or Linear(), 1e-6)
    return Actor(flow, flow, flow, **{"reward": first, "path": path or Linear()} | more)


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def gathered(way: Any, who: Actor, n: int, seeds: tuple[int, ...] = (0,)) -> Any:  # noqa: ANN401
    """Rows of a prompt a seed, in the plane."""
    rng = generators(*seeds)
    x0 = torch.stack([torch.randn(n, 2, generator=g, dtype=torch.float64) for g in rng])
    return way(who, x0, None, rng=rng, shared=generators(100)[0])


def rewards(p: int = 6, n: int = 8) -> Tensor:
    r = torch.randn(p, n, generator=generators(2)[0])
    return 3 + torch.arange(1, p + 1)[:, None] * r


def test_advantages_are_rewards_less_the_mean_of_their_prompt_over_the_spread() -> None:
    r = torch.tensor([[1.0, 3.0], [5.0, 15.0]])
    assert torch.allclose(Advantages("prompt")(r), torch.tensor([[-1.0, 1.0], [-1.0, 1.0]]))
    spread = math.sqrt((1 + 25) / 2)
    assert torch.allclose(Advantages("all")(r), torch.tensor([[-1.0, 1.0], [-5.0, 5.0]]) / spread)


@pytest.mark.parametrize("spread", ["all", "prompt"])
def test_advantages_have_zero_mean_a_prompt_and_unit_spread(spread: Any) -> None:  # noqa: ANN401
    a = Advantages(spread, clip=100)(rewards()).double()
    assert a.mean(1).abs().max() < 1e-6
    size = a.square().mean() if spread == "all" else a.square().mean(1)
    assert (size - 1).abs().max() < 1e-5


@pytest.mark.parametrize("spread", ["all", "prompt"])
@pytest.mark.parametrize("value", [0.0, 0.1, -1234.567, 1e8, -math.inf])
def test_rewards_that_do_not_differ_give_exactly_zero(spread: Any, value: float) -> None:  # noqa: ANN401
    r = torch.stack([torch.full((7,), value), torch.arange(7.0)])
    a = Advantages(spread)(r)
    assert torch.equal(a[0], torch.zeros(7)) and a[1].abs().min() < a[1].abs().max()
    assert torch.equal(Advantages(spread)(r[:1]), torch.zeros(1, 7))
    wide = torch.full((1, 11), 0.1, dtype=torch.float64) if value == 0.1 else r[:1].double()
    assert torch.equal(Advantages(spread)(wide), torch.zeros(1, wide.shape[1]))  # also where their mean is rounded


def test_advantages_are_held_within_the_clip() -> None:
    r = torch.zeros(1, 100)
    r[0, 3] = -1.0
    assert Advantages(clip=2.0)(r).min() == -2 and Advantages(clip=100)(r).min() < -9
    assert torch.equal(Advantages(clip=2.0)(r), Advantages(clip=100)(r).clamp(-2, 2))


def test_a_small_spread_counts_at_least_so_much() -> None:
    r = torch.tensor([[1.0, 3.0], [5.0, 15.0]])
    assert_close(Advantages("prompt", least=2.0)(r), torch.tensor([[-0.5, 0.5], [-1.0, 1.0]]))
    assert torch.equal(Advantages(least=0.5)(r), Advantages()(r))
    with pytest.raises(ValueError, match="least"):
        Advantages(least=-1.0)


@pytest.mark.parametrize("spread", ["all", "prompt"])
@pytest.mark.parametrize("others", [[1.0, 2.0, 4.0], [100.0, 100.0, 100.0], [-5e4, -5e4, -5e4]])
def test_what_is_rejected_counts_below_the_worst(spread: Any, others: list[float]) -> None:  # noqa: ANN401
    r = torch.tensor([[*others, -math.inf], [0.0, 1.0, 0.0, 1.0]])
    a = Advantages(spread)(r)
    assert a.isfinite().all() and (a[0, 3] < a[0, :3]).all()


def test_rejected_rewards_lie_one_standard_deviation_below_the_worst() -> None:
    r = torch.tensor([[1.0, 3.0, -math.inf], [-math.inf, -math.inf, -math.inf], [2.0, 0.0, 5.0]])
    assert torch.equal(finite_rewards(r), torch.tensor([[1.0, 3.0, 0.0], [0.0, 0.0, 0.0], [2.0, 0.0, 5.0]]))


def test_settings_that_make_no_advantages() -> None:
    with pytest.raises(ValueError, match='spread must be "prompt" or "all", got \'each\''):
        Advantages("each")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="clip must be above 0, got 0"):
        Advantages(clip=0)


def paired(values: list[float]) -> Any:  # noqa: ANN401
    """Pairs of samples whose rewards are these, by a map that moves nothing."""
    still = lambda x, s, t, cond=None: 0 * x  # noqa: E731
    x0 = torch.tensor(values)[None, :, None].expand(1, -1, 2)
    reward = lambda x: x[..., 0]  # noqa: E731
    return Pairs(steps=1)(Actor(still, still, still, reward), x0, None, rng=generators(0), shared=generators(1)[0])


@pytest.mark.parametrize("values", [[3.0, -1.0, 7.0, 2.0], [3.0, -1.0, 7.0, 2.0, 2.5]])
def test_the_best_is_paired_with_the_worst(values: list[float]) -> None:
    """Of an odd number the middle one is left out."""
    x1, more, _ = paired(values)
    assert x1[0, :, 0].tolist() == [7, 3] and more["loser"][0, :, 0].tolist() == [-1, 2]
    assert more["margin"].tolist() == [[8, 1]] and more["reward"].tolist() == [[7, 3]]


def test_pairs_that_say_nothing_have_no_margin_and_rejected_ones_do() -> None:
    assert paired([2.0, 2.0, 2.0])[1]["margin"].tolist() == [[0]]
    x0 = torch.tensor([100.0, 1.0, 100.0, 1.0])[None, :, None]
    still = lambda x, s, t, cond=None: 0 * x  # noqa: E731
    reward = lambda x: x[..., 0].masked_fill(x[..., 0] < 2, -math.inf)  # noqa: E731
    who = Actor(still, still, still, reward)
    x1, more, _ = Pairs(steps=1)(who, x0, None, rng=generators(0), shared=generators(1)[0])
    assert (more["margin"] > 0).all() and x1.flatten().tolist() == [100, 100]
    assert more["loser"].flatten().tolist() == [1, 1]


def test_winners_are_at_least_as_good_as_losers(mixture: GaussianMixture) -> None:
    x1, more, calls = gathered(Pairs(steps=3), actor(mixture), 9, (0, 1, 2))
    assert torch.equal(more["margin"], first(x1) - first(more["loser"])) and (more["margin"] > 0).all()
    assert calls.tolist() == [27, 27, 27]
    with pytest.raises(ValueError, match="pairs need group >= 2 samples a prompt, got 1"):
        Pairs().rows(1)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_weighted_samples_have_the_law_of_the_tilt(mixture: GaussianMixture, temperature: float) -> None:
    """p exp(x_1 / T) is a mixture again; prompts are independent repetitions."""
    tilted, _ = mixture.tilt(torch.zeros(2, 2).double(), torch.tensor([1 / temperature, 0.0]).double())
    who = actor(mixture, temperature=temperature)
    x1, more, _ = gathered(Steered(BestOfN(steps=1)), who, 400, tuple(range(40)))
    means = x1.mean(1)
    assert z_score(means, tilted.mean) < 4 and z_score(means, mixture.mean) > 10
    assert z_score(x1.square().mean(1), tilted.cov.diagonal() + tilted.mean**2) < 4
    assert torch.equal(more["reward"], first(x1))


def test_what_is_steered_is_the_source(mixture: GaussianMixture) -> None:
    who = dataclasses.replace(actor(mixture), average=lambda x, s, t, cond=None: 0 * x)
    noise = gathered(Noise(), who, 6).x1
    moved = {source: gathered(Samples(2, source), who, 6).x1 for source in ("average", "current", "reference")}  # type: ignore[arg-type]
    assert torch.equal(moved["average"], noise)
    assert torch.equal(moved["current"], moved["reference"]) and not torch.equal(moved["current"], noise)
    best = gathered(Steered(BestOfN(), source="average", best=6), who, 6).x1
    assert torch.equal(best.sort(1).values, noise.sort(1).values)


def test_the_best_are_the_best(mixture: GaussianMixture) -> None:
    who = actor(mixture)
    every = gathered(Samples(steps=4), who, 12, (0, 1)).more["reward"]
    x1, more, _ = gathered(Steered(best=3), who, 12, (0, 1))
    assert torch.allclose(more["reward"], every.topk(3, 1).values) and torch.equal(more["reward"], first(x1))
    for best in (0, 13):
        with pytest.raises(ValueError, match=f"best must lie between 1 and group=12, got {best}"):
            Steered(best=best).rows(12)


def test_a_method_takes_the_temperature_of_the_target(mixture: GaussianMixture) -> None:
    """Of infinite temperature nothing is a target, and the method keeps its own."""
    seen = []

    @dataclasses.dataclass(frozen=True)
    class Seen(BestOfN):
        def __call__(self, *args: Any, **more: Any) -> Any:  # noqa: ANN401
            seen.append(self.temperature)
            return super().__call__(*args, **more)

    for temperature in (0.3, math.inf):
        gathered(Steered(Seen(temperature=0.7)), actor(mixture, temperature=temperature), 4)
    assert seen == [0.3, 0.7]


@pytest.mark.parametrize("kind", ["sde", "restart"])
def test_chains_keep_the_marginals(kind: Any, path: Interpolant) -> None:  # noqa: ANN401
    """Of one correlated Gaussian, whose flow is known in closed form."""
    law = GaussianMixture(torch.ones(1), torch.tensor([[1.0, -0.5]]), torch.tensor([[[0.5, 0.2], [0.2, 0.3]]])).to(
        torch.float64
    )
    way = Chain(kind, steps=4)
    _, more, calls = gathered(way, actor(law, path), 20_000)
    points = more["points"][0]
    assert points.shape == (20_000, 5, 2) and calls.tolist() == [80_000]
    for k in range(5):
        p_t, x = law.marginal(k / 4, path), points[:, k]
        assert z_score(x, p_t.mean) < 4
        products = torch.einsum("bi,bj->bij", x - p_t.mean, x - p_t.mean)
        assert z_score(products, p_t.cov) < 4


@pytest.mark.parametrize("churn", [0.5, 1.0])
def test_chains_keep_the_marginals_of_a_mixture_and_end_with_its_samples(
    mixture: GaussianMixture, churn: float
) -> None:
    x1, more, _ = gathered(Chain("sde", steps=3, churn=churn), actor(mixture), 4000)
    assert torch.equal(more["points"][0, :, -1], x1[0]) and torch.equal(more["reward"], first(x1))
    for k in range(4):
        assert z_score(more["points"][0, :, k], mixture.marginal(k / 3).mean) < 4


@pytest.mark.parametrize("kind", ["sde", "restart"])
def test_log_p_is_the_density_of_the_moves(kind: Any, mixture: GaussianMixture, path: Interpolant) -> None:  # noqa: ANN401
    """Up to a constant that is the same for all samples."""
    way, who = Chain(kind, steps=3, churn=0.7), actor(mixture, path)
    _, more, _ = gathered(way, who, 9)
    assert more["log_p"].shape == (1, 9, 2)
    for k in range(2):
        kernel = way.kernel(who.current, path, more["points"][0, :, k], k)
        law = torch.distributions.Normal(kernel.mean, kernel.std)
        off = law.log_prob(more["points"][0, :, k + 1]).sum(-1) - more["log_p"][0, :, k]
        assert (off + 2 * math.log(kernel.std) + math.log(2 * math.pi)).abs().max() < 1e-9
        assert more["log_p"][0, :, k].std() > 0.1
    last = way.kernel(who.current, path, more["points"][0, :, 2], 2)
    assert last.std == 0 and torch.allclose(last.mean, more["points"][0, :, 3])


def test_churn_says_how_far_beyond_the_next_time_a_move_jumps(mixture: GaussianMixture) -> None:
    """From 1/4 to 1/2 with churn c: to u = 1/2 + c/4 and back, which leaves the noise that u lacks."""
    who, x = actor(mixture), torch.zeros(1, 2).double()
    for churn, u in ((0.4, 0.6), (1.0, 0.75), (8.0, 1.0)):
        kernel = Chain(steps=4, churn=churn).kernel(who.current, Linear(), x, 1)
        assert abs(kernel.std**2 - (0.25 - (0.5 / u * (1 - u)) ** 2)) < 1e-12
        assert torch.allclose(kernel.mean, 0.5 / u * jump(who.current, x, 0.25, u))


def test_log_density_sums_over_the_axes_of_a_sample() -> None:
    x = torch.arange(24.0).view(2, 3, 2, 2)
    kernel = Kernel(torch.zeros_like(x), 2.0)
    assert torch.equal(log_density(kernel, x, 2), -x.square().sum((2, 3)) / 8)
    assert torch.equal(log_density(kernel, x, 3), -x.square().sum((1, 2, 3)) / 8)


def test_settings_that_make_no_chain() -> None:
    with pytest.raises(ValueError, match='kind must be "sde" or "restart", got \'ode\''):
        Chain("ode")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="steps must be at least 2: the last is no action, got 1"):
        Chain(steps=1)
    with pytest.raises(ValueError, match="churn must be above 0: without noise there is no policy, got 0"):
        Chain(churn=0)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: f"{type(way).__name__}-{WAYS.index(way)}")
@pytest.mark.parametrize("n", [4, 7])
def test_as_many_rows_come_as_are_told(way: Any, n: int, mixture: GaussianMixture) -> None:  # noqa: ANN401
    out = gathered(way, actor(mixture), n, (3, 4))
    assert out.x1.shape == (2, way.rows(n), 2) and out.calls.shape == (2,)
    assert all(value.shape[:2] == (2, way.rows(n)) for value in out.more.values())
    values = [out.x1, *out.more.values()]
    assert not any(v.requires_grad or v.isnan().any() for v in values)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: f"{type(way).__name__}-{WAYS.index(way)}")
def test_a_prompt_has_the_same_rows_in_any_company(way: Any, mixture: GaussianMixture) -> None:  # noqa: ANN401
    who = actor(mixture)
    both, alone = gathered(way, who, 6, (3, 4)), gathered(way, who, 6, (4,))
    assert torch.allclose(both.x1[1], alone.x1[0], atol=1e-4)  # the exact map is integrated to a tolerance
    assert both.more.keys() == alone.more.keys()
    assert all(torch.allclose(both.more[name][1], alone.more[name][0], atol=1e-4) for name in alone.more)
    assert not torch.allclose(both.x1[0], both.x1[1])
    assert both.calls[1] == alone.calls[0]


def test_paths_are_those_of_the_actor(mixture: GaussianMixture) -> None:
    """The noise of a move is that of its path at the next time."""
    for path in PATHS:
        who = actor(mixture, path)
        kernel = Chain("restart", steps=4).kernel(who.current, path, torch.zeros(1, 2).double(), 1)
        assert abs(kernel.std - path.alpha(0.5)) < 1e-12
