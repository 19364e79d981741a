"""Train the autoencoder of the embedded model of shapes: steer/models/assets/shapes/autoencoder.safetensors.

    python scripts/train_shapes_autoencoder.py configs/train/shapes-autoencoder.json
    python scripts/train_shapes_autoencoder.py configs/train/shapes-decoder.json      # later, beside the flow map

The second run goes on with the decoder alone, the latents as they are, while the flow map is being trained on them.
Latents carry Gaussian noise of standard deviation `noise` while a small penalty keeps their square near 1, so that the
decoder learns to give a clean picture for a latent that is a little off, as a sampled one is. A killed run resumes.
"""

import argparse
import json
import math
from pathlib import Path

import torch
from torch import Tensor

from common import Progress, checkpoint, half, learning_rate, log, resume, write_tensors
from rewards.towers import read_weights
from steer.data.shapes import Shapes
from steer.models.autoencoder import Autoencoder

OUT = Path("steer/models/assets/shapes")
HELD = range(10**9, 10**9 + 512)


def pictures(rows: range) -> Tensor:
    """Pictures [b 3 64 64] in [0,1] of rows of the data set."""
    return torch.from_numpy(Shapes().rows(rows)[0]).permute(0, 3, 1, 2).float() / 255


@torch.no_grad()
def psnr(model: Autoencoder, x: Tensor) -> float:
    """Peak signal to noise ratio in decibels, of the mean squared error."""
    errors = [(model.layers(model.encode(part)).clamp(0, 1) - part).square().mean() for part in x.split(128)]
    return -10 * math.log10(torch.stack(errors).mean().item())


@torch.no_grad()
def standardise(model: Autoencoder, x: Tensor) -> None:
    """Scale the latents to mean 0 and variance 1."""
    z = torch.cat([model.encoder(2 * part - 1) for part in x.split(128)])
    model.mean.copy_(z.mean((0, 2, 3), keepdim=True)[0])
    model.std.copy_(z.std((0, 2, 3), keepdim=True)[0])


def train(config: dict, out: Path, run: Path) -> None:
    torch.manual_seed(config["seed"])
    model, ema = (Autoencoder(**config["model"]).to(memory_format=torch.channels_last) for _ in range(2))
    ema.load_state_dict(model.state_dict())
    pair = torch.nn.ModuleList([model, ema])
    optimiser = torch.optim.AdamW(model.parameters(), config["lr"], weight_decay=0.01, betas=(0.9, 0.99))
    progress = Progress(config["steps"], config.get("minutes"))
    if config.get("decoder_only"):
        for net in (model, ema):
            net.load_state_dict(read_weights(out / "autoencoder.safetensors"))
            net.encoder.requires_grad_(False)
    resume(run / "last.safetensors", pair, optimiser, progress)
    held, b = pictures(HELD), config["batch"]
    while progress() < 1:
        optimiser.param_groups[0]["lr"] = learning_rate(config["lr"], progress())
        x = pictures(range(progress.step * b, (progress.step + 1) * b))
        rng = torch.Generator().manual_seed(config["seed"] * 1_000_003 + progress.step)
        with torch.autocast("cpu", torch.bfloat16):
            z = model.encoder((2 * x - 1).contiguous(memory_format=torch.channels_last)).float()
            noisy = z + config["noise"] * torch.randn(z.shape, generator=rng)
            y = 0.5 + 0.5 * model.decoder(noisy.contiguous(memory_format=torch.channels_last)).float()
        y = torch.where((y > 1) & (x > 0.999) | (y < 0) & (x < 0.001), x, y)
        error = (y - x).square()
        loss = ((error + 1e-4).sqrt() + error).mean() + config["kl"] * z.square().mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        decay = min(0.998, (1 + progress.step) / (10 + progress.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1 - decay)
        progress.step += 1
        if progress.step % 100 == 0:
            row = {"step": progress.step, "minutes": progress.elapsed / 60, "loss": loss.item()}
            if progress.step % 500 == 0:
                checkpoint(run / "last.safetensors", pair, optimiser, progress)
                row |= {"held_psnr": psnr(ema, held)}
            log(run / "log.jsonl", **row)
    if not config.get("decoder_only"):
        standardise(ema, pictures(range(4096)))
    write_tensors(out / "autoencoder.safetensors", half(ema.state_dict()))
    log(run / "log.jsonl", step=progress.step, minutes=progress.elapsed / 60, held_psnr=psnr(ema, held))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    train(json.loads(arguments.config.read_text()), arguments.out, Path("runs") / arguments.config.stem)
