"""SMC in its other forms: every chain, look-ahead, potential, twist and tempering meets the same law."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from conftest import Counting, plainly, z_score
from torch import Tensor

from steer import settings
from steer.analytic import GaussianMixture
from steer.flow_map import FlowMap
from steer.interpolants import Interpolant, Linear
from steer.lookahead import Denoiser, Jump, LookAhead, Rollout
from steer.methods import SMC
from steer.particles import Particles, Trace
from steer.population import Population
from steer.posterior import Glass, Renoised

SLOPE = torch.tensor([1.5, -1.0]).double()
LAW = GaussianMixture(
    torch.ones(1).double(), torch.tensor([[0.4, -0.2]]).double(), torch.tensor([[[0.8, 0.3], [0.3, 0.5]]]).double()
)


def slope(x: Tensor) -> Tensor:
    """A linear reward."""
    return x @ SLOPE.to(x)


def noise(p: int, n: int, rng: torch.Generator) -> Tensor:
    """p prompts of n particles in the plane: here p independent runs."""
    return torch.randn(p, n, 2, generator=rng, dtype=torch.float64)


def off(result: tuple[Particles, Trace], law: GaussianMixture = LAW, temperature: float = 1.0) -> float:
    """How far E[Z_hat] is from Z, or E[Z_hat sum w x] from Z E*[x], in standard errors."""
    out, trace = result
    target, log_z = law.tilt(torch.zeros(2, 2), SLOPE / temperature)
    z = (trace.log_z - log_z).exp()
    weighted = z[:, None] * (out.log_w.exp()[..., None] * out.x).sum(1)
    return max(z_score(z, 1.0), z_score(weighted, target.mean))


@pytest.mark.parametrize(
    "method",
    [
        SMC(4, chain="sde"),
        SMC(4, chain="sde", churn=0.0),
        SMC(4, chain="sde", churn=4.0),
        SMC(3, chain="early_stop", inner=16),
    ],
    ids=["sde", "ode", "churn", "early_stop"],
)
def test_every_chain_is_exact(method: SMC, mixture: GaussianMixture, path: Interpolant, rng: torch.Generator) -> None:
    result = method(mixture.flow(path, 1e-4), path, slope, noise(150, 12, rng), rng=rng)
    assert off(result, mixture) < 4 and result[1].resampled.any()


@pytest.mark.parametrize("chain", ["restart", "sde", "early_stop"])
@pytest.mark.parametrize(
    "lookahead", [Denoiser(), Rollout(2), Glass(2, 2), Renoised(3)], ids=lambda look: type(look).__name__
)
def test_every_look_ahead_is_exact(chain: str, lookahead: LookAhead, rng: torch.Generator) -> None:
    """However poor the guess, few its draws and rough their law: the last weight is the reward's own."""
    method = SMC(4, chain=chain, lookahead=lookahead, ess_threshold=0.9, inner=12)
    result = method(LAW.flow(), Linear(), slope, noise(300, 12, rng), rng=rng)
    assert off(result) < 4 and result[1].resampled.any()


def test_a_look_ahead_that_is_the_posterior_s_value_keeps_weights_even(rng: torch.Generator) -> None:
    """With V itself (temperature and data make log E[e^r | x_t] closed) weights barely change; the jump overrates."""
    sizes = []
    for lookahead in (Glass(32, 4), Jump()):
        method = SMC(
            4, chain="early_stop", lookahead=lookahead, ess_threshold=0.0, schedule=lambda u: 1.0, last_time=0.9
        )
        _, trace = method(LAW.flow(), Linear(), slope, noise(10, 100, rng), rng=rng)
        sizes.append(trace.ess[0].mean())
    assert sizes[0] > 80 > sizes[1]


@pytest.mark.parametrize("potential", ["difference", "rt", "max", "sum"])
@pytest.mark.parametrize("chain", ["restart", "sde"])
def test_every_potential_is_exact_by_the_last_correction(
    potential: str, chain: str, dtype: torch.dtype, rng: torch.Generator
) -> None:
    method = SMC(3, potential=potential, chain=chain, ess_threshold=0.7)
    result = method(LAW.flow(), Linear(), slope, noise(400, 32, rng).to(dtype), rng=rng)
    assert off(result) < 4 and result[1].resampled.any()


@pytest.mark.parametrize("potential", ["rt", "max", "sum"])
def test_without_the_last_correction_it_is_no_tilt(potential: str, rng: torch.Generator) -> None:
    target, _ = LAW.tilt(torch.zeros(2, 2), SLOPE)
    method = SMC(4, potential=potential, corrected=False)
    out, trace = method(LAW.flow(), Linear(), slope, noise(100, 100, rng), rng=rng)
    assert trace.log_z.isnan().all()
    assert z_score((out.log_w.exp()[..., None] * out.x).sum(1), target.mean) > 8


def test_differences_need_no_correction(rng: torch.Generator) -> None:
    method = SMC(4, corrected=False)
    assert off(method(LAW.flow(), Linear(), slope, noise(300, 16, rng), rng=rng)) < 4


@pytest.mark.parametrize("chain", ["restart", "sde"])
@pytest.mark.parametrize(("twist", "max_ratio"), [(1.0, 1.0), (0.5, math.inf), (3.0, 0.4)])
def test_twisted_weights_are_exact(
    chain: str, twist: float, max_ratio: float, mixture: GaussianMixture, path: Interpolant, rng: torch.Generator
) -> None:
    method = SMC(3, chain=chain, twist=twist, max_ratio=max_ratio)
    result = method(mixture.flow(path, 1e-3), path, slope, noise(100, 12, rng), rng=rng)
    assert off(result, mixture) < 4 and result[1].push is not None and (result[1].push[:-1] > 0).all()


@pytest.mark.parametrize("lookahead", [Denoiser(), Glass(3, 2), Renoised(3)], ids=lambda look: type(look).__name__)
def test_any_look_ahead_may_twist(lookahead: LookAhead, rng: torch.Generator) -> None:
    method = SMC(3, chain="sde", twist=1.0, lookahead=lookahead)
    assert off(method(LAW.flow(), Linear(), slope, noise(200, 12, rng), rng=rng)) < 4


@pytest.mark.parametrize("chain", ["restart", "sde"])
def test_a_twist_lowers_the_variance_of_log_z(chain: str, rng: torch.Generator) -> None:
    """At equal steps."""
    spread = []
    for twist in (0.0, 1.0):
        method = SMC(6, temperature=0.5, chain=chain, twist=twist)
        result = method(LAW.flow(), Linear(), slope, noise(500, 32, rng), rng=rng)
        spread.append(result[1].log_z.var())
    assert spread[1] < 0.75 * spread[0]


def test_a_steep_twist_is_bounded(dtype: torch.dtype, rng: torch.Generator) -> None:
    method = SMC(6, temperature=1e-3, twist=1.0, chain="sde")
    out, trace = method(LAW.flow(), Linear(), slope, noise(2, 64, rng).to(dtype), rng=rng)
    assert out.x.norm(dim=-1).max() < 20 and out.log_w.exp().isfinite().all() and trace.log_z.isfinite().all()
    assert trace.push is not None and trace.push.max() > 50


class Recorded(SMC):
    """Notes lambda_k of every step."""

    def _lam(self, k: int, value: Tensor, *rest: object) -> Tensor:
        lam = super()._lam(k, value, *rest)  # pyright: ignore[reportArgumentType]
        LAMBDAS.append(lam[:, 0])
        return lam


LAMBDAS: list[Tensor] = []


@pytest.mark.parametrize("potential", ["difference", "max"])
def test_adaptive_tempering_keeps_the_effective_size(potential: str, rng: torch.Generator) -> None:
    """Wherever lambda rises, as far as it can; it never falls, and reaches 1."""
    LAMBDAS.clear()
    method = Recorded(8, chain="sde", tempering="adaptive", ess_threshold=0.6, potential=potential)
    _, trace = method(LAW.flow(), Linear(), slope, noise(20, 50, rng), rng=rng)
    lam, size = torch.stack([torch.zeros(20), *LAMBDAS]), trace.ess[:-1]
    rose, held = lam.diff(dim=0) > 0, lam[1:] < 1
    assert (lam.diff(dim=0) >= 0).all() and (lam[-1] == 1).all() and (lam[1] < 1).all()
    assert (size[rose] > 0.6 * 50 - 1e-6).all() and (size[rose & held] < 0.6 * 50 + 1e-3).all()
    assert trace.resampled[:-1][rose & held].all()


@pytest.mark.parametrize("twist", [0.0, 1.0])
@pytest.mark.parametrize("resample", ["systematic", "ssp"])
def test_adaptive_tempering_is_exact(twist: float, resample: str, rng: torch.Generator) -> None:
    method = SMC(5, 0.7, tempering="adaptive", resample=resample, twist=twist, chain="sde")
    result = method(LAW.flow(), Linear(), slope, noise(300, 16, rng), rng=rng)
    assert off(result, temperature=0.7) < 4 and result[1].resampled.any()


def test_adaptive_tempering_does_not_kill_what_may_be_accepted(rng: torch.Generator) -> None:
    """Even at lambda = 1, before the last step."""
    chance = 0.5 * math.erfc((1.0 - 0.4) / math.sqrt(2 * 0.8))

    def inside(x: Tensor) -> Tensor:
        return torch.where(x[..., 0] > 1.0, 0.0, -math.inf)

    LAMBDAS.clear()
    method = Recorded(4, tempering="adaptive", ess_threshold=0.2)
    out, trace = method(LAW.flow(), Linear(), inside, noise(300, 32, rng), rng=rng)
    assert (LAMBDAS[0] == 1).any() and z_score(trace.log_z.exp(), chance) < 4
    assert (out.x[out.log_w > -math.inf][:, 0] > 1.0).all()


@pytest.mark.parametrize(
    "method",
    [
        SMC(chain="sde"),
        SMC(lookahead=Denoiser()),
        SMC(lookahead=Rollout(3)),
        SMC(lookahead=Glass(2, 2), chain="sde"),
        SMC(chain="early_stop", inner=3),
        SMC(twist=1.0),
        SMC(twist=1.0, chain="sde", lookahead=Denoiser()),
        SMC(twist=1.0, lookahead=Glass(2, 2)),
        SMC(lookahead=Renoised(2, nodes=1)),
    ],
    ids=plainly,
)
@pytest.mark.parametrize("calls", [1, 7, 20, 61])
def test_budgets_pay_for_look_aheads(
    method: SMC, calls: int, counting: Callable[[FlowMap], Counting], rng: torch.Generator
) -> None:
    """Never overspent, more than half spent; where two steps cost too much, the error names the least."""
    try:
        within = method.with_budget(3 * calls, 3)
    except ValueError as error:
        least = int(str(error).rsplit(" ", 1)[1])
        assert 3 * calls < least <= 3 * 61
        calls, within = least // 3, method.with_budget(least, 3)
    flow = counting(LAW.flow())
    _, trace = within(flow, Linear(), slope, noise(1, 3, rng), rng=rng)
    assert trace.calls.tolist() == [flow.forward + 2 * flow.backward] and 1.5 * calls < trace.calls[0] <= 3 * calls


def test_a_rollout_s_end_is_the_restart_s(counting: Callable[[FlowMap], Counting], rng: torch.Generator) -> None:
    _, trace = SMC(4, lookahead=Rollout(3))(counting(LAW.flow()), Linear(), slope, noise(1, 5, rng), rng=rng)
    assert trace.calls.tolist() == [5 * (3 * 3 + 1)]


@pytest.mark.parametrize("name", ["tds", "das", "fk", "diamond"])
def test_named_variants_are_exact(name: str, rng: torch.Generator) -> None:
    method = replace(settings.build("method", name), steps=4)  # "max" has weights of heavy tails after many more
    assert off(method(LAW.flow(), Linear(), slope, noise(200, 16, rng), rng=rng)) < 4.5


def test_particles_carry_all_that_is_theirs(monkeypatch: pytest.MonkeyPatch, rng: torch.Generator) -> None:
    """What a resampling is given has every tensor of the next move, each with its own gradient."""
    seen = []

    def resample(self: Population, state: object, threshold: float | None = None) -> object:
        seen.append(vars(state))
        return state

    monkeypatch.setattr(Population, "resample", resample)
    SMC(3, twist=1.0, potential="max")(LAW.flow(), Linear(), slope, noise(1, 4, rng), rng=rng)
    assert [set(state) for state in seen] == [{"x", "x1", "spent", "potential", "gradient"}] * 2
    assert all(value.shape[:2] == (1, 4) for state in seen for value in state.values())


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"chain": "walk"}, "chain must be one of restart, sde, early_stop, got 'walk'"),
        ({"potential": "min"}, "potential must be one of .*got 'min'"),
        ({"tempering": "none"}, "tempering must be one of schedule, adaptive, got 'none'"),
        ({"twist": -1.0}, "twist must be at least 0, got -1.0"),
        ({"twist": 1.0, "chain": "early_stop"}, "twist=1.0.*use 'restart'"),
        ({"twist": 1.0, "chain": "sde", "churn": 0.0}, "twist=1.0.*churn=0.0.*with churn > 0"),
        ({"churn": -1.0}, "churn must be at least 0, got -1.0"),
        ({"inner": 0}, "inner must be at least 1, got 0"),
        ({"max_ratio": math.nan}, "max_ratio must be at least 0, got nan"),
    ],
)
def test_bad_settings_raise(kwargs: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        SMC(**kwargs)
