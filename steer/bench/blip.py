"""The networks of ImageReward written out from the papers, for the tiny weights of `steer.bench.tiny_scorers`.

Sources: "ImageReward" (arXiv:2304.05977), "BLIP" (arXiv:2201.12086), "An image is worth 16x16 words"
(arXiv:2010.11929), "BERT" (arXiv:1810.04805). A picture and a prompt at a time, a head of attention at a time.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from rewards.vision import Look

Weights = Mapping[str, Tensor]
MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of the published head's output


def score_blip(w: Weights, image: Tensor, ids: list[int]) -> Tensor:
    """The score of a picture [3 32 32] in [0,1] and the tokens of a prompt, with the first and the last one."""
    x = _read(w, ids, _see(w, Look(32)(image[None])[0]))
    for i in (0, 2, 4, 6, 7):
        x = _linear(w, f"mlp.layers.{i}", x)
    return (x[0] - MEAN) / STD


def _see(w: Weights, image: Tensor) -> Tensor:
    """A pre-norm ViT with two heads: states [17 128] of a normalised picture [3 32 32]."""
    eye = {k.removeprefix("blip.visual_encoder."): v for k, v in w.items()}
    patches = F.unfold(image[None], 8, stride=8)[0].T @ eye["patch_embed.proj.weight"].flatten(1).T
    x = torch.cat([eye["cls_token"][0], patches + eye["patch_embed.proj.bias"]]) + eye["pos_embed"][0]
    for i in range(2):
        qkv = _linear(eye, f"blocks.{i}.attn.qkv", _norm(eye, f"blocks.{i}.norm1", x, 1e-6)).chunk(3, -1)
        x = x + _linear(eye, f"blocks.{i}.attn.proj", _attend(*qkv, heads=2))
        hidden = F.gelu(_linear(eye, f"blocks.{i}.mlp.fc1", _norm(eye, f"blocks.{i}.norm2", x, 1e-6)))
        x = x + _linear(eye, f"blocks.{i}.mlp.fc2", hidden)
    return _norm(eye, "norm", x, 1e-6)


def _read(w: Weights, ids: list[int], seen: Tensor) -> Tensor:
    """A post-norm BERT with cross attention, three heads: the state [48] of the first token."""
    text = {k.removeprefix("blip.text_encoder."): v for k, v in w.items()}
    x = text["embeddings.word_embeddings.weight"][ids] + text["embeddings.position_embeddings.weight"][: len(ids)]
    x = _norm(text, "embeddings.LayerNorm", x, 1e-12)
    for i in range(2):
        layer = f"encoder.layer.{i}."
        for part, other in (("attention", None), ("crossattention", seen)):
            source = x if other is None else other
            q = _linear(text, f"{layer}{part}.self.query", x)
            k, v = (_linear(text, f"{layer}{part}.self.{n}", source) for n in ("key", "value"))
            out = _linear(text, f"{layer}{part}.output.dense", _attend(q, k, v, 3))
            x = _norm(text, f"{layer}{part}.output.LayerNorm", x + out, 1e-12)
        hidden = _linear(text, f"{layer}output.dense", F.gelu(_linear(text, f"{layer}intermediate.dense", x)))
        x = _norm(text, f"{layer}output.LayerNorm", x + hidden, 1e-12)
    return x[0]


def _linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def _norm(w: Weights, name: str, x: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)


def _attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Softmax attention of [l d] with [m d], a head at a time."""
    parts = zip(*(x.chunk(heads, -1) for x in (q, k, v)), strict=True)
    return torch.cat([(a @ b.T / math.sqrt(a.shape[-1])).softmax(-1) @ c for a, b, c in parts], -1)
