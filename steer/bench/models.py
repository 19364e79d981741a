"""Pipelines of diffusers as models, and learned rewards: are they what their libraries make of the same weights?

The first table is made on tiny pipelines of random weights, a row for each kind that is known; the second on larger
ones, since it is about time; the third on tiny scorers. No figure needs weights that are published.
"""

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rewards import Brightness
from steer.bench import pipeline_cost, reward_parity
from steer.bench.step_cost import Held
from steer.bench.tiny_pipelines import CASES, PROMPTS, build_model, draw_noise, draw_own
from steer.chunks import Chunks
from steer.finetuning import finetune
from steer.flow_map import Checkpointed, Chunked, jump
from steer.lookahead import Jump
from steer.models.diffusers import PipelineModel, one_call, plain
from steer.problem import Scores
from steer.run import Run

Row = dict[str, Any]
FAST = ("sd-tcd", "flux-schnell", "sana")
ROWS, CHUNK = 16, 4  # of the gradient whose memory is measured: all at once, and so many


def run(fast: bool = False) -> dict[str, list[Row]]:
    """Three tables: adapters of pipelines, what they cost beyond the pipeline's own loop, and learned rewards."""
    adapters = [adapter(name) for name in (FAST if fast else CASES)]
    return {"adapters": adapters, "overhead": pipeline_cost.rows(fast), "rewards": reward_parity.rows()}


def adapter(name: str) -> Row:
    """One pipeline: greatest differences from what is exact, one step of tuning, and the memory of a gradient."""
    model = build_model(name)
    row = {"case": name, "pipeline": type(model.family.pipe).__name__, "kind": model.family.kind}
    return row | sampled(model, name) | {"gradient": slope_error(name)} | tuned(model) | memory(model)


@torch.no_grad()
def sampled(model: PipelineModel, name: str) -> Row:
    """Network calls of a plain sample, and greatest differences of pixels from the pipeline's, of jumps from nothing.

    jump(s, s) is looked at in s = 0, 0.4 and 1.
    """
    x0, cond, calls = draw_noise(model), model.encode(PROMPTS), []
    handle = model.family.flow.register_forward_pre_hook(lambda *_: calls.append(1))
    latents = plain(model, x0, cond, CASES[name][2], torch.Generator().manual_seed(5))
    handle.remove()
    apart = model.decode(latents) - draw_own(model, name, x0, seed=5)
    still = [(jump(model.flow, x0, s, s, cond) - x0).abs().max() for s in (0.0, 0.4, 1.0)]
    return {"calls": len(calls), "plain - pipeline": float(apart.abs().max()), "jump(s, s) - x": float(max(still))}


def slope_error(name: str, step: float = 1e-2) -> float:
    """Relative error of the slope of the brightness of decode(X_{0,1}(x)) along one random direction, in float64.

    Against a central difference, (f(x + h d) - f(x - h d)) / 2h with |d| = 1. Some networks compute parts in float32
    whatever they are told, and some have kinks (SANA's linear attention): the difference is then the less exact one.
    """
    model = build_model(name)
    model.family.pipe.to(torch.float64)
    x, d = (draw_noise(model, seed, 1).double() for seed in (0, 1))
    cond, d = model.encode(PROMPTS[:1]), d / d.norm()

    def brightness(x: Tensor) -> Tensor:
        return model.decode(jump(model.flow, x, 0.0, 1.0, cond)).mean()

    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(brightness(leaf), leaf)
    slope = float((gradient * d).sum())
    with torch.no_grad():
        difference = float(brightness(x + step * d) - brightness(x - step * d)) / (2 * step)
    return abs(slope - difference) / abs(difference)


def tuned(model: PipelineModel) -> Row:
    """What one update by `draft` with adapters of rank 4 does to the brightness of plain samples, and its seconds.

    "moved" is the greatest change of a pixel of plain samples of the same noise. The seconds are those of the whole of
    `steer.finetune`, its guard and files included.
    """
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        after = finetune(
            model, Brightness(), [f"{i} cats" for i in range(4)], held_out_prompts=PROMPTS, objective="draft", steps=1,
            batch=4, lr=1e-2, rank=4, held_out=None, guard_pictures=2, calls=1, out=folder, progress=False,
            tracker=None, rounds={"prompts": 2, "group": 2, "updates": 1}, device="cpu",
        )  # fmt: skip
        seconds = time.perf_counter() - start
        report = json.loads((Path(folder) / "report.json").read_text(encoding="utf8"))
    x0, before = draw_noise(model), one_call(model)
    ends = [m.decode(jump(m.flow, x0, 0.0, 1.0, m.encode(PROMPTS))) for m in (before, after)]
    return {
        "brightness": report["before"]["reward"], "tuned": report["history"][-1]["reward"],
        "moved": float((ends[1] - ends[0]).abs().max()), "tuning seconds": seconds,
    }  # fmt: skip


def memory(model: PipelineModel) -> Row:
    """Megabytes held at most by the gradient of brightness in 16 latents of a prompt, through network and decoder.

    All rows at once, 4 at once, and these with the network's activations computed again.
    """
    ways = {f"MB, {ROWS} rows": (ROWS, False), f"MB, {CHUNK}": (CHUNK, False), f"MB, {CHUNK}, again": (CHUNK, True)}
    return {title: held(model, rows, again) for title, (rows, again) in ways.items()}


def held(model: PipelineModel, rows: int, again: bool) -> float:
    """Megabytes held at most by the gradient that methods take of a look at the end; see `memory`."""
    x, prompt = draw_noise(model, n=ROWS)[None], PROMPTS[:1]
    scores = Scores(model, prompt, Brightness(), Chunks.of(rows))
    flow = Chunked(Checkpointed(model.flow) if again else model.flow, rows)
    steered = Run(flow, model.path, scores, x, model.encode(prompt), rng=torch.Generator())
    with Held() as bytes_held:
        steered.look_gradient(Jump(), x, 0.0)
    return bytes_held.most / 1e6
