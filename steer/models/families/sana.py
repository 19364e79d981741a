"""SANA, a rectified flow; SANA-Sprint, a consistency model on the trigonometric path by a network of SANA's times.

Sources: "SANA: efficient high-resolution image synthesis with linear diffusion transformers" (arXiv:2410.10629),
"SANA-Sprint: one-step diffusion with continuous-time consistency distillation" (arXiv:2503.09641).
"""

import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from steer.interpolants import Shifted, Trigonometric, like
from steer.models.families.base import Choices, EndsFlow, Kind, LinearFlow, Prompted, fresh, size_of
from steer.models.families.rectified import shift_of, times_of

INSTRUCTION = "complex_human_instruction"  # what prompts are read after


class SanaLinear(LinearFlow):
    """The velocity by a SANA transformer."""

    def velocity(self, x: Tensor, sigma: Tensor, sigma_next: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """``noise - data`` [b c h w]; a variance that it predicts besides is left out."""
        config: Any = self.network.config
        out = self.network(
            x, encoder_hidden_states=cond["words"].to(x.dtype), encoder_attention_mask=cond["mask"],
            timestep=1000 * config.timestep_scale * sigma, return_dict=False,
        )[0]  # fmt: skip
        return out[:, : x.shape[1]]


class Sana(Prompted):
    """A `Family`: SanaPipeline, with Euler steps or with those of DPM-Solver on the levels of a flow.

    Plain samples take first-order steps at the scheduler's times, as DPM-Solver does with solver_order=1, but that its
    timesteps are not cut to whole numbers. Pictures have the size that is asked for: where the pipeline takes the
    nearest size seen in training and resizes, here that is left to whoever asks.

    Raises:
        ValueError: a DPM-Solver that is set for another prediction than a flow's.
    """

    renoises = False
    noise_scale = 1.0

    def __init__(self, pipe: Any, choices: Choices) -> None:  # noqa: ANN401
        self.pipe = pipe
        net, config = pipe.transformer, pipe.scheduler.config
        if config.get("prediction_type", "flow_prediction") != "flow_prediction" or not config.get(
            "use_flow_sigmas", True
        ):
            raise ValueError(f"SANA is a flow, but its scheduler has prediction_type={config.prediction_type!r}, "
                             f"use_flow_sigmas={config.use_flow_sigmas}; set flow_prediction and true")  # fmt: skip
        _, _, h, w = size_of(pipe, choices, net.config.sample_size)
        self.shape = (net.config.in_channels, h, w)
        self.path = Shifted(config["flow_shift"] if "flow_shift" in config else shift_of(pipe.scheduler, h * w))
        self.kind: Kind = choices.kind or "velocity"
        self.guidance = 4.5 if choices.guidance is None else choices.guidance
        self.flow = SanaLinear(net, self.path)

    def encode(self, prompts: list[str]) -> dict[str, Tensor]:
        """{"words": [p l c], "mask": [p l]}."""
        return self._encode(prompts, inspect.signature(self.pipe.__call__).parameters[INSTRUCTION].default)

    def null(self, negative: str) -> dict[str, Tensor]:
        """One row a name; without the instruction that prompts are read with."""
        return self._encode([negative], None)

    def _encode(self, prompts: list[str], instruction: list[str] | None) -> dict[str, Tensor]:
        words, mask, _, _ = self.pipe.encode_prompt(
            prompts, False, device=self.pipe._execution_device, **{INSTRUCTION: instruction}
        )
        return {"words": words, "mask": mask}

    def times(self, steps: int) -> list[float]:
        """Of the scheduler's noise levels."""
        return times_of(self.pipe.scheduler, self.path, steps)


class SanaFlow(EndsFlow):
    """Ends by a SANA transformer, which sees x at ``tau = alpha / (alpha + beta)`` on the linear path.

        x' = x sqrt(tau^2 + (1-tau)^2),   F = ((1 - 2 tau) x' + (1 - 2 tau + 2 tau^2) net(x', tau)) / sqrt(...)
        D = beta x - alpha F,   N = alpha x + beta F

    scale: the guidance that it is told.
    """

    def __init__(self, network: nn.Module, scale: float) -> None:
        super().__init__(network, Trigonometric())
        self.scale = scale

    def ends(self, x: Tensor, s: Tensor, t: Tensor, cond: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Data and noise [b *d], in units of the data's standard deviation."""
        alpha, beta = self.path.alpha(s), self.path.beta(s)
        tau = alpha / (alpha + beta)
        at, root = like(tau, x), like((tau**2 + (1 - tau) ** 2).sqrt(), x)
        seen = x * root
        told = torch.full((len(x),), self.scale, device=x.device, dtype=self.dtype)
        out = self.network(
            seen.to(self.dtype), encoder_hidden_states=cond["words"], encoder_attention_mask=cond["mask"],
            guidance=told, timestep=tau.float(), return_dict=False,
        )[0].to(x)  # fmt: skip
        turned = ((1 - 2 * at) * seen + (1 - 2 * at + 2 * at**2) * out) / root
        alpha, beta = like(alpha, x), like(beta, x)
        return beta * x - alpha * turned, alpha * x + beta * turned


class SanaSprint(Prompted):
    """A `Family`: SanaSprintPipeline."""

    renoises = True
    noise_scale = guidance = 1.0

    def __init__(self, pipe: Any, choices: Choices) -> None:  # noqa: ANN401
        self.pipe, self.path = pipe, Trigonometric()
        net = pipe.transformer
        _, _, h, w = size_of(pipe, choices, net.config.sample_size)
        self.shape = (net.config.in_channels, h, w)
        self.kind: Kind = choices.kind or "jump"
        scale = 4.5 if choices.guidance is None else choices.guidance
        self.flow = SanaFlow(net, scale * net.config.guidance_embeds_scale)

    def encode(self, prompts: list[str]) -> dict[str, Tensor]:
        """{"words": [p l c], "mask": [p l]}."""
        how = inspect.signature(self.pipe.__call__).parameters[INSTRUCTION].default
        place = self.pipe._execution_device
        words, mask = self.pipe.encode_prompt(prompts, device=place, **{INSTRUCTION: how})
        return {"words": words, "mask": mask}

    def times(self, steps: int) -> list[float]:
        """Of the scheduler's angles."""
        scheduler = fresh(self.pipe.scheduler)
        scheduler.set_timesteps(steps, **({} if steps == 2 else {"intermediate_timesteps": None}))
        return [max(0.0, 1 - 2 * a / math.pi) for a in scheduler.timesteps.double().tolist()]
