"""What the families of diffusers pipelines share: one network call as a flow map, and the parts around it.

A network that is asked at time s (and, if it has two times, about time t) says where the noise-to-data path it sees
begins and ends: data ``D`` and noise ``N`` with ``x = alpha_s N + beta_s D``. Moving along that path is the jump

    X_{s,t}(x) = alpha_t N + beta_t D,      v_{s,t} = (alpha_t - alpha_s)/(t - s) N + (beta_t - beta_s)/(t - s) D

which is a DDIM step for a noise prediction (arXiv:2010.02502), an Euler step of a rectified flow, the jump of a
consistency model to the data for t = 1, and the exact jump of a network that knows t. On the diagonal it is the
velocity ``dalpha N + dbeta D``, so one formula serves all families, and each family only says what D and N are.
"""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from steer.flow_map import Cond, FlowMap
from steer.interpolants import Interpolant, Time, like

Kind = Literal["velocity", "jump", "map"]
MOST = 1 << 15  # pixels of a side, steps or frames; what has more fits no memory
NEAR = 1e-4  # times closer than this count as one, in the slope of alpha and beta between them


@dataclass(frozen=True)
class Choices:
    """What can be chosen of a pipeline; None takes what its checkpoint or its pipeline class says.

    height, width: of the pictures, in pixels.
    guidance: its scale: told to networks that take one, classifier-free guidance for the others (1: none).
    true_guidance: classifier-free guidance also for a network that is told a scale (FLUX's true_cfg_scale).
    negative: the prompt that classifier-free guidance leads away from.
    kind: what one network call gives: "velocity" (a plain model; jumps are made of several calls), "jump" (a
        consistency model or another distilled one: its jump to the data is trusted), "map" (a network of two times).
    ode_steps: of a jump of a plain model, two calls each, see `steer.flow_map.OdeFlowMap`.
    frames: of a video model; its picture is the middle one.

    Raises:
        ValueError: a number out of range, or an unknown kind.
    """

    height: int | None = None
    width: int | None = None
    guidance: float | None = None
    true_guidance: float = 1.0
    negative: str = ""
    kind: Kind | None = None
    ode_steps: int = 4
    frames: int = 1

    def __post_init__(self) -> None:
        if self.kind not in (None, "velocity", "jump", "map"):
            raise ValueError(f'kind must be "velocity", "jump" or "map", got {self.kind!r}')
        for name in ("height", "width", "ode_steps", "frames"):
            number = getattr(self, name)
            if number is not None and (not isinstance(number, int) or not 1 <= number <= MOST):
                raise ValueError(f"{name} must be a whole number from 1 to {MOST}, got {number!r}")
        for name in ("guidance", "true_guidance"):
            scale = getattr(self, name)
            if scale is not None and not (isinstance(scale, int | float) and 0 <= scale < math.inf):
                raise ValueError(f"{name} must be a number, at least 0, got {scale!r}")
        if not isinstance(self.negative, str):
            raise ValueError(f"negative must be a text, got {self.negative!r}")


class EndsFlow(nn.Module):
    """The average velocity of a network that says the ends of the path through x. Subclasses write `ends`.

    The network works in its own dtype; x, the ends and what comes back keep that of x.

    adapted: which of its layers get adapters in fine-tuning, as a regular expression: the projections of attention.
    """

    adapted: ClassVar[str] = r".*\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)"

    def __init__(self, network: nn.Module, path: Interpolant) -> None:
        super().__init__()
        self.network, self.path = network, path

    def ends(self, x: Tensor, s: Tensor, t: Tensor, cond: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Data and noise [b *d] at the ends of the path through x [b *d]; s and t are float64 [b]."""
        raise NotImplementedError

    def forward(self, x: Tensor, s: Time, t: Time, cond: Cond = None) -> Tensor:
        """v_{s,t}(x) [b *d]."""
        start, end = (torch.as_tensor(u, dtype=torch.float64, device=x.device).expand(len(x)) for u in (s, t))
        data, noise = self.ends(x, start, end, cond or {})
        return (
            like(slope(self.path.alpha, self.path.dalpha, start, end), x) * noise
            + like(slope(self.path.beta, self.path.dbeta, start, end), x) * data
        )

    @property
    def dtype(self) -> torch.dtype:
        """That the network computes in; its own word, where it has one, since some weights may be kept in float32."""
        known: torch.dtype | None = getattr(self.network, "dtype", None)
        return known or next(p.dtype for p in self.network.parameters() if p.is_floating_point())


def slope(f: Callable[[Tensor], Tensor], df: Callable[[Tensor], Tensor], s: Tensor, t: Tensor) -> Tensor:
    """``(f(t) - f(s)) / (t - s)`` [b] of float64 times; df between them where they are close."""
    near = (t - s).abs() < NEAR
    return torch.where(near, df((s + t) / 2), (f(t) - f(s)) / torch.where(near, 1.0, t - s))


class LinearFlow(EndsFlow):
    """A rectified flow: networks that predict ``noise - data`` at a noise level sigma = alpha; alpha + beta = 1.

    Subclasses write `velocity`. Of a network with two levels it is the average from one to the other.
    """

    def velocity(self, x: Tensor, sigma: Tensor, sigma_next: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """The network's own output [b *d], time running from data to noise; sigma, sigma_next [b] float32."""
        raise NotImplementedError

    def ends(self, x: Tensor, s: Tensor, t: Tensor, cond: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """``x - sigma u`` and ``x + (1 - sigma) u``."""
        sigma, after = self.path.alpha(s), self.path.alpha(t)
        u = self.velocity(x.to(self.dtype), sigma.float(), after.float(), cond).to(x)
        return x - like(sigma, x) * u, x + like(1 - sigma, x) * u


@dataclass(frozen=True)
class Guided:
    """Classifier-free guidance of one network call: ``v_null + scale (v - v_null)``, in one call of twice the rows.

    On the diagonal it is the guided velocity; away from it, a step of the samplers that guide at each step. Guided
    jumps over long times do not compose. Source: "Classifier-free diffusion guidance" (arXiv:2207.12598).

    null: what the network is told without a prompt: the keys of cond, one row each.
    """

    flow: FlowMap
    null: Mapping[str, Tensor]
    scale: float

    def __call__(self, x: Tensor, s: Time, t: Time, cond: Cond = None) -> Tensor:
        """v_{s,t}(x) [b *d]."""
        assert cond is not None
        both = {key: torch.cat([c, self.null[key].to(c).expand_as(c)]) for key, c in cond.items()}
        s, t = (torch.cat([u, u]) if isinstance(u, Tensor) and u.ndim else u for u in (s, t))
        told, untold = self.flow(torch.cat([x, x]), s, t, both).chunk(2)
        return untold + self.scale * (told - untold)


@dataclass(frozen=True)
class Diagonal:
    """The velocity of a flow map, as `steer.flow_map.OdeFlowMap` wants one."""

    flow: FlowMap

    def __call__(self, x: Tensor, t: Time, cond: Cond = None) -> Tensor:
        """b_t(x) [b *d]."""
        return self.flow(x, t, t, cond)


class Family(Protocol):
    """What is known of one loaded pipeline: its `steer.models.families` class fills this in.

    pipe: the pipeline. flow: one network call as a flow map. path: on which. shape: of one latent.
    kind: what one network call gives. guidance: of classifier-free guidance; 1 for none.
    renoises: whether the pipeline's own sampler jumps to the data and draws new noise at each step.
    noise_scale: of the noise that its sampler starts from.
    """

    pipe: Any
    flow: EndsFlow
    path: Interpolant
    shape: tuple[int, ...]
    kind: Kind
    guidance: float
    renoises: bool
    noise_scale: float

    def encode(self, prompts: list[str]) -> dict[str, Tensor]:
        """What the network is told of p prompts, tensors [p ...]."""
        ...

    def null(self, negative: str) -> dict[str, Tensor]:
        """What it is told in the place of a prompt, for classifier-free guidance: the same keys, one row."""
        ...

    def decode(self, x1: Tensor) -> Tensor:
        """Pictures [b 3 h w] in [0,1] of latents x1 [b *shape]."""
        ...

    def times(self, steps: int) -> list[float]:
        """The steps + 1 times that the pipeline's own sampler visits."""
        ...


class Prompted:
    """A family whose negative prompt is encoded as any other, and whose latents `decoded` turns into pictures."""

    pipe: Any

    def encode(self, prompts: list[str]) -> dict[str, Tensor]:
        """{name: [p ...]}."""
        raise NotImplementedError

    def null(self, negative: str) -> dict[str, Tensor]:
        """One row a name."""
        return self.encode([negative])

    def decode(self, x1: Tensor) -> Tensor:
        """Pictures [b 3 h w] in [0,1]."""
        return decoded(self.pipe.vae, x1)


def size_of(pipe: Any, choices: Choices, default: int) -> tuple[int, int, int, int]:  # noqa: ANN401
    """Height and width in pixels, and those of the latents.

    Raises:
        ValueError: a size that the autoencoder cannot give.
    """
    factor = pipe.vae_scale_factor
    height, width = choices.height or default * factor, choices.width or default * factor
    check_sides(height, width, factor)
    return height, width, height // factor, width // factor


def check_sides(height: int, width: int, factor: int) -> None:
    """Raise ValueError for a side in pixels that is no multiple of `factor`."""
    for name, number in (("height", height), ("width", width)):
        if number % factor:
            near = max(factor, round(number / factor) * factor)
            raise ValueError(f"{name}={number} is no multiple of {factor}, the autoencoder's factor; take {near}")


def decoded(vae: Any, latents: Tensor) -> Tensor:  # noqa: ANN401
    """Pictures [b 3 h w] in [0,1] of latents in the network's scale, by the scale, shift or moments of the config."""
    config, z = vae.config, latents
    scale = getattr(config, "scaling_factor", None) or 1.0
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if mean is not None and std is not None:
        axis = (-1,) + (1,) * (z.ndim - 2)
        moments = (torch.as_tensor(m, dtype=z.dtype, device=z.device).view(axis) for m in (mean, std))
        mean, std = moments
        z = z * std / scale + mean
    else:
        z = z / scale + (getattr(config, "shift_factor", None) or 0.0)
    return to_unit(vae.decode(z.to(next(vae.parameters()).dtype), return_dict=False)[0])


def to_unit(pictures: Tensor) -> Tensor:
    """From [-1, 1] to [0, 1]."""
    return (pictures / 2 + 0.5).clamp(0, 1)


def fresh(scheduler: Any) -> Any:  # noqa: ANN401
    """A copy of a scheduler: asking it for times leaves the pipeline's own as it is."""
    return copy.deepcopy(scheduler)
