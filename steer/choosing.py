"""Which method: the caller's, or the one that suits the reward, the budget and what is wanted."""

import dataclasses
import math
import statistics
from typing import Any

import rewards
from steer import settings

MANY = 64  # steps a particle beyond which more particles buy more


def ranked(want: str, differentiable: bool, n: int, budget: int | None) -> list[str]:
    """Names of methods for a caller who names none, the best first; the first that has the budget is taken.

    "sample" is a matter of weights, which SMC keeps right for any reward. A gradient that twists its moves makes them
    more even, where it can be paid for (four calls a step, 16 a particle). Without one it takes the SDE chain (two
    calls a step), which a learned map follows more faithfully than the long jumps of restarts; these, at one call a
    step, where calls are few. With fewer than two calls a particle there is nothing to resample between, and plain
    weights are all there is. Fewer than four particles make no population: then only a gradient steers, if there is
    one.

    "best" is a search. Ascent in the picture itself (FMRG-E) finds the most in a call, and calls the reward often;
    without a gradient, a beam or a tree spends calls where pictures are good.
    """
    each = math.inf if budget is None else budget / n
    gradient = differentiable and each >= 5
    if want == "best":
        search = ["beam", "tree_search", "best_of_n"]
        return ["fmrg_e", *search] if gradient else search
    if n < 4:
        return ["guidance", "best_of_n"] if gradient else ["best_of_n"]
    if each < 2:
        return ["best_of_n"]
    chain = ["smc_sde", "smc", "best_of_n"] if each >= 5 else ["smc", "best_of_n"]
    return ["tds", *chain] if differentiable and each >= 16 else chain


@dataclasses.dataclass(frozen=True)
class Chosen:
    """A method with its settings and its name.

    Attributes:
        temperatures: one a prompt; empty until they are measured, and None for a method that has none.
        origin: where they come from.
        notes: what is doubtful about the choice, in words.
        want: "sample" or "best", as asked.
        flat: where the temperature was measured, whether a prompt's plain pictures all have the same reward.
    """

    method: Any
    name: str
    origin: str
    temperatures: tuple[float, ...] | None = None
    notes: tuple[str, ...] = ()
    want: str = "sample"
    flat: tuple[bool, ...] = ()

    def at(self, temperatures: list[float], origin: str) -> "Chosen":
        """The same at these temperatures, one a prompt; their mean stands in the method."""
        mean = temperatures[0] if len(set(temperatures)) == 1 else statistics.fmean(temperatures)
        method = dataclasses.replace(self.method, temperature=mean)
        return dataclasses.replace(self, method=method, temperatures=tuple(temperatures), origin=origin)

    def part(self, rows: slice) -> "Chosen":
        """The same for some of the prompts."""
        own = dataclasses.replace(self, flat=self.flat[rows])
        return own.at(list(self.temperatures[rows]), self.origin) if self.temperatures else own


@dataclasses.dataclass(frozen=True)
class Asked:
    """What the choice depends on: of the arguments of `steer.sample`, and whether the reward has a gradient."""

    reward: rewards.Reward
    differentiable: bool
    prompts: int
    n: int
    want: str = "sample"
    steps: int | None = None
    temperature: float | None = None
    budget: int | None = None


def choose(method: Any, asked: Asked) -> Chosen:  # noqa: ANN401 (a name, a method or None)
    """The method with everything that was asked of it; raises ValueError where it does not suit the reward."""
    if method is not None:
        return _settle(method, asked)
    names = ranked(asked.want, asked.differentiable, asked.n, asked.budget)
    for name in names[:-1]:
        try:
            return _settle(name, asked)
        except ValueError:  # too small a budget, or no such setting: the next
            continue
    return _settle(names[-1], asked)


def _settle(method: Any, asked: Asked) -> Chosen:  # noqa: ANN401
    named = isinstance(method, str)
    name, chosen = (method, settings.build("method", method)) if named else (settings.called("method", method), method)
    if getattr(chosen, "needs_gradient", False) and not asked.differentiable:
        raise ValueError(
            f"method={name!r} follows the reward's gradient, and reward {rewards.name_of(asked.reward)!r} has none; "
            "use method='smc' or 'best_of_n', or write the reward in differentiable torch operations"
        )
    known = {field.name: field for field in dataclasses.fields(chosen)}
    given = {k: v for k in ("steps", "temperature") if (v := getattr(asked, k)) is not None}
    for key in given:
        if key not in known:
            raise ValueError(f"{key}={given[key]!r}: method {name!r} has no {key}; leave it out")
    own = "temperature" in known and chosen.temperature != known["temperature"].default
    chosen = dataclasses.replace(chosen, **given)
    chosen = chosen.with_budget(asked.budget, asked.n) if asked.budget is not None else chosen
    result = Chosen(chosen, name, "the method has none", None, _doubts(chosen, name, asked.budget), asked.want)
    if "temperature" not in known:
        return result
    if asked.temperature is None and not own:
        return dataclasses.replace(result, temperatures=(), origin="")
    origin = "given" if asked.temperature is not None else "the method's own"
    return result.at([float(chosen.temperature)] * asked.prompts, origin)


def _doubts(method: Any, name: str, budget: int | None) -> tuple[str, ...]:  # noqa: ANN401
    """A budget that only makes for more steps than are of use."""
    steps = getattr(method, "steps", 0)
    if budget is None or not isinstance(steps, int) or steps <= MANY:
        return ()
    return (
        f"budget={budget} makes {steps} steps of {name}, and more than {MANY} gain little: raise n, or lower budget",
    )
