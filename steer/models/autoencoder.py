"""A layered autoencoder: a picture is a drawing with transparency, set on a stage.

The drawing is 8 x 8 x `channels` numbers that a convolutional decoder turns into colours and coverage. The stage is
eight numbers with a meaning each, shown in closed form and differentiably by steer.data.stage: the colour behind,
where the drawing sits and how large, and the hue it is painted in. So "a blue fox on a yellow background" needs no
picture of one: the network over the latents says which fox, and which stage. (Transparent layers in latents:
LayerDiffuse, arXiv:2402.17113.)
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ResBlock(nn.Module):
    """x + conv(silu(conv(silu(x)))), the identity at the start of training."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(channels, channels, 3, padding=1)
        self.b = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.b.weight)
        nn.init.zeros_(self.b.bias)  # pyright: ignore

    def forward(self, x: Tensor) -> Tensor:
        """[b c h w] -> [b c h w]."""
        return x + self.b(F.silu(self.a(F.silu(x))))


def down(before: int, after: int) -> nn.Sequential:
    """Half the side, `after` channels."""
    return nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4 * before, after, 1))


def up(before: int, after: int) -> nn.Sequential:
    """Twice the side, `after` channels."""
    return nn.Sequential(nn.Conv2d(before, 4 * after, 1), nn.PixelShuffle(2))


class Autoencoder(nn.Module):
    """Pictures [b 3 64 64] <-> latents [b channels 8 8] <-> layers [b out 64 64]: colours and, with out = 4, coverage.

    Latents are scaled to mean 0 and variance 1 over the training pictures by the buffers `mean` and `std`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int = 12, width: int = 32, blocks: int = 2, out: int = 4) -> None:
        super().__init__()
        self.config = {"channels": channels, "width": width, "blocks": blocks, "out": out}
        w1, w2, w3 = width, 2 * width, 4 * width
        many = lambda n, w: [ResBlock(w) for _ in range(n)]  # noqa: E731
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(2), nn.Conv2d(12, w1, 3, padding=1), *many(1, w1), down(w1, w2), *many(1, w2),
            down(w2, w3), *many(1, w3), nn.SiLU(), nn.Conv2d(w3, channels, 1),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Conv2d(channels, w3, 3, padding=1), *many(blocks, w3), up(w3, w2), *many(blocks, w2),
            up(w2, w1), *many(blocks, w1), nn.SiLU(), nn.Conv2d(w1, 32, 3, padding=1), nn.PixelShuffle(2),
            nn.SiLU(), nn.Conv2d(8, out, 3, padding=1),
        )  # fmt: skip
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("std", torch.ones(channels, 1, 1))

    def encode(self, images: Tensor) -> Tensor:
        """Latents [b channels 8 8] of pictures [b 3 64 64] in [0,1]."""
        return (self.encoder(2 * images - 1) - self.mean) / self.std

    def layers(self, latents: Tensor) -> Tensor:
        """Colours, and coverage where there is one [b out 64 64], not yet clamped to [0,1]."""
        return 0.5 + 0.5 * self.decoder(latents * self.std + self.mean)
