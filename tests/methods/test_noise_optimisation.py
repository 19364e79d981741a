import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from steer.interpolants import Linear
from steer.methods import NoiseOptimisation
from steer.methods.noise_optimisation import regulariser


def bent(x: Tensor, s: object, t: object, cond: object = None) -> Tensor:
    """A map that is not linear."""
    return x.sin() - x / 2


def bowl(x: Tensor) -> Tensor:
    """A reward with its top at a point of the data."""
    return -((x - 1) ** 2).flatten(2).sum(-1)


def slope(x: Tensor) -> Tensor:
    """A reward without a top."""
    return 50 * x.flatten(2).sum(-1)


def noise(p: int, n: int, d: int, rng: torch.Generator) -> Tensor:
    """p prompts of n particles of d numbers."""
    return torch.randn(p, n, d, generator=rng, dtype=torch.float64)


@pytest.mark.parametrize("d", [2, 400])
def test_rewards_rise_and_lengths_stay_those_of_noise(d: int, rng: torch.Generator) -> None:
    """Whatever the dimension, a reward however steep, and at every step on the way."""
    seen = []

    def recorded(x: Tensor, *times: object) -> Tensor:
        seen.append(x.detach().norm(dim=-1))
        return bent(x, 0.0, 1.0)

    x0 = noise(2, 20, d, rng)
    out, trace = NoiseOptimisation()(recorded, Linear(), slope, x0, rng=rng)
    assert out.rewards is not None
    assert (out.rewards > slope(x0 + bent(x0, 0.0, 1.0)) + 10).all()
    lengths = torch.stack(seen[1:])
    assert ((lengths - math.sqrt(d)).abs() < 3 / math.sqrt(2) + 1e-6).all()
    assert trace.log_z.isnan().all() and (trace.calls == 20 * 151).all()


def test_without_the_bound_a_steep_reward_leaves_the_noise(rng: torch.Generator) -> None:
    """What the bound is for: the published form goes far beyond any noise."""
    seen = []

    def recorded(x: Tensor, *times: object) -> Tensor:
        seen.append(x.detach().norm(dim=-1))
        return 0 * x

    NoiseOptimisation(spread=math.inf)(recorded, Linear(), slope, noise(1, 5, 400, rng), rng=rng)
    assert (seen[-1] > math.sqrt(400) + 10).all()


def test_it_is_nesterov_s_descent_of_the_loss_with_clipped_gradients(rng: torch.Generator) -> None:
    """Each particle by itself, in the form of the textbook: the gradient is taken at y + momentum u, our noise.

    The iterate of least loss is returned.
    """
    x0, steps, most = noise(1, 3, 5, rng), 12, 2.0 * math.sqrt(5 / 16384)
    method = NoiseOptimisation(steps, 1.5, 0.3, clip=2.0, regularisation=0.2, spread=math.inf)
    out, _ = method(bent, Linear(), bowl, x0, rng=rng)
    for i in range(3):
        y, u, losses, ends = x0[0, i], torch.zeros(5).double(), [], []
        for _ in range(steps + 1):
            x = (y + 0.9 * u).requires_grad_()
            ends.append(x + bent(x, 0.0, 1.0))
            loss = -1.5 * bowl(ends[-1][None, None])[0, 0] + 0.2 * (x.norm() ** 2 / 2 - 4 * x.norm().log())
            (g,) = torch.autograd.grad(loss, x)
            losses.append(loss.item())
            u = 0.9 * u - 0.3 * g * min(1.0, most / float(g.norm()))
            y = (y + u).detach()
        assert losses[-1] < losses[0]
        assert_close(out.x[0, i], ends[min(range(steps + 1), key=losses.__getitem__)].detach())


def test_the_best_is_kept_when_the_ascent_overshoots(rng: torch.Generator) -> None:
    x0 = noise(1, 10, 2, rng)
    wild = NoiseOptimisation(steps=10, learning_rate=1e6, regularisation=0.0)
    out, _ = wild(bent, Linear(), bowl, x0, rng=rng)
    assert out.rewards is not None and (out.rewards >= bowl(x0 + bent(x0, 0.0, 1.0))).all()


def test_the_regulariser_alone_brings_a_noise_to_its_likeliest_length(rng: torch.Generator) -> None:
    x0 = 1.5 * noise(1, 4, 50, rng)
    seen = []

    def recorded(x: Tensor, *times: object) -> Tensor:
        seen.append(x.detach().norm(dim=-1))
        return bent(x, 0.0, 1.0)

    method = NoiseOptimisation(steps=200, strength=0.0, regularisation=0.1, learning_rate=0.5, clip=100.0, spread=20.0)
    method(recorded, Linear(), bowl, x0, rng=rng)
    assert_close(seen[-1], torch.full((4,), 7.0).double(), atol=1e-3, rtol=0)
    assert (regulariser(x0 / x0.norm(dim=-1, keepdim=True) * 7) < regulariser(x0)).all()


def test_a_rejected_noise_is_never_the_best(rng: torch.Generator) -> None:
    def half(x: Tensor) -> Tensor:
        return torch.where(x[..., 0] > 0.3, -x[..., 1], -math.inf)

    x0 = noise(1, 50, 2, rng)
    out, _ = NoiseOptimisation()(bent, Linear(), half, x0, rng=rng)
    fine = half(x0 + bent(x0, 0.0, 1.0)) > -math.inf
    assert 0 < fine.sum() < 50 and out.rewards is not None and (out.rewards[fine] > -math.inf).all()


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"steps": 0}, "steps.*got 0"),
        ({"learning_rate": 0.0}, "learning_rate.*got 0.0"),
        ({"clip": -1.0}, "clip.*got -1.0"),
        ({"momentum": 1.0}, "momentum.*got 1.0"),
        ({"spread": -1.0}, "spread.*got -1.0"),
        ({"jumps": 0}, "jumps.*got 0"),
    ],
)
def test_bad_settings_raise(kwargs: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        NoiseOptimisation(**kwargs)
