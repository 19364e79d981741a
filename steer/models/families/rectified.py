"""Stable Diffusion 3 and FLUX.1: rectified flows; plain, with FlowMatchLCM, or as flow maps with two times.

Sources: "Scaling rectified flow transformers for high-resolution image synthesis" (arXiv:2403.03206); "FLUX.1 Kontext"
(arXiv:2506.15742).
"""

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from steer.interpolants import Shifted
from steer.models.families.base import Choices, Kind, LinearFlow, Prompted, fresh, size_of


def shift_of(scheduler: Any, tokens: int) -> float:  # noqa: ANN401
    """The shift of a flow-matching scheduler for pictures of so many tokens."""
    config = scheduler.config
    if not config.get("use_dynamic_shifting"):
        return float(config.shift)
    if config.get("time_shift_type", "exponential") != "exponential":
        raise ValueError(f"time_shift_type={config.time_shift_type!r} is not known here; known: exponential")
    low, high = config.base_image_seq_len, config.max_image_seq_len
    slope = (config.max_shift - config.base_shift) / (high - low)
    return math.exp(config.base_shift + slope * (tokens - low))


def times_of(scheduler: Any, path: Shifted, steps: int, **more: Any) -> list[float]:  # noqa: ANN401
    """The times of the noise levels that a flow-matching scheduler visits in so many steps."""
    scheduler = fresh(scheduler)
    if scheduler.config.get("use_dynamic_shifting"):
        more["mu"] = math.log(path.shift)
    sigmas = more.get("sigmas")
    scheduler.set_timesteps(None if sigmas is not None else steps, **more)
    return [path.when((1 - s) / s) if s > 0 else 1.0 for s in scheduler.sigmas.double().tolist()]


def kind_of(scheduler: Any, two_times: bool) -> Kind:  # noqa: ANN401
    """What one call gives."""
    return "map" if two_times else "jump" if type(scheduler).__name__ == "FlowMatchLCMScheduler" else "velocity"


class SD3Flow(LinearFlow):
    """The velocity by an SD3 transformer."""

    def velocity(self, x: Tensor, sigma: Tensor, sigma_next: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """``noise - data`` [b *d]."""
        return self.network(
            hidden_states=x, timestep=1000 * times(self.network, sigma, sigma_next), return_dict=False,
            encoder_hidden_states=cond["words"], pooled_projections=cond["pooled"],
        )[0]  # fmt: skip


class SD3(Prompted):
    """A `Family`: StableDiffusion3Pipeline."""

    renoises: bool
    noise_scale = 1.0

    def __init__(self, pipe: Any, choices: Choices) -> None:  # noqa: ANN401
        self.pipe = pipe
        net = pipe.transformer
        _, _, h, w = size_of(pipe, choices, net.config.sample_size)
        self.shape = (net.config.in_channels, h, w)
        self.path = Shifted(shift_of(pipe.scheduler, (h // net.config.patch_size) * (w // net.config.patch_size)))
        self.flow = SD3Flow(net, self.path)
        self.kind = choices.kind or kind_of(pipe.scheduler, isinstance(net.time_text_embed, TwoTimeEmbedding))
        self.guidance = (7.0 if self.kind == "velocity" else 1.0) if choices.guidance is None else choices.guidance
        self.renoises = type(pipe.scheduler).__name__ == "FlowMatchLCMScheduler"

    def encode(self, prompts: list[str]) -> dict[str, Tensor]:
        """{"words": [p l c], "pooled": [p c]}."""
        place = self.pipe._execution_device
        words, _, pooled, _ = self.pipe.encode_prompt(
            prompts, None, None, device=place, do_classifier_free_guidance=False
        )
        return {"words": words, "pooled": pooled}

    def times(self, steps: int) -> list[float]:
        """Of the scheduler's noise levels."""
        return times_of(self.pipe.scheduler, self.path, steps)


class FluxFlow(LinearFlow):
    """The velocity by a FLUX transformer, which reads latents [b c h w] as tokens of 2 x 2.

    scale: the guidance that it is told, or None.
    """

    def __init__(self, network: nn.Module, path: Shifted, scale: float | None) -> None:
        super().__init__(network, path)
        self.scale = scale

    def velocity(self, x: Tensor, sigma: Tensor, sigma_next: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """``noise - data`` [b *d]."""
        b, c, h, w = x.shape
        tokens = x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, 4 * c)
        grid = torch.zeros(h // 2, w // 2, 3, device=x.device, dtype=x.dtype)
        grid[..., 1] += torch.arange(h // 2, device=x.device)[:, None]
        grid[..., 2] += torch.arange(w // 2, device=x.device)
        told = None if self.scale is None else torch.full((b,), self.scale, device=x.device)
        out = self.network(
            hidden_states=tokens, timestep=times(self.network, sigma, sigma_next), guidance=told,
            encoder_hidden_states=cond["words"], pooled_projections=cond["pooled"],
            txt_ids=x.new_zeros(cond["words"].shape[1], 3), img_ids=grid.view(-1, 3), return_dict=False,
        )[0]  # fmt: skip
        return out.view(b, h // 2, w // 2, c, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(b, c, h, w)


class Flux(Prompted):
    """A `Family`: FluxPipeline; dev, which is told a guidance scale, and schnell, distilled to few steps."""

    renoises: bool
    noise_scale = 1.0

    def __init__(self, pipe: Any, choices: Choices) -> None:  # noqa: ANN401
        self.pipe = pipe
        net = pipe.transformer
        _, _, h, w = size_of(pipe, choices, pipe.default_sample_size)
        if h % 2 or w % 2:
            raise ValueError(f"FLUX reads latents in squares of 2: height and width must be multiples of "
                             f"{2 * pipe.vae_scale_factor}, got {(choices.height, choices.width)}")  # fmt: skip
        self.shape = (net.config.in_channels // 4, h, w)
        self.path = Shifted(shift_of(pipe.scheduler, h * w // 4))
        told = net.config.guidance_embeds
        self.flow = FluxFlow(net, self.path, (3.5 if choices.guidance is None else choices.guidance) if told else None)
        kind = kind_of(pipe.scheduler, isinstance(net.time_text_embed, TwoTimeEmbedding))
        self.kind = choices.kind or ("jump" if kind == "velocity" and not told else kind)
        self.guidance = choices.true_guidance
        self.renoises = type(pipe.scheduler).__name__ == "FlowMatchLCMScheduler"

    def encode(self, prompts: list[str]) -> dict[str, Tensor]:
        """{"words": [p l c], "pooled": [p c]}."""
        words, pooled, _ = self.pipe.encode_prompt(prompts, None, device=self.pipe._execution_device)
        return {"words": words, "pooled": pooled}

    def times(self, steps: int) -> list[float]:
        """Of the scheduler's noise levels, equally spaced before the shift."""
        sigmas = [1 - k / steps for k in range(steps)]
        return times_of(self.pipe.scheduler, self.path, steps, sigmas=sigmas)


class TwoTimeEmbedding(nn.Module):
    """The time embedding of SD3 or FLUX for two times: the mean of one embedding of each.

    Of timesteps [b 2] the first goes to `original_embedder`, the second to `second_embedder`, at first its copy, so
    that v_{s,s} is the network's own; timesteps [b] are read as before. The two names are those of published flow-map
    adapters (LoRA), so their files load: see `with_two_times`.
    """

    def __init__(self, embedder: nn.Module) -> None:
        super().__init__()
        self.original_embedder, self.second_embedder = embedder, copy.deepcopy(embedder)

    def forward(self, timestep: Tensor, *rest: Tensor) -> Tensor:
        """[b width]."""
        if timestep.ndim == 1:
            return self.original_embedder(timestep, *rest)
        first, second = timestep.unbind(-1)
        return (self.original_embedder(first, *rest) + self.second_embedder(second, *rest)) / 2


def times(network: Any, sigma: Tensor, sigma_next: Tensor) -> Tensor:  # noqa: ANN401
    """Timesteps [b] for a network of one time, [b 2] for one of two."""
    two = isinstance(network.time_text_embed, TwoTimeEmbedding)
    return torch.stack([sigma, sigma_next], -1) if two else sigma


def with_two_times(pipe: Any, lora: str | None = None, weight_name: str | None = None) -> Any:  # noqa: ANN401
    """The pipeline (SD3 or FLUX), its transformer told two times; with a flow-map adapter, a flow map.

    lora: a folder, file or hub id of adapters for it, in safetensors; None leaves the copy as it is, to be trained.

    Source of such an adapter for FLUX.1-dev: "Diamond maps" (gabeguofanclub/flux-1-dev-flowmap-lsd).

    Raises:
        ValueError: the file holds nothing for the second embedding.
    """
    net = pipe.transformer
    if not isinstance(net.time_text_embed, TwoTimeEmbedding):
        net.time_text_embed = TwoTimeEmbedding(net.time_text_embed)
    if lora is not None:
        pipe.load_lora_weights(lora, weight_name=weight_name, use_safetensors=True)
        if not any("second_embedder" in name and "lora" in name for name, _ in net.named_parameters()):
            raise ValueError(f"lora={lora!r} has no weights for a second time; name a flow-map adapter")
    return pipe
