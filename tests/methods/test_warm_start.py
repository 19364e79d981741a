import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from conftest import z_score
from torch import Tensor
from torch.testing import assert_close

from steer.analytic import GaussianMixture
from steer.interpolants import Linear
from steer.methods import SMC, BestOfN, FlowMapTilting, Guidance, WarmStart, ZeroOrder
from steer.methods.warm_start import floor, whole
from steer.particles import Particles, Trace

SLOPE = torch.tensor([1.5, -1.0]).double()
ONE = GaussianMixture(torch.ones(1).double(), torch.tensor([[0.4, -0.2]]).double(), torch.eye(2).double()[None] / 2)


def slope(x: Tensor) -> Tensor:
    """A linear reward."""
    return x @ SLOPE.to(x)


def noise(p: int, n: int, rng: torch.Generator) -> Tensor:
    """p prompts of n particles in the plane: here p independent runs."""
    return torch.randn(p, n, 2, generator=rng, dtype=torch.float64)


def off(out: Particles, trace: Trace, z: Tensor, mean: Tensor) -> float:
    """Largest distance of Z_hat and of Z_hat times the weighted mean from the truth, in standard errors."""
    weighted = trace.log_z.exp()[:, None] * (out.log_w.exp()[..., None] * out.x).sum(1)
    return max(z_score(trace.log_z.exp(), z), z_score(weighted, z * mean))


@dataclass(frozen=True)
class Spy:
    """Keeps what it is given, and is best-of-n."""

    given: list
    forgets: bool = False
    needs_gradient: bool = False

    def __call__(self, flow: Any, path: Any, reward: Any, x0: Tensor, *rest: Any, rng: Any) -> Any:  # noqa: ANN401
        """Best-of-n."""
        self.given.append((x0, getattr(reward, "log_w0", None)))
        return BestOfN()(flow, path, reward.reward if self.forgets else reward, x0, *rest, rng=rng)


@pytest.mark.parametrize("ess_threshold", [0.0, 1.0])
@pytest.mark.parametrize(
    "method",
    [SMC(3, chain="sde", churn=0.1, schedule=whole), SMC(2, ess_threshold=1.0), BestOfN(), FlowMapTilting(4)],
    ids=["sde", "restart", "best of n", "fmtt"],
)
def test_z_is_unbiased_and_the_tilted_law_is_met(method: Any, ess_threshold: float, rng: torch.Generator) -> None:  # noqa: ANN401
    """Whatever the method and its own schedule, and after few moves."""
    target, log_z = ONE.tilt(torch.zeros(2, 2), SLOPE)
    warm = WarmStart(method, moves=2, ess_threshold=ess_threshold)
    out, trace = warm(ONE.flow(), Linear(), slope, noise(500, 32, rng), rng=rng)
    if isinstance(method, FlowMapTilting):  # has an error of its own steps
        assert abs(trace.log_z.exp().mean() / log_z.exp() - 1) < 0.1
    else:
        assert off(out, trace, log_z.exp(), target.mean) < 4


def test_the_default_meets_the_law_of_a_mixture(mixture: GaussianMixture, rng: torch.Generator) -> None:
    target, log_z = mixture.tilt(torch.zeros(2, 2), SLOPE)
    out, trace = WarmStart(moves=2)(mixture.flow(tolerance=1e-3), Linear(), slope, noise(60, 16, rng), rng=rng)
    assert off(out, trace, log_z.exp(), target.mean) < 4


def test_noises_follow_the_look_ahead_s_tilt_and_count_less_for_it(rng: torch.Generator) -> None:
    """x0 ~ N(A'h, I) / weights; with exp(-V) on top they stand for N(0, I). Forgotten, Z comes out squared."""
    given, x0 = [], noise(500, 32, rng)
    _, log_z = ONE.tilt(torch.zeros(2, 2), SLOPE)
    warm = WarmStart(Spy(given), moves=6)
    _, right = warm(ONE.flow(), Linear(), slope, x0, rng=rng)
    x, log_w0 = given[0]
    assert z_score(log_w0.exp().mean(1), 1.0) < 4
    assert z_score((log_w0.exp()[..., None] * x).mean(1), 0.0) < 4
    v = slope(ONE.means[0] + x / 2**0.5)
    tilted = (log_w0 + v).exp()[..., None]
    assert z_score((tilted * x).mean(1), log_z.exp() * SLOPE / 2**0.5) < 4
    assert z_score(right.log_z.exp(), log_z.exp()) < 4
    _, wrong = dataclasses.replace(warm, method=Spy(given, forgets=True))(ONE.flow(), Linear(), slope, x0, rng=rng)
    assert z_score(wrong.log_z.exp(), log_z.exp()) > 20


def test_rejected_noises_are_not_ruled_out(rng: torch.Generator) -> None:
    """A hard constraint on the end: a chain that forgets must still reach it from noises that do not lead there."""

    def inside(x: Tensor) -> Tensor:
        return torch.where(x[..., 0] > 0.8, 0.0 * x[..., 0], -math.inf)

    chance = 0.5 * math.erfc(0.4)
    warm = WarmStart(SMC(2, last_time=0.3, schedule=whole), move="pcn")
    out, trace = warm(ONE.flow(), Linear(), inside, noise(500, 32, rng), rng=rng)
    assert z_score(trace.log_z.exp(), chance) < 4
    assert (out.x[out.log_w > -math.inf][:, 0] > 0.8).all()


def test_the_floor_of_a_particle_is_known_from_the_other_half() -> None:
    v = torch.tensor([[1.0, -math.inf, 5.0, 4.0, 7.0], [1.0, 2.0, *[-math.inf] * 3]])
    assert_close(floor(v), torch.tensor([[1.0, 1, -2, -2, -2], [-3, -3, -2, -2, -2]]))
    assert_close(floor(v[:, :1]), torch.full((2, 1), -3.0))


@pytest.mark.parametrize("method", [Guidance(2), ZeroOrder(2)])
def test_heuristics_take_the_noises_as_they_are(method: Any, rng: torch.Generator) -> None:  # noqa: ANN401
    """Equal weights, no Z, and rewards above those from plain noise at the same settings."""
    x0 = noise(2, 200, rng)
    out, trace = WarmStart(method)(ONE.flow(), Linear(), slope, x0, rng=rng)
    plain, _ = method(ONE.flow(), Linear(), slope, x0, rng=rng)
    assert_close(out.log_w.exp(), torch.full((2, 200), 1 / 200).double())
    assert trace.log_z.isnan().all()
    assert out.rewards is not None and (out.rewards.mean(1) > plain.rewards.mean(1) + 0.1).all()


def test_noises_weights_are_used_up_by_a_resampling(rng: torch.Generator) -> None:
    """Of a method without Z, which takes the noises as they are: nothing is left of them to take off again."""
    method = SMC(3, ess_threshold=1.0, potential="rt", corrected=False)
    out, _ = WarmStart(method, moves=1)(ONE.flow(), Linear(), slope, noise(2, 20, rng), rng=rng)
    assert_close(out.log_w, slope(out.x).log_softmax(-1))


def test_the_trace_joins_both(rng: torch.Generator) -> None:
    _, trace = WarmStart(SMC(3), moves=4)(ONE.flow(), Linear(), slope, noise(2, 10, rng), rng=rng)
    assert trace.forward.tolist() == [80, 80] and trace.backward.tolist() == [50, 50]
    assert trace.reward_calls.tolist() == [80, 80] and len(trace.times) == len(trace.ess) == 7


def test_ancestors_are_those_of_the_first_noises(rng: torch.Generator) -> None:
    """Of two far apart halves only the right one survives the warm start."""
    x0 = noise(1, 40, rng)
    x0[0, :, 0] = x0[0, :, 0].abs() * torch.tensor([-1.0, 1.0]).repeat(20)
    method = WarmStart(SMC(2), moves=1, temperature=0.02, ess_threshold=1.0, step=0.01, acceptance=0.0)
    out, trace = method(lambda x, *_: 0 * x, Linear(), lambda x: x[..., 0], x0, rng=rng)
    assert (trace.ancestors % 2 == 1).all() and out.x.shape == x0.shape


def test_a_budget_is_shared_and_the_least_is_named() -> None:
    warm = WarmStart(SMC(4), move="pcn", share=0.5).with_budget(160, 10)
    assert (warm.moves, warm.method.steps) == (7, 8)
    assert WarmStart(SMC(4), share=0.9).with_budget(70, 10) == WarmStart(SMC(1), moves=1, share=0.9)
    with pytest.raises(ValueError, match="the least is 70"):
        WarmStart(SMC(4)).with_budget(69, 10)


def test_needs_a_gradient_if_either_does() -> None:
    assert WarmStart().needs_gradient and WarmStart(Guidance(), move="pcn").needs_gradient
    assert not WarmStart(move="pcn").needs_gradient


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"moves": 0}, "moves.*got 0"),
        ({"move": "hmc"}, "got 'hmc'"),
        ({"share": 1.0}, "share.*got 1.0"),
        ({"step": 0.0}, "step.*got 0.0"),
        ({"acceptance": 1.0}, "acceptance.*got 1.0"),
        ({"ess_threshold": -1.0}, "ess_threshold.*got -1.0"),
    ],
)
def test_bad_settings_raise(kwargs: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        WarmStart(**kwargs)
