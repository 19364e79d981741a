"""Fine-tuning of the embedded models: shapes with their exact verifier as a black box, emoji with a CLIP.

Shapes: captions of one shape, of a colour and a shape, and of a number of shapes. A fifth of the last two kinds is held
out, combinations that were in no training picture among them. Objectives are compared at as many sampled pictures.
"""

import json
import random
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import rewards
from rewards.objects import Finder
from rewards.scenes import COLOURS, Scene, caption, is_held_out, parse, scenes
from rewards.shapes import ShapesVerifier
from steer.bench.embedded import plain, spread_captions
from steer.collecting import Advantages, Samples
from steer.finetuning import finetune
from steer.models import Model, load_model
from steer.objectives import NegativeAware, Tuning
from steer.plots import blank, png
from steer.samples import write_bytes

Row = dict[str, Any]
KINDS = ("single", "colour", "count")
SEED = 5
LONG, SHORT = 122_880, 15_360  # sampled pictures of the long run, and of each of the others
ROUND = 1024
OBJECTIVES = {"nft": 2e-4, "grpo": 3e-4, "best_of_n": 3e-4, "weighted": 3e-4}  # their learning rates
STEADY = NegativeAware(
    negative=0.9, kl=0.003, share=1.0, collector=Samples(advantages=Advantages(least=0.35))
)  # of the long run, at 3e-4
EMOJI = {"nft": {"steps": 120, "lr": 2e-4}, "draft": {"steps": 40, "lr": 2e-4, "batch": 128}}


def split() -> tuple[list[str], list[str]]:
    """Captions to tune on, the kinds equally often, and those that are held out."""
    dice, tuned, held = random.Random(SEED), [], []
    for kind in KINDS:
        some = list(scenes(kind))
        dice.shuffle(some)
        cut = 0 if kind == "single" else len(some) // 5
        held += some[:cut]
        tuned += [s for s in some[cut:] for _ in range(max(1, round(108 / len(some))))]
    return [caption(s) for s in tuned], [caption(s) for s in held]


def shapes(objective: str | Tuning, pictures: int, folder: Path, lr: float) -> Model:
    """The model of shapes after tuning with so many sampled pictures."""
    rounds = {"prompts": 64, "group": 16, "updates": 12, "chunk": ROUND}
    steps = max(1, pictures // ROUND) * rounds["updates"]
    tuned, held = split()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return finetune(
            "shapes", ShapesVerifier(whole=0.5), tuned, held_out_prompts=held, objective=objective, steps=steps,
            rounds=rounds, guard={"patience": 0}, guard_every=max(1, min(180, steps // 6)), lr=lr,
            schedule="cosine", ema=(0.0,), average_every=rounds["updates"], precision="bf16", save_every=60,
            log_every=12, out=folder, progress=False,
        )  # fmt: skip


def shapes_rows(fast: bool = False, sheet: Path | None = None) -> list[Row]:
    """One row for the untuned model and for each objective; the sheet shows the first and the last."""
    before = load_model("shapes")
    rows: list[Row] = [{"objective": "untuned", "pictures": 0, **accuracy(before)}]
    model = before
    short: list[tuple[str, str | Tuning, int, float]] = [(name, name, SHORT, lr) for name, lr in OBJECTIVES.items()]
    runs = [*short, ("nft, steadied", STEADY, LONG, 3e-4)]
    for name, objective, pictures, lr in [("nft", "nft", ROUND, 2e-4)] if fast else runs:
        with tempfile.TemporaryDirectory() as folder:
            model = shapes(objective, pictures, Path(folder), lr)
            report = json.loads((Path(folder) / "report.json").read_text(encoding="utf8"))
            kept = {"kept step": (report["best"] or {}).get("step"), "kl": (report["best"] or {}).get("kl")}
            rows.append({"objective": name, "pictures": pictures, **accuracy(model), **kept})
    if sheet is not None:
        write_bytes(side_by_side({"untuned": before, "tuned": model}, split()[1][::3]), sheet)
    return rows


@torch.no_grad()
def accuracy(model: Model, n: int = 32) -> Row:
    """Shares of right pictures of held-out captions at 1, 2 and 4 calls, kinds alike; entropies at 4 calls."""
    held, check = split()[1], ShapesVerifier()
    told = [parse(text) for text in held]
    row: Row = {}
    for calls in (1, 2, 4):
        images = plain(model, held, n, calls, seed=7).cpu()
        right = torch.stack([check.check(x, [c] * n) for x, c in zip(images, held, strict=True)]).float().mean(1)
        row[f"right, {calls}"] = _alike(right, told)
        if calls == 4:
            unseen = torch.tensor([is_held_out(s) for s in told])
            row |= {"right, 4, seen kinds": float(right[~unseen].mean()), "unseen": float(right[unseen].mean())}
            row |= entropies(images, told)
    return row


def _alike(right: Tensor, told: Sequence[Scene]) -> float:
    kinds = [s.category for s in told]
    return float(np.mean([right[[k == kind for k in kinds]].mean() for kind in dict.fromkeys(kinds)]))


def entropies(images: Tensor, told: Sequence[Scene]) -> Row:
    """What captions leave free, as shares of the largest entropy: colours, places (4 x 4 boxes), sizes (8 bins).

    images [p n 3 h w]. Of all objects that are found; colours where the caption tells none.
    """
    colours, places, sizes = np.zeros(len(COLOURS)), np.zeros(16), np.zeros(8)
    for pictures, scene in zip(images, told, strict=True):
        pixels = pictures.permute(0, 2, 3, 1).numpy()
        found = Finder()(pixels)
        for k, at in enumerate(found.of(len(pixels))):
            if scene.things[0].colour is None:
                colours += np.bincount(found.colour[at][found.colour[at] >= 0], minlength=len(COLOURS))
            x, y = (np.clip(found.centre[at, i] // 16, 0, 3).astype(int) for i in (0, 1))
            places += np.bincount(4 * y + x, minlength=16)
            count = at.stop - at.start
            if count == 1:  # the root of the inked area, from 6 to 30 pixels
                area = float((np.sqrt(np.square(1 - pixels[k]).sum(-1)) > 0.3).sum())
                sizes[int(np.clip((area**0.5 - 6) / 3, 0, 7))] += 1
    return {
        f"entropy of {name}": _entropy(c) for name, c in (("colours", colours), ("places", places), ("sizes", sizes))
    }


def _entropy(counts: np.ndarray) -> float:
    share = counts / max(counts.sum(), 1)
    share = share[share > 0]
    return float(-(share * np.log(share)).sum() / np.log(len(counts))) if len(share) else 0.0


def emoji_rows(fast: bool = False, sheet: Path | None = None) -> list[Row]:
    """The emoji model tuned by `clip`: that, the judge and diversity on held-out captions, and what the guard said."""
    captions = spread_captions(60 if fast else 400, seed=9)
    held, tuned = captions[:24], captions[24:]
    models, said = {"untuned": load_model("emoji")}, {"untuned": ""}
    for name, full in EMOJI.items():
        more: dict[str, Any] = full | ({"steps": 4} if fast else {})
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            models[name] = finetune(
                "emoji", "clip", tuned, held_out_prompts=held, objective=name, out=folder, progress=False,
                rounds={"prompts": 32, "group": 8, "updates": 4}, guard_every=10, **more,
            )  # fmt: skip
            said[name] = json.loads((Path(folder) / "report.json").read_text(encoding="utf8"))["words"]
    told = {name: _judged(model, held) for name, model in models.items()}
    if sheet is not None:
        write_bytes(side_by_side(models, held[:8]), sheet)
    return [{"objective": name, **told[name], "guard": guard} for name, guard in said.items()]


@torch.no_grad()
def _judged(model: Model, captions: list[str], n: int = 16) -> Row:
    from steer.metrics import diversity

    row: Row = {}
    for calls in (1, 4):
        images = plain(model, captions, n, calls, seed=3)
        texts = [c for c in captions for _ in range(n)]
        for name in ("clip", "clip-judge"):
            row[f"{name}, {calls}"] = float(rewards.get(name)(images.flatten(0, 1), texts).mean())
        row[f"diversity, {calls}"] = float(np.mean([diversity(x[None]).within.item() for x in images]))
    return row


def side_by_side(models: dict[str, Model], captions: list[str], n: int = 4) -> bytes:
    """PNG: a row a caption, n pictures of each model from the same noise beside each other."""
    figure = blank(2.6 * len(models), 0.75 * len(captions) + 0.4, dpi=110)
    axes = figure.subplots(len(captions), len(models), squeeze=False)
    for j, (name, model) in enumerate(models.items()):
        images = plain(model, captions, n, 4, seed=11)
        for i, text in enumerate(captions):
            axes[i, j].imshow(images[i].permute(2, 0, 3, 1).flatten(1, 2).numpy())
            axes[i, j].set_xticks([])
            axes[i, j].set_yticks([])
            if i == 0:
                axes[i, j].set_title(name, fontsize=9)
            if j == 0:
                axes[i, j].set_ylabel(text, rotation=0, ha="right", va="center", fontsize=8)
    return png(figure)
