"""AnyFlow: a flow map of videos, by a transformer of two times.

Source: "AnyFlow: any-step video diffusion model with on-policy flow map distillation" (arXiv:2605.13724).
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from steer.interpolants import Shifted
from steer.models.families.base import Choices, Kind, LinearFlow, Prompted, check_sides, decoded
from steer.models.families.rectified import shift_of, times_of

HEIGHT, WIDTH = 480, 832  # of the pipeline


class AnyFlowFlow(LinearFlow):
    """The average velocity by an AnyFlow transformer, which reads videos [b f c h w] and two times a frame."""

    def velocity(self, x: Tensor, sigma: Tensor, sigma_next: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """``noise - data`` [b f c h w]."""
        now, after = (1000 * level[:, None].expand(x.shape[:2]) for level in (sigma, sigma_next))
        return self.network(
            hidden_states=x, timestep=now, r_timestep=after, encoder_hidden_states=cond["words"].to(x.dtype),
            return_dict=False,
        )[0]  # fmt: skip


class AnyFlow(Prompted):
    """A `Family`: AnyFlowPipeline. Latents are [b f c h w]; the picture of a video is its middle frame.

    Its guidance is in its weights, so none is added unless asked for. With kind="velocity" the network is asked on the
    diagonal alone, as with the pipeline's use_mean_velocity=False.

    Raises:
        ValueError: a number of frames or a side that the autoencoder or the transformer's squares do not divide.
    """

    renoises = False
    noise_scale = 1.0

    def __init__(self, pipe: Any, choices: Choices) -> None:  # noqa: ANN401
        self.pipe = pipe
        net, factor, rate = pipe.transformer, pipe.vae_scale_factor_spatial, pipe.vae_scale_factor_temporal
        height, width = choices.height or HEIGHT, choices.width or WIDTH
        check_sides(height, width, factor * net.config.patch_size[1])
        if (choices.frames - 1) % rate:
            near = (choices.frames - 1) // rate * rate + 1
            raise ValueError(f"frames={choices.frames} is not one more than a multiple of {rate}, the autoencoder's "
                             f"factor in time; take {near}")  # fmt: skip
        self.shape = ((choices.frames - 1) // rate + 1, net.config.in_channels, height // factor, width // factor)
        self.path = Shifted(shift_of(pipe.scheduler, 0))
        self.flow = AnyFlowFlow(net, self.path)
        self.kind: Kind = choices.kind or "map"
        self.guidance = 1.0 if choices.guidance is None else choices.guidance

    def encode(self, prompts: list[str]) -> dict[str, Tensor]:
        """{"words": [p l c]}."""
        place = self.pipe._execution_device
        words, _ = self.pipe.encode_prompt(
            prompts, do_classifier_free_guidance=False, max_sequence_length=512, device=place
        )
        return {"words": words}

    def decode(self, x1: Tensor) -> Tensor:
        """Pictures [b 3 h w] in [0,1]."""
        video = decoded(self.pipe.vae, x1.transpose(1, 2))
        return video[:, :, video.shape[2] // 2]

    def times(self, steps: int) -> list[float]:
        """Of the scheduler's noise levels."""
        return times_of(self.pipe.scheduler, self.path, steps)
