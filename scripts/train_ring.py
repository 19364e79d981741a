"""Train the small flow map of the benchmark's "learned ring": under a minute on one core.

    python scripts/train_ring.py            writes steer/bench/assets/ring.safetensors

Regression on the exact average velocity of the ring, at x ~ p_s for 0 <= s <= t <= 1. Small on purpose: its law is
not quite the ring's, and a method that claims the tilted law of the model has to meet that one.
"""

import math

import torch
from safetensors.torch import save_file

from steer.bench.problems import ASSETS, BlobFlow, LearnedFlow, ring

STEPS, BATCH, RATE = 2000, 1024, 3e-3


def main() -> None:
    torch.manual_seed(0)
    rng, data = torch.Generator().manual_seed(0), ring()
    exact, flow = BlobFlow(data.weights, data.means, 0.3, steps=6), LearnedFlow()
    optimiser = torch.optim.Adam(flow.parameters(), lr=RATE)
    for step in range(STEPS):
        for group in optimiser.param_groups:
            group["lr"] = RATE * (1 + math.cos(math.pi * step / STEPS)) / 2
        s, t = torch.rand(2, BATCH, generator=rng).sort(0).values
        s[: BATCH // 4], t[BATCH // 8 : BATCH // 2] = 0.0, 1.0
        x0, x1 = torch.randn(BATCH, 2, generator=rng), data.sample(BATCH, rng=rng).float()
        x = (1 - s)[:, None] * x0 + s[:, None] * x1
        loss = (flow(x, s, t) - exact(x, s, t)).square().sum(-1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 500 == 0 or step == STEPS - 1:
            print(f"{step} {loss.item():.4f}", flush=True)
    ASSETS.mkdir(exist_ok=True)
    save_file(flow.state_dict(), ASSETS / "ring.safetensors")


if __name__ == "__main__":
    main()
