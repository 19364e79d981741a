from dataclasses import dataclass, field

import pytest
import torch
from conftest import z_score
from torch import Tensor
from torch.testing import assert_close

from steer.analytic import GaussianMixture
from steer.flow_map import Cond, FlowMap, jump
from steer.interpolants import Linear, Time
from steer.methods import PathSearch, ZeroOrder
from steer.methods.noise_search import neighbours

SLOPE = torch.tensor([1.5, -1.0]).double()
BALL = GaussianMixture(torch.ones(1).double(), torch.zeros(1, 16).double(), torch.eye(16).double()[None])


def slope(x: Tensor) -> Tensor:
    """A linear reward."""
    return x @ SLOPE


def near(x: Tensor) -> Tensor:
    """High around one rare point."""
    return -10 * (x**2).sum(-1)


def noise(p: int, n: int, rng: torch.Generator, d: int = 2) -> Tensor:
    """p prompts of n particles."""
    return torch.randn(p, n, d, generator=rng, dtype=torch.float64)


@dataclass
class Recorded:
    """A flow map that keeps its calls: x, s, t and where it led."""

    flow: FlowMap
    calls: list[tuple[Tensor, float, float, Tensor]] = field(default_factory=list)

    def __call__(self, x: Tensor, s: Time, t: Time, cond: Cond = None) -> Tensor:
        """The wrapped map's velocity."""
        assert isinstance(s, float) and isinstance(t, float)
        v = self.flow(x, s, t, cond)
        self.calls.append((x, s, t, x + (t - s) * v))
        return v


@pytest.mark.parametrize("closeness", [0.95, 0.3, -0.5])
def test_neighbours_have_the_cosine(closeness: float, rng: torch.Generator) -> None:
    x = torch.randn(2, 3, 2, 4, generator=rng, dtype=torch.float64)
    near = neighbours(x, 5, closeness, rng=rng).view(2, 5, 3, 8)
    cosine = torch.cosine_similarity(near, x.view(2, 1, 3, 8), dim=-1)
    assert_close(cosine, torch.full_like(cosine, closeness))


@pytest.mark.parametrize("d", [1, 2, 5])
def test_neighbours_of_standard_normal_noise_are_standard_normal(d: int, rng: torch.Generator) -> None:
    """Mean 0, covariance 1, fourth moment 3, and squared lengths of mean d and second moment d (d + 2)."""
    x = noise(1, 20_000, rng, d)
    y = neighbours(x, 1, 0.95, rng=rng)[0]
    assert z_score(y, 0.0) < 4 and z_score(y**4, 3.0) < 4
    assert z_score(y[:, :, None] * y[:, None], torch.eye(d).double()) < 4
    assert z_score((y**2).sum(-1) ** 2, d * (d + 2.0)) < 4
    if d == 1:
        assert z_score(y * x[0], 0.95) < 4
    else:  # the length is drawn afresh: it tells nothing of that of x
        assert z_score((y**2).sum(-1) * (x[0] ** 2).sum(-1), float(d * d)) < 4


def test_zero_order_looks_around_its_best_and_keeps_it(mixture: GaussianMixture, rng: torch.Generator) -> None:
    """Each round's noises have the cosine with the best noise so far, of the same particle; none is lost."""
    flow, x0 = Recorded(mixture.flow(tolerance=1e-5)), noise(2, 3, rng)
    out, _ = ZeroOrder(steps=5, neighbours=4, closeness=0.9)(flow, Linear(), slope, x0, rng=rng)
    best, value = x0, torch.full((2, 3), -torch.inf).double()
    for k, (x, s, t, end) in enumerate(flow.calls):
        assert (s, t) == (0.0, 1.0)
        x, r = x.view(2, -1, 3, 2), slope(end).view(2, -1, 3)
        if k > 0:
            cosine = torch.cosine_similarity(x, best[:, None], dim=-1)
            assert_close(cosine, torch.full_like(cosine, 0.9))
        i = r.argmax(1, keepdim=True)
        new, found = r.gather(1, i)[:, 0], x.gather(1, i[..., None].expand(2, 1, 3, 2))[:, 0]
        best, value = torch.where((new > value)[..., None], found, best), torch.maximum(new, value)
    assert len(flow.calls) == 6
    assert_close(out.rewards, value)


def test_a_longer_zero_order_search_never_ends_worse(mixture: GaussianMixture) -> None:
    x0, flow, found = noise(2, 5, torch.Generator().manual_seed(1)), mixture.flow(tolerance=1e-3), []
    for steps in (1, 4, 12):
        out, _ = ZeroOrder(steps)(flow, Linear(), slope, x0, rng=torch.Generator().manual_seed(2))
        found.append(slope(out.x))
    assert (found[1] >= found[0]).all() and (found[2] >= found[1]).all() and (found[2] > found[0]).any()


def test_zero_order_climbs_where_chance_does_not_reach(rng: torch.Generator) -> None:
    """One direction of 16: the best of 65 draws is about 2.4 deviations out, a search along the sphere gets further."""
    x0 = noise(50, 1, rng, 16)
    out, trace = ZeroOrder(steps=16, neighbours=4, closeness=0.9)(
        BALL.flow(), Linear(), lambda x: x[..., 0], x0, rng=rng
    )
    assert trace.calls.tolist() == [65] * 50
    plain = noise(50, 65, rng, 16)[..., 0].amax(-1)
    assert out.x[..., 0].mean() > plain.mean() + 0.3


def test_paths_go_on_from_what_was_seen_and_kept(mixture: GaussianMixture, rng: torch.Generator) -> None:
    """Each kept path is moved along its own trajectory, to the times on the way; the n best ends of all come back."""
    flow, x0 = Recorded(mixture.flow(tolerance=1e-9)), noise(2, 3, rng)
    method = PathSearch(steps=3, children=4, start=0.4, back=0.25)
    out, _ = method(flow, Linear(), slope, x0, rng=rng)
    first, *rest = flow.calls
    assert first[1:3] == (0.0, 0.4)
    looks, moves = rest[::2], rest[1::2]
    assert [c[1] for c in looks] == pytest.approx([0.15, 0.35, 0.55]) and all(c[2] == 1 for c in looks)
    assert [c[2] for c in moves] == pytest.approx([0.6, 0.8])
    for look, move in zip(looks, moves, strict=False):
        kept = slope(look[3]).view(2, 12).topk(3)
        end = jump(mixture.flow(tolerance=1e-9), move[3], move[2], 1.0)
        assert move[1] == look[1]
        assert_close(slope(end).view(2, 3), kept.values, atol=1e-6, rtol=0)
    assert_close(out.rewards, torch.cat([slope(c[3]).view(2, 12) for c in looks], 1).topk(3).values)


def test_paths_without_a_preference_keep_the_law_of_the_data(mixture: GaussianMixture, rng: torch.Generator) -> None:
    """Renoised by less or more than the paths' own time would need, the ends would be too wide or too narrow."""
    x0, flow = noise(300, 4, rng), mixture.flow(tolerance=1e-3)
    out, _ = PathSearch(steps=3, children=2)(flow, Linear(), lambda x: 0 * x[..., 0], x0, rng=rng)
    assert z_score(out.x.mean(1), mixture.mean) < 4
    spread = (out.x - mixture.mean)[..., :, None] * (out.x - mixture.mean)[..., None, :]
    assert z_score(spread.mean(1), mixture.cov) < 4


def test_paths_find_more_than_best_of_n_and_more_with_more_calls(
    mixture: GaussianMixture, rng: torch.Generator
) -> None:
    """From 20 calls a particle on; with fewer there are hardly two rounds."""
    flow, found = mixture.flow(tolerance=1e-2), []
    for calls in (20, 60):
        plain = near(jump(flow, noise(16 * 4, calls, rng).flatten(0, 1), 0.0, 1.0)).view(16, -1).amax(-1)
        out, _ = PathSearch().with_budget(4 * calls, 4)(flow, Linear(), near, noise(16, 4, rng), rng=rng)
        found.append(near(out.x).amax(-1).mean())
        assert found[-1] > plain.mean()
    assert found == sorted(found)


@pytest.mark.parametrize(
    ("method", "kwargs", "match"),
    [
        (ZeroOrder, {"steps": 0}, "steps.*got 0"),
        (ZeroOrder, {"neighbours": 0}, "neighbours.*got 0"),
        (ZeroOrder, {"closeness": 1.0}, "closeness.*got 1.0"),
        (PathSearch, {"children": 0}, "children.*got 0"),
        (PathSearch, {"start": 1.0}, "start.*got 1.0"),
        (PathSearch, {"start": 0.5, "back": 0.6}, "back.*start=0.5, got 0.6"),
    ],
)
def test_bad_settings_raise(method: type, kwargs: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        method(**kwargs)
