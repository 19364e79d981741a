"""Stable Diffusion and SDXL: a U-Net of discrete timesteps; plain, with LCM, with TCD, or distilled to few steps.

Sources: "High-resolution image synthesis with latent diffusion models" (arXiv:2112.10752), "SDXL" (arXiv:2307.01952),
"Latent consistency models" (arXiv:2310.04378), "Trajectory consistency distillation" (arXiv:2402.19159), "Adversarial
diffusion distillation" (arXiv:2311.17042).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from steer.interpolants import VP
from steer.models.families.base import Choices, Kind, Prompted, size_of
from steer.models.families.noise_table import TimestepFlow, kind_of, noise_scale, times_of


class UNetFlow(TimestepFlow):
    """Ends by a U-Net.

    told: how a guidance scale is told to it, [1 c], or None.
    """

    def __init__(self, network: nn.Module, scheduler: Any, told: Tensor | None = None) -> None:  # noqa: ANN401
        super().__init__(network, scheduler)
        self.told = told

    def predict(self, x: Tensor, step: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """The U-Net's output [b c h w]."""
        more: dict[str, Any] = {}
        if "pooled" in cond:
            more["added_cond_kwargs"] = {"text_embeds": cond["pooled"], "time_ids": cond["sizes"]}
        if self.told is not None:
            more["timestep_cond"] = self.told.to(x.device, self.dtype).expand(len(x), -1)
        return self.network(x, step, encoder_hidden_states=cond["words"], return_dict=False, **more)[0]


class StableDiffusion(Prompted):
    """A `Family`: StableDiffusionPipeline, StableDiffusionXLPipeline, LatentConsistencyModelPipeline."""

    def __init__(self, pipe: Any, choices: Choices) -> None:  # noqa: ANN401
        self.pipe, self.path = pipe, VP()
        net, scheduler = pipe.unet, pipe.scheduler
        self.height, self.width, h, w = size_of(pipe, choices, net.config.sample_size)
        self.shape = (net.config.in_channels, h, w)
        self.kind: Kind = choices.kind or kind_of(scheduler)
        wide = getattr(pipe, "text_encoder_2", None) is not None
        scale = choices.guidance
        told = None
        if net.config.time_cond_proj_dim is not None:  # a guidance-distilled LCM
            told = embed_scale((8.5 if scale is None else scale) - 1, net.config.time_cond_proj_dim)
            scale = choices.true_guidance
        usual = 1.0 if self.kind == "jump" else 5.0 if wide else 7.5
        self.guidance = usual if scale is None else scale
        self.flow = UNetFlow(net, scheduler, told)
        self.renoises = type(scheduler).__name__ == "LCMScheduler"
        self.noise_scale = noise_scale(scheduler)
        self.wide = wide

    def encode(self, prompts: list[str]) -> dict[str, Tensor]:
        """{"words": [p l c]}, of SDXL also {"pooled": [p c], "sizes": [p 6]}."""
        place = self.pipe._execution_device
        if not self.wide:
            return {"words": self.pipe.encode_prompt(prompts, place, 1, False)[0]}
        words, _, pooled, _ = self.pipe.encode_prompt(prompts, device=place, do_classifier_free_guidance=False)
        sizes = [self.height, self.width, 0, 0, self.height, self.width]
        return {"words": words, "pooled": pooled, "sizes": words.new_tensor(sizes).expand(len(words), -1)}

    def null(self, negative: str) -> dict[str, Tensor]:
        """One row a name; of SDXL nothing but zeros where no negative prompt is given, if its config says so."""
        told = self.encode([negative])
        if self.wide and not negative and self.pipe.config.force_zeros_for_empty_prompt:
            return told | {key: torch.zeros_like(told[key]) for key in ("words", "pooled")}
        return told

    def times(self, steps: int) -> list[float]:
        """The times of the scheduler's timesteps, and where its last step ends."""
        return times_of(self.pipe.scheduler, self.flow.table, steps)


def embed_scale(w: float, size: int) -> Tensor:
    """Sines and cosines of 1000 w, [1 size]: how LCMs are told a guidance scale."""
    half = size // 2
    frequencies = torch.exp(torch.arange(half) * -(torch.log(torch.tensor(10_000.0)) / (half - 1)))
    angle = 1000 * w * frequencies
    return torch.nn.functional.pad(torch.cat([angle.sin(), angle.cos()])[None], (0, size % 2))
