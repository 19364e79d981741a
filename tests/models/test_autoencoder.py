"""The layered autoencoder that ships."""

import torch

from steer.data import emoji
from steer.data.stage import STAGE, show
from steer.models import load_model
from steer.models.autoencoder import Autoencoder, ResBlock


def test_a_block_starts_as_the_identity() -> None:
    x = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ResBlock(8)(x), x)


def pictures(rows: slice) -> torch.Tensor:
    return torch.from_numpy(emoji.load().images[rows].copy()).permute(0, 3, 1, 2).float() / 255


def shipped() -> Autoencoder:
    return load_model("emoji", device="cpu").decode.autoencoder  # type: ignore[attr-defined]


def test_pictures_come_back_above_24_decibels() -> None:
    autoencoder, x = shipped(), pictures(slice(0, 5226, 40))
    with torch.no_grad():
        back = show(autoencoder.layers(autoencoder.encode(x)), torch.zeros(len(x), STAGE))
    assert -10 * (back - x).square().mean().log10() > 26


def test_latents_are_standard() -> None:
    autoencoder, x = shipped(), pictures(slice(0, 5226, 20))
    with torch.no_grad():
        z = autoencoder.encode(x)
    assert z.mean((0, 2, 3)).abs().max() < 0.2 and (z.std((0, 2, 3)) - 1).abs().max() < 0.2


def test_coverage_comes_back() -> None:
    autoencoder, x = shipped(), pictures(slice(0, 5226, 40))
    with torch.no_grad():
        coverage = autoencoder.layers(autoencoder.encode(x))[:, 3].clamp(0, 1)
    real = torch.from_numpy(emoji.load().coverage[::40].copy()).float() / 255
    assert (coverage - real).abs().mean() < 0.03
