"""Perceptual distances: what they are by definition, the networks under them, and what is said where one is missing."""

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

import rewards
from rewards.imagenet import LOOK, PACKAGE, efficientnet_lite
from rewards.perceptual import HUB, TRUNKS, _lpips
from rewards.towers import mend_torchvision

CPU = torch.device("cpu")


def picture(seed: int = 0) -> Tensor:
    """Smooth colours and a square [3 64 64]."""
    smooth = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    x = F.interpolate(smooth, (64, 64), mode="bilinear")[0]
    x[:, 20:40, 24:44] = torch.tensor([0.9, 0.2, 0.1]).view(3, 1, 1)
    return x


def noise(seed: int = 1) -> Tensor:
    return torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(seed))


class TestPerceptual:
    """The distance by EfficientNet-Lite0."""

    @pytest.fixture(autouse=True)
    def weights(self) -> None:
        pytest.importorskip(PACKAGE)

    def test_the_reference_scores_zero_and_noise_costs(self) -> None:
        x = torch.stack([(picture() + a * noise()).clamp(0, 1) for a in (0.0, 0.02, 0.08, 0.3)])
        r = rewards.Perceptual(picture())(x, ["x"] * 4)
        assert r[0].abs() < 1e-6 and (r.diff() < -1e-3).all() and r[3] > -4

    def test_it_is_the_mean_angle_between_features(self) -> None:
        """Of unit vectors |a - b|^2 = 2 - 2 cos, with features taken from the network's stages by hooks."""
        network, a, b = efficientnet_lite(CPU), picture(0), picture(3)
        seen: list[Tensor] = []
        last = (0, 1, 2, 4, 6)  # the blocks that end at 1/2, 1/4, 1/8, 1/16 and 1/32 of the sides
        hooks = [network.blocks[i].register_forward_hook(lambda _m, _i, out: seen.append(out)) for i in last]
        network((torch.stack([a, b]) * 255 - 127) / 128)
        for hook in hooks:
            hook.remove()
        assert [f.shape[-1] for f in seen] == [32, 16, 8, 4, 2]
        truth = -torch.stack([(2 - 2 * F.cosine_similarity(f[0], f[1], dim=0)).mean() for f in seen]).mean()
        assert_close(rewards.Perceptual(b)(a[None], ["x"])[0], truth, rtol=1e-4, atol=1e-5)

    def test_it_is_symmetric(self) -> None:
        there = rewards.Perceptual(picture(0))(picture(3)[None], ["x"])
        assert_close(there, rewards.Perceptual(picture(3))(picture(0)[None], ["x"]))

    def test_a_shift_is_nearer_than_grain_of_the_same_squared_error(self) -> None:
        """What the distance is for: an eye forgives a shift of a pixel, a sum of squares does not."""
        shifted = picture().roll(1, 2)
        error = (shifted - picture()).square().mean().sqrt()
        grainy = picture() + error * noise() / noise().square().mean().sqrt()
        r = rewards.Perceptual(picture())(torch.stack([shifted, grainy]), ["x", "x"])
        assert r[0] > r[1] / 2

    def test_its_gradient_leads_to_the_reference(self) -> None:
        reward, x = rewards.Perceptual(picture()), picture(3)[None]
        start = reward(x, ["x"])
        for _ in range(15):
            x = x.requires_grad_(True)
            (gradient,) = torch.autograd.grad(reward(x, ["x"]).sum(), x)
            x = (x + 0.05 * gradient / gradient.norm()).detach()
        assert reward(x, ["x"]) > start + 0.03
        assert not any(p.requires_grad or p.grad is not None for p in efficientnet_lite(CPU).parameters())

    def test_any_size_and_dtype(self) -> None:
        """A reference of another size is resized; the score comes back in the pictures' dtype."""
        x = F.interpolate(picture()[None], (48, 80), mode="bilinear")
        r = rewards.Perceptual(picture())(x.double(), ["x"])
        assert r.dtype == torch.float64 and -0.05 < r.item() < 0
        plain = torch.full((1, 3, 64, 64), 0.5).requires_grad_(True)
        (gradient,) = torch.autograd.grad(rewards.Perceptual(picture())(plain, ["x"]).sum(), plain)
        assert gradient.isfinite().all()

    def test_the_look_is_that_of_the_weights(self) -> None:
        assert_close(LOOK(torch.full((1, 3, 224, 224), 127 / 255)), torch.zeros(1, 3, 224, 224), rtol=0, atol=1e-6)
        assert_close(LOOK(torch.ones(1, 3, 224, 224)), torch.ones(1, 3, 224, 224))


def test_without_weights_or_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, PACKAGE, None)  # as Python marks a module that cannot be imported
    said = rewards.missing(rewards.Perceptual(picture()))
    assert said == f"reward 'perceptual' lacks the Python package {PACKAGE}; run: pip install 'steer[perceptual]'"
    with pytest.raises(ModuleNotFoundError, match=f"lacks the Python package {PACKAGE}"):
        rewards.Perceptual(picture())(picture()[None], ["x"])


def test_without_a_reference() -> None:
    pytest.importorskip(PACKAGE)
    assert "lacks a picture to compare with" in str(rewards.missing(rewards.Perceptual()))
    with pytest.raises(FileNotFoundError, match="reward 'perceptual' lacks a picture to compare with"):
        rewards.Perceptual()(picture()[None], ["x"])


class TestLpips:
    """The authors' package, its learned heads over a small trunk."""

    @pytest.fixture(autouse=True)
    def trunk(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A SqueezeNet of random weights where torch keeps the published one."""
        mend_torchvision()
        pytest.importorskip("lpips")
        from torchvision.models import squeezenet1_1

        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        _lpips.cache_clear()
        file = tmp_path / "hub" / "checkpoints" / TRUNKS["squeeze"]
        file.parent.mkdir(parents=True)
        torch.manual_seed(0)
        torch.save(squeezenet1_1(weights=None).state_dict(), file)
        return file

    def test_the_reference_scores_zero_and_noise_costs(self) -> None:
        x = torch.stack([(picture() + a * noise()).clamp(0, 1) for a in (0.0, 0.05, 0.2)])
        r = rewards.Lpips(picture(), net="squeeze")(x, ["x"] * 3)
        assert r[0].abs() < 1e-6 and (r.diff() < 0).all()

    def test_it_is_what_the_package_says(self) -> None:
        """On pictures in [-1, 1], its own scale."""
        from lpips import LPIPS

        truth = LPIPS(net="squeeze", verbose=False)(2 * picture(3)[None] - 1, 2 * picture()[None] - 1)
        reward = rewards.Lpips(picture(), net="squeeze")
        x = torch.stack([picture(3), picture(4)]).double().requires_grad_(True)
        r = reward(x, ["x", "y"])
        assert r.dtype == torch.float64
        assert_close(r[:1].float(), -truth.flatten())
        assert_close(reward(picture(4)[None].double(), ["y"]), r[1:], rtol=1e-4, atol=1e-6)
        (gradient,) = torch.autograd.grad(r[0], x)
        assert gradient[0].abs().sum() > 0 and gradient[1].abs().sum() == 0

    def test_files_are_those_that_torchvision_publishes(self) -> None:
        from torchvision import models

        urls = {"alex": models.AlexNet_Weights, "vgg": models.VGG16_Weights, "squeeze": models.SqueezeNet1_1_Weights}
        assert {net: w.IMAGENET1K_V1.url for net, w in urls.items()} == {
            net: HUB + file for net, file in TRUNKS.items()
        }

    def test_weights_that_are_not_there_or_damaged(self, trunk: Path) -> None:
        said = rewards.missing(rewards.Lpips(picture()))
        assert said and TRUNKS["alex"] in said and f"download {HUB}{TRUNKS['alex']} to there" in said
        with pytest.raises(FileNotFoundError, match="alexnet-owt-7be5be79.pth; download https://"):
            rewards.Lpips(picture())(picture()[None], ["x"])
        trunk.write_bytes(trunk.read_bytes()[:1000])
        with pytest.raises(ValueError, match="reward 'lpips': the files in .*squeezenet.* are damaged"):
            rewards.Lpips(picture(), net="squeeze")(picture()[None], ["x"])

    def test_what_is_lacking_is_said(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(ValueError, match="net='resnet' is unknown; known: alex, vgg, squeeze"):
            rewards.Lpips(net="resnet")
        with pytest.raises(FileNotFoundError, match="reward 'lpips' lacks a picture"):
            rewards.Lpips(net="squeeze")(picture()[None], ["x"])
        monkeypatch.setitem(sys.modules, "lpips", None)
        with pytest.raises(ModuleNotFoundError, match="lacks the Python package lpips; run: pip install"):
            rewards.Lpips(picture(), net="squeeze")(picture()[None], ["x"])
