"""The report of a run: rewards, a reward that was not optimised, costs, survivors, diversity, and warnings in words."""

import platform
from typing import Any, NamedTuple

import torch
from torch import Tensor

import rewards
from steer import __version__, metrics
from steer.choosing import Chosen
from steer.chunks import Chunks, Within
from steer.models import Model
from steer.particles import Trace, ess
from steer.samples import Samples, finite
from steer.spreading import Shares

JUDGES = {"emoji": "clip-judge"}  # model: the reward that is never optimised, trained for its pictures
FEW = 0.1  # no more distinct survivors than this share of the particles is a collapse
LONG = 4.0  # a gradient that asks, in half of the steps, for pushes longer than this many of the flow's moves dwarfs it


class Spent(NamedTuple):
    """What a run did, its seconds by part, and the rows a prompt computed again for gradients (checkpoint=True)."""

    trace: Trace
    seconds: dict[str, float]
    recomputed: float

    def part(self, rows: slice) -> "Spent":
        """That of some of the prompts, and their share of the seconds."""
        trace = self.trace.part(rows)
        share = len(trace.log_z) / len(self.trace.log_z)
        return Spent(trace, {name: share * s for name, s in self.seconds.items()}, self.recomputed)


class Judged(NamedTuple):
    """The name of a reward that was not optimised, and its scores [p n] of plain pictures and of steered ones."""

    name: str
    unsteered: Tensor
    steered: Tensor


class Facts(NamedTuple):
    """What a report tells besides what the samples hold.

    model, reward: their names. processes: what `steer.spreading.Shares.told` says, where there are several.
    assumed: how a function of the user's is called, see `rewards.assumed`.
    """

    model: str
    reward: str
    chosen: Chosen
    judged: Judged | None
    seed: int
    plain: Spent
    steered: Spent
    processes: dict[str, float] | None = None
    assumed: str | None = None

    def part(self, rows: slice) -> "Facts":
        """Those of some of the prompts."""
        judged = self.judged and Judged(self.judged.name, self.judged.unsteered[rows], self.judged.steered[rows])
        chosen, plain, steered = (x.part(rows) for x in (self.chosen, self.plain, self.steered))
        return self._replace(chosen=chosen, judged=judged, plain=plain, steered=steered)


def judge_for(
    model: Model, score: rewards.Reward, device: torch.device, given: rewards.Reward | str | None = "judge"
) -> rewards.Reward | None:
    """The held-out reward, loaded: what is given, or for "judge" the model's own.

    None for a model without one, and where that is part of what is optimised.
    """
    from steer.models.drawing import Words

    if not isinstance(given, str):
        return given
    name = JUDGES.get("emoji" if isinstance(model.encode, Words) else model.name)
    if name is None or name in rewards.name_of(score):  # the name of a weighted sum holds those of its parts
        return None
    judge = rewards.get(name)
    if isinstance(judge, rewards.Clip):
        judge.towers(device)
    return judge


def judged_by(judge: rewards.Reward | None, samples: Samples, chunks: Chunks, shares: Shares) -> Judged | None:
    """All pictures scored by the reward that was not optimised, each process's share by itself; None without one."""
    if judge is None:
        return None
    p, n = samples.rewards.shape
    mine = shares.mine(p * n)
    prompts = [q for q in samples.prompts for _ in range(n)][mine]

    def of(images: Tensor) -> Tensor:
        own = images.flatten(0, 1)[mine]
        with Within("reward", chunks.reward):
            r = rewards.Chunked(judge, chunks.reward)(own, prompts) if prompts else own.new_empty(0)
        return shares.gather(r, p * n).view(p, n)

    return Judged(rewards.name_of(judge), of(samples.unsteered), of(samples.images))


def make_report(samples: Samples, facts: Facts) -> dict[str, Any]:
    """Numbers and words as report.json holds them: strict JSON, None where there is no number."""
    chosen, judged = facts.chosen, facts.judged
    settings = _settings(chosen.method)
    if "lookahead" in vars(chosen.method):
        look = chosen.method.lookahead
        settings["lookahead"] = {"name": type(look).__name__, **_settings(look)}
    report: dict[str, Any] = {
        "prompts": samples.prompts,
        "model": facts.model,
        "method": {"name": chosen.name, **settings},
        "temperature": finite(float(getattr(chosen.method, "temperature", float("nan")))),
        "temperatures": None if chosen.temperatures is None else [finite(t) for t in chosen.temperatures],
        "temperature_origin": chosen.origin,
        "seed": facts.seed,
        "particles": samples.rewards.shape[1],
        "reward": {
            "name": facts.reward,
            "assumed": facts.assumed,
            **_compare(samples, samples.unsteered_rewards, samples.rewards),
        },
        "held_out": judged and {"name": judged.name, **_compare(samples, judged.unsteered, judged.steered)},
        "survivors": _survivors(samples, facts.steered.trace),
        "push": _push(facts.steered.trace),
        "diversity": {"unsteered": _diversity(samples.unsteered), "steered": _diversity(samples.images)},
        "log_z": [finite(z) for z in facts.steered.trace.log_z.tolist()],
        "cost": {"unsteered": _cost(facts.plain), "steered": _cost(facts.steered)},
        "pictures": {
            "rewards": _rows(samples.rewards),
            "log_weights": _rows(samples.log_w),
            "unsteered_rewards": _rows(samples.unsteered_rewards),
        },
        "versions": {"steer": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "device": str(samples.images.device),
    }
    if facts.processes:
        report["cost"]["processes"] = facts.processes
    return report | {"warnings": [*chosen.notes, *_warnings(report, chosen)]}


def _samples_law(report: dict[str, Any]) -> bool:
    """Whether the method claims samples of the target: these estimate log Z, and searches for high rewards do not."""
    return any(z is not None for z in report["log_z"])


def _rows(x: Tensor) -> list[list[float | None]]:
    return [[finite(v) for v in row] for row in x.tolist()]


def _mean(r: Tensor) -> float | None:
    """The mean of what was not rejected."""
    kept = r[r.isfinite()]
    return kept.mean().item() if len(kept) else None


def _settings(part: Any) -> dict[str, Any]:  # noqa: ANN401 (a method or a look-ahead)
    """The settings that are plain values."""
    return {k: finite(v) for k, v in vars(part).items() if isinstance(v, int | float | str | bool | None)}


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


def _survivors(samples: Samples, trace: Trace) -> dict[str, float]:
    """The share of particles that have descendants, and the weights' effective sample size as a share of n.

    Means over prompts, and the least of any prompt.
    """
    distinct, effective = metrics.distinct(trace.ancestors), ess(samples.log_w) / samples.log_w.shape[1]
    return {
        "distinct": distinct.mean().item(),
        "effective": effective.mean().item(),
        "least_distinct": distinct.min().item(),
        "least_effective": effective.min().item(),
    }


def _push(trace: Trace) -> float | None:
    """How often the flow's own move fits into the gradient's push: of its steps' median, that of the worst prompt."""
    if trace.push is None:
        return None
    largest = torch.finfo(trace.push.dtype).max
    return trace.push.nan_to_num(largest, largest).median(0).values.max().item()


def _diversity(images: Tensor) -> float | None:
    """Root mean square difference of two pictures of a prompt; None where there is but one."""
    within = [metrics.diversity(images[i : i + 1]).within for i in range(len(images))]
    return finite(torch.cat(within).mean().item())


def _cost(spent: Spent) -> dict[str, Any]:
    """A prompt's cost: rows through the network forwards and backwards, calls in the budget's unit, pictures scored."""
    trace = spent.trace
    a_prompt = {
        "network_forward": trace.forward,
        "network_backward": trace.backward,
        "calls": trace.calls,
        "reward_calls": trace.reward_calls,
    }
    means = {k: v.float().mean().item() for k, v in a_prompt.items()}
    return means | {"network_recomputed": spent.recomputed, "seconds": spent.seconds}


def _warnings(report: dict[str, Any], chosen: Chosen) -> list[str]:
    """What the user should know of, each with the setting to change."""
    reward, held = report["reward"], report["held_out"]
    out = _flat(report, chosen)
    if held and _change(reward) > 0 and _change(held) < -2 * (held["error"] or 0):
        warmer = _samples_law(report) and hasattr(chosen.method, "temperature")
        out.append(
            f"{reward['name']} rose from {reward['unsteered']:.3g} to {reward['weighted']:.3g} while {held['name']}, "
            f"which was not optimised, fell from {held['unsteered']:.3g} to {held['weighted']:.3g}: the reward may be "
            f"cheated, or asks for something other than the prompt; {'raise the temperature' if warmer else 'look'}"
        )
    if _change(reward) < -2 * (reward["error"] or 0):
        out.append(
            f"{reward['name']} fell, from {reward['unsteered']:.3g} to {reward['weighted']:.3g} by weight: raise n or "
            "steps, or name another method"
        )
    return out + _collapse(report, chosen) + _overpowered(report["push"], chosen.method)


def _flat(report: dict[str, Any], chosen: Chosen) -> list[str]:
    """Plain pictures that the reward does not tell apart."""
    of = [prompt for prompt, same in zip(report["prompts"], chosen.flat, strict=False) if same]
    if not of:
        return []
    law = _samples_law(report)
    cure = ", and no temperature to measure. temperature=1 is used there; check the reward, or give a temperature"
    return [
        f"reward {report['reward']['name']!r} gives all plain pictures of a prompt the same score ({of[0]!r}): there "
        f"is nothing to choose by{cure if law else '; check the reward'}"
    ]


def _collapse(report: dict[str, Any], chosen: Chosen) -> list[str]:
    """What is wrong with the particles of the worst prompt, where a sample of the law was asked for."""
    n, survivors = report["particles"], report["survivors"]
    left, size = survivors["least_distinct"] * n, survivors["least_effective"] * n
    if n < 4 or chosen.want == "best" or not _samples_law(report):
        return []
    now = report["temperature"]
    cures = [f"a temperature above {now:.3g}"] if hasattr(chosen.method, "temperature") and now else []
    cure, out = " or ".join([*cures, f"n above {n}"]), []
    if left <= max(1.0, FEW * n) + 1e-3:
        out.append(f"the samples descend from {left:.3g} of {n} particles: take {cure}")
    if size < 1.5:
        out.append(f"nearly all weight is on one picture: take {cure} if a sample of the law is wanted")
    return out


def _overpowered(push: float | None, method: Any) -> list[str]:  # noqa: ANN401
    """A gradient that dwarfs the velocity."""
    if push is None or push <= LONG:
        return []
    lower = [name for name in ("strength", "rho", "mu", "max_ratio", "twist") if getattr(method, name, None)]
    cures = ["raise temperature"] * hasattr(method, "temperature") + [f"lower {' or '.join(lower)}"] * bool(lower)
    return [
        f"the reward's gradient asks for pushes {push:.3g} times as long as the flow's own moves, which may leave the "
        f"data: {', or '.join(cures)}"
    ]


def _change(scores: dict[str, Any]) -> float:
    """What weighted means gained; 0 where one is missing."""
    before, after = scores["unsteered"], scores["weighted"]
    return 0.0 if before is None or after is None else after - before
