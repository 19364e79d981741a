import math

import pytest
import torch
from conftest import z_score
from torch import Tensor
from torch.testing import assert_close

from steer.analytic import GaussianMixture
from steer.chains import MOVES, Move
from steer.interpolants import Linear
from steer.methods import NoiseSMC
from steer.particles import Particles, Trace

SLOPE = torch.tensor([1.5, -1.0]).double()


def slope(x: Tensor) -> Tensor:
    """A linear reward."""
    return x @ SLOPE.to(x)


def noise(p: int, n: int, rng: torch.Generator) -> Tensor:
    """p prompts of n particles in the plane: here p independent runs."""
    return torch.randn(p, n, 2, generator=rng, dtype=torch.float64)


def crooked(x: Tensor, s: object, t: object, cond: object = None) -> Tensor:
    """No flow map of anything: one jump from 0 to 1 makes N(1, 4 I), two make N(1.25, 5.0625 I)."""
    return x + 1


def off(out: Particles, trace: Trace, z: Tensor, mean: Tensor) -> float:
    """Largest distance of Z_hat and of Z_hat times the weighted mean from the truth, in standard errors."""
    weighted = trace.log_z.exp()[:, None] * (out.log_w.exp()[..., None] * out.x).sum(1)
    return max(z_score(trace.log_z.exp(), z), z_score(weighted, z * mean))


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("ess_threshold", [0.0, 1.0])
def test_z_is_unbiased_and_the_tilted_law_is_met(
    move: Move, ess_threshold: float, mixture: GaussianMixture, rng: torch.Generator
) -> None:
    """Under the exact flow map of a mixture, after few moves, with steps that are tuned."""
    target, log_z = mixture.tilt(torch.zeros(2, 2), SLOPE)
    method = NoiseSMC(steps=3, move=move, ess_threshold=ess_threshold)
    out, trace = method(mixture.flow(tolerance=1e-3), Linear(), slope, noise(100, 16, rng), rng=rng)
    assert off(out, trace, log_z.exp(), target.mean) < 4


@pytest.mark.parametrize("jumps", [1, 2])
@pytest.mark.parametrize("move", MOVES)
def test_it_is_exact_for_what_the_map_samples_however_poor(jumps: int, move: Move, rng: torch.Generator) -> None:
    centre, std = ((1.0, 2.0), (1.25, 2.25))[jumps - 1]
    z = ((SLOPE / 2 * centre).sum() + (std * SLOPE / 2).square().sum() / 2).exp()
    method = NoiseSMC(steps=6, jumps=jumps, temperature=2.0, move=move)
    out, trace = method(crooked, Linear(), slope, noise(600, 32, rng), rng=rng)
    assert off(out, trace, z, centre + std**2 * SLOPE / 2) < 4


def test_moves_make_up_for_a_hard_tilt(rng: torch.Generator) -> None:
    """A small ball far out, of chance 2e-5: weighted draws have an effective size of one, and the chain arrives."""
    centre, width = torch.tensor([3.0, -2.0]).double(), 0.1

    def ball(x: Tensor) -> Tensor:
        return -((x - centre) ** 2).sum(-1) / (2 * width**2)

    var = 1 / (1 + 1 / width**2)
    truth = math.log(width**2 / (1 + width**2)) - float((centre**2).sum()) / 2 / (1 + width**2)
    x0 = noise(10, 128, rng)
    for move in MOVES:
        out, trace = NoiseSMC(steps=40, move=move)(lambda x, *_: 0 * x, Linear(), ball, x0, rng=rng)
        mean = (out.log_w.exp()[..., None] * out.x).sum(1)
        assert ((mean - centre * var / width**2).abs() < 5 * var**0.5 / 8).all()
        assert (trace.log_z - truth).abs().mean() < 1
        assert (trace.ess[-1] > 40).all()


def test_hard_constraints_keep_z_unbiased(rng: torch.Generator) -> None:
    def inside(x: Tensor) -> Tensor:
        return torch.where(x[..., 0] > 1.0, 0.0, -math.inf)

    chance = 0.5 * math.erfc(1 / math.sqrt(2))
    for tempering in ("adaptive", "schedule"):
        method = NoiseSMC(steps=3, tempering=tempering)
        out, trace = method(lambda x, *_: 0 * x, Linear(), inside, noise(300, 64, rng), rng=rng)
        assert z_score(trace.log_z.exp(), chance) < 4
        assert (out.x[out.log_w > -math.inf][:, 0] > 1).all()


def test_where_all_is_rejected_at_first_it_looks_on_and_claims_no_z(rng: torch.Generator) -> None:
    def inside(x: Tensor) -> Tensor:
        return torch.where(x[..., 0] > 1.0, 0.0, -math.inf)

    x0 = noise(2, 8, rng)
    x0[0, :, 0] = -x0[0, :, 0].abs()
    x0[1, 0, 0] = 2.0
    out, trace = NoiseSMC(steps=30)(lambda x, *_: 0 * x, Linear(), inside, x0, rng=rng)
    assert (out.x[0, out.log_w[0] > -math.inf][:, 0] > 1).all()
    assert trace.log_z[0].isnan() and trace.log_z[1].isfinite()


def test_the_whole_reward_counts_for_what_the_last_move_finds(rng: torch.Generator) -> None:
    """Where lam had to wait at 0 to the end, the weights are those of plain draws."""

    def inside(x: Tensor) -> Tensor:
        return torch.where(x[..., 0] > 0, 2 * x[..., 1], -math.inf)

    x0 = noise(1, 32, rng)
    x0[..., 0] = -x0[..., 0].abs()
    out, _ = NoiseSMC(steps=1, step=1.0)(lambda x, *_: 0 * x, Linear(), inside, x0, rng=rng)
    assert 2 < (out.log_w > -math.inf).sum() < 32
    assert_close(out.log_w, inside(out.x).log_softmax(-1))


def test_steep_rewards_do_not_overflow_in_float32(rng: torch.Generator) -> None:
    for move in MOVES:
        x0 = noise(2, 64, rng).float()
        out, trace = NoiseSMC(temperature=1e-4, move=move)(lambda x, *_: 0 * x, Linear(), slope, x0, rng=rng)
        assert out.x.isfinite().all() and out.log_w.exp().isfinite().all() and (trace.log_z > 1e4).all()


def test_only_moves_with_a_drift_need_a_gradient() -> None:
    assert [NoiseSMC(move=move).needs_gradient for move in MOVES] == [False, True, True]
    assert NoiseSMC(jumps=2).with_budget(100, 4).steps == 11
    assert NoiseSMC(jumps=2, move="mala").with_budget(100, 4).steps == 3


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"jumps": 0}, "jumps.*got 0"),
        ({"move": "hmc"}, "pcn, pcnl, mala, got 'hmc'"),
        ({"step": 1.5}, "step.*got 1.5"),
        ({"cess": 0.0}, "cess.*got 0.0"),
        ({"rise": 0.0}, "rise.*got 0.0"),
        ({"acceptance": 1.0}, "acceptance.*got 1.0"),
        ({"ess_threshold": 1.5}, "ess_threshold.*got 1.5"),
        ({"schedule": lambda u: u / 2}, r"schedule\(1\) = 0.5"),
        ({"resample": "best"}, "got 'best'"),
    ],
)
def test_bad_settings_raise(kwargs: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        NoiseSMC(**kwargs)
