import dataclasses
import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from steer.analytic import GaussianMixture
from steer.flow_map import Cond, jump
from steer.interpolants import Interpolant, Linear, Time
from steer.methods import FlowMapGuidance

SLOPE = torch.tensor([1.0, -0.5]).double()
LAW = GaussianMixture(
    torch.ones(1).double(), torch.tensor([[0.4, -0.2]]).double(), torch.tensor([[[0.8, 0.3], [0.3, 0.5]]]).double()
)
FREE = {"damping": False, "max_ratio": math.inf}


def noise(p: int, n: int, rng: torch.Generator) -> Tensor:
    """p prompts of n particles in the plane."""
    return torch.randn(p, n, 2, generator=rng, dtype=torch.float64)


def slope(x: Tensor) -> Tensor:
    """A linear reward."""
    return x @ SLOPE


def pushes(
    method: FlowMapGuidance, x0: Tensor, path: Interpolant, rng: torch.Generator, reward: object = slope
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of one prompt under LAW: the ends [n d], and of each step x, the flow's own move and the push [steps n d]."""
    seen: list[tuple[float, Tensor]] = []

    def flow(x: Tensor, s: Time, t: Time, cond: Cond = None) -> Tensor:
        if t == 1.0:
            seen.append((float(s), x.detach()))
        return LAW.flow(path)(x, s, t)

    out, _ = method(flow, path, reward, x0, rng=rng)  # pyright: ignore[reportArgumentType]
    own = [jump(LAW.flow(path), x, s, t) - x for (s, x), (t, _) in zip(seen, seen[1:], strict=False)]
    x = torch.stack([x for _, x in seen])
    return out.x[0], x[:-1], torch.stack(own), x.diff(dim=0) - torch.stack(own)


def backwards(path: Interpolant, t: float) -> Tensor:
    """``J_{t,1}' a``, the gradient of the linear reward through the jump, the same everywhere."""
    x = torch.zeros(1, 2).double().requires_grad_()
    return torch.autograd.grad(slope(jump(LAW.flow(path), x, t, 1.0)).sum(), x)[0][0]


def test_fmrg_j_is_the_optimal_control(path: Interpolant, rng: torch.Generator) -> None:
    """Of all controls of its energy none gains more reward, and lambda weighs energy against gain as it should.

    For affine flows and linear rewards a control u gains ``int <u, J' a> dt <= |u| |J' a|`` (Cauchy and Schwarz).
    """
    steps, lam, temperature = 60, 0.7, 0.5
    x0, h = noise(1, 3, rng), 0.8 / steps
    method = FlowMapGuidance(steps, temperature, strength=lam, normalise=False, **FREE)
    ends, _, _, delta = pushes(method, x0, path, rng)
    gain = slope(ends - jump(LAW.flow(path), x0[0], 0.0, 1.0))
    energy = (delta**2).sum((0, 2)) / h
    reach = sum(h * backwards(path, k * h).square().sum() for k in range(steps))
    assert_close(gain, (energy * reach).sqrt(), rtol=0.01, atol=0)
    assert_close(lam * gain / temperature, energy, rtol=0.01, atol=0)
    steady = delta.mean(0) * (energy / (steps * delta.mean(0).square().sum(-1) / h)).sqrt()[:, None] / h
    lazy = sum(h * steady @ backwards(path, (k + 1) * h) for k in range(steps))
    assert (gain > 1.005 * lazy).all()


@pytest.mark.parametrize("strength", [0.5, 3.0])
def test_normalised_pushes_are_multiples_of_the_move_along_the_gradient(
    strength: float, path: Interpolant, rng: torch.Generator
) -> None:
    method = FlowMapGuidance(4, 0.1, strength=strength, **FREE)
    _, _, own, delta = pushes(method, noise(1, 5, rng), path, rng)
    along = torch.stack([backwards(path, 0.2 * k) for k in range(4)])[:, None]
    along = along / along.norm(dim=-1, keepdim=True)
    assert_close(delta, strength * own.norm(dim=-1, keepdim=True) * along)


def test_damping_shortens_by_what_the_posterior_is_wide(path: Interpolant, rng: torch.Generator) -> None:
    """lambda / (1 + 2 (lambda / temperature) s^2) for lambda, at one step from noise, where s is the data's width."""
    free = FlowMapGuidance(1, 0.5, strength=2.0, normalise=False, data_std=0.7, **FREE)
    x0 = noise(1, 5, rng)
    undamped, damped = (
        pushes(dataclasses.replace(free, damping=d), x0, path, rng)[3] for d in (False, True)
    )  # fmt: skip
    assert_close(damped, undamped / (1 + 2 * 4 * 0.49))


@pytest.mark.parametrize("std", [0.6, 1.5])
def test_fmrg_e_meets_the_tilted_law_of_a_gaussian(std: float, path: Interpolant, rng: torch.Generator) -> None:
    """Every sample moves by C a / T; with errors that fall with the steps. The network is never differentiated."""
    law = GaussianMixture(torch.ones(1).double(), torch.ones(1, 2).double(), std**2 * torch.eye(2).double()[None])
    x0, errors = noise(1, 3, rng), []
    plain, shift = jump(law.flow(path), x0[0], 0.0, 1.0), std**2 * SLOPE / 0.5
    for steps in (5, 15):
        method = FlowMapGuidance(
            steps, 0.5, variant="optimise", inner=80, rate=0.06 * std, data_std=std, max_ratio=math.inf, last_time=0.98
        )
        out, trace = method(law.flow(path), path, slope, x0, rng=rng)
        errors.append(float((out.x[0] - plain - shift).norm(dim=-1).max() / shift.norm()))
        assert trace.backward.tolist() == [0] and trace.calls.tolist() == [3 * (2 * steps + 1)]
    assert errors[1] < 0.5 * errors[0] and errors[1] < 0.15


def test_fmrg_e_as_published(path: Interpolant, rng: torch.Generator) -> None:
    """Undamped on a linear reward Adam moves each coordinate by rate a step, and c = alpha beta'."""
    method = FlowMapGuidance(2, variant="optimise", inner=3, rate=0.1, **FREE)
    _, _, _, delta = pushes(method, noise(1, 5, rng), path, rng)
    for k, (t, after) in enumerate([(0.0, 0.4), (0.4, 0.8)]):
        moved = 3 * 0.1 * (1 - k / 2) * SLOPE.sign()
        assert_close(delta[k], (path.alpha(t) * path.beta(after) * moved).expand(5, 2), rtol=1e-5, atol=0)


@pytest.mark.parametrize("variant", ["jump", "optimise"])
def test_without_strength_or_at_infinite_temperature_it_is_the_flow(
    variant: str, path: Interpolant, rng: torch.Generator
) -> None:
    x0 = noise(2, 4, rng)
    for changed in ({"strength": 0.0}, {"temperature": math.inf}, {"max_ratio": 0.0}):
        out, trace = FlowMapGuidance(4, variant=variant, **changed)(LAW.flow(path), path, slope, x0, rng=rng)  # pyright: ignore
        assert_close(out.x.flatten(0, 1), jump(LAW.flow(path), x0.flatten(0, 1), 0.0, 1.0))
        assert trace.push is not None and ((trace.push == 0).all() or "max_ratio" in changed)


@pytest.mark.parametrize("kwargs", [{"normalise": False}, {"strength": 9.0}, {"variant": "optimise", "rate": 10.0}])
def test_a_push_is_never_longer_than_the_bound(kwargs: dict, rng: torch.Generator) -> None:
    method = FlowMapGuidance(3, max_ratio=0.5, damping=False, **kwargs)
    _, _, own, delta = pushes(method, noise(1, 20, rng), Linear(), rng, lambda x: 1e8 * slope(x))
    ratio = delta.norm(dim=-1) / own.norm(dim=-1)
    assert (ratio < 0.5 + 1e-6).all() and ratio.max() > 0.5 - 1e-6


def test_a_line_goes_straight_to_the_end_and_saves_a_call(path: Interpolant, rng: torch.Generator) -> None:
    x0 = noise(1, 5, rng)
    method = FlowMapGuidance(1, strength=0.0, move="line")
    out, trace = method(LAW.flow(path), path, slope, x0, rng=rng)
    half = path.beta(0.8) * jump(LAW.flow(path), x0[0], 0.0, 1.0) + path.alpha(0.8) * x0[0]
    assert_close(out.x[0], jump(LAW.flow(path), half, 0.8, 1.0))
    assert trace.calls.tolist() == [5 * 4]


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"variant": "leap"}, "variant must be one of jump, optimise, got 'leap'"),
        ({"move": "arc"}, "move must be one of ode, line, got 'arc'"),
        ({"strength": -1.0}, "strength must be at least 0, got -1.0"),
        ({"inner": 0}, "inner must be at least 1, got 0"),
        ({"data_std": math.inf}, "data_std must be between 0 and inf, got inf"),
    ],
)
def test_bad_settings_raise(kwargs: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        FlowMapGuidance(**kwargs)
