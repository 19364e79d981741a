"""Wrappers that are rewards themselves, and the way from anything a user has to a reward."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from rewards.contract import (
    Reward,
    assumed,
    check_images,
    check_scores,
    cost_of,
    is_differentiable,
    missing,
    name_of,
    probe_differentiable,
)
from rewards.function import Bytes, Function, PerPrompt, Pil, to_pil
from rewards.styles import Loss, from_callable

__all__ = [
    "Bytes", "Chunked", "Counted", "Function", "Loss", "Negated", "PerPrompt", "Pil", "Reward", "WeightedSum",
    "assumed", "check_images", "check_scores", "cost_of", "is_differentiable", "missing", "name_of",
    "probe_differentiable", "to_pil", "to_reward",
]  # fmt: skip


@dataclass(frozen=True)
class WeightedSum:
    """sum_i weight_i * reward_i. Scores of different rewards have different scales: the weights carry them.

    A picture that one part rejects (-inf) is rejected, whatever the sign of that part's weight, unless it is 0.

    Raises:
        ValueError: no rewards, not one weight a reward, or a weight that is no finite number.
    """

    rewards: tuple[Reward, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.rewards or len(self.rewards) != len(self.weights):
            given = f"{len(self.weights)} weights for {len(self.rewards)} rewards"
            raise ValueError(f"{given}; give one or more rewards, and a weight for each")
        for part, w in zip(self.rewards, self.weights, strict=True):
            if not isinstance(w, (int, float)) or isinstance(w, bool) or not math.isfinite(w):
                raise ValueError(f"the weight of reward {name_of(part)!r} is {w!r}; give a finite number")
        object.__setattr__(self, "rewards", tuple(to_reward(r) for r in self.rewards))
        object.__setattr__(self, "weights", tuple(float(w) for w in self.weights))

    @property
    def name(self) -> str:
        """Weights and names."""
        return " + ".join(f"{w:g} {name_of(r)}" for w, r in zip(self.weights, self.rewards, strict=True))

    @property
    def differentiable(self) -> bool | None:
        """False if any part says so, None if any part must be probed."""
        said = [is_differentiable(r) for r in self.rewards]
        return False if False in said else None if None in said else True

    @property
    def cost(self) -> float:
        """The sum of the parts'."""
        return sum(cost_of(r) for r in self.rewards)

    @property
    def assumed(self) -> str | None:
        """What is assumed of the parts, by name; None where nothing is."""
        said = [f"{name_of(r)}: {text}" for r in self.rewards if (text := assumed(r))]
        return "; ".join(said) or None

    def missing(self) -> str | None:
        """What the parts lack; None where all can run here."""
        return " ".join(text for r in self.rewards if (text := missing(r))) or None

    def parts(self, images: Tensor, prompts: list[str]) -> dict[str, Tensor]:
        """Each reward's own scores [b], unweighted, by name; the second of a name is called "name 2"."""
        names = [name_of(r) for r in self.rewards]
        again = [names[:i].count(name) for i, name in enumerate(names)]
        keys = [f"{name} {k + 1}" if k else name for name, k in zip(names, again, strict=True)]
        return {key: r(images, prompts) for key, r in zip(keys, self.rewards, strict=True)}

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Scores [b] of pictures [b 3 h w] in [0,1]."""
        total = images.new_zeros(len(images))
        rejected = total.bool()
        for w, reward in zip(self.weights, self.rewards, strict=True):
            r = reward(images, prompts)
            no = r == -torch.inf
            total, rejected = total + w * r.masked_fill(no, 0), rejected | (no & (w != 0))
        return total.masked_fill(rejected, -torch.inf)


class Wrapper:
    """The attributes of a wrapped reward, which may be given as anything that `to_reward` takes."""

    reward: Reward

    def __post_init__(self) -> None:
        object.__setattr__(self, "reward", to_reward(self.reward))

    @property
    def name(self) -> str:
        """The reward's."""
        return name_of(self.reward)

    @property
    def differentiable(self) -> bool | None:
        """The reward's."""
        return is_differentiable(self.reward)

    @property
    def cost(self) -> float:
        """The reward's."""
        return cost_of(self.reward)

    @property
    def assumed(self) -> str | None:
        """The reward's."""
        return assumed(self.reward)

    def missing(self) -> str | None:
        """The reward's."""
        return missing(self.reward)


@dataclass(frozen=True)
class Negated(Wrapper):
    """-reward, for a score of which less is better. What the reward rejects (-inf) stays rejected."""

    reward: Reward

    @property
    def name(self) -> str:
        """The reward's name with a minus."""
        return f"-{name_of(self.reward)}"

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Scores [b] of pictures [b 3 h w] in [0,1]."""
        r = self.reward(images, prompts)
        return (-r).masked_fill(r == -torch.inf, -torch.inf)


@dataclass(frozen=True)
class Chunked(Wrapper):
    """The same scores, at most `size` pictures at a time.

    Raises:
        ValueError: size < 1.
    """

    reward: Reward
    size: int = 32

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size={self.size} must be at least 1 picture")
        object.__setattr__(self, "reward", to_reward(self.reward))

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Scores [b] of pictures [b 3 h w] in [0,1]."""
        starts = range(0, len(images), self.size)
        return torch.cat([self.reward(images[i : i + self.size], prompts[i : i + self.size]) for i in starts])


@dataclass(eq=False)
class Counted(Wrapper):
    """The same scores, and how many calls and pictures they took."""

    reward: Reward
    calls: int = 0
    pictures: int = 0

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Scores [b] of pictures [b 3 h w] in [0,1]."""
        self.calls += 1
        self.pictures += len(images)
        return self.reward(images, prompts)


def to_reward(given: object, *, compare: bool = True) -> Reward:
    """A reward of whatever a user has.

    Taken: a name (see `rewards.names()`); a reward of this package; any callable of (images), (images, prompts) or
    (images, prompts, metadata), which may return (scores, info); a torch module; an object with the method
    `score(images, prompts)`; the scorers of other libraries (see `rewards.styles`); a list of these, or of (reward,
    weight) pairs; a dict {reward or name: weight}. A function must say what does not show: `Pil(function)` takes PIL
    pictures, `Bytes(function)` whole numbers, `PerPrompt(function)` one picture at a time, and of `Loss(function)`
    less is better. `rewards.assumed` of the result, and the log of "rewards", tell how a function is called. One whose
    gradient is known may say so and save the probe: `Function(function, differentiable=True)`.

    compare: warn where several rewards have unlike scales, see `rewards.calibration.warn_of_scales`.

    Raises:
        ValueError: an unknown name, an empty list, or a weight that is no finite number.
        TypeError: nothing of the above, or a loss of which nothing says which way is better.
    """
    made = _made(given)
    if compare and isinstance(made, WeightedSum):
        from rewards.calibration import warn_of_scales

        warn_of_scales(made)
    return made


def _made(given: object) -> Reward:
    if isinstance(given, str):
        from rewards import get

        return get(given)
    if isinstance(given, Mapping):
        return _weighted(list(given.items()))
    if isinstance(given, Sequence):
        return _weighted([tuple(g) if _is_pair(g) else (g, 1.0) for g in given])
    if type(given).__module__.split(".")[0] == "rewards":
        return cast(Reward, given)
    reward = from_callable(given)
    logging.getLogger("rewards").info("reward %r is %s", name_of(reward), assumed(reward))
    return reward


def _is_pair(given: object) -> bool:
    """(reward, weight), or [reward, weight] as files of settings have it."""
    if not isinstance(given, Sequence) or isinstance(given, str) or len(given) != 2:
        return False
    return isinstance(given, tuple) or isinstance(given[1], (int, float))


def _weighted(pairs: list[tuple[Any, Any]]) -> Reward:
    if not pairs:
        raise ValueError("reward is empty; give at least one reward")
    if len(pairs) == 1 and pairs[0][1] == 1:
        return to_reward(pairs[0][0])
    parts, weights = zip(*pairs, strict=True)
    return WeightedSum(parts, weights)
