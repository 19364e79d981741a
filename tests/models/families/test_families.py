"""Every family of pipelines: its plain samples are the pipeline's own, and its jumps are jumps."""

import pytest
import torch
from models.families.tiny_pipelines import CASES, CHOICES, build
from torch import Tensor
from torch.testing import assert_close

from steer.flow_map import jump, velocity
from steer.models.diffusers import PipelineModel, from_pipeline, plain
from steer.models.families.base import Choices

PROMPTS = ["a red heart", 'two "blue" cats']


def model_of(name: str, **more: object) -> PipelineModel:
    return from_pipeline(build(name), Choices(**CHOICES.get(name, {}) | more))


def noise(model: PipelineModel, seed: int = 0) -> Tensor:
    return torch.randn(len(PROMPTS), *model.shape, generator=torch.Generator().manual_seed(seed))


def own(model: PipelineModel, name: str, x0: Tensor, output: str) -> Tensor:
    """What the pipeline itself makes of the noise."""
    _, told, steps = CASES[name]
    pipe = model.family.pipe
    latents = packed(x0) if "flux" in name else x0.transpose(1, 2) if "anyflow" in name else x0
    height, width = (getattr(pipe, "vae_scale_factor", 8) * n for n in model.shape[-2:])
    with torch.random.fork_rng():
        torch.manual_seed(5)  # some of its samplers draw noise by torch's own generator
        pictures = pipe(
            PROMPTS, latents=latents.clone(), num_inference_steps=steps, height=height, width=width,
            output_type=output, generator=torch.Generator().manual_seed(5), return_dict=False, **told,
        )[0]  # fmt: skip
    return pictures[:, pictures.shape[1] // 2] if pictures.ndim == 5 else pictures


def packed(x: Tensor) -> Tensor:
    """FLUX's tokens of latents, as its pipeline makes them."""
    from diffusers import FluxPipeline

    return FluxPipeline._pack_latents(x, *x.shape)


@pytest.mark.parametrize("name", CASES)
def test_plain_samples_are_the_pipelines_own(name: str) -> None:
    model = model_of(name)
    x0 = noise(model)
    rng = torch.Generator().manual_seed(5)
    if "sprint" in name:  # its scheduler draws noise after the last step too, in the same shape: only the order counts
        assert model.family.renoises
    ours = plain(model, x0, model.encode(PROMPTS), CASES[name][2], rng)
    theirs = own(model, name, x0, "pt")
    assert theirs.std() > 0.01 and not torch.equal(theirs[0], theirs[1])
    assert_close(model.decode(ours), theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_a_jump_of_no_length_is_the_identity_and_short_ones_follow_the_velocity(name: str) -> None:
    model = model_of(name)
    x, cond = noise(model), model.encode(PROMPTS)
    for s in (0.0, 0.4, 1.0):
        assert torch.equal(jump(model.flow, x, s, s, cond), x)
    s = torch.tensor([0.3, 0.6])
    b = velocity(model.flow, x, s, cond)
    assert_close(model.flow(x, s, s + 1e-3, cond), b, rtol=0.03, atol=0.03 * float(b.abs().max()))
    rows = torch.cat([model.flow(x[i : i + 1], float(s[i]), 0.8, {k: c[i : i + 1] for k, c in cond.items()})
                      for i in range(2)])  # fmt: skip
    assert_close(model.flow(x, s, 0.8, cond), rows, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", CASES)
def test_gradients_reach_the_noise_through_the_decoder(name: str) -> None:
    model = model_of(name)
    x = noise(model).requires_grad_()
    brightness = model.decode(jump(model.flow, x, 0.0, 1.0, model.encode(PROMPTS))).mean((1, 2, 3))
    (slope,) = torch.autograd.grad(brightness[0], x)
    assert slope[0].abs().max() > 0 and slope[1].abs().max() == 0
