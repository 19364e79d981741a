"""PixArt-alpha and PixArt-Sigma: a transformer of discrete timesteps that predicts the noise; plain or with LCM.

Sources: "PixArt-alpha: fast training of diffusion transformer for photorealistic text-to-image synthesis"
(arXiv:2310.00426), "PixArt-delta" (its LCM, arXiv:2401.05252), "PixArt-Sigma" (arXiv:2403.04692).
"""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from steer.interpolants import VP
from steer.models.families.base import Choices, Kind, Prompted, size_of
from steer.models.families.noise_table import TimestepFlow, kind_of, noise_scale, times_of


class PixArtFlow(TimestepFlow):
    """Ends by a PixArt transformer; a variance that it predicts besides is left out."""

    def predict(self, x: Tensor, step: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """The transformer's output [b c h w]."""
        out = self.network(
            x, encoder_hidden_states=cond["words"], encoder_attention_mask=cond["mask"], timestep=step,
            added_cond_kwargs={"resolution": cond.get("resolution"), "aspect_ratio": cond.get("aspect_ratio")},
            return_dict=False,
        )[0]  # fmt: skip
        return out[:, : x.shape[1]]


class PixArt(Prompted):
    """A `Family`: PixArtAlphaPipeline, PixArtSigmaPipeline.

    Pictures have the size that is asked for: where their pipelines take the nearest size seen in training and resize,
    here that is left to whoever asks.
    """

    def __init__(self, pipe: Any, choices: Choices) -> None:  # noqa: ANN401
        self.pipe, self.path = pipe, VP()
        net, scheduler = pipe.transformer, pipe.scheduler
        self.height, self.width, h, w = size_of(pipe, choices, net.config.sample_size)
        self.shape = (net.config.in_channels, h, w)
        self.kind: Kind = choices.kind or kind_of(scheduler)
        self.guidance = (1.0 if self.kind == "jump" else 4.5) if choices.guidance is None else choices.guidance
        self.flow = PixArtFlow(net, scheduler)
        self.renoises = type(scheduler).__name__ == "LCMScheduler"
        self.noise_scale = noise_scale(scheduler)

    def encode(self, prompts: list[str]) -> dict[str, Tensor]:
        """{"words": [p l c], "mask": [p l]}, of some networks also {"resolution": [p 2], "aspect_ratio": [p 1]}."""
        clean = inspect.signature(self.pipe.__call__).parameters["clean_caption"].default
        words, mask, _, _ = self.pipe.encode_prompt(prompts, False, clean_caption=clean)
        told = {"words": words, "mask": mask}
        if not self.pipe.transformer.use_additional_conditions:
            return told
        sides, ratio = words.new_tensor([self.height, self.width]), words.new_tensor([self.height / self.width])
        return told | {"resolution": sides.expand(len(words), -1), "aspect_ratio": ratio.expand(len(words), -1)}

    def times(self, steps: int) -> list[float]:
        """The times of the scheduler's timesteps, and where its last step ends."""
        return times_of(self.pipe.scheduler, self.flow.table, steps)
