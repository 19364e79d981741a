"""Native flow maps as diffusers pipelines: a folder that `FlowMapPipeline.from_pretrained` reads, and its scheduler.

    export(steer.load_model("emoji"), "emoji-diffusers")
    pipe = FlowMapPipeline.from_pretrained("emoji-diffusers")
    picture = pipe("a red heart", num_inference_steps=4).images[0]

The scheduler is diffusers' FlowMapEulerDiscreteScheduler: sigma = 1 - t runs from 1 (noise) to 0, its average velocity
is ours with the sign changed. Importing this file imports diffusers; loading such a folder needs this package.
"""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from steer.interpolants import Linear
from steer.models import Model, load_model, save_model
from steer.models.diffusers import PipelineModel, import_diffusers

diffusers = import_diffusers()
ModelMixin = diffusers.ModelMixin  # diffusers looks in this module for what its parts are


class FlowMap(ModelMixin):
    """A native model as a part of a pipeline: its network, words and decoder together."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model, self.parts = model, nn.ModuleList(_modules(model))

    @classmethod
    def from_pretrained(cls, folder: str | Path, **_: Any) -> "FlowMap":  # noqa: ANN401 (what diffusers gives its parts)
        """Of a folder that `save_pretrained` wrote."""
        return cls(load_model(folder, "cpu"))

    def save_pretrained(self, folder: str | Path, **_: Any) -> None:  # noqa: ANN401
        """Write it, as `steer.save_model` does."""
        save_model(self.model, folder)


def _modules(part: Any) -> list[nn.Module]:  # noqa: ANN401
    """The torch modules that a model holds, wherever in it."""
    if isinstance(part, nn.Module):
        return [part]
    held = [getattr(part, f.name) for f in dataclasses.fields(part)] if dataclasses.is_dataclass(part) else []
    return [module for inner in held for module in _modules(inner)]


class FlowMapPipeline(diffusers.DiffusionPipeline):
    """Prompts to pictures by a native flow map: in any number of steps, one included."""

    def __init__(self, flow_map: FlowMap, scheduler: Any) -> None:  # noqa: ANN401
        super().__init__()
        self.register_modules(flow_map=flow_map, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        num_inference_steps: int = 4,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
    ) -> Any:  # noqa: ANN401 (an ImagePipelineOutput)
        """Pictures, as diffusers gives them: output_type "pil", "pt" [b 3 h w] in [0,1], "np", or "latent"."""
        model, scheduler = self.flow_map.model, self.scheduler
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        prompts = [q for q in prompts for _ in range(num_images_per_prompt)]
        cond = model.encode(prompts)
        x = torch.randn(len(prompts), *model.shape, generator=generator) if latents is None else latents
        x = x.to(self.flow_map.device)
        x = x if model.noise is None else model.noise(x, cond)
        scheduler.set_timesteps(num_inference_steps)
        for sigma, after in zip(scheduler.sigmas[:-1].tolist(), scheduler.sigmas[1:].tolist(), strict=True):
            u = -model.flow(x, 1 - sigma, 1 - after, cond)
            full = scheduler.config.num_train_timesteps
            x = scheduler.step(u, sigma * full, x, r_timestep=after * full, return_dict=False)[0]
        if output_type == "latent":
            return diffusers.pipelines.pipeline_utils.ImagePipelineOutput(images=x)
        pictures = model.decode(x)
        shown = diffusers.image_processor.VaeImageProcessor(do_normalize=False).postprocess(pictures, output_type)
        return diffusers.pipelines.pipeline_utils.ImagePipelineOutput(images=shown)


def export(model: Model, folder: str | Path) -> None:
    """Write a native model as a diffusers folder.

    Raises:
        ValueError: it is a pipeline already, or its path is not linear.
    """
    if isinstance(model, PipelineModel):
        raise ValueError(f"model={model.name!r} is a diffusers pipeline; model.family.pipe.save_pretrained writes it")
    if not isinstance(model.path, Linear):
        raise ValueError(f"model={model.name!r} has the path {model.path}; the scheduler knows the linear one alone")
    pipe = FlowMapPipeline(FlowMap(model), diffusers.FlowMapEulerDiscreteScheduler())
    pipe.save_pretrained(str(folder))
