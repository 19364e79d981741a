"""A transformer over patches of pixels, for pictures without an autoencoder; told the words and two times."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steer.interpolants import like
from steer.models.network import Told, from_zero


class Layer(nn.Module):
    """Attention and a perceptron over tokens [b l w], each scaled, shifted and gated by the condition [b c]."""

    def __init__(self, width: int, heads: int, condition: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulate = from_zero(nn.Linear(condition, 6 * width))
        self.mix, self.mixed = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.enter, self.leave = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        """[b l w]."""
        shift_a, scale_a, gate_a, shift_b, scale_b, gate_b = self.modulate(c)[:, None].chunk(6, -1)
        b, length, width = h.shape
        mixed = self.mix(self.norm(h) * (1 + scale_a) + shift_a).view(b, length, 3, self.heads, -1)
        q, k, v = mixed.permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, length, width)
        h = h + gate_a * self.mixed(seen)
        return h + gate_b * self.leave(F.silu(self.enter(self.norm(h) * (1 + scale_b) + shift_b)))


class PatchNetwork(Told):
    """v_{s,t}(x) of pixels x [b 3 side side] on the linear path, from F, the predicted end of the chord, as in
    `steer.models.network.FlowNetwork`: ``v = (F - x) / max(1 - s, 0.05)``.

    A diffusion transformer over patches (arXiv:2212.09748) that predicts data, so that wide patches do
    (arXiv:2511.13720).

    side: of the pictures. patch: pixels of a patch's side. width, depth, heads: of the transformer. condition,
    token_size, queries, vocabulary, length: as in `FlowNetwork`.
    """

    def __init__(
        self, side: int, token_size: int, vocabulary: int, length: int = 16, patch: int = 8, width: int = 384,
        depth: int = 8, heads: int = 6, condition: int = 384, queries: int = 6,
    ) -> None:  # fmt: skip
        super().__init__(token_size, vocabulary, length, condition, queries)
        if side % patch or width % heads:
            raise ValueError(f"side={side} must be a multiple of patch={patch}, and width={width} of heads={heads}")
        self.config = {
            "side": side, "token_size": token_size, "vocabulary": vocabulary, "length": length, "patch": patch,
            "width": width, "depth": depth, "heads": heads, "condition": condition, "queries": queries,
        }  # fmt: skip
        self.patch = patch
        self.enter = nn.Linear(3 * patch**2, width)
        self.place = nn.Parameter(0.02 * torch.randn((side // patch) ** 2, width))
        self.layers = nn.ModuleList(Layer(width, heads, condition) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.leave = from_zero(nn.Linear(width, 3 * patch**2))

    def forward(self, x: Tensor, s: float | Tensor, t: float | Tensor, cond: Mapping[str, Tensor] | None) -> Tensor:
        """v_{s,t}(x) [b 3 side side]; raises ValueError without cond."""
        s, t = (torch.as_tensor(u, dtype=x.dtype, device=x.device).expand(len(x)) for u in (s, t))
        c = self.modulation(s, t, cond)
        q = (s.square() + (1 - s).square()).sqrt()
        h = self.enter(F.pixel_unshuffle(x / like(q, x), self.patch).flatten(2).mT) + self.place
        for layer in self.layers:
            h = layer(h, c)
        side = x.shape[-1] // self.patch
        end = F.pixel_shuffle(self.leave(self.norm(h)).mT.unflatten(2, (side, side)), self.patch)
        return (end - x) / like((1 - s).clamp_min(0.05), x)
