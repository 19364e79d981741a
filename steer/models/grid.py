"""A convolutional network over a small grid of latents, told the words and two times."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steer.models.network import Told


def unit(h: Tensor) -> Tensor:
    """Each place's channels [b w 8 8] scaled to mean square 1."""
    return h * (h.float().square().mean(1, keepdim=True) + 1e-5).rsqrt().to(h.dtype)


class Block(nn.Module):
    """h + conv(silu(conv(norm(h)) * (1 + scale) + shift)), scale and shift from the condition [b c]."""

    def __init__(self, width: int, condition: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(width, width, 3, padding=1)
        self.leave = nn.Conv2d(width, width, 3, padding=1)
        self.modulate = nn.Linear(condition, 2 * width)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)  # pyright: ignore

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        """[b w 8 8], told c [b condition]."""
        scale, shift = self.modulate(c)[:, :, None, None].chunk(2, 1)
        return h + self.leave(F.silu(self.enter(unit(h)) * (1 + scale) + shift))


class GridNetwork(Told):
    """v_{s,t}(x) of flat latents x [b channels * 64] of an 8 x 8 grid, on the linear path, from F, the predicted end of
    the chord, as in `steer.models.network.FlowNetwork`: ``v = (F - x) / max(1 - s, 0.05)``.

    Convolutions learn an object once for all places; five blocks see the whole grid.

    size: numbers of a sample. width, depth: channels and blocks. condition, token_size, queries, vocabulary, length: as
    in `FlowNetwork`.
    """

    def __init__(
        self, size: int, token_size: int, vocabulary: int, length: int = 16, width: int = 96, depth: int = 6,
        condition: int = 256, queries: int = 8,
    ) -> None:  # fmt: skip
        super().__init__(token_size, vocabulary, length, condition, queries)
        self.config = {
            "size": size, "token_size": token_size, "vocabulary": vocabulary, "length": length, "width": width,
            "depth": depth, "condition": condition, "queries": queries,
        }  # fmt: skip
        channels = size // 64
        self.enter = nn.Conv2d(channels, width, 3, padding=1)
        self.place = nn.Parameter(0.02 * torch.randn(width, 8, 8))
        self.blocks = nn.ModuleList(Block(width, condition) for _ in range(depth))
        self.leave = nn.Conv2d(width, channels, 3, padding=1)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)  # pyright: ignore

    def forward(self, x: Tensor, s: float | Tensor, t: float | Tensor, cond: Mapping[str, Tensor] | None) -> Tensor:
        """v_{s,t}(x) [b d]; raises ValueError without cond."""
        s, t = (torch.as_tensor(u, dtype=x.dtype, device=x.device).expand(len(x)) for u in (s, t))
        c = self.modulation(s, t, cond)
        q = (s.square() + (1 - s).square()).sqrt()[:, None]
        h = self.enter((x / q).unflatten(1, (-1, 8, 8)).contiguous(memory_format=torch.channels_last)) + self.place
        for block in self.blocks:
            h = block(h, c)
        return (self.leave(unit(h)).flatten(1) - x) / (1 - s).clamp_min(0.05)[:, None]
