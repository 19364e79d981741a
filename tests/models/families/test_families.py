"""Every family of pipelines: its plain samples are the pipeline's own, and its jumps are jumps."""

from functools import cache

import pytest
import torch
from torch.testing import assert_close

from steer.bench.tiny_pipelines import CASES, PROMPTS, build_model, draw_noise, draw_own
from steer.flow_map import jump, velocity
from steer.models.diffusers import PipelineModel, plain


@cache
def model_of(name: str) -> PipelineModel:
    return build_model(name, ode_steps=2)


@pytest.mark.parametrize("name", CASES)
def test_plain_samples_are_the_pipelines_own(name: str) -> None:
    model = model_of(name)
    x0 = draw_noise(model)
    rng = torch.Generator().manual_seed(5)
    if "sprint" in name:  # its scheduler draws noise after the last step too, in the same shape: only the order counts
        assert model.family.renoises
    with torch.no_grad():
        ours = model.decode(plain(model, x0, model.encode(PROMPTS), CASES[name][2], rng))
    theirs = draw_own(model, name, x0, seed=5)
    assert theirs.std() > 0.01 and not torch.equal(theirs[0], theirs[1])
    assert_close(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_a_jump_of_no_length_is_the_identity_and_short_ones_follow_the_velocity(name: str) -> None:
    model = model_of(name)
    x, cond = draw_noise(model), model.encode(PROMPTS)
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
    x = draw_noise(model).requires_grad_()
    brightness = model.decode(jump(model.flow, x, 0.0, 1.0, model.encode(PROMPTS))).mean((1, 2, 3))
    (slope,) = torch.autograd.grad(brightness[0], x)
    assert slope[0].abs().max() > 0 and slope[1].abs().max() == 0


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_what_is_chosen_is_taken(name: str) -> None:
    """What a call gives; and the guidance, which changes the velocity (FLUX.1-schnell takes none)."""
    assert build_model(name, kind="jump").family.kind == "jump"
    models = [build_model(name, guidance=scale) for scale in (1.0, 6.0)]
    x = draw_noise(models[0])
    plain, guided = (velocity(model.flow, x, 0.4, model.encode(PROMPTS)) for model in models)
    assert torch.allclose(plain, guided) == (name == "flux-schnell")
