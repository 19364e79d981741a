"""Train the embedded flow map from scratch: steer/models/assets/emoji/flow.safetensors.

    python scripts/train_flow.py configs/train/flow.json      (after train_clip.py and train_autoencoder.py)

Lagrangian self-distillation (How to build a consistency model, arXiv:2505.18825): flow matching on the diagonal for
3/4 of a batch; off it the slope d/dt X_{s,t} is matched to v_{t,t}(X_{s,t}), gradients stopped in the target; a
learned weight for every (s, t); an average of the weights is kept. Classifier-free guidance is folded into the
diagonal's target (Improved Mean Flows, arXiv:2512.02012), so that one call is one call. Latents of the drawings are
encoded once; captions are drawn over the levels and variations of steer/data/variations.py, and their words encoded
once.
"""

import argparse
import json
import random
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bank import layers
from common import Progress, checkpoint, half, learning_rate, log, resume, write_tensors
from rewards.clip import Clip
from rewards.towers import Towers, load_clip, read_weights
from steer.data import emoji
from steer.data.variations import Variation, describe, hue_is_clear, random_variation, subject, to_stage
from steer.models.autoencoder import Autoencoder
from steer.models.drawing import Show
from steer.models.network import FlowNetwork, fourier
from steer.models.text import encode_prompts

OUT = Path("steer/models/assets/emoji")


class Weight(nn.Module):
    """w(s, t): the loss is exp(-w) l + w."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(128, 64), nn.SiLU(), nn.Linear(64, 1))
        nn.init.zeros_(self.net[2].weight)  # type: ignore[arg-type]

    def forward(self, s: Tensor, t: Tensor) -> Tensor:
        return self.net(torch.cat([fourier(s, 64), fourier(t, 64)], 1))[:, 0]


class Told:
    """Many (picture, stage, caption) drawn once, with the states of the captions' words."""

    def __init__(self, config: dict, towers: Towers, autoencoder: Autoencoder) -> None:
        data = emoji.load()
        dice = random.Random(config["seed"])
        parts = [layers(data, range(i, min(i + 512, len(data))))[:, :3] for i in range(0, len(data), 512)]
        clear = torch.cat([hue_is_clear(x) for x in parts]).tolist()
        with torch.no_grad():
            self.drawings = torch.cat([autoencoder.encode(x) for x in parts]).flatten(1)
        self.data = data
        source, variations, captions = [], [], []
        for j in range(config["told"]):
            i = j % len(data)
            plain = dice.random() < config["plain_share"]
            variations.append(Variation() if plain else random_variation(dice, clear[i]))
            captions.append(describe(subject(data, i, dice), variations[-1], config["told_share"], dice))
            source.append(i)
        self.source, self.stages = torch.tensor(source), to_stage(variations)
        distinct = sorted(set(captions))
        place = {c: k for k, c in enumerate(distinct)}
        words = encode_prompts(towers, distinct)
        self.tokens, self.mask = words["tokens"].to(torch.bfloat16), words["mask"]
        self.caption = torch.tensor([place[c] for c in captions])
        self.nothing = encode_prompts(towers, [""])

    def batch(self, size: int, drop: float, rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Latents [b d], cond, and which prompts were dropped [b]."""
        j = torch.randint(len(self.source), (size,), generator=rng)
        x1 = torch.cat([self.drawings[self.source[j]], self.stages[j]], 1)
        cond = {"tokens": self.tokens[self.caption[j]].float(), "mask": self.mask[self.caption[j]]}
        dropped = torch.rand(size, generator=rng) < drop
        for key, value in cond.items():
            value[dropped] = self.nothing[key][0]
        return x1, cond, dropped


def times(size: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """s < t off the diagonal: a uniform triangle, and a fifth each that ends at 1 and that starts at 0."""
    s, t = torch.rand(2, size, generator=rng).sort(0).values
    kind = torch.rand(size, generator=rng)
    return torch.where(kind < 0.2, torch.zeros_like(s), s), torch.where(kind > 0.8, torch.ones_like(t), t)


class Objective:
    """Flow matching with folded guidance on the diagonal, Lagrangian self-distillation off it."""

    def __init__(self, config: dict, net: FlowNetwork, weight: Weight, told: Told) -> None:
        self.config, self.net, self.weight, self.told = config, net, weight, told
        self.metric = torch.ones(told.drawings.shape[1] + told.stages.shape[1])
        self.metric[told.drawings.shape[1] :] = config["stage_weight"]

    def weighted(self, error: Tensor, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        error = error.float() * (1 - t).clamp_min(0.05)[:, None]  # a slope is divided by what is left of the path
        loss = (error.square() * self.metric).mean(1)
        w = self.weight(s, t).float()
        return ((-w).exp() * loss + w).sum(), loss.detach().mean()

    def __call__(self, progress: float, rng: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        b = self.config["batch"]
        x1, cond, dropped = self.told.batch(b, self.config["drop"], rng)
        x0 = torch.randn(x1.shape, generator=rng)
        off = b // 4 if progress > self.config["distil_from"] else 0
        on = b - off
        with torch.autocast("cpu", torch.bfloat16, enabled=self.config["half"]):
            words = self.net.describe(**cond)
            t = torch.rand(on, generator=rng)
            loss, metrics = self.diagonal(x0[:on], x1[:on], t, words[:on], dropped[:on], progress)
            if off:
                s, t = times(off, rng)
                more, extra = self.lagrangian((1 - s)[:, None] * x0[on:] + s[:, None] * x1[on:], s, t, words[on:])
                loss, metrics = loss + more, metrics | extra
        return loss / b, metrics

    def diagonal(
        self, x0: Tensor, x1: Tensor, t: Tensor, words: Tensor, dropped: Tensor, progress: float
    ) -> tuple[Tensor, dict[str, float]]:
        x = (1 - t)[:, None] * x0 + t[:, None] * x1
        v = self.net.velocity(x, t, t, words)
        target = x1 - x0
        if progress > self.config["guide_from"]:
            with torch.no_grad():
                nothing = self.net.describe(**self.told.nothing).expand(len(x), -1)
                plain = self.net.velocity(x, t, t, nothing)
            share = (1 - 1 / self.config["guidance"]) * (~dropped).float()[:, None]
            target = target + share * (v.detach().float() - plain.float())
        loss, size = self.weighted(v - target, t, t)
        return loss, {"diagonal": size.item()}

    def lagrangian(self, x: Tensor, s: Tensor, t: Tensor, words: Tensor) -> tuple[Tensor, dict[str, float]]:
        def end(u: Tensor) -> Tensor:
            return x + (u - s)[:, None] * self.net.velocity(x, s, u, words)

        there, slope = torch.func.jvp(end, (t,), (torch.ones_like(t),))
        with torch.no_grad():
            target = self.net.velocity(there.detach().float(), t, t, words)
        loss, size = self.weighted(slope - target, s, t)
        return loss, {"lagrangian": size.item()}


@torch.no_grad()
def watch(net: FlowNetwork, told: Told, towers: Towers, autoencoder: Autoencoder, count: int = 200) -> dict[str, float]:
    """Samples of plain captions at 1 and at 4 calls: share whose nearest drawing (latents) has the caption, and share
    whose caption is among the judge's five best of all.
    """
    rng = torch.Generator().manual_seed(0)
    rows = np.random.default_rng(5).permutation(len(told.data))[:count]
    captions = [told.data.captions[i] for i in rows]
    cond = {"words": net.describe(**encode_prompts(towers, captions))}
    x0 = torch.randn(count, told.drawings.shape[1] + told.stages.shape[1], generator=rng)
    every, judge = sorted(set(told.data.captions)), Clip("emoji-clip-judge")
    out = {}
    for calls in (1, 4):
        x = x0
        for k in range(calls):
            x = x + net(x, k / calls, (k + 1) / calls, cond) / calls
        near = torch.cdist(x[:, : told.drawings.shape[1]], told.drawings).argmin(1).tolist()
        pictures = Show(autoencoder)(x)
        top = (judge.embed_images(pictures) @ judge.embed_texts(every, x.device).T).topk(5, 1).indices.tolist()
        own = [told.data.captions[j] == c for c, j in zip(captions, near, strict=True)]
        judged = [c in {every[j] for j in row} for c, row in zip(captions, top, strict=True)]
        out |= {f"own_{calls}": float(np.mean(own)), f"judge_top5_{calls}": float(np.mean(judged))}
    return out


def load_autoencoder(config: dict, folder: Path) -> Autoencoder:
    autoencoder = Autoencoder(**config)
    autoencoder.load_state_dict(read_weights(folder / "autoencoder.safetensors"))
    return autoencoder.eval().requires_grad_(False)


def train(config: dict, out: Path, run: Path) -> None:
    torch.manual_seed(config["seed"])
    towers = load_clip("emoji-clip")
    autoencoder = load_autoencoder(config["autoencoder"], out)
    told = Told(config, towers, autoencoder)
    size = told.drawings.shape[1] + told.stages.shape[1]
    network = {"size": size, "token_size": told.tokens.shape[-1], **config["network"]}
    net, ema, weight = FlowNetwork(**network), FlowNetwork(**network), Weight()
    ema.load_state_dict(net.state_dict())
    everything = nn.ModuleList([net, weight, ema])
    trained = [*net.parameters(), *weight.parameters()]
    optimiser = torch.optim.AdamW(trained, config["lr"], weight_decay=0.0, betas=(0.9, 0.99), fused=True)
    progress = Progress(config["steps"], config.get("minutes"))
    resume(run / "last.safetensors", everything, optimiser, progress)
    rng = torch.Generator().manual_seed(config["seed"] * 1_000_003 + progress.step)
    objective = Objective(config, net, weight, told)
    log(
        run / "log.jsonl",
        captions=len(told.tokens),
        told=len(told.source),
        parameters=sum(p.numel() for p in net.parameters()),
    )
    saved = progress.elapsed
    while progress() < 1:
        optimiser.param_groups[0]["lr"] = learning_rate(config["lr"], progress())
        loss, metrics = objective(progress(), rng)
        optimiser.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        decay = min(config["ema"], (1 + progress.step) / (10 + progress.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(ema.parameters()), list(net.parameters()), 1 - decay)
        progress.step += 1
        if progress.step % 200 == 0:
            row = {
                "step": progress.step,
                "minutes": progress.elapsed / 60,
                "lr": optimiser.param_groups[0]["lr"],
                "norm": norm.item(),
            }
            if progress.elapsed - saved > 240:
                checkpoint(run / "last.safetensors", everything, optimiser, progress)
                write(out, ema, network, config)
                metrics |= watch(ema, told, towers, autoencoder)
                saved = progress.elapsed
            log(run / "log.jsonl", **row, **metrics)
    checkpoint(run / "last.safetensors", everything, optimiser, progress)
    write(out, ema, network, config)
    log(run / "log.jsonl", step=progress.step, minutes=progress.elapsed / 60, **watch(ema, told, towers, autoencoder))


def write(out: Path, net: FlowNetwork, network: dict, config: dict) -> None:
    """The averaged weights, and the JSON that `steer.load_model` reads."""
    write_tensors(out / "flow.safetensors", half(net.state_dict()))
    card = {
        "kind": "drawing",
        "path": "linear",
        "text": "emoji-clip",
        "network": network,
        "autoencoder": config["autoencoder"],
    }
    (out / "model.json").write_text(json.dumps(card, indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    train(json.loads(arguments.config.read_text()), arguments.out, Path("runs/flow"))
