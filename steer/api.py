"""`sample`: the only place where prompts, rewards, models and methods meet."""

import dataclasses
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

import rewards
from steer.arguments import Chosen, check_device, check_method, check_numbers, check_prompts, check_reward, choose
from steer.flow_map import Chunked
from steer.methods import BestOfN
from steer.models import Model, load_model
from steer.particles import Particles
from steer.progress import Observed, bar
from steer.report import Spent, judge_for, make_report
from steer.samples import Samples

PLAIN_STEPS = 4  # network calls of an unsteered picture
ENOUGH = 8  # plain pictures a prompt at least, to measure the spread of their rewards
SHARE_OF_SPREAD = 0.25
CHUNK = 128  # pictures decoded and scored at once
ROWS = 1024  # rows put through the network at once


def sample(
    prompt: str | list[str],
    *,
    reward: Any,  # noqa: ANN401 (whatever rewards.to_reward takes)
    model: str | Model = "emoji",
    method: Any = None,  # noqa: ANN401 (a name or a method)
    n: int = 16,
    steps: int | None = None,
    temperature: float | None = None,
    budget: int | None = None,
    seed: int | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> Samples:
    """Draw n pictures a prompt from p(x1 | prompt) exp(reward(x1) / temperature), as well as the method can.

    Args:
        prompt: one prompt or several.
        reward: a name (`steer list` prints them), any function of pictures [b 3 h w] in [0,1] (and prompts, if it takes
            them) that gives [b] scores, higher better, or a list or dict of these with weights.
        model: "emoji" (embedded), a folder that `steer.save_model` wrote, or a `steer.Model`.
        method: "best_of_n", "smc", "guidance", or a method object from `steer.methods`. None takes guidance where the
            reward has a gradient and SMC where it has none.
        n: particles, and pictures, a prompt.
        steps: of the method; None keeps its own.
        temperature: in units of the reward. Lower is stronger; infinity is no steering. None keeps that of a method
            object whose own is not the default, and measures it otherwise: a quarter of the standard deviation of the
            rewards of plain pictures of a prompt, averaged over prompts. The report tells.
        budget: network calls a prompt at most, a backward pass counted as two; the method divides it. The plain
            pictures are not part of it: the report counts them apart.
        seed: same seed, same pictures, on one kind of device. None draws one; the report names it.
        device: None takes CUDA where there is one.
        progress: a progress bar, where stderr is a terminal.

    Returns:
        Samples: pictures, weights and rewards, the plain pictures from the same noise, the trace, and a report.

    Raises:
        ValueError: an argument is out of range or unknown, or the reward breaks its contract; the message names what,
            its value and the cure, before any long work. Exceptions of a user's own reward pass unchanged.
    """
    start = time.perf_counter()
    prompts = check_prompts(prompt)
    check_numbers(n, steps, temperature, budget, seed)
    check_method(method)
    score = check_reward(reward)
    place = check_device(device)
    model = model if isinstance(model, Model) else load_model(model, place)
    seed = int(torch.Generator().seed() % 2**63) if seed is None else int(seed)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        problem = Problem(model, prompts, score, place)
        x0 = problem.noise(n, rng)
        chosen = choose(method, problem.has_gradient(x0), score, steps, temperature, budget, n)
        judge = judge_for(model, score, x0.device)
        with bar(progress, "unsteered", PLAIN_STEPS * len(prompts) * max(n, ENOUGH)) as tick:
            plain, before = problem.run(BestOfN(PLAIN_STEPS), _enough(x0, rng), rng, tick)
        chosen = chosen if chosen.origin else _measure(chosen, plain.rewards, score)
        with bar(progress, chosen.name, _rows(chosen, x0)) as tick:
            particles, spent = problem.run(chosen.method, x0, rng, tick)
        result = Samples(
            prompts=prompts,
            images=problem.pictures(particles.x),
            rewards=particles.rewards,
            log_w=particles.log_w,
            trace=spent[0],
            unsteered=problem.pictures(plain.x[:, :n]),
            unsteered_rewards=plain.rewards[:, :n],
        )
        report = make_report(result, model, chosen, score, judge, seed, before, spent)
    report["cost"]["seconds"] = time.perf_counter() - start
    for text in report["warnings"]:
        warnings.warn(text, stacklevel=2)
    return dataclasses.replace(result, report=report)


@dataclasses.dataclass(frozen=True)
class Scored:
    """What a method returned, its rewards known for certain."""

    x: Tensor
    log_w: Tensor
    rewards: Tensor


class Problem:
    """A model, prompts and a reward, closed into what a method takes: a flow, cond, and rewards of latents."""

    def __init__(self, model: Model, prompts: list[str], score: rewards.Reward, place: torch.device) -> None:
        self.model, self.prompts, self.score = model, prompts, score
        self.cond: Mapping[str, Tensor] | None = model.encode(prompts)
        self.device = next(iter(self.cond.values())).device if self.cond else place
        self.reward_seconds = 0.0

    def noise(self, n: int, rng: torch.Generator) -> Tensor:
        """x0 [p n *d], drawn on the CPU, so that a seed means the same on every device."""
        return torch.randn((len(self.prompts), n, *self.model.shape), generator=rng).to(self.device)

    def has_gradient(self, x0: Tensor) -> bool:
        """Whether the reward has one: what it says itself, or else what a call on one picture shows."""
        said = rewards.is_differentiable(self.score)
        if said is not None:
            return said
        images = self.model.decode(x0[0, :1])
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what torch says of a gradient that is dropped
                return rewards.probe_differentiable(self.score, images, self.prompts[:1])
        except RuntimeError:  # a black box may not bear a tensor that requires a gradient; any other fault shows again
            self.score(images, self.prompts[:1])
            return False

    def run(self, method: Any, x0: Tensor, rng: torch.Generator, tick: Callable[[int], None]) -> tuple[Scored, Spent]:  # noqa: ANN401
        """The method on this problem, with what it spent; `tick(rows)` hears of every network call."""
        flow, start, scoring = Observed(self.model.flow, tick), time.perf_counter(), self.reward_seconds
        particles, trace = method(Chunked(flow, ROWS), self.model.path, self.scores, x0, self.cond, rng=rng)
        known = self._scored(particles)
        total = time.perf_counter() - start
        seconds = {"network": flow.seconds, "decoding_and_reward": self.reward_seconds - scoring, "total": total}
        return known, (trace, seconds)

    def _scored(self, particles: Particles) -> Scored:
        known = self.scores(particles.x) if particles.rewards is None else particles.rewards
        return Scored(particles.x.detach(), particles.log_w.detach(), known.detach())

    def scores(self, x1: Tensor) -> Tensor:
        """Raw rewards [p m] of latents x1 [p m *d]; decoding and scoring go in chunks."""
        p, m = x1.shape[:2]
        start = time.perf_counter()
        flat, prompts = x1.flatten(0, 1), [q for q in self.prompts for _ in range(m)]
        parts = []
        for i in range(0, p * m, CHUNK):
            images = self.model.decode(flat[i : i + CHUNK])
            given = self.score(images, prompts[i : i + CHUNK])
            parts.append(rewards.check_scores(self.score, given, len(images), flat))
        self.reward_seconds += time.perf_counter() - start
        return torch.cat(parts).view(p, m)

    def pictures(self, x1: Tensor) -> Tensor:
        """Pictures [p m 3 h w] of latents [p m *d]."""
        parts = [self.model.decode(part) for part in x1.flatten(0, 1).split(CHUNK)]
        return torch.cat(parts).unflatten(0, x1.shape[:2])


def _rows(chosen: Chosen, x0: Tensor) -> int | None:
    """How many rows the method will put through the network, where it says so by its steps."""
    steps = getattr(chosen.method, "steps", None)
    return None if steps is None else (steps + chosen.method.needs_gradient) * x0.shape[0] * x0.shape[1]


def _enough(x0: Tensor, rng: torch.Generator) -> Tensor:
    """At least `ENOUGH` particles a prompt, the given ones first."""
    p, n = x0.shape[:2]
    more = torch.randn((p, max(ENOUGH - n, 0), *x0.shape[2:]), generator=rng)
    return torch.cat([x0, more.to(x0)], 1)


def _measure(chosen: Chosen, r: Tensor, score: rewards.Reward) -> Chosen:
    """At a temperature of a quarter of the spread of plain rewards r [p n] within a prompt."""
    spread, size = spread_within(r), float(r[r.isfinite()].abs().max()) if r.isfinite().any() else 0.0
    if spread > 1e-6 * size:
        origin = f"measured: {SHARE_OF_SPREAD} x {spread:.4g}, the standard deviation of the rewards of plain pictures"
        return chosen.at(SHARE_OF_SPREAD * spread, origin)
    warnings.warn(
        f"reward {rewards.name_of(score)!r} gives all plain pictures of a prompt the same score: there is nothing to "
        "choose by, and no temperature to measure. temperature=1 is used; check the reward, or give a temperature",
        stacklevel=3,
    )
    return chosen.at(1.0, "1, since the rewards of plain pictures do not differ")


def spread_within(r: Tensor) -> float:
    """The standard deviation within a prompt of rewards [p n], those of -inf left out, averaged over prompts."""
    rows = [row[row.isfinite()] for row in r.double()]
    stds = [row.std() for row in rows if len(row) > 1]
    return torch.stack(stds).mean().item() if stds else 0.0
