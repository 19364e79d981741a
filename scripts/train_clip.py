"""Train one of the small CLIPs on the emoji: rewards/assets/NAME.

    python scripts/bank.py
    python scripts/train_clip.py configs/train/emoji-clip.json
    python scripts/train_clip.py configs/train/emoji-clip-judge.json

Contrastive learning (Learning Transferable Visual Models From Natural Language Supervision, arXiv:2103.00020) of
pictures from the bank against captions, tags and groups; texts that are equal within a batch are all taken as right
answers. `leave_out_style` names an art style that is never shown, to measure retrieval on it.
"""

import argparse
import json
import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import bank
from common import Progress, checkpoint, half, learning_rate, log, resume, write_tensors
from rewards.towers import ASSETS, WordPieces, build, split_words
from steer.data import emoji
from steer.data.variations import BACKGROUNDS, HUES, describe, subject

MEAN, STD = (0.75, 0.73, 0.70), (0.32, 0.32, 0.35)


def vocabulary(data: emoji.Emoji) -> list[str]:
    texts = [*data.captions, *data.groups, *data.subgroups, *(t for tags in data.tags for t in tags)]
    texts += [*HUES, *BACKGROUNDS, "small on background at top bottom left right"]
    words = [w for t in texts for w in split_words(t)]
    counts = {w: words.count(w) for w in set(words)} if len(words) < 1000 else _count(words)
    return [w for w, c in counts.items() if c >= 2]


def _count(words: list[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for w in words:
        counts[w] = counts.get(w, 0) + 1
    return counts


def augment(x: Tensor, strength: float, rng: torch.Generator) -> Tensor:
    """Shift, scale, colour, blur and noise, each picture its own; x [b 3 h w] in [0,1]."""
    b = len(x)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=rng) * 2 - 1

    theta = torch.zeros(b, 2, 3)
    zoom = 1 + 0.2 * strength * uniform(b)
    theta[:, 0, 0] = zoom * (1 + 0.1 * strength * uniform(b))
    theta[:, 1, 1] = zoom
    theta[:, 0, 1], theta[:, 1, 0] = 0.12 * strength * uniform(b), 0.12 * strength * uniform(b)
    theta[:, :, 2] = 0.15 * strength * uniform(b, 2)
    grid = F.affine_grid(theta, [b, *x.shape[1:]], align_corners=False)
    x = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    x = x * (1 + 0.15 * strength * uniform(b, 3, 1, 1)) + 0.1 * strength * uniform(b, 3, 1, 1)
    quarter = b // 4
    x[:quarter] = F.avg_pool2d(F.pad(x[:quarter], (1, 1, 1, 1), mode="replicate"), 3, 1)
    shape = x[quarter : 2 * quarter].shape
    x[quarter : 2 * quarter] += 0.08 * strength * torch.randn(shape, generator=rng)
    return x.clamp(0, 1)


def normalise(x: Tensor) -> Tensor:
    x = (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    return x.contiguous(memory_format=torch.channels_last)


class Batches:
    """Random pictures of the bank with texts; `held` emoji are never drawn."""

    def __init__(self, config: dict, data: emoji.Emoji, tokenize: WordPieces, step: int) -> None:
        self.config, self.data, self.tokenize, self.bank = config, data, tokenize, bank.read()
        self.held = held_out(config, data)
        seen = ~np.isin(self.bank.source, self.held)
        every = np.arange(len(seen))
        self.plain, self.varied = every[seen & (every < len(data))], every[seen & (every >= len(data))]
        self.dice = random.Random(config["seed"] * 1_000_003 + step)
        self.rng = torch.Generator().manual_seed(config["seed"] * 1_000_003 + step)

    def next(self) -> tuple[Tensor, Tensor, Tensor]:
        """Pictures [b 3 h w], ids [b context], right answers [b b]."""
        b, share = self.config["batch"], self.config["plain_share"]
        chosen = self.dice.sample(list(range(len(self.plain))), int(b * share))
        index = [
            *self.plain[chosen],
            *self.varied[[self.dice.randrange(len(self.varied)) for _ in range(b - len(chosen))]],
        ]
        texts = []
        for j in index:
            i = int(self.bank.source[j])
            texts.append(describe(subject(self.data, i, self.dice), self.bank.variations[j], 0.9, self.dice))
        pictures = torch.from_numpy(self.bank.pictures[np.array(index)]).float() / 255
        shuffle = torch.randperm(b, generator=self.rng)
        pictures = augment(pictures[shuffle], self.config["augmentation"], self.rng)
        texts = [texts[i] for i in shuffle.tolist()]
        same = torch.tensor([[s == t for t in texts] for s in texts]).float()
        return normalise(pictures), self.tokenize(texts), same / same.sum(1, keepdim=True)


def held_out(config: dict, data: emoji.Emoji) -> np.ndarray:
    """Emoji never trained on: one in 25, chosen by the config's seed, or a whole style."""
    if config.get("leave_out_style"):
        return np.array([i for i, s in enumerate(data.styles) if s == config["leave_out_style"]])
    return np.random.default_rng(config["seed"]).permutation(len(data))[: len(data) // 25]


@torch.no_grad()
def retrieval(model: torch.nn.Module, data: emoji.Emoji, tokenize: WordPieces, rows: np.ndarray, k: int = 5) -> float:
    """Share of pictures whose caption is among the k nearest of all distinct captions."""
    captions = sorted(set(data.captions))
    model.eval()
    texts = torch.cat(
        [model.encode_text(tokenize(captions[i : i + 256]), normalize=True) for i in range(0, len(captions), 256)]
    )  # type: ignore[operator]
    pictures = torch.from_numpy(data.images[rows]).permute(0, 3, 1, 2).float() / 255
    images = torch.cat([model.encode_image(normalise(x), normalize=True) for x in pictures.split(256)])  # type: ignore[operator]
    model.train()
    top = (images @ texts.T).topk(k, 1).indices.tolist()
    return float(np.mean([data.captions[i] in {captions[j] for j in row} for i, row in zip(rows, top, strict=True)]))


def train(config: dict, out: Path, run: Path) -> None:
    torch.manual_seed(config["seed"])
    data = emoji.load()
    tokenize = WordPieces.from_words(vocabulary(data), config["model"]["text_cfg"]["context_length"])
    model_cfg = json.loads(json.dumps(config["model"]))
    model_cfg["text_cfg"]["vocab_size"] = tokenize.vocab_size
    model = build(model_cfg).to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(
        model.parameters(), config["lr"], weight_decay=config["weight_decay"], betas=(0.9, 0.98)
    )
    progress = Progress(config["steps"], config.get("minutes"))
    resume(run / "last.safetensors", model, optimiser, progress)
    batches = Batches(config, data, tokenize, progress.step)
    some = np.random.default_rng(7).permutation(np.setdiff1d(np.arange(len(data)), batches.held))[:500]
    while progress() < 1:
        optimiser.param_groups[0]["lr"] = learning_rate(config["lr"], progress())
        pictures, ids, right = batches.next()
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            a = model.encode_image(pictures, normalize=True)  # type: ignore[operator]
            b = model.encode_text(ids, normalize=True)  # type: ignore[operator]
        logits = model.logit_scale.exp().clamp(max=100) * a.float() @ b.float().T  # type: ignore[operator]
        loss = (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right.T / right.T.sum(1, keepdim=True))) / 2
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        progress.step += 1
        if progress.step % 100 == 0:
            row = {
                "step": progress.step,
                "minutes": progress.elapsed / 60,
                "loss": loss.item(),
                "lr": optimiser.param_groups[0]["lr"],
            }
            if progress.step % 500 == 0:
                checkpoint(run / "last.safetensors", model, optimiser, progress)
                row |= {
                    "seen": retrieval(model, data, tokenize, some),
                    "held": retrieval(model, data, tokenize, batches.held[:500]),
                }
            log(run / "log.jsonl", **row)
    write(out, model, model_cfg, tokenize)
    seen, held = retrieval(model, data, tokenize, some), retrieval(model, data, tokenize, batches.held)
    log(
        run / "log.jsonl",
        step=progress.step,
        minutes=progress.elapsed / 60,
        seen_top5=seen,
        held_top5=held,
        held_pictures=len(batches.held),
    )


def write(out: Path, model: torch.nn.Module, model_cfg: dict, tokenize: WordPieces) -> None:
    write_tensors(out / "open_clip_model.safetensors", half(model.state_dict()))
    look = {"size": 64, "mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "squash"}
    (out / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg, "preprocess_cfg": look}, indent=1))
    (out / "vocabulary.json").write_text(json.dumps(tokenize.pieces))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    name = arguments.config.stem
    train(json.loads(arguments.config.read_text()), arguments.out or ASSETS / name, Path("runs") / name)
