"""Pipelines from a folder in half precision; what the newer families refuse, and what they take from a checkpoint."""

from pathlib import Path

import pytest
import torch

from steer.bench.tiny_pipelines import CASES, CHOICES, PROMPTS, build, draw_noise, draw_own
from steer.bench.tiny_pipelines.dits import briefly, hunyuan, mixed_guidance, sana
from steer.bench.tiny_pipelines.parts import alphas, flow_dpm
from steer.bench.tiny_pipelines.unets import stable_diffusion
from steer.models.diffusers import from_pipeline, load, plain
from steer.models.families.base import Choices

HALF = [
    "sd-turbo", "sdxl-turbo", "sd3", "flux-dev", "sana", "sana-sprint", "pixart-alpha", "hunyuan-meanflow", "anyflow",
]  # fmt: skip


@pytest.mark.parametrize("name", HALF)
@torch.no_grad()
def test_a_folder_in_half_precision_samples_as_its_pipeline(name: str, tmp_path: Path) -> None:
    build(name).save_pretrained(tmp_path)
    model = load(tmp_path, torch.device("cpu"), dtype="bfloat16", **CHOICES.get(name, {}))
    pipe = model.family.pipe
    (briefly(pipe) if "hunyuan" in name else pipe).set_progress_bar_config(disable=True)
    assert model.family.flow.dtype == torch.bfloat16
    x0 = draw_noise(model).bfloat16()
    latents = plain(model, x0.float(), model.encode(PROMPTS), CASES[name][2], torch.Generator().manual_seed(5))
    assert latents.dtype == torch.float32
    theirs = draw_own(model, name, x0, seed=5).float()
    assert (model.decode(latents).float() - theirs).abs().mean() < 0.1 * theirs.std()


@pytest.mark.parametrize("scheduler", ["PNDMScheduler", "HeunDiscreteScheduler", "DDIMScheduler", "TCDScheduler"])
def test_times_rise_even_where_a_sampler_calls_twice_at_one(scheduler: str) -> None:
    more = {"skip_prk_steps": True} if "PNDM" in scheduler else {}
    times = from_pipeline(stable_diffusion(alphas(scheduler, **more))).family.times(4)
    assert len(times) == 5 and times == sorted(set(times)) and times[-1] > 0.95


def test_the_sides_and_frames_of_a_video_are_checked() -> None:
    with pytest.raises(ValueError, match="frames=4 is not one more than a multiple of 4.*take 1"):
        from_pipeline(build("anyflow"), Choices(height=32, width=32, frames=4))
    with pytest.raises(ValueError, match="width=40 is no multiple of 16"):
        from_pipeline(build("anyflow"), Choices(height=32, width=40))


def test_the_picture_of_a_video_is_its_middle_frame() -> None:
    model = from_pipeline(build("anyflow"), Choices(height=32, width=32, frames=5))
    x1 = draw_noise(model)
    later = x1.clone()
    later[:, 1] += 1  # the second frame of latents holds the pictures after the first
    assert model.shape == (2, 4, 4, 4) and model.decode(x1).shape == (2, 3, 32, 32)
    assert (model.decode(later) - model.decode(x1)).abs().max() > 1e-3


def test_the_scale_of_hunyuans_guider_is_the_default() -> None:
    pipe = hunyuan(guider=mixed_guidance())
    assert from_pipeline(pipe, Choices(height=32, width=32)).family.guidance == 3.0
    assert from_pipeline(pipe, Choices(height=32, width=32, guidance=1.5)).family.guidance == 1.5
    pipe.guider.disable()
    assert from_pipeline(pipe, Choices(height=32, width=32)).family.guidance == 1.0


def test_a_solver_set_for_another_prediction_than_a_flows_is_refused() -> None:
    scheduler = flow_dpm()
    scheduler.register_to_config(prediction_type="epsilon")
    with pytest.raises(ValueError, match="prediction_type='epsilon'"):
        from_pipeline(sana(scheduler), Choices(height=32, width=32))
