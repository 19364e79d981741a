"""Measures of quality against a reference, total variation and sizes of files: closed forms and orders."""

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.testing import assert_close

import rewards
from rewards.quality import MEASURES, Measure
from rewards.reference import reference_like
from rewards.towers import mend_torchvision

mend_torchvision()
piq = pytest.importorskip("piq")
BEST = {"ssim": 1.0, "ms-ssim": 1.0, "vif": 1.0, "fsim": 1.0, "gmsd": 0.0}


def photograph(side: int = 64) -> Tensor:
    """Something with structure at all scales, and a flat area [3 h w]."""
    rng = torch.Generator().manual_seed(0)
    scales = [torch.rand(1, 3, n, n, generator=rng) for n in (4, 8, 16, 32)]
    sums = sum(F.interpolate(s, (side, side), mode="bilinear") / 4 for s in scales)
    assert isinstance(sums, Tensor)
    picture = sums[0].clone()
    picture[:, : side // 3] = 1
    return picture


def noisy(picture: Tensor, *amounts: float) -> Tensor:
    noise = torch.randn(picture.shape, generator=torch.Generator().manual_seed(1))
    return torch.stack([(picture + a * noise).clamp(0, 1) for a in amounts])


@pytest.mark.parametrize("measure", MEASURES)
def test_the_reference_scores_best_and_noise_costs(measure: str) -> None:
    reference = photograph(176 if measure == "ms-ssim" else 64)
    reward = rewards.Piq(measure, reference)
    r = reward(noisy(reference, 0.0, 0.02, 0.08, 0.3), ["x"] * 4)
    assert r[0].item() == pytest.approx(BEST[measure], abs=1e-4) and (r.diff() < 0).all()
    alone = reward(noisy(reference, 0.08), ["x"])
    assert_close(alone, r[2:3], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("measure", MEASURES)
def test_it_is_what_piq_says(measure: str) -> None:
    known: Measure = MEASURES[measure]
    reference = photograph(176 if measure == "ms-ssim" else 64)
    x = noisy(reference, 0.1, 0.2)
    truth = torch.stack([getattr(piq, known.function)(one[None], reference[None]) for one in x])
    assert_close(rewards.Piq(measure, reference)(x, ["a", "b"]), known.sign * truth.flatten(), rtol=1e-4, atol=1e-5)


def test_ssim_of_plain_colours() -> None:
    """Without variance only the means are compared: (2 a b + c) / (a^2 + b^2 + c), c = 0.01^2."""
    plain = torch.full((1, 3, 32, 32), 0.5).double()
    score = rewards.Piq("ssim", torch.full((3, 32, 32), 0.8).double())(plain, ["x"])
    assert score.item() == pytest.approx((2 * 0.4 + 1e-4) / (0.25 + 0.64 + 1e-4), abs=1e-6)


@pytest.mark.parametrize("measure", [m for m in MEASURES if MEASURES[m].smooth])
def test_gradients_lead_to_the_reference(measure: str) -> None:
    """Finite also in flat areas; a few steps along them raise the score."""
    reference = photograph(176 if measure == "ms-ssim" else 64)
    reward, x = rewards.Piq(measure, reference), noisy(reference, 0.1)
    start = reward(x, ["x"])
    for _ in range(5):
        x = x.requires_grad_(True)
        (gradient,) = torch.autograd.grad(reward(x, ["x"]).sum(), x)
        assert gradient.isfinite().all()
        x = (x + 0.3 * gradient / gradient.norm()).detach()
    assert reward(x, ["x"]) > start + 1e-3
    flat = torch.full_like(x, 0.5).requires_grad_(True)
    assert torch.autograd.grad(reward(flat, ["x"]).sum(), flat)[0].isfinite().all()


@pytest.mark.parametrize("measure", ["fsim", "gmsd"])
def test_what_has_no_finite_gradient_says_so(measure: str) -> None:
    reward = rewards.Piq(measure, photograph())
    assert rewards.is_differentiable(reward) is False
    assert not reward(noisy(photograph(), 0.1).requires_grad_(True), ["x"]).requires_grad


def test_pictures_beyond_the_range_are_clamped() -> None:
    reward = rewards.Piq("ssim", photograph())
    assert_close(reward(2 * photograph()[None], ["x"]), reward((2 * photograph()[None]).clamp(0, 1), ["x"]))


@pytest.mark.parametrize("measure", ["ms-ssim", "vif"])
def test_too_small_pictures_are_named(measure: str) -> None:
    with pytest.raises(ValueError, match=f"measure='{measure}' needs sides of at least .* pixels, not 64 x 32"):
        rewards.Piq(measure, photograph())(torch.rand(1, 3, 64, 32), ["x"])


def test_settings_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="measure='psnr' is unknown; known: ssim, "):
        rewards.Piq("psnr")
    with pytest.raises(FileNotFoundError, match=r"reference='.*nothing.png' is no file; give the path"):
        rewards.Piq("ssim", str(tmp_path / "nothing.png"))
    with pytest.raises(ValueError, match=r"reference=a tensor \[1, 3, 8, 8\] of torch.float32 must be one picture"):
        rewards.Piq("ssim", torch.rand(1, 3, 8, 8))
    with pytest.raises(ValueError, match="reference=3 must be a picture"):
        rewards.Piq("ssim", 3)  # type: ignore[arg-type]
    lacks = rewards.missing(rewards.Piq("ssim"))
    assert lacks == "reward 'ssim' lacks a picture to compare with; give reference=PATH or a tensor [3, h, w] in [0, 1]"
    with pytest.raises(FileNotFoundError, match="reward 'ssim' lacks a picture to compare with"):
        rewards.Piq("ssim")(torch.rand(1, 3, 64, 64), ["x"])
    monkeypatch.setitem(sys.modules, "piq", None)  # as Python marks a module that cannot be imported
    with pytest.raises(ModuleNotFoundError, match="lacks the Python package piq; run: pip install"):
        rewards.Piq("ssim", photograph())(torch.rand(1, 3, 64, 64), ["x"])


def test_a_reference_may_be_a_file(tmp_path: Path) -> None:
    """Its bytes as they are; white where it is transparent; resized to the pictures' size, without leaving [0,1]."""
    pixels = torch.randint(256, (16, 16, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    pixels[:8, ..., 3], pixels[8:, ..., 3] = 255, 0
    Image.fromarray(pixels.numpy()).save(tmp_path / "a.png")
    there = reference_like("x", str(tmp_path / "a.png"), torch.zeros(5, 3, 16, 16).double())
    assert there.shape == (1, 3, 16, 16) and there.dtype == torch.float64
    assert_close(there[0, :, :8], (pixels[:8, :, :3].permute(2, 0, 1) / 255).double())
    assert_close(there[0, :, 8:], torch.ones(3, 8, 16).double())
    large = reference_like("x", str(tmp_path / "a.png"), torch.zeros(1, 3, 40, 24))
    assert large.shape == (1, 3, 40, 24) and large.min() >= 0 and large.max() == 1
    half = reference_like("x", photograph(64), torch.zeros(1, 3, 32, 32))
    assert (half[0] - F.avg_pool2d(photograph(64), 2)).abs().mean() < 0.02
    assert rewards.Piq("ssim", str(tmp_path / "a.png"))(there, ["x"]).item() == pytest.approx(1.0)
    (tmp_path / "b.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"b.png' is no picture that PIL can read"):
        rewards.Piq("ssim", str(tmp_path / "b.png"))(there, ["x"])


def test_total_variation_counts_edges() -> None:
    """One upright edge of height a through h rows of w: a / w, in each colour; a plain colour has none."""
    images = torch.zeros(3, 3, 8, 10).double()
    images[0, :, :, 4:] = 0.6
    images[1, 0, :, 4:] = 0.6
    assert_close(rewards.TotalVariation()(images, ["x"] * 3), -torch.tensor([0.06, 0.02, 0.0]).double())


def test_total_variation_is_piq_s_per_value() -> None:
    x = noisy(photograph(), 0.0, 0.1)
    truth = piq.total_variation(x, reduction="none", norm_type="l1") / (3 * 64 * 64)
    assert_close(rewards.TotalVariation()(x, ["a", "b"]), -truth)


def test_a_picture_of_one_row_has_a_total_variation() -> None:
    x = torch.tensor([0.0, 1.0, 0.0]).expand(1, 3, 1, 3)
    assert rewards.TotalVariation()(x, ["x"]).item() == pytest.approx(-2 / 3)


def test_png_size_is_that_of_the_file(tmp_path: Path) -> None:
    """Lossless: a pixel of grain that JPEG does not see costs bytes; both signs can be asked for."""
    plain = torch.full((3, 64, 64), 0.5)
    grain = (plain + (torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)) > 0.5) * 2 / 255).clamp(0, 1)
    x = torch.stack([plain, grain])
    r = rewards.PngSize()(x, ["a", "b"])
    bytes_ = (x[1] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    Image.fromarray(bytes_).save(tmp_path / "a.png", compress_level=6)
    assert r[1].item() == pytest.approx(-(tmp_path / "a.png").stat().st_size / 1000)
    assert r[0] > r[1] and torch.equal(rewards.Negated(rewards.PngSize())(x, ["a", "b"]), -r)
    stored = rewards.PngSize(level=0)(x, ["a", "b"])
    assert stored[0] == stored[1] < -3 * 64 * 64 / 1000
    with pytest.raises(ValueError, match="level=12 must lie in 0 to 9"):
        rewards.PngSize(12)
