"""HunyuanImage: a rectified flow; plain, told a guidance scale, or a flow map trained by MeanFlow.

Sources: "HunyuanImage 2.1" (Tencent-Hunyuan/HunyuanImage-2.1), "Mean flows for one-step generative modeling"
(arXiv:2505.13447).
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from steer.interpolants import Shifted
from steer.models.families.base import Choices, Kind, LinearFlow, Prompted, size_of
from steer.models.families.rectified import shift_of, times_of


class HunyuanFlow(LinearFlow):
    """The velocity by a HunyuanImage transformer; with MeanFlow its average from one noise level to the other.

    scale: the guidance that it is told, or None.
    """

    def __init__(self, network: nn.Module, path: Shifted, scale: float | None = None) -> None:
        super().__init__(network, path)
        self.scale = scale

    def velocity(self, x: Tensor, sigma: Tensor, sigma_next: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """``noise - data`` [b c h w]; the times are in the network's dtype, which its time embedding expects."""
        config: Any = self.network.config
        return self.network(
            hidden_states=x, timestep=(1000 * sigma).to(x.dtype), return_dict=False,
            timestep_r=(1000 * sigma_next).to(x.dtype) if config.use_meanflow else None,
            guidance=None if self.scale is None else x.new_full((len(x),), 1000 * self.scale),
            encoder_hidden_states=cond["words"], encoder_attention_mask=cond["mask"],
            encoder_hidden_states_2=cond["glyphs"], encoder_attention_mask_2=cond["glyph_mask"],
        )[0]  # fmt: skip


class HunyuanImage(Prompted):
    """A `Family`: HunyuanImagePipeline.

    A network that is told a guidance scale takes `guidance` for it. The pipeline guides the others by an object of its
    own (adaptive projected mix guidance): classifier-free guidance in the first six steps, then a projection of a
    running sum over the steps, which is the velocity of no flow. Here it is classifier-free guidance throughout, at
    that object's scale; plain samples are the pipeline's as far as these six steps go.
    """

    renoises = False
    noise_scale = 1.0

    def __init__(self, pipe: Any, choices: Choices) -> None:  # noqa: ANN401
        self.pipe = pipe
        config = pipe.transformer.config
        _, _, h, w = size_of(pipe, choices, pipe.default_sample_size)
        self.shape = (config.in_channels, h, w)
        self.path = Shifted(shift_of(pipe.scheduler, h * w))
        self.kind: Kind = choices.kind or ("map" if config.use_meanflow else "velocity")
        if config.guidance_embeds:
            told, self.guidance = 3.25 if choices.guidance is None else choices.guidance, choices.true_guidance
        else:
            told, self.guidance = None, guidance_of(pipe.guider) if choices.guidance is None else choices.guidance
        self.flow = HunyuanFlow(pipe.transformer, self.path, told)

    def encode(self, prompts: list[str]) -> dict[str, Tensor]:
        """{"words": [p l c], "mask": [p l]}, and of what to write, {"glyphs": ..., "glyph_mask": ...}."""
        place, dtype = self.pipe._execution_device, self.flow.dtype
        words, mask, glyphs, glyph_mask = self.pipe.encode_prompt(prompts, place, len(prompts))
        return {"words": words.to(dtype), "mask": mask, "glyphs": glyphs.to(dtype), "glyph_mask": glyph_mask}

    def times(self, steps: int) -> list[float]:
        """Of the scheduler's noise levels, equally spaced before the shift."""
        sigmas = [1 - k / steps for k in range(steps)]
        return times_of(self.pipe.scheduler, self.path, steps, sigmas=sigmas)


def guidance_of(guider: Any) -> float:  # noqa: ANN401
    """The scale of a guider of diffusers, as one of ``null + scale (told - null)``; 1 where there is none."""
    if guider is None or not guider._enabled:
        return 1.0
    return float(guider.guidance_scale) + bool(guider.use_original_formulation)
