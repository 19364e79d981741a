"""The report of a run: rewards, a reward that was not optimised, costs, survivors, diversity, and warnings in words."""

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import rewards
from steer import metrics
from steer.models import Model
from steer.particles import Trace, ess
from steer.samples import Samples, finite

if TYPE_CHECKING:
    from steer.api import Chosen

FEW = 0.1  # fewer distinct survivors than this share of the particles is a collapse

Spent = tuple[Trace, dict[str, float]]


def make_report(
    samples: Samples, model: Model, chosen: "Chosen", score: rewards.Reward, seed: int, plain: Spent, steered: Spent
) -> dict[str, Any]:
    """Numbers and words as report.json holds them; warnings are issued as Python warnings too."""
    trace = steered[0]
    settings = {k: v for k, v in vars(chosen.method).items() if isinstance(v, (int, float, str, bool, type(None)))}
    report: dict[str, Any] = {
        "prompts": samples.prompts,
        "model": model.name,
        "method": {"name": chosen.name, **{k: _plain_number(v) for k, v in settings.items()}},
        "temperature": _temperature(chosen),
        "seed": seed,
        "particles": samples.rewards.shape[1],
        "reward": {"name": rewards.name_of(score), **_compare(samples.unsteered_rewards, samples.rewards, samples.log_w)},
        "held_out": _judge(samples, model, score),
        "survivors": _survivors(samples, trace),
        "diversity": {
            "unsteered": metrics.diversity(samples.unsteered).mean().item(),
            "steered": metrics.diversity(samples.images).mean().item(),
        },
        "log_z": [finite(z) for z in trace.log_z.tolist()],
        "cost": {"unsteered": _cost(*plain), "steered": _cost(trace, _difference(steered[1], plain[1]))},
        "torch": torch.__version__,
    }
    report["warnings"] = _warnings(report)
    for text in report["warnings"]:
        warnings.warn(text, stacklevel=4)
    return report


def _plain_number(x: Any) -> Any:  # noqa: ANN401
    return finite(x) if isinstance(x, float) else x


def _temperature(chosen: "Chosen") -> float | None:
    return finite(float(getattr(chosen.method, "temperature", float("nan"))))


def _compare(before: Tensor, after: Tensor, log_w: Tensor) -> dict[str, float | None]:
    """Means over prompts: of plain pictures, of steered ones plainly and by their weights, and of the best one."""
    by_weight = (after.masked_fill(log_w == -torch.inf, 0) * log_w.exp()).sum(1)
    values = {"unsteered": before.mean(), "steered": after.mean(), "weighted": by_weight.mean(), "best": after.amax(1).mean()}
    return {k: finite(v.item()) for k, v in values.items()}


@torch.no_grad()
def _judge(samples: Samples, model: Model, score: rewards.Reward) -> dict[str, Any] | None:
    """Scores by the CLIP that is never optimised; None for a model that it was not trained for."""
    if model.name != "emoji" or rewards.name_of(score) == "clip-judge":
        return None
    judge, n = rewards.get("clip-judge"), samples.images.shape[1]
    prompts = [q for q in samples.prompts for _ in range(n)]

    def of(images: Tensor) -> Tensor:
        return judge(images.flatten(0, 1), prompts).unflatten(0, images.shape[:2])

    before, after = of(samples.unsteered), of(samples.images)
    best = after.gather(1, samples.best_index[:, None]).mean().item()
    return {"name": "clip-judge", **_compare(before, after, samples.log_w), "best": best}


def _survivors(samples: Samples, trace: Trace) -> dict[str, float]:
    """Share of the particles' ancestors that still have a descendant, and effective sample size of the final weights."""
    return {
        "distinct": metrics.distinct(trace.ancestors).mean().item(),
        "effective": (ess(samples.log_w) / samples.log_w.shape[1]).mean().item(),
    }


def _cost(trace: Trace, seconds: dict[str, float]) -> dict[str, Any]:
    """A prompt's cost: rows through the network forwards and backwards, calls in the budget's unit, pictures scored."""
    a_prompt = {
        "network_forward": trace.forward, "network_backward": trace.backward,
        "calls": trace.calls, "reward_calls": trace.reward_calls,
    }  # fmt: skip
    return {k: v.float().mean().item() for k, v in a_prompt.items()} | {"seconds": seconds}


def _difference(after: dict[str, float], before: dict[str, float]) -> dict[str, float]:
    return {k: after[k] - before[k] for k in after}


def _warnings(report: dict[str, Any]) -> list[str]:
    out, held, gain = [], report["held_out"], report["reward"]
    rose = None not in (gain["best"], gain["unsteered"]) and gain["best"] > gain["unsteered"]
    if held and rose and held["best"] < held["unsteered"]:
        out.append(
            f"{gain['name']} rose from {gain['unsteered']:.3g} to {gain['best']:.3g} (best) while {held['name']}, which was not "
            f"optimised, fell from {held['unsteered']:.3g} to {held['best']:.3g}: the reward may be cheated, or asks for "
            "something other than the prompt; raise the temperature"
        )
    if report["survivors"]["distinct"] < FEW:
        out.append(
            f"only {report['survivors']['distinct']:.0%} of the particles have descendants among the samples: raise "
            "temperature, n or steps"
        )
    if report["particles"] > 1 and report["survivors"]["effective"] * report["particles"] < 1.5:
        out.append("nearly all weight is on one picture: raise temperature or n if a sample of the law is wanted")
    return out
