"""A law known in closed form behind a fake network of each family: the family's flow is that law's exact flow."""

# ruff: noqa: ANN401

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from steer.analytic import GaussianMixture
from steer.bench.tiny_pipelines.parts import alphas, diffusers
from steer.flow_map import OdeFlowMap, jump, velocity
from steer.interpolants import VP, Interpolant, Shifted, Trigonometric
from steer.models.families.anyflow import AnyFlowFlow
from steer.models.families.base import Diagonal, EndsFlow
from steer.models.families.hunyuan import HunyuanFlow
from steer.models.families.noise_table import TimestepFlow
from steer.models.families.pixart import PixArtFlow
from steer.models.families.rectified import FluxFlow, SD3Flow, TwoTimeEmbedding
from steer.models.families.sana import SanaFlow, SanaLinear
from steer.models.families.stable_diffusion import UNetFlow

LAW = GaussianMixture(
    torch.tensor([0.4, 0.6], dtype=torch.float64),
    torch.tensor([[1.0, -0.5, 0.3, 0.8], [-0.7, 0.6, -1.0, 0.2]], dtype=torch.float64),
    torch.diag_embed(torch.tensor([[0.3, 0.5, 0.4, 0.2], [0.6, 0.2, 0.3, 0.5]], dtype=torch.float64)) + 0.05,
)
SHIFT = Shifted(3.0)
PAIRS = [(0.0, 1.0), (0.2, 0.7), (0.9, 0.3), (0.0, 0.4), (0.6, 1.0)]
Say = Callable[[Tensor, Tensor, Tensor], Tensor]


def difference(x: Tensor, sigma: Tensor, after: Tensor) -> Tensor:
    """Exact ``noise - data``, from one noise level of ``x = sigma noise + (1 - sigma) data`` to another, as a mean."""
    flat, sigma, after = x.flatten(1), sigma.double(), after.double()
    toward_data = LAW.flow()(flat, 1 - sigma, 1 - after)
    return -toward_data.view_as(x)


class Rectified(nn.Module):
    """A network that says `say` of what it is given; `wrong` is a misreading that must be seen.

    two: whether it is told two times. per: timesteps a unit of sigma.
    """

    def __init__(self, two: bool = False, per: float = 1000.0, say: Say = difference) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.two, self.per, self.say = two, per, say
        self.config = SimpleNamespace(use_meanflow=two, timestep_scale=1.0)
        self.time_text_embed = TwoTimeEmbedding(nn.Identity()) if two else nn.Identity()

    def forward(self, x: Any = None, *, hidden_states: Any = None, timestep: Any = None, **told: Any) -> tuple[Tensor]:
        """(output,), as diffusers returns it."""
        x = hidden_states if x is None else x
        times = timestep.unbind(-1) if self.two and timestep.ndim == 2 else (timestep, timestep)
        after = told.get("timestep_r")
        sigma, after = times[0] / self.per, (times[1] if after is None else after) / self.per
        return (self.say(x, sigma, after),)


class Flux(Rectified):
    """Reads and says tokens, as FLUX's pipeline packs them."""

    def forward(self, **told: Any) -> tuple[Tensor]:
        """(tokens,)."""
        x = diffusers.FluxPipeline._unpack_latents(told.pop("hidden_states"), 16, 16, 8)
        (out,) = super().forward(x, **told)
        return (diffusers.FluxPipeline._pack_latents(out, *out.shape),)


class Video(Rectified):
    """Is told both times of each frame."""

    def forward(self, hidden_states: Tensor, timestep: Tensor, r_timestep: Tensor, **told: Any) -> tuple[Tensor]:
        """(output,)."""
        assert timestep.shape == r_timestep.shape == hidden_states.shape[:2]
        return super().forward(hidden_states, timestep=torch.stack([timestep[:, 0], r_timestep[:, 1]], -1))


class Discrete(nn.Module):
    """What a network of timesteps k predicts of ``x = sqrt(abar_k) data + sqrt(1 - abar_k) noise``, exactly."""

    def __init__(self, scheduler: Any, sign: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.prediction, self.sign = scheduler.config.prediction_type, sign
        abar = scheduler.alphas_cumprod.double()
        self.log_ratio = 0.5 * (abar / (1 - abar)).log()

    def forward(self, x: Tensor, step: Any = None, *, timestep: Any = None, **told: Any) -> tuple[Tensor]:
        """(output, and a channel of variance besides,)."""
        k = (timestep if step is None else step).double()
        low = k.floor().long().clamp(max=len(self.log_ratio) - 2)
        ratio = torch.lerp(self.log_ratio[low], self.log_ratio[low + 1], k - low).exp().view(-1, 1, 1, 1)
        beta, alpha = ratio / (1 + ratio**2).sqrt(), 1 / (1 + ratio**2).sqrt()
        on_lines = (x / (alpha + beta)).flatten(1)  # where the linear path has the same ratio
        data = LAW.posterior(on_lines, (beta / (alpha + beta)).flatten()).mean.view_as(x)
        noise = (x - beta * data) / alpha
        out = {"epsilon": noise, "v_prediction": beta * noise - alpha * data, "sample": data}[self.prediction]
        out = self.sign * out
        return (torch.cat([out, torch.full_like(out, 7.0)], 1) if "added_cond_kwargs" in told else out,)


@dataclass(frozen=True)
class Case:
    """A flow of a family around a fake network, and the path it must be the law's flow along."""

    build: Callable[[Say], EndsFlow]
    path: Interpolant = SHIFT
    shape: tuple[int, ...] = (1, 2, 2)
    two: bool = False


def pixart(say: Say) -> EndsFlow:
    scheduler = alphas("DDIMScheduler")
    return PixArtFlow(Discrete(scheduler), scheduler)


def unet(prediction: str) -> Callable[[Say], EndsFlow]:
    scheduler = alphas("DDIMScheduler", prediction_type=prediction)
    return lambda say: UNetFlow(Discrete(scheduler), scheduler)


CASES = {
    "sd3": Case(lambda say: SD3Flow(Rectified(say=say), SHIFT)),
    "sd3-two-times": Case(lambda say: SD3Flow(Rectified(two=True, say=say), SHIFT), two=True),
    "flux": Case(lambda say: FluxFlow(Flux(per=1.0, say=say), SHIFT, 3.5)),
    "flux-two-times": Case(lambda say: FluxFlow(Flux(two=True, per=1.0, say=say), SHIFT, 3.5), two=True),
    "sana": Case(lambda say: SanaLinear(Rectified(say=say), SHIFT)),
    "sana-sprint": Case(lambda say: SanaFlow(Rectified(per=1.0, say=say), 0.45), Trigonometric()),
    "hunyuan": Case(lambda say: HunyuanFlow(Rectified(say=say), SHIFT)),
    "hunyuan-meanflow": Case(lambda say: HunyuanFlow(Rectified(two=True, say=say), SHIFT, 3.25), two=True),
    "anyflow": Case(lambda say: AnyFlowFlow(Video(two=True, say=say), SHIFT), shape=(2, 1, 1, 2), two=True),
    "pixart": Case(pixart, VP()),
    "unet-epsilon": Case(unet("epsilon"), VP()),
    "unet-v": Case(unet("v_prediction"), VP()),
    "unet-sample": Case(unet("sample"), VP()),
}
LINES = [name for name in CASES if "unet" not in name and name != "pixart"]
COND = dict.fromkeys(["words", "pooled", "mask", "glyphs", "glyph_mask"], torch.zeros(3, 1, 4, dtype=torch.float64))
MISREAD: dict[str, Say] = {
    "sign": lambda x, sigma, after: -difference(x, sigma, after),
    "time": lambda x, sigma, after: difference(x, 1 - sigma, 1 - after),
    "thousand": lambda x, sigma, after: difference(x, sigma / 1000, after / 1000),
}


def start(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(3, *shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def told(case: Case) -> dict[str, Tensor]:
    return {key: c for key, c in COND.items() if key != "pooled" or case.path == SHIFT}


def exact(case: Case, x: Tensor, s: float, t: float) -> Tensor:
    """The law's own average velocity along the path."""
    return LAW.flow(case.path)(x.flatten(1), s, t).view_as(x)


def times_of(case: Case) -> list[float]:
    """Times to look at: for a network of discrete timesteps those of some of them, where nothing is interpolated."""
    if case.path != VP():
        return [0.0, 0.1, 0.5, 0.8, 1.0]
    abar = alphas("DDIMScheduler").alphas_cumprod.double()[[50, 300, 600, 950]]
    return [1 / (1 + math.sqrt((1 - a) / a)) for a in abar.tolist()]


@pytest.mark.parametrize("name", CASES)
def test_the_velocity_is_the_laws(name: str) -> None:
    case = CASES[name]
    flow, x = case.build(difference), start(case.shape)
    for t in times_of(case):
        assert_close(velocity(flow, x, t, told(case)), exact(case, x, t, t), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.two])
def test_the_jump_of_a_network_of_two_times_is_the_laws(name: str) -> None:
    case = CASES[name]
    flow, x = case.build(difference), start(case.shape)
    for s, t in PAIRS:
        assert_close(jump(flow, x, s, t, told(case)), x + (t - s) * exact(case, x, s, t), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.two])
def test_many_steps_of_a_plain_network_approach_the_laws_jump(name: str) -> None:
    case = CASES[name]
    flow, x = Diagonal(case.build(difference)), start(case.shape)
    s, t = 0.15, 0.85
    end = x + (t - s) * exact(case, x, s, t)
    coarse, fine = (float((jump(OdeFlowMap(flow, n), x, s, t, told(case)) - end).abs().max()) for n in (2, 16))
    assert fine < 2e-3 and fine < coarse / 10


@pytest.mark.parametrize("wrong", MISREAD)
@pytest.mark.parametrize("name", LINES)
def test_a_network_of_another_convention_is_seen(name: str, wrong: str) -> None:
    case = CASES[name]
    flow, x = case.build(MISREAD[wrong]), start(case.shape)
    assert (velocity(flow, x, 0.4, told(case)) - exact(case, x, 0.4, 0.4)).abs().max() > 0.1


@pytest.mark.parametrize("name", [name for name in LINES if CASES[name].path == SHIFT])
def test_another_shift_is_seen(name: str) -> None:
    case = CASES[name]
    flow, x = case.build(difference), start(case.shape)
    other = Case(case.build, Shifted(2.0), case.shape)
    assert (velocity(flow, x, 0.4, told(case)) - exact(other, x, 0.4, 0.4)).abs().max() > 0.1


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_a_prediction_taken_for_another_or_of_another_sign_is_seen(prediction: str) -> None:
    case, x = CASES["unet-epsilon"], start((1, 2, 2))
    t = times_of(case)[1]
    scheduler = alphas("DDIMScheduler", prediction_type=prediction)
    for other in {"epsilon", "v_prediction", "sample"} - {prediction}:
        flow: TimestepFlow = UNetFlow(Discrete(alphas("DDIMScheduler", prediction_type=other)), scheduler)
        assert (velocity(flow, x, t, told(case)) - exact(case, x, t, t)).abs().max() > 0.1
    flow = UNetFlow(Discrete(scheduler, sign=-1.0), scheduler)
    assert (velocity(flow, x, t, told(case)) - exact(case, x, t, t)).abs().max() > 0.1


def test_a_prediction_that_is_not_known_is_refused() -> None:
    scheduler = alphas("DPMSolverMultistepScheduler", prediction_type="flow_prediction")
    with pytest.raises(ValueError, match="flow_prediction"):
        UNetFlow(nn.Identity(), scheduler)
