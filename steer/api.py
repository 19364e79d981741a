"""`sample`: the only place where prompts, rewards, models and methods meet."""

import dataclasses
import difflib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import rewards
from steer.models import Model, load_model
from steer.particles import Particles, Trace
from steer.progress import Observed, bar
from steer.report import make_report
from steer.samples import Samples

PLAIN_STEPS = 4
SHARE_OF_SPREAD = 0.25
CHUNK = 128


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
        reward: a name (`rewards.names()`), any function of pictures [b 3 h w] in [0,1] (and prompts, if it takes them) that
            gives [b] scores, higher better, or a list or dict of these with weights.
        model: "emoji" (embedded), a folder that `steer.save_model` wrote, or a `steer.Model`.
        method: "best_of_n", "smc", "guidance", or a method object from `steer.methods`. None takes guidance where the
            reward has a gradient and SMC where it has none.
        n: particles, and pictures, a prompt.
        steps: of the method; None keeps its own.
        temperature: in units of the reward. Lower is stronger; infinity is no steering. None measures it: a quarter of
            the standard deviation of the rewards of plain samples of a prompt, averaged over prompts. A method object keeps
            its own temperature unless one is given here.
        budget: network calls a prompt at most, a backward pass counted as two; the method divides it.
        seed: same seed, same pictures, on one kind of device. None draws one; the report names it.
        device: None takes CUDA where there is one.
        progress: a progress bar on stderr.

    Returns:
        Samples: the pictures, weights and rewards, the plain pictures from the same noise, what it cost, and a report.

    Raises:
        ValueError: an argument is out of range or unknown; the message names it, its value and the cure. Raised before
            any sampling. Exceptions of a user's own reward pass unchanged.
    """
    prompts = _check_prompts(prompt)
    _check_numbers(n, steps, temperature, budget, seed)
    score = rewards.to_reward(reward)
    method = _resolve_method(method)
    place = _check_device(device)
    model = load_model(model, place) if not isinstance(model, Model) else model
    seed = int(torch.Generator().seed() % 2**63) if seed is None else seed
    rng = torch.Generator().manual_seed(seed)
    cond = model.encode(prompts)
    x0 = torch.randn((len(prompts), n, *model.shape), generator=rng).to(_device_of(cond, place))
    differentiable = _probe(model, score, prompts, x0)
    chosen = _configure(method, differentiable, score, steps, temperature, budget, n)
    problem = Problem(model, prompts, score, cond)
    with bar(progress, "unsteered") as tick:
        plain, plain_trace = problem.run(_plain(), _enough(x0, rng), rng, tick)
    plain_rewards = plain.rewards if plain.rewards is not None else problem.scores(plain.x)
    if temperature is None and chosen.from_name:
        chosen = chosen.at(_measured_temperature(plain_rewards, score))
    before = problem.seconds()
    with bar(progress, chosen.name) as tick:
        particles, trace = problem.run(chosen.method, x0, rng, tick)
    if particles.rewards is None:
        particles = dataclasses.replace(particles, rewards=problem.scores(particles.x))
    result = Samples(
        prompts=prompts,
        images=problem.pictures(particles.x),
        rewards=particles.rewards,  # type: ignore[arg-type]
        log_w=particles.log_w,
        trace=trace,
        unsteered=problem.pictures(plain.x[:, :n]),
        unsteered_rewards=plain_rewards[:, :n],
    )
    report = make_report(result, model, chosen, score, seed, (plain_trace, before), (trace, problem.seconds()))
    return dataclasses.replace(result, report=report)


@dataclass(frozen=True)
class Chosen:
    """A method with its settings, and whether it came by name (its temperature is then ours to measure)."""

    method: Any
    name: str
    from_name: bool

    def at(self, temperature: float) -> "Chosen":
        """The same at another temperature."""
        return dataclasses.replace(self, method=dataclasses.replace(self.method, temperature=temperature))


class Problem:
    """A model, prompts and a reward, closed into what a method takes: a flow, cond, and rewards of latents."""

    def __init__(self, model: Model, prompts: list[str], score: rewards.Reward, cond: Any) -> None:  # noqa: ANN401
        self.model, self.prompts, self.score, self.cond = model, prompts, score, cond
        self.spent = {"network": 0.0, "reward": 0.0, "total": 0.0}

    def run(self, method: Any, x0: Tensor, rng: torch.Generator, tick: Callable[[int], None]) -> tuple[Particles, Trace]:  # noqa: ANN401
        """The method on this problem, timed; `tick(rows)` hears of every network call."""
        flow = Observed(self.model.flow, tick)
        start = time.perf_counter()
        out = method(flow, self.model.path, self.scores, x0, self.cond, rng=rng)
        self.spent["total"] += time.perf_counter() - start
        self.spent["network"] += flow.seconds
        return out

    def seconds(self) -> dict[str, float]:
        """Wall time so far, and the parts of it inside the network's forward calls and the reward's."""
        return dict(self.spent)

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
        self.spent["reward"] += time.perf_counter() - start
        return torch.cat(parts).view(p, m)

    @torch.no_grad()
    def pictures(self, x1: Tensor) -> Tensor:
        """Pictures [p m 3 h w] of latents [p m *d]."""
        flat = x1.flatten(0, 1)
        return torch.cat([self.model.decode(part) for part in flat.split(CHUNK)]).unflatten(0, x1.shape[:2])


def _check_prompts(prompt: Any) -> list[str]:  # noqa: ANN401
    prompts = [prompt] if isinstance(prompt, str) else list(prompt) if isinstance(prompt, (list, tuple)) else None
    if not prompts or not all(isinstance(p, str) for p in prompts):
        raise ValueError(f"prompt={prompt!r} must be a text or a list of texts with at least one")
    if any(not p.strip() for p in prompts):
        raise ValueError(f"prompt={prompt!r} holds an empty text; say what the picture shows")
    return prompts


def _check_numbers(n: Any, steps: Any, temperature: Any, budget: Any, seed: Any) -> None:  # noqa: ANN401
    for name, value in {"n": n, "steps": steps, "budget": budget}.items():
        if value is None and name != "n":
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name}={value!r} must be a whole number, at least 1")
    if temperature is not None and (isinstance(temperature, bool) or not _positive(temperature)):
        raise ValueError(f"temperature={temperature!r} must be above 0 (lower steers harder), or None to measure it")
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63):
        raise ValueError(f"seed={seed!r} must be a whole number from 0 to 2**63 - 1, or None to draw one")


def _positive(x: Any) -> bool:  # noqa: ANN401
    return isinstance(x, (int, float)) and x > 0


def _check_device(device: str | torch.device | None) -> torch.device:
    try:
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device={device!r} cannot be used here ({str(error).splitlines()[0]}); try 'cpu'") from error
    return place


def _device_of(cond: Any, otherwise: torch.device) -> torch.device:  # noqa: ANN401
    return next(iter(cond.values())).device if cond else otherwise


def _resolve_method(method: Any) -> Any:  # noqa: ANN401
    from steer.methods import METHODS

    if not isinstance(method, str):
        if method is not None and not (callable(method) and dataclasses.is_dataclass(method)) or isinstance(method, type):
            raise ValueError(f"method={method!r} must be a name ({', '.join(METHODS)}), a method object such as SMC(), or None")
        return method
    if method not in METHODS:
        near = difflib.get_close_matches(method, METHODS, 1, 0.4)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"method={method!r} is unknown; known: {', '.join(METHODS)}{hint}")
    return method


def _probe(model: Model, score: rewards.Reward, prompts: list[str], x0: Tensor) -> bool:
    """Whether the reward has a gradient: what it says, or else what one call on one picture shows."""
    said = rewards.is_differentiable(score)
    if said is not None:
        return said
    with torch.no_grad():
        images = model.decode(x0[:1, :1].flatten(0, 1))
    return rewards.probe_differentiable(score, images, prompts[:1])


def _configure(
    method: Any, differentiable: bool, score: rewards.Reward, steps: int | None, temperature: float | None,
    budget: int | None, n: int,
) -> Chosen:  # fmt: skip  # noqa: ANN401
    from steer.methods import METHODS

    from_name = method is None or isinstance(method, str)
    name = ("guidance" if differentiable else "smc") if method is None else method
    chosen = METHODS[name]() if from_name else method
    name = name if from_name else type(method).__name__
    if getattr(chosen, "needs_gradient", False) and not differentiable:
        raise ValueError(
            f"method={name!r} needs a reward with a gradient, and {rewards.name_of(score)!r} has none; "
            "use method='smc' or 'best_of_n'"
        )
    settings = {k: v for k, v in {"steps": steps, "temperature": temperature}.items() if v is not None}
    for key in settings:
        if key not in {f.name for f in dataclasses.fields(chosen)}:
            raise ValueError(f"method={name!r} has no {key}; leave {key}=None")
    chosen = dataclasses.replace(chosen, **settings)
    if budget is not None:
        chosen = chosen.with_budget(budget, n)
    return Chosen(chosen, name, from_name)


def _plain() -> Any:  # noqa: ANN401
    from steer.methods import BestOfN

    return BestOfN(steps=PLAIN_STEPS)


def _enough(x0: Tensor, rng: torch.Generator) -> Tensor:
    """At least eight particles a prompt, so that the spread of their rewards can be measured."""
    p, n = x0.shape[:2]
    if n >= 8:
        return x0
    return torch.cat([x0, torch.randn((p, 8 - n, *x0.shape[2:]), generator=rng).to(x0)], 1)


def _measured_temperature(r: Tensor, score: rewards.Reward) -> float:
    spread = finite_std(r)
    if not spread > 0:
        import warnings

        warnings.warn(
            f"reward {rewards.name_of(score)!r} gives all plain samples of a prompt the same score, so it cannot choose "
            "among them; temperature=1 is used. Check the reward, or give more prompts room to vary",
            stacklevel=3,
        )
        return 1.0
    return SHARE_OF_SPREAD * spread


def finite_std(r: Tensor) -> float:
    """The standard deviation within a prompt of rewards [p n], those of -inf left out, averaged over prompts."""
    stds = [row[row.isfinite()].std(correction=1) for row in r.detach().double() if row.isfinite().sum() > 1]
    return torch.stack(stds).mean().item() if stds else 0.0
