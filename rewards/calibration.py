"""Scales of rewards: mean and spread over pictures that are named, to compare, weigh and normalise by.

Rewards have units of their own: a weight of 1 for one and 2 for another says nothing before their spreads are known.
Those of the rewards that run without downloads ship with the package, as `scripts/calibrate.py` measured them.
"""

import math
import warnings
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from rewards.base import Chunked, WeightedSum, Wrapper, to_reward
from rewards.contract import Reward, name_of
from rewards.files import read_json
from rewards.towers import ASSETS

UNLIKE = 10.0  # weighted spreads further apart than this factor are told of
CHUNK = 32


@dataclass(frozen=True)
class Calibration:
    """Mean and standard deviation of a reward over pictures with their own captions.

    pictures: which ones, in words.
    count: how many of them the reward did not reject.

    Raises:
        ValueError: a mean that is not finite, or a standard deviation that is not above 0.
    """

    mean: float
    std: float
    pictures: str = ""
    count: int = 0

    def __post_init__(self) -> None:
        if not math.isfinite(self.mean):
            raise ValueError(f"mean={self.mean} must be finite")
        if not 0 < self.std < math.inf:
            raise ValueError(f"std={self.std} must be above 0: a reward that does not vary cannot be normalised")


def calibrate(reward: object, images: Tensor, prompts: list[str], pictures: str = "") -> Calibration:
    """Measure a reward on pictures [b 3 h w] in [0,1] and their prompts; those it rejects (-inf) are left out.

    reward: whatever `to_reward` takes.
    pictures: what they are, in words.

    Raises:
        ValueError: fewer than two pictures are left, or all have the same score.
    """
    scored = Chunked(to_reward(reward), CHUNK)
    with torch.no_grad():
        r = scored(images, prompts).double()
    r = r[r.isfinite()]
    if len(r) < 2:
        raise ValueError(f"reward {scored.name!r} leaves {len(r)} of {len(images)} pictures; calibrate on two or more")
    return Calibration(r.mean().item(), r.std().item(), pictures, len(r))


@lru_cache(maxsize=1)
def shipped() -> dict[str, Calibration]:
    """The calibrations that ship, by the names of rewards."""
    path, cure = ASSETS / "calibration.json", "install the package again"
    rows = read_json(path, cure)
    try:
        return {name: Calibration(**row) for name, row in rows.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}); {cure}") from error


def calibration_of(reward: object) -> Calibration | None:
    """The shipped calibration of a built-in reward with its default settings; None of anything else."""
    from rewards import get

    name = name_of(reward)
    return shipped()[name] if name in shipped() and get(name) == reward else None


@dataclass(frozen=True)
class Normalised(Wrapper):
    """(reward - mean) / std: of mean 0 and standard deviation 1 over the pictures of its calibration.

    calibration: None takes the one that ships. What the reward rejects (-inf) stays rejected.

    Raises:
        ValueError: none is given and none ships.
    """

    reward: Reward
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "reward", to_reward(self.reward))
        found = self.calibration or calibration_of(self.reward)
        if found is None:
            raise ValueError(
                f"reward {name_of(self.reward)!r} has no calibration that ships; measure it on pictures like yours: "
                "Normalised(reward, rewards.calibrate(reward, images, prompts)), or write the numbers down: "
                "rewards.Calibration(mean, std)"
            )
        object.__setattr__(self, "calibration", found)

    @property
    def name(self) -> str:
        """The reward's, and that it is normalised."""
        return f"{name_of(self.reward)} (normalised)"

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Scores [b] of pictures [b 3 h w] in [0,1]."""
        assert self.calibration is not None
        return (self.reward(images, prompts) - self.calibration.mean) / self.calibration.std


def spread_of(reward: object) -> float | None:
    """The standard deviation of a reward by its shipped calibration; None where it is not known."""
    if isinstance(reward, Normalised):
        return 1.0
    if isinstance(reward, Wrapper):
        return spread_of(reward.reward)
    known = calibration_of(reward)
    return known.std if known else None


def warn_of_scales(reward: WeightedSum) -> None:
    """Warn, once for each such sum, of `unlike_scales`."""
    if said := unlike_scales(reward):
        _warn(said)


def unlike_scales(reward: Reward) -> str:
    """A sentence where the largest weight times spread of a sum is over ten times the smallest, or else "".

    Parts of unknown spread and of weight 0 are left out.
    """
    if not isinstance(reward, WeightedSum):
        return ""
    parts = [(p, abs(w) * s) for p, w in zip(reward.rewards, reward.weights, strict=True) if w and (s := spread_of(p))]
    sizes = [size for _, size in parts]
    if not parts or max(sizes) <= UNLIKE * min(sizes):
        return ""
    said = ", ".join(f"{name_of(part)} {size:.2g}" for part, size in parts)
    return (
        f"the rewards of {reward.name!r} have unlike scales: weight times spread on reference pictures is {said}; the "
        "smallest hardly counts. Set the weights by that, or normalise: rewards.Normalised(reward), or normalise=True "
        "where you fine-tune"
    )


@lru_cache(maxsize=256)
def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=4)
