"""The cases: a pipeline of each kind that is known, how it is called, and what it makes of given noise."""

# ruff: noqa: ANN401 (parts of diffusers)

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from steer.bench.tiny_pipelines.dits import (
    anyflow,
    flux,
    hunyuan,
    mixed_guidance,
    pixart,
    sana,
    sana_sprint,
    sd3,
)  # fmt: skip
from steer.bench.tiny_pipelines.parts import alphas, diffusers, flow_dpm, flow_euler
from steer.bench.tiny_pipelines.unets import sdxl, stable_diffusion
from steer.models import Model
from steer.models.diffusers import PipelineModel, from_pipeline
from steer.models.families.base import Choices

PROMPTS = ["a red heart", 'two "blue" cats']
SMALL = {"height": 32, "width": 32}
SHIFTING = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
TRAILING = {"timestep_spacing": "trailing"}
AS_ASKED = {"use_resolution_binning": False}
VIDEO = {"num_frames": 5, "guidance_scale": 2.0, "negative_prompt": "blue"}

# Each with what its own call is given beside prompt, size, latents and steps; the steps to compare at.
CASES: dict[str, tuple[Callable[[], Any], dict[str, Any], int]] = {
    "sd-ddim": (lambda: stable_diffusion(alphas("DDIMScheduler", steps_offset=1, clip_sample=False)), {}, 4),
    "sd-v": (
        lambda: stable_diffusion(alphas("DDIMScheduler", prediction_type="v_prediction", clip_sample=False)),
        {"guidance_scale": 1.0}, 4,
    ),
    "sd-lcm": (lambda: stable_diffusion(alphas("LCMScheduler"), told=32), {"guidance_scale": 8.5}, 4),
    "sd-tcd": (lambda: stable_diffusion(alphas("TCDScheduler")), {"guidance_scale": 1.0, "eta": 0.0}, 4),
    "sd-turbo": (lambda: stable_diffusion(alphas("EulerDiscreteScheduler", **TRAILING)), {"guidance_scale": 0.0}, 3),
    "sdxl-ddim": (lambda: sdxl(alphas("DDIMScheduler", steps_offset=1, clip_sample=False)), {}, 3),
    "sdxl-lcm": (lambda: sdxl(alphas("LCMScheduler")), {"guidance_scale": 1.0}, 4),
    "sdxl-tcd": (lambda: sdxl(alphas("TCDScheduler")), {"guidance_scale": 1.0, "eta": 0.0}, 4),
    "sdxl-turbo": (lambda: sdxl(alphas("EulerAncestralDiscreteScheduler", **TRAILING)), {"guidance_scale": 0.0}, 1),
    "sd3": (lambda: sd3(flow_euler()), {}, 4),
    "sd3-lcm": (lambda: sd3(diffusers.FlowMatchLCMScheduler(shift=3.0)), {"guidance_scale": 1.0}, 4),
    "flux-dev": (lambda: flux(flow_euler(**SHIFTING)), {}, 4),
    "flux-true-cfg": (
        lambda: flux(flow_euler(**SHIFTING)), {"true_cfg_scale": 2.0, "negative_prompt": "blue"}, 3,
    ),
    "flux-schnell": (lambda: flux(flow_euler(shift=1.0), told=False), {}, 2),
    "sana-sprint": (sana_sprint, AS_ASKED, 2),
    "sana-sprint-4": (sana_sprint, AS_ASKED | {"intermediate_timesteps": None}, 4),
    "sana": (lambda: sana(flow_euler()), AS_ASKED, 4),
    # that scheduler cuts timesteps to whole numbers, the family does not: a network that sees a thousandth of them
    "sana-dpm": (lambda: sana(flow_dpm(), 1e-3), AS_ASKED, 3),
    "pixart-alpha": (lambda: pixart(alphas("DDIMScheduler", clip_sample=False)), AS_ASKED, 3),
    "pixart-sigma": (lambda: pixart(alphas("DDIMScheduler", steps_offset=1, clip_sample=False), True), AS_ASKED, 3),
    "pixart-lcm": (lambda: pixart(alphas("LCMScheduler")), AS_ASKED | {"guidance_scale": 0.0}, 4),
    "hunyuan": (lambda: hunyuan(guider=mixed_guidance()), {"negative_prompt": ["blue"] * 2}, 6),
    "hunyuan-told": (lambda: hunyuan(guidance_embeds=True), {"distilled_guidance_scale": 2.5}, 3),
    "hunyuan-meanflow": (lambda: hunyuan(4.0, guidance_embeds=True, use_meanflow=True), {}, 3),
    "anyflow": (anyflow, {"num_frames": 1}, 2),
    "anyflow-video": (lambda: anyflow("t-r"), VIDEO, 3),
}  # fmt: skip
# What is chosen of the model that each is; see `steer.models.families.base.Choices`.
CHOICES: dict[str, dict[str, Any]] = {
    "sd-v": {"guidance": 1.0}, "sana-sprint": SMALL, "sana-sprint-4": SMALL, "flux-dev": SMALL, "flux-schnell": SMALL,
    "flux-true-cfg": {"true_guidance": 2.0, "negative": "blue", **SMALL}, "sana": SMALL, "sana-dpm": SMALL,
    "pixart-alpha": SMALL, "pixart-lcm": SMALL, "hunyuan": {"negative": "blue", **SMALL},
    "hunyuan-told": {"guidance": 2.5, **SMALL}, "hunyuan-meanflow": SMALL, "anyflow": SMALL,
    "anyflow-video": {"frames": 5, "guidance": 2.0, "negative": "blue", **SMALL},
}  # fmt: skip


@cache
def _built(name: str) -> Any:
    return filled(CASES[name][0])


def filled(make: Callable[[], Any]) -> Any:
    """A pipeline whose weights are the same each time, and none of them 0."""
    with torch.random.fork_rng():
        torch.manual_seed(0)  # these libraries draw their weights by it
        pipe = make()
    generator = torch.Generator().manual_seed(1)
    for part in pipe.components.values():
        for weight in part.parameters() if isinstance(part, torch.nn.Module) else ():
            if weight.ndim == 1 or weight.abs().max() == 0:  # gates and last layers that start from 0, and norms
                weight.data += 0.1 * torch.randn(weight.shape, generator=generator)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def build(name: str) -> Any:
    """The pipeline of a case, the same weights each time, for the caller alone."""
    return copy.deepcopy(_built(name))


def build_model(name: str, **more: Any) -> PipelineModel:
    """The model that the pipeline of a case is; more: other choices."""
    return from_pipeline(build(name), Choices(**CHOICES.get(name, {}) | more))


def draw_noise(model: Model, seed: int = 0, n: int = len(PROMPTS)) -> Tensor:
    """Noise [n *shape]."""
    return torch.randn(n, *model.shape, generator=torch.Generator().manual_seed(seed))


def draw_own(model: PipelineModel, name: str, x0: Tensor, seed: int = 5) -> Tensor:
    """Pictures [2 3 h w] that the pipeline's own call makes of noise [2 *shape]; of a video its middle frame.

    seed: of the noise that its sampler draws.
    """
    _, told, steps = CASES[name]
    pipe = model.family.pipe
    latents = x0.transpose(1, 2) if "anyflow" in name else x0
    if "flux" in name:
        latents = diffusers.FluxPipeline._pack_latents(x0, *x0.shape)
    height, width = (getattr(pipe, "vae_scale_factor", 8) * n for n in model.shape[-2:])
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # some samplers draw by torch's own generator
        pictures = pipe(
            PROMPTS, latents=latents.clone(), num_inference_steps=steps, height=height, width=width, output_type="pt",
            generator=torch.Generator().manual_seed(seed), return_dict=False, **told,
        )[0]  # fmt: skip
    return pictures[:, pictures.shape[1] // 2] if pictures.ndim == 5 else pictures
