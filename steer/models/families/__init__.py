"""Families of diffusers pipelines that are known as flow maps, and how to add one.

A family is a class that reads a loaded pipeline (with its `vae`, `scheduler` and `vae_scale_factor`) and is what
`steer.models.families.base.Family` says. Of a rectified flow all that has to be written is how its network is called:

    from steer.interpolants import Shifted
    from steer.models.families import register
    from steer.models.families.base import LinearFlow, Prompted, size_of
    from steer.models.families.rectified import times_of

    class MyFlow(LinearFlow):
        def velocity(self, x, sigma, sigma_next, cond):  # noise - data [b *d], as the network gives it
            return self.network(x, 1000 * sigma, cond["words"]).sample

    class MyFamily(Prompted):
        renoises, noise_scale = False, 1.0

        def __init__(self, pipe, choices):
            self.pipe, self.kind = pipe, choices.kind or "velocity"
            self.guidance = 4.5 if choices.guidance is None else choices.guidance  # 4.5: what the pipeline takes
            _, _, h, w = size_of(pipe, choices, pipe.transformer.config.sample_size)
            self.shape = (pipe.transformer.config.in_channels, h, w)
            self.path = Shifted(pipe.scheduler.config.shift)
            self.flow = MyFlow(pipe.transformer, self.path)

        def encode(self, prompts):
            return {"words": self.pipe.encode_prompt(prompts)[0]}

        def times(self, steps):
            return times_of(self.pipe.scheduler, self.path, steps)

    register("MyPipeline", MyFamily)
    steer.pipeline(my_pipeline)("a red heart", reward="clip")

The loop of the pipeline's own `__call__` tells three things that are easily wrong: the scale of its timesteps (here
1000 sigma), the sign of the network's output, and the guidance that it takes by itself.

A network that predicts something else than ``noise - data`` is an `EndsFlow`: it says data and noise. Prove an adapter
as tests/models/families do: its plain samples equal the pipeline's from the same noise.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from steer.models.families.base import Choices, Family

_KNOWN = {
    "StableDiffusionPipeline": "stable_diffusion.StableDiffusion",
    "StableDiffusionXLPipeline": "stable_diffusion.StableDiffusion",
    "LatentConsistencyModelPipeline": "stable_diffusion.StableDiffusion",
    "StableDiffusion3Pipeline": "rectified.SD3",
    "FluxPipeline": "rectified.Flux",
    "SanaPipeline": "sana.Sana",
    "SanaSprintPipeline": "sana.SanaSprint",
    "HunyuanImagePipeline": "hunyuan.HunyuanImage",
    "PixArtAlphaPipeline": "pixart.PixArt",
    "PixArtSigmaPipeline": "pixart.PixArt",
    "AnyFlowPipeline": "anyflow.AnyFlow",
}
_ADDED: dict[str, Callable[[Any, Choices], Family]] = {}


def register(pipeline: str, family: Callable[[Any, Choices], Family]) -> None:
    """Make a pipeline class known by its name; a later family of the same name takes its place."""
    _ADDED[pipeline] = family


def known() -> list[str]:
    """Names of the pipeline classes that are known."""
    return sorted({*_KNOWN, *_ADDED})


def family_of(pipeline: str) -> Callable[[Any, Choices], Family]:
    """The family of a pipeline class.

    Raises:
        ValueError: it is not known; the message says which are, and how to add one.
    """
    if pipeline in _ADDED:
        return _ADDED[pipeline]
    if pipeline not in _KNOWN:
        raise ValueError(
            f"pipeline {pipeline!r} is not known as a flow map; known: {', '.join(known())}. Another one takes some 30 "
            "lines: help(steer.models.families) shows them"
        )
    module, _, name = _KNOWN[pipeline].partition(".")
    return getattr(import_module(f"steer.models.families.{module}"), name)
