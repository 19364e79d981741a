"""What the studio offers, what is asked of it, and the command that gives the same pictures elsewhere."""

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import rewards
from steer import settings
from steer.api import drawn_seed
from steer.models import Model, load_model

MIX = "a mix"
AUTOMATIC, BEST = "automatic", "automatic, the best picture"
METHODS = (AUTOMATIC, BEST, *settings.names("method"))
SEEDS = 2**32  # all of which a browser can hold


@dataclass(frozen=True)
class Limits:
    """The most that a page may ask for.

    n: pictures; budget: network calls; prompt: characters; parts: rewards of a mix.
    side: pixels of the longer side of a picture as it is shown.
    history: runs that a session keeps; queue: runs that wait, of all sessions.
    """

    n: int = 64
    budget: int = 4096
    prompt: int = 300
    parts: int = 8
    side: int = 256
    history: int = 12
    queue: int = 8

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"limits.{name}={value!r} must be a whole number, at least 1")


@dataclass(frozen=True)
class Offer:
    """A model or a reward that can be chosen, and how to name it elsewhere.

    value: what `steer.sample` takes. command: settings of `steer sample`. python: an expression. needs: its imports.
    """

    value: Any
    command: tuple[str, ...]
    python: str
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Shelf:
    """All that a studio offers, by name; the first of each is chosen when the page opens.

    lacking: why the other built-in rewards cannot run here, by name. device: None takes CUDA where there is one.
    """

    models: dict[str, Offer]
    rewards: dict[str, Offer]
    lacking: dict[str, str] = field(default_factory=dict)
    device: str | None = None
    limits: Limits = Limits()
    _loaded: dict[str, Model] = field(default_factory=dict, repr=False)

    def model(self, name: str) -> Model:
        """The model of a name, loaded once."""
        if name not in self._loaded:
            self._loaded[name] = load_model(self.models[name].value, self.device)
        return self._loaded[name]


def shelf(
    model: str = "emoji",
    reward: tuple[str, Offer] | None = None,
    device: str | None = None,
    limits: Limits | None = None,
) -> Shelf:
    """What is built in and can run here, with a model or its folder, and a reward under its name, in front.

    Raises:
        ValueError: the folder holds no model. OSError, ModuleNotFoundError: the reward lacks something.
    """
    if reward and (words := rewards.missing(rewards.to_reward(reward[1].value))):
        raise FileNotFoundError(words)
    built = {name: settings.build("reward", name) for name in settings.names("reward")}
    lacking = {name: words for name, made in built.items() if (words := rewards.missing(made))}
    able = {name: Offer(made, (f"reward={name}",), repr(name)) for name, made in built.items() if name not in lacking}
    offered = dict([reward]) if reward else {"clip": able["clip"]}
    offered |= {name: offer for name, offer in able.items() if name not in offered}
    models = {name: Offer(name, (f"model={name}",), repr(name)) for name in [model, *settings.names("model")]}
    made = Shelf(models, offered, lacking, device, limits or Limits())
    made.model(model)
    return made


@dataclass(frozen=True)
class Asked:
    """A run as it was asked for, checked against what is offered.

    mix: names and weights, where the reward is `MIX`. budget: 0 for the method's own. temperature: None to measure it.

    Raises:
        ValueError: something is out of range or unknown; the message says what to change.
    """

    shelf: Shelf = field(repr=False)
    prompt: str
    model: str
    reward: str
    mix: tuple[tuple[str, float], ...]
    method: str
    budget: int
    n: int
    temperature: float | None
    seed: int

    def __post_init__(self) -> None:
        most = self.shelf.limits
        if not self.prompt or len(self.prompt) > most.prompt:
            raise ValueError(f"The prompt has {len(self.prompt)} characters; write 1 to {most.prompt}.")
        known = {"model": self.shelf.models, "reward": [*self.shelf.rewards, MIX], "method": METHODS}
        for name, choices in known.items():
            if getattr(self, name) not in choices:
                raise settings.unknown(name, str(getattr(self, name)), choices)
        for name, least, top in (("n", 1, most.n), ("budget", 0, most.budget), ("seed", 0, SEEDS - 1)):
            if not least <= getattr(self, name) <= top:
                raise ValueError(f"{name}={getattr(self, name)} is out of range; give {least} to {top}.")
        if self.temperature is not None and not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature={self.temperature} must be above 0; leave it empty to have it measured.")

    @classmethod
    def of(
        cls,
        shelf: Shelf,
        prompt: object,
        model: object,
        reward: object,
        mix: object,
        method: object,
        budget: object,
        n: object,
        temperature: object,
        seed: object,
    ) -> "Asked":
        """Of what a page sent, which may be anything."""
        parts = _mix(shelf, mix) if reward == MIX else ()
        warm = None if temperature in (None, "") else _number("temperature", temperature)
        drawn = drawn_seed(None) % SEEDS if seed in (None, "") else _whole("seed", seed)
        numbers = (_whole("budget", budget or 0), _whole("n", n), warm, drawn)
        return cls(shelf, " ".join(str(prompt or "").split()), str(model), str(reward), parts, str(method), *numbers)

    def given(self) -> dict[str, Any]:
        """The arguments of `steer.sample`, all but the model."""
        reward = dict(self.mix) if self.mix else self.shelf.rewards[self.reward].value
        return {"reward": reward, "device": self.shelf.device, **self._plain()}

    def _plain(self) -> dict[str, Any]:
        """Those that are plain values and not the default."""
        plain: dict[str, Any] = {"n": self.n, "seed": self.seed}
        if self.method == BEST:
            plain["want"] = "best"
        elif self.method != AUTOMATIC:
            plain["method"] = self.method
        told = {"budget": self.budget or None, "temperature": self.temperature}
        return plain | {key: value for key, value in told.items() if value is not None}

    def command(self) -> str:
        """The command line that writes the same pictures."""
        from steer.composing import as_text

        mixed = "{" + ", ".join(f"{name}: {weight!r}" for name, weight in self.mix) + "}"
        reward = (f"reward={mixed}",) if self.mix else self.shelf.rewards[self.reward].command
        plain = self._plain() | ({"device": self.shelf.device} if self.shelf.device else {})
        prompt = as_text(self.prompt) if self.prompt.startswith(("[", "'", '"')) else self.prompt
        words = [f"prompt={prompt}", *self.shelf.models[self.model].command, *reward]
        words += [f"{key}={value}" for key, value in plain.items()]
        return "steer sample " + " ".join(map(shlex.quote, words))

    def python(self) -> str:
        """The call that returns the same pictures."""
        offered = None if self.mix else self.shelf.rewards[self.reward]
        reward = repr(dict(self.mix)) if offered is None else offered.python
        told = {"model": self.shelf.models[self.model].python, "reward": reward}
        told |= {key: repr(value) for key, value in self._plain().items()}
        told |= {"device": repr(self.shelf.device)} if self.shelf.device else {}
        lines = [*(offered.needs if offered else ()), "import steer", "", f"out = steer.sample(\n    {self.prompt!r},"]
        return "\n".join([*lines, *(f"    {key}={value}," for key, value in told.items()), ")"])


def _number(name: str, value: object) -> float:
    try:
        number = float(value)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{name}={value!r} is no number; give one.")
    return number


def _whole(name: str, value: object) -> int:
    number = _number(name, value)
    if number != int(number):
        raise ValueError(f"{name}={value!r} is no whole number; give one.")
    return int(number)


def _mix(shelf: Shelf, rows: object) -> tuple[tuple[str, float], ...]:
    """Names and weights of the rows of a table, empty ones left out."""
    filled = (
        [row for row in rows if isinstance(row, Sequence) and len(row) == 2 and row[0]]
        if isinstance(rows, list)
        else []
    )
    names = [name for name in shelf.rewards if shelf.rewards[name].command == (f"reward={name}",)]
    for name, _ in filled:
        if name not in names:
            raise settings.unknown("reward", str(name), names)
    if not 1 <= len({name for name, _ in filled}) == len(filled) <= shelf.limits.parts:
        raise ValueError(
            f"The mix has {len(filled)} rows; give 1 to {shelf.limits.parts}, each of another reward with its weight."
        )
    return tuple((str(name), _number(f"the weight of {name}", weight)) for name, weight in filled)
