"""`sample`: the only place where prompts, rewards, models and methods meet."""

import dataclasses
import functools
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

import rewards
from rewards.calibration import unlike_scales
from rewards.contract import HEARING
from steer.arguments import (
    check_compiler,
    check_device,
    check_flags,
    check_held_out,
    check_lookahead,
    check_method,
    check_numbers,
    check_prompts,
    check_reward,
    check_want,
)
from steer.choosing import Asked, Chosen, choose
from steer.chunks import Chunks
from steer.flow_map import compiled
from steer.methods import BestOfN
from steer.models import Model, load_model
from steer.problem import Problem, Scored, Watch, generators
from steer.progress import bar
from steer.report import Facts, Spent, judge_for, judged_by, make_report
from steer.samples import Samples
from steer.spreading import shares_of

PLAIN_STEPS = 4  # network calls of an unsteered picture
ENOUGH = 8  # plain pictures a prompt at least, to measure the spread of their rewards
SHARE_OF_SPREAD = 0.25


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
    want: str = "sample",
    chunk: int | Mapping[str, int] | None = None,
    compile: bool = False,
    checkpoint: bool = False,
    spread: str | None = None,
    watch: Watch | None = None,
    held_out: Any = "judge",  # noqa: ANN401 (a reward, or None)
) -> Samples:
    """Draw n pictures a prompt from p(x1 | prompt) exp(reward(x1) / temperature), as well as the method can.

    Args:
        prompt: one prompt or several. Each draws its noise from a generator of its own, of the seed and its text, so
            it gets the pictures that it gets alone, up to the rounding of float32: torch may compute a row otherwise in
            a batch of another size (on CPUs mostly in those of fewer than 16 rows).
        reward: a name (`steer list` prints them), any function of pictures [b 3 h w] in [0,1] (and prompts, if it takes
            them) that gives [b] scores, higher better, or a list or dict of these with weights.
        model: "emoji" (embedded), a folder that `steer.save_model` wrote, or a `steer.Model`.
        method: a name (`steer list`), or a method object from `steer.methods`. None takes one that suits the reward,
            the budget and what is wanted: see `steer.choosing.ranked`.
        n: particles, and pictures, a prompt.
        steps: of the method; None keeps its own.
        temperature: in units of the reward, by which methods see it divided. Lower is stronger; infinity is no
            steering. None keeps that of a method object whose own is not the default, and measures it otherwise: for
            each prompt a quarter of the standard deviation of the rewards of its plain pictures. The report tells.
        budget: network calls a prompt at most, a backward pass counted as two; the method divides it. The plain
            pictures are not part of it: the report counts them apart.
        seed: same seed, same pictures, on one kind of device. None draws one; the report names it.
        device: None takes CUDA where there is one.
        progress: a progress bar, where stderr is a terminal.
        want: "sample", pictures of that law, or "best", the best picture that can be found: it chooses a method, where
            none is named, and no report of a search for the best warns that its pictures are much alike.
        chunk: rows at once, to bound memory: {"network": 1024, "decoder": 128, "reward": 128}, some of these, or one
            number for all; with and without gradients (where "network" bounds the rows that are held for one), and the
            pictures stay the same up to rounding.
        compile: put the flow through torch.compile, which needs a compiler on the machine; faster in long runs only.
        checkpoint: keep no activations of the flow for gradients, see `steer.flow_map.Checkpointed`.
        spread: "particles" shares the rows of the network and of the reward among the processes that
            `accelerate launch` or torchrun started, each of which calls this with the same arguments and gets the same
            samples; `chunk` is what each computes at once. See `steer.spreading`; `steer.sample_many` gives each
            process prompts of its own.
        watch: called with a `steer.run.Seen` each time the method has scored pictures: the looks ahead of that step,
            their rewards, weights and ancestors; what it raises ends the run. In each of several processes.
        held_out: a reward that is reported and not optimised, given as `reward` is; "judge" takes the model's own, if
            there is one (pipelines have none), and None none.

    Returns:
        Samples: pictures, weights and rewards, the plain pictures from the same noise, the trace, and a report.

    Raises:
        ValueError: an argument is out of range or unknown, or the reward breaks its contract; the message names what,
            its value and the cure, before any long work. Exceptions of a user's own reward pass unchanged.
        FileNotFoundError: a reward lacks files, packages or a server; the message says how to get them.
        torch.OutOfMemoryError: memory ran out; the message says which chunk to lower.
    """
    start = time.perf_counter()
    prompts = check_prompts(prompt)
    check_numbers(n, steps, temperature, budget, seed)
    check_want(want)
    check_flags(progress=progress, compile=compile, checkpoint=checkpoint)
    check_method(method)
    chunks = Chunks.of(chunk)
    (score, said), kept = _heard(reward), check_held_out(held_out)
    shares, device = shares_of(spread, device)
    place = check_device(device)
    model = ready(model, place, compile)
    seed = shares.agree(lambda: drawn_seed(seed))
    rng, progress = generators(prompts, seed), progress and shares.rank == 0
    with torch.no_grad():
        problem = Problem(model, prompts, score, place, chunks, checkpoint, shares)
        x0 = problem.noise(n, rng)
        asked = Asked(score, problem.has_gradient(x0), len(prompts), n, want, steps, temperature, budget)
        chosen = choose(method, asked)
        check_lookahead(chosen.method, model)
        judge = judge_for(model, score, x0.device, kept)
        with bar(progress, "unsteered", PLAIN_STEPS * len(prompts) * max(n, ENOUGH)) as tick:
            more = problem.noise(max(ENOUGH - n, 0), rng)
            plain, before = problem.run(BestOfN(PLAIN_STEPS), torch.cat([x0, more], 1), rng, tick)
        chosen = chosen if chosen.origin else _measure(chosen, plain.rewards)
        chosen = dataclasses.replace(chosen, notes=(*said, *chosen.notes))
        with bar(progress, chosen.name, _rows(chosen, x0)) as tick:
            particles, spent = problem.run(chosen.method, x0, rng, tick, chosen.temperatures, watch)
        result = _samples(problem, particles, plain, spent)
        judged = judged_by(judge, result, chunks, shares)
        told = shares.told() if shares.world > 1 else None
        how = rewards.assumed(score)
        facts = Facts(model.name, rewards.name_of(score), chosen, judged, seed, before, spent, told, how)
        report = make_report(result, facts)
    report["cost"]["seconds"] = time.perf_counter() - start
    for text in report["warnings"] if shares.rank == 0 else ():
        warnings.warn(text, stacklevel=2)
    return dataclasses.replace(result, report=report, facts=facts)


def pipeline(pipe: Any, **choices: Any) -> Callable[..., Samples]:  # noqa: ANN401
    """`sample` with a diffusers pipeline that is loaded already as its model.

        steered = steer.pipeline(pipe)
        out = steered("a red heart", reward="clip", method="smc", n=8)

    The pipeline's weights are shared, and frozen. **choices: see `steer.models.families.base.Choices`.

    Raises:
        ValueError: the pipeline's class is not known, or a choice does not fit it.
    """
    from steer.models.diffusers import choices_of, from_pipeline

    return functools.partial(sample, model=from_pipeline(pipe, choices_of(choices)))


def ready(model: str | Model, place: torch.device, compile: bool) -> Model:
    """The model, loaded, and compiled where that is asked for."""
    if compile:
        check_compiler(place)
    model = model if isinstance(model, Model) else load_model(model, place)
    return dataclasses.replace(model, flow=compiled(model.flow)) if compile else model


def _heard(reward: Any) -> tuple[rewards.Reward, tuple[str, ...]]:  # noqa: ANN401 (what `sample` takes)
    """The reward, and what is doubtful about it, which the report tells with the rest."""
    with HEARING, warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always", UserWarning)
        score = check_reward(reward, compare=False)
    said = [str(one.message) for one in heard if one.category is UserWarning]
    return score, tuple(filter(None, [*said, unlike_scales(score)]))


def drawn_seed(seed: int | None) -> int:
    """The seed, or one that nobody chose."""
    return int(torch.Generator().seed() % 2**63) if seed is None else int(seed)


def _samples(problem: Problem, steered: Scored, plain: Scored, spent: Spent) -> Samples:
    n = steered.x.shape[1]
    return Samples(
        prompts=problem.prompts,
        images=problem.pictures(steered.x),
        rewards=steered.rewards,
        log_w=steered.log_w,
        trace=spent.trace,
        unsteered=problem.pictures(plain.x[:, :n]),
        unsteered_rewards=plain.rewards[:, :n],
    )


def _rows(chosen: Chosen, x0: Tensor) -> int | None:
    """How many rows the method will put through the network, where it says so by its steps."""
    steps = getattr(chosen.method, "steps", None)
    return None if steps is None else (steps + chosen.method.needs_gradient) * x0.shape[0] * x0.shape[1]


def _measure(chosen: Chosen, r: Tensor) -> Chosen:
    """At a temperature, for each prompt, of a quarter of the spread of its plain rewards r [p n]; 1 where all agree."""
    spreads = [spread_within(row) for row in r]
    flat = tuple(not s > 1e-6 * _size(row) for row, s in zip(r, spreads, strict=True))
    temperatures = [1.0 if same else SHARE_OF_SPREAD * s for same, s in zip(flat, spreads, strict=True)]
    origin = f"measured: {SHARE_OF_SPREAD} x the standard deviation of the rewards of a prompt's plain pictures"
    if all(flat):
        origin = "1, since the rewards of plain pictures do not differ"
    return dataclasses.replace(chosen.at(temperatures, origin), flat=flat)


def _size(r: Tensor) -> float:
    kept = r[r.isfinite()]
    return float(kept.abs().max()) if len(kept) else 0.0


def spread_within(r: Tensor) -> float:
    """The standard deviation of rewards [n], those of -inf left out; 0 where fewer than two are left."""
    kept = r[r.isfinite()].double()
    return kept.std().item() if len(kept) > 1 else 0.0
