"""What every reward promises, over all built-in ones and wrappers."""

import pytest
import torch
from torch import Tensor

import rewards

PROMPTS = ["a blue square", "a black square", "two red circles"]
WRAPPED = {
    "sum": rewards.WeightedSum((rewards.Redness(), rewards.Clip()), (10.0, 1.0)),
    "negated": rewards.Negated(rewards.Brightness()),
    "chunked": rewards.Chunked(rewards.Clip(), 2),
    "counted": rewards.Counted(rewards.Redness()),
    "function": rewards.to_reward(lambda images: images[:, 0].mean((1, 2))),
    "pil": rewards.Pil(lambda pictures, prompts: [p.getpixel((0, 0))[0] for p in pictures]),
    "bytes": rewards.Bytes(lambda arrays: arrays[:, 0, 0, 0].tolist()),
    "per-prompt": rewards.PerPrompt(lambda image, prompt: image[0, 0].mean()),
    "loss": rewards.Loss(lambda image, prompt: image[:, 0].mean((1, 2))),
    "normalised": rewards.Normalised(rewards.Clip()),
}
REFERENCE = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(1))
GIVEN = {  # what says nothing without a picture to compare with, or of these prompts
    **{measure: rewards.Piq(measure, REFERENCE) for measure in ("ssim", "vif", "fsim", "gmsd")},
    "perceptual": rewards.Perceptual(REFERENCE),
    "imagenet": rewards.Classifier("goldfish"),
}
BUILT_IN = {name: GIVEN.get(name) or rewards.get(name) for name in rewards.names()}
ELSEWHERE = ("ocr", "vlm", "remote")  # held to the same in their own files: no words here, and no servers
ALL = {**{k: r for k, r in BUILT_IN.items() if k not in ELSEWHERE and not rewards.missing(r)}, **WRAPPED}


@pytest.fixture(params=ALL, ids=str)
def reward(request: pytest.FixtureRequest) -> rewards.Reward:
    return ALL[request.param]


def pictures() -> Tensor:
    """Smooth pale colours; the first two with a blue square in the middle, the third with noise there."""
    rng = torch.Generator().manual_seed(0)
    smooth = 1 - 0.15 * torch.rand(3, 3, 8, 8, generator=rng)
    images = torch.nn.functional.interpolate(smooth, (64, 64), mode="bilinear")
    images[:2, :, 20:44, 20:44] = torch.tensor([0.11, 0.31, 0.93]).view(3, 1, 1)
    images[2, :, 20:44, 20:44] = torch.rand(3, 24, 24, generator=rng)
    return images


def test_one_score_a_picture(reward: rewards.Reward) -> None:
    r = reward(pictures(), PROMPTS)
    assert r.shape == (3,) and r.dtype == torch.float32 and r.isfinite().all()
    assert reward(pictures()[:1], PROMPTS[:1]).shape == (1,)
    assert r.unique().numel() == 3


def test_no_cross_talk_in_the_batch(reward: rewards.Reward) -> None:
    r = reward(pictures(), PROMPTS)
    torch.testing.assert_close(reward(pictures().flip(0), PROMPTS[::-1]), r.flip(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(reward(pictures()[1:2], PROMPTS[1:2]), r[1:2], rtol=1e-4, atol=1e-4)


def test_float64_comes_back_as_float64(reward: rewards.Reward) -> None:
    wide = reward(pictures().double(), PROMPTS)
    assert wide.dtype == torch.float64
    torch.testing.assert_close(wide.float(), reward(pictures(), PROMPTS), rtol=1e-3, atol=1e-3)


def test_a_gradient_exactly_where_it_says_so(reward: rewards.Reward) -> None:
    images = pictures().requires_grad_(True)
    r = reward(images, PROMPTS)
    said = rewards.is_differentiable(reward)
    assert r.requires_grad == (rewards.probe_differentiable(reward, pictures(), PROMPTS) if said is None else said)
    if r.requires_grad:
        (gradient,) = torch.autograd.grad(r[0], images)
        assert gradient[0].abs().sum() > 0 and gradient[1:].abs().sum() == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_scores_follow_the_pictures_to_another_device_and_back(reward: rewards.Reward) -> None:
    here = reward(pictures(), PROMPTS)
    there = reward(pictures().cuda(), PROMPTS)
    assert there.device.type == "cuda"
    torch.testing.assert_close(there.cpu(), here, rtol=1e-2, atol=2e-2)
    torch.testing.assert_close(reward(pictures(), PROMPTS), here)


def test_half_precision_comes_back_as_such(reward: rewards.Reward) -> None:
    half = reward(pictures().bfloat16(), PROMPTS)
    assert half.dtype == torch.bfloat16 and half.isfinite().all()


def test_pictures_of_another_size(reward: rewards.Reward) -> None:
    """Scores are means over pixels, or resized: a picture at twice the size scores nearly the same (files grow)."""
    large = torch.nn.functional.interpolate(pictures(), (128, 96), mode="bilinear")
    r = reward(large, PROMPTS)
    assert r.shape == (3,) and r.isfinite().all()
    if rewards.name_of(reward) in ("redness", "brightness", "colour-match"):
        torch.testing.assert_close(r, reward(pictures(), PROMPTS), rtol=0.05, atol=0.01)


@pytest.mark.parametrize("name", ["redness", "brightness", "colour-match"])
def test_gradients_match_differences(name: str) -> None:
    images = pictures()[:, :, :4, :4].double().requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: rewards.get(name)(x, PROMPTS), (images,))


def test_known_values() -> None:
    red = torch.zeros(1, 3, 8, 8)
    red[:, 0] = 1
    assert rewards.Redness()(red, ["x"]).item() == pytest.approx(1.0)
    assert rewards.Brightness()(red, ["x"]).item() == pytest.approx(0.2126)
    assert rewards.ColourMatch((1.0, 0.0, 0.0))(red, ["x"]).item() == pytest.approx(0.0, abs=1e-5)
    assert rewards.ColourMatch((0.0, 0.0, 0.0))(red, ["x"]).item() == pytest.approx(-((1 / 3) ** 0.5), abs=1e-5)


def test_noise_needs_more_bytes_than_a_plain_colour() -> None:
    noise = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    plain = torch.full((1, 3, 64, 64), 0.5)
    noisy, flat = (rewards.JpegSize()(x, ["x"]).item() for x in (noise, plain))
    assert noisy < flat < 0 and noisy > -64 * 64 * 3 / 1000


@pytest.mark.parametrize("colour", ["octarine", (1.0, 2.0, 0.0), (0.1, 0.2)])
def test_colours_that_are_none(colour: object) -> None:
    with pytest.raises(ValueError, match="colour="):
        rewards.ColourMatch(colour)  # type: ignore[arg-type]


def test_jpeg_quality_has_bounds() -> None:
    with pytest.raises(ValueError, match="quality=120"):
        rewards.JpegSize(120)
