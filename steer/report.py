"""The report of a run: rewards, a reward that was not optimised, costs, survivors, diversity, and warnings in words."""

import platform
from typing import Any

import torch
from torch import Tensor

import rewards
from steer import __version__, metrics
from steer.arguments import Chosen
from steer.models import Model
from steer.particles import Trace, ess
from steer.samples import Samples, finite

JUDGES = {"emoji": "clip-judge"}  # model: the reward that is never optimised, trained for its pictures
FEW = 0.1  # no more distinct survivors than this share of the particles is a collapse

Spent = tuple[Trace, dict[str, float]]


def judge_for(model: Model, score: rewards.Reward, device: torch.device) -> rewards.Reward | None:
    """The held-out reward, loaded; None for a model without one, and where it is itself what is optimised."""
    name = JUDGES.get(model.name)
    if name is None or name in rewards.name_of(score):
        return None
    judge = rewards.get(name)
    if isinstance(judge, rewards.Clip):
        judge.towers(device)
    return judge


def make_report(
    samples: Samples,
    model: Model,
    chosen: Chosen,
    score: rewards.Reward,
    judge: rewards.Reward | None,
    seed: int,
    plain: Spent,
    steered: Spent,
) -> dict[str, Any]:
    """Numbers and words as report.json holds them: strict JSON, None where there is no number."""
    settings = {k: v for k, v in vars(chosen.method).items() if isinstance(v, int | float | str | bool | None)}
    report: dict[str, Any] = {
        "prompts": samples.prompts,
        "model": model.name,
        "method": {"name": chosen.name, **{k: finite(v) for k, v in settings.items()}},
        "temperature": finite(float(getattr(chosen.method, "temperature", float("nan")))),
        "temperature_origin": chosen.origin,
        "seed": seed,
        "particles": samples.rewards.shape[1],
        "reward": {"name": rewards.name_of(score), **_compare(samples, samples.unsteered_rewards, samples.rewards)},
        "held_out": _held_out(samples, judge),
        "survivors": _survivors(samples, steered[0]),
        "diversity": {"unsteered": _diversity(samples.unsteered), "steered": _diversity(samples.images)},
        "log_z": [finite(z) for z in steered[0].log_z.tolist()],
        "cost": {"unsteered": _cost(*plain), "steered": _cost(*steered)},
        "pictures": {
            "rewards": _rows(samples.rewards),
            "log_weights": _rows(samples.log_w),
            "unsteered_rewards": _rows(samples.unsteered_rewards),
        },
        "versions": {"steer": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "device": str(samples.images.device),
    }
    return report | {"warnings": _warnings(report)}


def _rows(x: Tensor) -> list[list[float | None]]:
    return [[finite(v) for v in row] for row in x.tolist()]


def _mean(r: Tensor) -> float | None:
    """The mean of what was not rejected."""
    kept = r[r.isfinite()]
    return kept.mean().item() if len(kept) else None


def _compare(samples: Samples, before: Tensor, after: Tensor) -> dict[str, float | None]:
    """Means over prompts: of plain pictures, of steered ones plainly and by their weights, and of the chosen ones.

    "error": the standard error of the first.
    """
    weights = samples.log_w.exp()
    by_weight = (after.masked_fill(weights == 0, 0) * weights).sum(1)
    best = after.gather(1, samples.best_index[:, None])
    kept = before[before.isfinite()]
    return {
        "unsteered": _mean(before),
        "steered": _mean(after),
        "weighted": _mean(by_weight),
        "best": _mean(best),
        "error": (kept.std() / len(kept) ** 0.5).item() if len(kept) > 1 else None,
    }


def _held_out(samples: Samples, judge: rewards.Reward | None) -> dict[str, Any] | None:
    """Scores by the reward that was not optimised, beside those of the plain pictures."""
    if judge is None:
        return None
    n = samples.images.shape[1]
    prompts = [q for q in samples.prompts for _ in range(n)]

    def of(images: Tensor) -> Tensor:
        return rewards.Chunked(judge, 128)(images.flatten(0, 1), prompts).unflatten(0, images.shape[:2])

    return {"name": rewards.name_of(judge), **_compare(samples, of(samples.unsteered), of(samples.images))}


def _survivors(samples: Samples, trace: Trace) -> dict[str, float]:
    """Means over prompts of the share of particles that have descendants, and of the weights' effective sample size."""
    n = samples.log_w.shape[1]
    return {
        "distinct": metrics.distinct(trace.ancestors).mean().item(),
        "effective": (ess(samples.log_w) / n).mean().item(),
    }


def _diversity(images: Tensor) -> float | None:
    """Root mean square difference of two pictures of a prompt; None where there is but one."""
    within = [metrics.diversity(images[i : i + 1]).within for i in range(len(images))]
    return finite(torch.cat(within).mean().item())


def _cost(trace: Trace, seconds: dict[str, float]) -> dict[str, Any]:
    """A prompt's cost: rows through the network forwards and backwards, calls in the budget's unit, pictures scored."""
    a_prompt = {
        "network_forward": trace.forward,
        "network_backward": trace.backward,
        "calls": trace.calls,
        "reward_calls": trace.reward_calls,
    }
    return {k: v.float().mean().item() for k, v in a_prompt.items()} | {"seconds": seconds}


def _warnings(report: dict[str, Any]) -> list[str]:
    reward, held, survivors = report["reward"], report["held_out"], report["survivors"]
    out = []
    if held and _change(reward) > 0 and _change(held) < -(held["error"] or 0):
        out.append(
            f"{reward['name']} rose from {reward['unsteered']:.3g} to {reward['weighted']:.3g} while {held['name']}, "
            f"which was not optimised, fell from {held['unsteered']:.3g} to {held['weighted']:.3g}: the reward may be "
            "cheated, or asks for something other than the prompt; raise the temperature"
        )
    n = report["particles"]
    if n >= 4 and survivors["distinct"] * n <= max(1.0, FEW * n):
        out.append(
            f"the samples descend from {survivors['distinct'] * n:.3g} of {n} particles: raise temperature, n or steps"
        )
    if n >= 4 and survivors["effective"] * n < 1.5:
        out.append("nearly all weight is on one picture: raise temperature or n if a sample of the law is wanted")
    return out


def _change(scores: dict[str, Any]) -> float:
    """What weighted means gained; 0 where one is missing."""
    before, after = scores["unsteered"], scores["weighted"]
    return 0.0 if before is None or after is None else after - before
