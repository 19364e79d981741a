"""The network of the embedded flow map: a residual perceptron over flat latents, told the words and the two times."""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def fourier(t: Tensor, size: int) -> Tensor:
    """Cos and sin of t [b] at `size / 2` frequencies from pi/2 to 64 pi: [b size]."""
    frequencies = torch.logspace(-1, 6, size // 2, base=2.0, device=t.device, dtype=t.dtype) * math.pi
    angle = t[:, None] * frequencies
    return torch.cat([angle.cos(), angle.sin()], 1)


def from_zero(layer: nn.Linear) -> nn.Linear:
    """The layer with weights of 0, so that it changes nothing at the start."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class WordPool(nn.Module):
    """Learned queries attend over the states of the words: tokens [b l d], mask [b l] -> [b queries * size]."""

    def __init__(self, token_size: int, queries: int, size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(token_size)
        self.queries = nn.Parameter(torch.randn(queries, size) / math.sqrt(size))
        self.keys = nn.Linear(token_size, size)
        self.values = nn.Linear(token_size, queries * size)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Pooled states [b queries * size]."""
        b, length, _ = tokens.shape
        x = self.norm(tokens)
        scores = torch.einsum("qd,bld->bql", self.queries, self.keys(x))
        share = scores.masked_fill(~mask[:, None], -1e4).softmax(-1)
        values = self.values(x).view(b, length, len(self.queries), -1)
        return torch.einsum("bql,blqd->bqd", share, values).reshape(b, -1)


class Block(nn.Module):
    """h + out(silu(in(norm(h)) * (1 + scale) + shift)), scale and shift from the condition."""

    def __init__(self, width: int, condition: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.enter = nn.Linear(width, width)
        self.modulate = nn.Linear(condition, 2 * width)
        self.leave = from_zero(nn.Linear(width, width))

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        """[b width], told c [b condition]."""
        scale, shift = self.modulate(c).chunk(2, 1)
        return h + self.leave(F.silu(self.enter(self.norm(h)) * (1 + scale) + shift))


class Words(nn.Module):
    """States of words that are learned with the network: ids [b l], 0 where there is none -> [b l size]."""

    def __init__(self, vocabulary: int, length: int, size: int) -> None:
        super().__init__()
        self.word = nn.Embedding(vocabulary + 1, size)
        self.place = nn.Parameter(torch.randn(length, size) / math.sqrt(size))

    def forward(self, ids: Tensor) -> Tensor:
        """States [b l size]."""
        return self.word(ids) + self.place[: ids.shape[1]]


class Told(nn.Module):
    """The part of a network that reads the words, as ids [b l], and two times; others go on from here."""

    def __init__(self, token_size: int, vocabulary: int, length: int, condition: int, queries: int) -> None:
        super().__init__()
        self.times = 128
        self.tokens = Words(vocabulary, length, token_size)
        self.pool = WordPool(token_size, queries, 64)
        self.words = nn.Sequential(nn.Linear(queries * 64, 512), nn.SiLU(), nn.Linear(512, condition))
        self.clock = nn.Sequential(nn.Linear(2 * self.times, 256), nn.SiLU(), nn.Linear(256, condition))

    def condition(self, cond: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Cond with "words" [b c] beside "ids" [b l]."""
        if "words" in cond:
            return dict(cond)
        return {**cond, "words": self.words(self.pool(self.tokens(cond["ids"]), cond["ids"] != 0))}

    def modulation(self, s: Tensor, t: Tensor, cond: Mapping[str, Tensor] | None) -> Tensor:
        """What modulates the layers [b c], of times s, t [b] and the words; raises ValueError without cond."""
        if cond is None:
            raise ValueError("this model needs cond, the encoded prompts; pass cond=model.encode([prompt])")
        clock = self.clock(torch.cat([fourier(s, self.times), fourier(t, self.times)], 1))
        return F.silu(self.condition(cond)["words"] + clock)


class FlowNetwork(nn.Module):
    """v_{s,t}(x) of flat latents x [b d] on the linear path, told cond = {"words": [b c]}, which `condition` makes of
    words.

    The network predicts where the chord from x would end at time 1: with F its output, told s, t and the words,

        v_{s,t}(x) = (F(x / sqrt(q_s), s, t, cond) - x) / max(1 - s, 0.05),   q_s = s^2 + (1-s)^2,

    so that X_{s,1}(x) = F and the diagonal's F is E[x1 | x_s]. Data lie on far fewer dimensions than noise: a network
    of this width can predict x1, and could not predict noise or velocity (Back to basics: let denoising generative
    models denoise, arXiv:2511.13720).

    size: numbers of a sample. token_size: of a word's state. width, depth, condition, queries: of the perceptron, its
    blocks, what modulates them, and the pool over the words.
    vocabulary, length: where words come as ids, whose states are learned here: how many, and how many a prompt.
    guided: whether cond["guidance"] [b], a scale of guidance, is an input; its weights start at zero.
    """

    def __init__(
        self, size: int, token_size: int, width: int = 896, depth: int = 4, condition: int = 384, queries: int = 6,
        vocabulary: int | None = None, length: int = 16, guided: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.config = {
            "size": size, "token_size": token_size, "width": width, "depth": depth,
            "condition": condition, "queries": queries,
        }  # fmt: skip
        self.config |= {"vocabulary": vocabulary, "length": length} if vocabulary else {}
        self.config |= {"guided": True} if guided else {}
        self.times = 128
        self.tokens = Words(vocabulary, length, token_size) if vocabulary else None
        self.pool = WordPool(token_size, queries, 64)
        self.words = nn.Sequential(nn.Linear(queries * 64, 512), nn.SiLU(), nn.Linear(512, condition))
        self.clock = nn.Sequential(nn.Linear(2 * self.times, 256), nn.SiLU(), nn.Linear(256, condition))
        self.scale = from_zero(nn.Linear(self.times, condition)) if guided else None
        self.enter = nn.Linear(size, width)
        self.blocks = nn.ModuleList(Block(width, condition) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.leave = from_zero(nn.Linear(width, size))

    def describe(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """The condition [b c] that word states tokens [b l e] with mask [b l] (True where there is a word) give."""
        return self.words(self.pool(tokens, mask))

    def condition(self, cond: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Cond with "words" [b c] beside what they are made of: "ids", or "tokens" and "mask"."""
        if "words" in cond:
            return dict(cond)
        if self.tokens is not None:
            return {**cond, "words": self.describe(self.tokens(cond["ids"]), cond["ids"] != 0)}
        return {**cond, "words": self.describe(cond["tokens"], cond["mask"])}

    def start(self, x: Tensor, s: Tensor, t: Tensor, cond: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The first hidden state [b w] of x at times s, t [b], and the condition [b c], before the blocks."""
        clock = self.clock(torch.cat([fourier(s, self.times), fourier(t, self.times)], 1))
        c = cond["words"] + clock
        if self.scale is not None and "guidance" in cond:
            c = c + self.scale(fourier(cond["guidance"].log() / 3, self.times))
        q = (s.square() + (1 - s).square())[:, None]
        return self.enter(x / q.sqrt()), c

    def end(self, h: Tensor) -> Tensor:
        """F [b d], the end of the chord, of the last hidden state [b w]."""
        return self.leave(self.norm(h))

    def velocity(self, x: Tensor, s: Tensor, t: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """v_{s,t}(x) [b d] at times s, t [b], told what `condition` gave."""
        h, c = self.start(x, s, t, cond)
        c = F.silu(c)
        for block in self.blocks:
            h = block(h, c)
        return (self.end(h) - x) / (1 - s).clamp_min(0.05)[:, None]

    def forward(self, x: Tensor, s: float | Tensor, t: float | Tensor, cond: Mapping[str, Tensor] | None) -> Tensor:
        """v_{s,t}(x) [b d]; raises ValueError without cond."""
        if cond is None:
            raise ValueError("this model needs cond, the encoded prompts; pass cond=model.encode([prompt])")
        s, t = (torch.as_tensor(u, dtype=x.dtype, device=x.device).expand(len(x)) for u in (s, t))
        return self.velocity(x, s, t, self.condition(cond))
