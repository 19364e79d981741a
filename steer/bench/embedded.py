"""The embedded model, judged: retrieval by a held-out CLIP, nearest pictures, steering, all methods, diversity, sizes.

Real pictures are always shown beside samples: no figure means anything without its ceiling.
"""

import itertools
import json
import math
import random
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rewards
from steer.api import sample
from steer.bench.comparison import BUDGETS, compare, dots, score
from steer.data import emoji
from steer.methods import BestOfN
from steer.metrics import diversity
from steer.models import ASSETS, Model, load_model
from steer.models.noise import start
from steer.settings import CONFIGS

Row = dict[str, object]
BUDGET = 128  # network calls a prompt when methods are compared
PARTICLES = {"best_of_n": 32, "smc": 16, "smc_sde": 16, "tds": 8, "guidance": 8}  # as many as suit each method


def run(fast: bool = False) -> dict[str, list[Row]]:
    """All tables by title; fast takes fewer captions."""
    model = load_model("emoji")
    few = 10 if fast else None
    return {
        "retrieval by the judge, among all captions": retrieval(model, spread_captions(few or 200)),
        "one of the 3 nearest pictures has the caption": [nearest(model, spread_captions(few or 128, seed=1))],
        f"steering by clip at {BUDGET} calls a prompt": steering(model, spread_captions(few or 50, seed=2)),
        **every_method(model, spread_captions(4 if fast else 12, seed=4), BUDGETS[:1] if fast else BUDGETS),
        "diversity, root mean square between pictures": diversities(model, spread_captions(few or 100, seed=3)),
        "autoencoder": [reconstruction(model)],
        "sizes": sizes(model),
    }


def spread_captions(count: int, seed: int = 0) -> list[str]:
    """Distinct captions drawn evenly over the groups, the same for a seed."""
    data, rng = emoji.load(), random.Random(seed)
    groups: dict[str, list[str]] = {}
    for caption, group in sorted(set(zip(data.captions, data.groups, strict=True))):
        groups.setdefault(group, []).append(caption)
    for captions in groups.values():
        rng.shuffle(captions)
    turns = itertools.chain.from_iterable(itertools.zip_longest(*groups.values()))
    return list(dict.fromkeys(c for c in turns if c))[:count]


@torch.no_grad()
def plain(model: Model, prompts: list[str], n: int, calls: int, seed: int = 0) -> Tensor:
    """Unsteered pictures [p n 3 h w] at so many network calls each."""
    cond = model.encode(prompts)
    device = next(iter(cond.values())).device if cond else "cpu"
    rng = torch.Generator().manual_seed(seed)
    x0 = start(model, torch.randn((len(prompts), n, *model.shape), generator=rng).to(device), cond)
    method = BestOfN(steps=calls)
    particles, _ = method(model.flow, model.path, lambda x: x.new_zeros(x.shape[:2]), x0, cond, rng=rng)
    flat = particles.x.flatten(0, 1).split(256)
    return torch.cat([model.decode(x) for x in flat]).unflatten(0, (len(prompts), n))


def real(captions: list[str]) -> tuple[Tensor, list[str]]:
    """All shipped pictures [b 3 64 64] of the captions, with the caption of each."""
    data, wanted = emoji.load(), set(captions)
    rows = [i for i, caption in enumerate(data.captions) if caption in wanted]
    return _pictures(rows), [data.captions[i] for i in rows]


def _pictures(rows: list[int]) -> Tensor:
    return torch.from_numpy(emoji.load().images[rows]).permute(0, 3, 1, 2) / 255


@torch.no_grad()
def hits(images: Tensor, captions: list[str], k: int = 5) -> float:
    """Share of pictures [b 3 h w] whose own caption is among the k that the judge finds nearest, of all captions."""
    judge: Any = rewards.get("clip-judge")
    known = sorted(set(emoji.load().captions))
    seen = torch.cat([judge.embed_images(part) for part in images.split(256)])
    texts = judge.embed_texts(known, images.device)
    top = (seen @ texts.T).topk(k, 1).indices
    own = torch.tensor([known.index(c) for c in captions], device=images.device)
    return (top == own[:, None]).any(1).float().mean().item()


def retrieval(model: Model, captions: list[str], n: int = 4) -> list[Row]:
    """Top-5 retrieval of real pictures and of samples at 1, 2, 4 and 8 calls, and the ratio."""
    ceiling = hits(*real(captions))
    rows: list[Row] = [{"pictures": "real", "calls": None, "top 5": ceiling, "of real": 1.0}]
    for calls in (1, 2, 4, 8):
        images = plain(model, captions, n, calls)
        share = hits(images.flatten(0, 1).cpu(), [c for c in captions for _ in range(n)])
        rows.append({"pictures": "sampled", "calls": calls, "top 5": share, "of real": share / max(ceiling, 1e-9)})
    return rows


def small(images: Tensor) -> Tensor:
    """Luminance of pictures [b 3 64 64], the mean of its 4 x 4 boxes: [b 256]."""
    luminance = (images * images.new_tensor([0.2126, 0.7152, 0.0722]).view(3, 1, 1)).sum(1, keepdim=True)
    return F.avg_pool2d(luminance, 4).flatten(1)


def nearest(model: Model, captions: list[str], calls: int = 4, n: int = 4, k: int = 3) -> Row:
    """Share of samples with a shipped picture of their own caption among the k nearest, without a learned judge."""
    data = emoji.load()
    images = plain(model, captions, n, calls, seed=1).flatten(0, 1).cpu()
    distance = torch.cdist(small(images), small(_pictures(list(range(len(data))))))
    found = distance.topk(k, 1, largest=False).indices.tolist()
    own = [c for c in captions for _ in range(n)]
    right = [any(data.captions[i] == caption for i in near) for near, caption in zip(found, own, strict=True)]
    return {"captions": len(captions), "calls": calls, "share": sum(right) / len(right)}


def steering(model: Model, captions: list[str]) -> list[Row]:
    """Mean scores by the judge, which is not optimised, of every method at the same calls.

    "best": of the picture that the reward likes best. "weighted": of the law that the weights stand for. "wins": the
    share of captions on which the best picture's judge score is above the mean of the caption's unsteered pictures.
    """
    judge = rewards.get("clip-judge")
    rows: list[Row] = []
    for name, n in PARTICLES.items():
        out = sample(captions, reward="clip", model=model, method=name, n=n, budget=BUDGET, seed=2, progress=False)
        before, after = (score(judge, images, captions) for images in (out.unsteered, out.images))
        best = after.gather(1, out.rewards.to(after.device).argmax(1, keepdim=True))[:, 0]
        weighted = (out.log_w.exp() * after).sum(1)
        rows += [] if rows else [{"method": "unsteered", "judge, best": before.mean().item()}]
        rows.append({
            "method": name, "n": n, "calls": out.trace.calls.float().mean().item(),
            "judge, best": best.mean().item(), "judge, weighted": weighted.mean().item(),
            "clip, best": out.rewards.amax(1).mean().item(),
            "wins": (best > before.mean(1)).float().mean().item(),
            "wins, weighted": (weighted > before.mean(1)).float().mean().item(),
        })  # fmt: skip
    return rows


def every_method(model: Model, captions: list[str], budgets: tuple[int, ...]) -> dict[str, list[Row]]:
    """All methods with a reward that has a gradient, and those that need none with one that has none."""
    kinds = {"clip": "all methods, clip", "jpeg-size": "all methods, jpeg-size, a black box"}
    return {title: compare(model, captions, rewards.get(name), budgets) for name, title in kinds.items()}


def plot(tables: dict[str, list[Row]]) -> bytes:
    """PNG of the comparison of all methods."""
    return dots({title: rows for title, rows in tables.items() if title.startswith("all methods")})


def diversities(model: Model, captions: list[str]) -> list[Row]:
    """Within a caption and between captions, of the three real styles and of samples at 4 calls."""
    styles: dict[str, list[int]] = {}
    for i, caption in enumerate(emoji.load().captions):
        styles.setdefault(caption, []).append(i)
    whole = [c for c in captions if len(styles[c]) == 3]
    drawn = {"real": torch.stack([_pictures(styles[c]) for c in whole]), "sampled": plain(model, whole, 3, 4, seed=3)}
    rows: list[Row] = []
    for kind, images in drawn.items():
        within, between = (part.mean().item() for part in diversity(images.cpu()))
        rows.append({"pictures": kind, "within": within, "between": between, "ratio": within / between})
    return rows


@torch.no_grad()
def reconstruction(model: Model) -> Row:
    """Peak signal to noise ratio, in decibels, on the pictures that the autoencoder was not trained on."""
    autoencoder: Any = getattr(model.decode, "autoencoder")  # noqa: B009 (only native models have one)
    config = json.loads((CONFIGS / "train" / "autoencoder.json").read_text(encoding="utf8"))
    count = len(emoji.load())
    held = torch.from_numpy(_held_out(config["seed"], count))
    images = _pictures(held.tolist()).to(next(autoencoder.parameters()).device)
    shown = autoencoder.layers(autoencoder.encode(images))[:, :3].clamp(0, 1)
    error = (shown - images).square().mean().item()
    return {"pictures held out": len(images), "PSNR in dB": -10 * math.log10(error)}


def _held_out(seed: int, count: int) -> Any:  # noqa: ANN401 (a numpy array)
    """One picture in 25, as scripts/train_autoencoder.py leaves them out."""
    import numpy as np

    return np.random.default_rng(seed).permutation(count)[: count // 25]


def sizes(model: Model) -> list[Row]:
    """Parameters of the networks, and megabytes of everything that ships."""
    judge: Any = rewards.get("clip")
    parts: dict[str, object] = {
        "flow map": model.flow,
        "autoencoder": getattr(model.decode, "autoencoder", None),
        "emoji-clip": judge.towers(torch.device("cpu")).model,
    }
    rows: list[Row] = [
        {"what": name, "million parameters": sum(p.numel() for p in part.parameters()) / 1e6}
        for name, part in parts.items()
        if isinstance(part, nn.Module)
    ]
    folders = {
        "weights of emoji and its CLIPs": [ASSETS / "emoji", Path(rewards.__file__).parent / "assets"],
        "weights of shapes": [ASSETS / "shapes"],
        "pictures": [emoji.ASSETS],
    }
    for name, places in folders.items():
        files = [f for place in places for f in place.rglob("*") if f.is_file()]
        rows.append({"what": name, "MB": sum(f.stat().st_size for f in files) / 1e6})
    return rows
