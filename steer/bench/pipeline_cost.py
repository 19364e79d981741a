"""What an adapter costs: wall time of its plain samples over that of the pipeline's own loop.

Both start from the same noise and the same embeddings of prompts, take the same steps and stop at latents, and their
latents agree. The networks are of random weights, and large enough for a call to take 30 to 60 ms of a core.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from steer.bench.tiny_pipelines import CASES, PROMPTS, draw_noise
from steer.bench.tiny_pipelines.cases import filled
from steer.bench.tiny_pipelines.dits import sana_sprint, sd3
from steer.bench.tiny_pipelines.parts import alphas, flow_euler
from steer.bench.tiny_pipelines.unets import stable_diffusion
from steer.flow_map import Cond
from steer.models.diffusers import PipelineModel, from_pipeline, plain

Row = dict[str, Any]
AIM = 1.05
STEPS = 4
UNET = {"block_out_channels": (96, 192), "sample_size": 16}
SD3 = {"num_attention_heads": 8, "attention_head_dim": 24, "caption_projection_dim": 192, "num_layers": 3,
       "sample_size": 16}  # fmt: skip
SANA = {"num_attention_heads": 8, "attention_head_dim": 24, "num_cross_attention_heads": 8,
        "cross_attention_head_dim": 24, "cross_attention_dim": 192, "num_layers": 4, "sample_size": 16}  # fmt: skip
# Each with what its own call names the parts of cond.
LARGER: dict[str, tuple[Callable[[], Any], dict[str, str]]] = {
    "sd-tcd": (lambda: stable_diffusion(alphas("TCDScheduler"), **UNET), {"prompt_embeds": "words"}),
    "sd3": (lambda: sd3(flow_euler(), **SD3), {"prompt_embeds": "words", "pooled_prompt_embeds": "pooled"}),
    "sana-sprint-4": (lambda: sana_sprint(**SANA), {"prompt_embeds": "words", "prompt_attention_mask": "mask"}),
}  # fmt: skip


def rows(fast: bool = False) -> list[Row]:
    """One row a pipeline; see `row`."""
    return [row(name, 1 if fast else 21) for name in LARGER]


@torch.no_grad()
def row(name: str, repeats: int) -> Row:
    """Seconds of the adapter and of the pipeline, and the median of their ratio over turns in which both run.

    "of the processor" is the same ratio of processor time, which other work on the machine disturbs less.
    """
    model = from_pipeline(filled(LARGER[name][0]))
    x0, cond = draw_noise(model), model.encode(PROMPTS)
    work = {
        "ours": lambda: plain(model, x0, cond, STEPS, torch.Generator().manual_seed(5)),
        "theirs": lambda: own(model, name, x0, cond),
    }
    apart = work["ours"]() - work["theirs"]()  # and a turn that does not count
    turns = [timed(work, turn % 2 == 1) for turn in range(repeats)]
    ratios, busy = ([t["ours"][k] / t["theirs"][k] for t in turns] for k in (0, 1))
    seconds, alone = (statistics.median(t[way][0] for t in turns) for way in work)
    return {
        "case": name, "steps": STEPS, "seconds": seconds, "pipeline": alone, "ratio": statistics.median(ratios),
        "of the processor": statistics.median(busy), "aim": AIM, "latents apart": float(apart.abs().max()),
    }  # fmt: skip


def timed(work: Mapping[str, Callable[[], object]], backwards: bool) -> dict[str, tuple[float, float]]:
    """Wall seconds and processor seconds of each, one after the other."""
    taken = {}
    for way in sorted(work, reverse=backwards):
        start, busy = time.perf_counter(), time.process_time()
        work[way]()
        taken[way] = time.perf_counter() - start, time.process_time() - busy
    return taken


def own(model: PipelineModel, name: str, x0: Tensor, cond: Cond) -> Tensor:
    """Latents by the pipeline's own call, which is given the embeddings of its prompts."""
    pipe, names = model.family.pipe, LARGER[name][1]
    assert cond is not None
    told = {given: cond[key] for given, key in names.items()}
    if model.family.guidance != 1:
        null = model.family.null(model.choices.negative)
        told |= {f"negative_{given}": null[key].expand_as(cond[key]) for given, key in names.items()}
    height, width = (pipe.vae_scale_factor * n for n in model.shape[-2:])
    return pipe(
        latents=x0.clone(), num_inference_steps=STEPS, height=height, width=width, output_type="latent",
        generator=torch.Generator().manual_seed(5), return_dict=False, **told, **CASES[name][1],
    )[0]  # fmt: skip
