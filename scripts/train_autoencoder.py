"""Train the layered autoencoder of the embedded model: steer/models/assets/emoji/autoencoder.safetensors.

    python scripts/train_autoencoder.py configs/train/autoencoder.json
    python scripts/train_autoencoder.py configs/train/decoder.json      # later, beside the flow map

The second run goes on with the decoder alone, the latents as they are, while the flow map is being trained on them.
Latents carry Gaussian noise of standard deviation `noise` while a small penalty keeps their square near 1, which is a
variational autoencoder with a fixed posterior variance: the decoder learns to give a clean picture for a latent that
is a little off, as a sampled one is.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common import Progress, checkpoint, half, learning_rate, log, resume, write_tensors
from rewards.towers import read_weights
from steer.data import emoji
from steer.data.stage import rotate_hue
from steer.models.autoencoder import Autoencoder

OUT = Path("steer/models/assets/emoji")


def held_out(seed: int, count: int) -> np.ndarray:
    """The pictures never trained on: one in 25."""
    return np.random.default_rng(seed).permutation(count)[: count // 25]


def load_layers() -> Tensor:
    """uint8 [N 4 64 64]: colours over white, coverage."""
    data = emoji.load()
    return (
        torch.from_numpy(np.concatenate([data.images, data.coverage[..., None]], -1)).permute(0, 3, 1, 2).contiguous()
    )


def augment(x: Tensor, rng: torch.Generator) -> Tensor:
    """Half of the drawings as they are; the others moved, scaled, mirrored, in other hues."""
    x = x.clone()
    part = x[len(x) // 2 :]
    b = len(part)
    theta = torch.zeros(b, 2, 3)
    flip = (torch.rand(b, generator=rng) < 0.5).float() * 2 - 1
    zoom = 0.85 + 0.4 * torch.rand(b, generator=rng)
    theta[:, 0, 0], theta[:, 1, 1] = zoom * flip, zoom
    theta[:, :, 2] = 0.3 * torch.rand(b, 2, generator=rng) - 0.15
    grid = F.affine_grid(theta, [b, 4, 64, 64], align_corners=False)
    ink = F.grid_sample(torch.cat([1 - part[:, :3], part[:, 3:]], 1), grid, align_corners=False)
    part = torch.cat([1 - ink[:, :3], ink[:, 3:]], 1)
    turned = rotate_hue(part[b // 2 :, :3], 360 * torch.rand(b - b // 2, generator=rng))
    part[b // 2 :, :3] = turned
    x[len(x) // 2 :] = part
    return x


def reconstruction(x: Tensor, target: Tensor, square: float) -> Tensor:
    """Charbonnier distance of the layers, and `square` of the squared one; errors beyond white or black are
    forgiven.
    """
    x = torch.where((x > 1) & (target > 0.999) | (x < 0) & (target < 0.001), target, x)
    weight = torch.tensor([1.0, 1.0, 1.0, 0.5]).view(4, 1, 1)
    error = (x - target).square()
    return (weight * ((error + 1e-3).sqrt() + square * error)).mean()


@torch.no_grad()
def psnr(model: Autoencoder, layers: Tensor) -> float:
    """Peak signal to noise ratio in decibels, of the mean squared error over pictures over white."""
    errors = []
    for part in layers.split(128):
        x = part.float() / 255
        errors.append((model.layers(model.encode(x[:, :3]))[:, :3].clamp(0, 1) - x[:, :3]).square().mean((1, 2, 3)))
    return -10 * math.log10(torch.cat(errors).mean().item())


@torch.no_grad()
def average(ema: Autoencoder, model: Autoencoder, decay: float) -> None:
    for a, b in zip(ema.parameters(), model.parameters(), strict=True):
        a.lerp_(b, 1 - decay)


@torch.no_grad()
def standardise(model: Autoencoder, layers: Tensor) -> None:
    """Scale the latents to mean 0 and variance 1 over the training pictures."""
    z = torch.cat([model.encoder(2 * (x[:, :3].float() / 255) - 1) for x in layers.split(128)])
    model.mean.copy_(z.mean((0, 2, 3), keepdim=True)[0])
    model.std.copy_(z.std((0, 2, 3), keepdim=True)[0])


def train(config: dict, out: Path, run: Path) -> None:
    torch.manual_seed(config["seed"])
    layers = load_layers()
    held = held_out(config["seed"], len(layers))
    rows = np.setdiff1d(np.arange(len(layers)), held)
    model, ema = (Autoencoder(**config["model"]).to(memory_format=torch.channels_last) for _ in range(2))
    ema.load_state_dict(model.state_dict())
    pair = torch.nn.ModuleList([model, ema])
    optimiser = torch.optim.AdamW(model.parameters(), config["lr"], weight_decay=0.01, betas=(0.9, 0.99))
    progress = Progress(config["steps"], config.get("minutes"))
    resume(run / "last.safetensors", pair, optimiser, progress)
    if config.get("decoder_only"):
        for net in (model, ema):
            net.load_state_dict(read_weights(out / "autoencoder.safetensors"))
            net.encoder.requires_grad_(False)
        resume(run / "last.safetensors", pair, optimiser, progress)
    rng = torch.Generator().manual_seed(config["seed"] * 1_000_003 + progress.step)
    order = np.random.default_rng([config["seed"], progress.step])
    while progress() < 1:
        optimiser.param_groups[0]["lr"] = learning_rate(config["lr"], progress())
        x = augment(layers[order.choice(rows, config["batch"], replace=False)].float() / 255, rng)
        with torch.autocast("cpu", torch.bfloat16):
            z = model.encoder((2 * x[:, :3] - 1).contiguous(memory_format=torch.channels_last)).float()
            noisy = z + config["noise"] * torch.randn(z.shape, generator=rng)
            y = 0.5 + 0.5 * model.decoder(noisy.contiguous(memory_format=torch.channels_last)).float()
        loss = reconstruction(y, x, config["square"]) + config["kl"] * z.square().mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        average(ema, model, min(0.999, (1 + progress.step) / (10 + progress.step)))
        progress.step += 1
        if progress.step % 100 == 0:
            row = {
                "step": progress.step,
                "minutes": progress.elapsed / 60,
                "loss": loss.item(),
                "latent": z.std().item(),
            }
            if progress.step % 500 == 0:
                checkpoint(run / "last.safetensors", pair, optimiser, progress)
                row |= {"held_psnr": psnr(ema, layers[held])}
            log(run / "log.jsonl", **row)
    if not config.get("decoder_only"):
        standardise(ema, layers[rows])
    write_tensors(out / "autoencoder.safetensors", half(ema.state_dict()))
    log(run / "log.jsonl", step=progress.step, minutes=progress.elapsed / 60, held_psnr=psnr(ema, layers[held]),
        seen_psnr=psnr(ema, layers[rows[:500]]))  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    train(json.loads(arguments.config.read_text()), arguments.out, Path("runs") / arguments.config.stem)
