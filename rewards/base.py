"""What a reward is, wrappers that are rewards themselves, and the way from anything a user has to a reward.

A reward takes pictures [b 3 h w] in [0,1] and b prompts, and gives [b] scores, higher better, one a picture: no mean
over the batch, no weight, no device inside. Three optional attributes describe it: `name`; `differentiable`, whether
the scores have gradients to the pictures; `cost`, the price of one picture in forward passes of the model that is
steered (0: negligible).
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class Reward(Protocol):
    """(images [b 3 h w] in [0,1], prompts) -> scores [b], higher better."""

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Scores [b]."""
        ...


def name_of(reward: object) -> str:
    """Its `name`, or else the name of the function or class; a name stands for itself."""
    if isinstance(reward, str):
        return reward
    name = getattr(reward, "name", None)
    return name if isinstance(name, str) else getattr(reward, "__name__", type(reward).__name__)


def is_differentiable(reward: object) -> bool | None:
    """What the reward says of itself; None where it says nothing and must be probed."""
    return getattr(reward, "differentiable", None)


def cost_of(reward: object) -> float:
    """What the reward says one picture costs, in forward passes of the steered model; 0 where it says nothing."""
    return float(getattr(reward, "cost", 0.0))


def check_scores(reward: object, scores: Any, b: int, like: Tensor) -> Tensor:  # noqa: ANN401 (a user's return value)
    """Scores [b] as a floating tensor beside `like`; lists and arrays of a black box are converted.

    Raises:
        TypeError: it is nothing that holds numbers.
        ValueError: the shape is not [b], or a score is NaN or +inf. (-inf is legal and means "reject".)
    """
    name = name_of(reward)
    if not isinstance(scores, Tensor):
        try:
            scores = torch.as_tensor(scores)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(
                f"reward {name!r} returned {type(scores).__name__}; return a tensor, array or list of {b} numbers"
            ) from error
    if scores.shape != (b,):
        raise ValueError(
            f"reward {name!r} returned shape {list(scores.shape)} for {b} pictures; return [{b}], one score a picture "
            "(take the mean over pixels, not over the batch, and do not squeeze a batch of one)"
        )
    if scores.dtype.is_complex:
        raise ValueError(f"reward {name!r} returned {scores.dtype}; return real numbers")
    scores = scores.to(device=like.device, dtype=like.dtype)
    if bool((scores.isnan() | (scores == torch.inf)).any()):
        bad = (scores.isnan() | (scores == torch.inf)).nonzero()[:, 0].tolist()
        raise ValueError(f"reward {name!r} returned NaN or +inf for pictures {bad[:8]}; scores must be finite or -inf")
    return scores


def probe_differentiable(reward: Reward, images: Tensor, prompts: list[str]) -> bool:
    """Whether the scores of these pictures have gradients to them (one call of the reward)."""
    with torch.enable_grad():
        scores = reward(images.detach().requires_grad_(True), prompts)
    return isinstance(scores, Tensor) and scores.requires_grad


@dataclass(frozen=True)
class Function:
    """A user's own function of (images) or (images, prompts), or one that returns (scores, info).

    Its exceptions are the user's own and pass unchanged. `differentiable=None` means: find out by a probe.
    """

    function: Callable[..., Any] = field(repr=False)
    name: str = "function"
    differentiable: bool | None = None
    cost: float = 0.0
    arguments: int = 2

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Scores [b] of pictures [b 3 h w] in [0,1]."""
        given = (images, prompts, [{} for _ in prompts])[: self.arguments]
        scores = self.function(*given)
        if isinstance(scores, tuple) and len(scores) == 2 and isinstance(scores[1], dict):
            scores = scores[0]
        return check_scores(self, scores, len(images), images)


@dataclass(frozen=True)
class Pil:
    """A black box that wants a list of PIL pictures, and prompts: fn(pictures, prompts) -> b numbers."""

    function: Callable[..., Any] = field(repr=False)
    name: str = "pil"
    differentiable: bool = False
    cost: float = 0.0

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Scores [b] of pictures [b 3 h w] in [0,1]."""
        return check_scores(self, self.function(to_pil(images), prompts), len(images), images)


def to_pil(images: Tensor) -> list[Any]:
    """Pictures [b 3 h w] in [0,1] as PIL."""
    from PIL import Image

    pixels = (images.detach().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(p) for p in pixels]


@dataclass(frozen=True)
class WeightedSum:
    """sum_i weight_i * reward_i. Scores of different rewards have different scales: the weights carry them."""

    rewards: tuple[Reward, ...]
    weights: tuple[float, ...]

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

    def parts(self, images: Tensor, prompts: list[str]) -> dict[str, Tensor]:
        """Each reward's own scores [b], unweighted, by name."""
        return {name_of(r): r(images, prompts) for r in self.rewards}

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Scores [b] of pictures [b 3 h w] in [0,1]."""
        scores = [w * r(images, prompts) for w, r in zip(self.weights, self.rewards, strict=True)]
        return torch.stack(scores).sum(0)


class _Wrapper:
    """The attributes of a wrapped reward."""

    reward: Reward

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


@dataclass(frozen=True)
class Negated(_Wrapper):
    """-reward, for a score of which less is better."""

    reward: Reward

    @property
    def name(self) -> str:
        """The reward's name with a minus."""
        return f"-{name_of(self.reward)}"

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Scores [b] of pictures [b 3 h w] in [0,1]."""
        return -self.reward(images, prompts)


@dataclass(frozen=True)
class Chunked(_Wrapper):
    """The same scores, at most `size` pictures at a time."""

    reward: Reward
    size: int = 32

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size={self.size} must be at least 1 picture")

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Scores [b] of pictures [b 3 h w] in [0,1]."""
        starts = range(0, len(images), self.size)
        return torch.cat([self.reward(images[i : i + self.size], prompts[i : i + self.size]) for i in starts])


@dataclass
class Counted(_Wrapper):
    """The same scores, and how many calls and pictures they took."""

    reward: Reward
    calls: int = 0
    pictures: int = 0

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Scores [b] of pictures [b 3 h w] in [0,1]."""
        self.calls += 1
        self.pictures += len(images)
        return self.reward(images, prompts)


def to_reward(given: object) -> Reward:
    """A reward of whatever a user has.

    Taken: a name (see `rewards.names()`); a reward of this package; any callable of (images), (images, prompts) or
    (images, prompts, metadata), which may return (scores, info); an object with `score(images, prompts)`; a list of
    these, or of (reward, weight) pairs; a dict {reward or name: weight}. A function of PIL pictures must say so:
    `Pil(function)`.

    Raises:
        ValueError: an unknown name, an empty list, or a weight that is no finite number.
        TypeError: nothing of the above.
    """
    if isinstance(given, str):
        from rewards import get

        return get(given)
    if isinstance(given, Mapping):
        return _weighted(list(given.items()))
    if isinstance(given, Sequence):
        return _weighted([g if isinstance(g, tuple) and len(g) == 2 else (g, 1.0) for g in given])
    if not callable(given) and callable(getattr(given, "score", None)):
        return Function(given.score, name_of(given), is_differentiable(given), cost_of(given))  # type: ignore[attr-defined]
    if not callable(given):
        raise TypeError(
            f"reward={given!r} is no reward; give a name, a function of pictures, an object with "
            "score(images, prompts), or a list or dict of these with weights"
        )
    if isinstance(given, (Function, Pil, WeightedSum, Negated, Chunked, Counted)):
        return given
    if type(given).__module__.split(".")[0] == "rewards":
        return cast(Reward, given)
    return _function(given)


def _weighted(pairs: list[tuple[Any, Any]]) -> Reward:
    if not pairs:
        raise ValueError("reward is empty; give at least one reward")
    for part, weight in pairs:
        if not isinstance(weight, (int, float)) or isinstance(weight, bool) or not abs(weight) < float("inf"):
            raise ValueError(f"the weight of reward {name_of(part)!r} is {weight!r}; give a finite number")
    parts = tuple(to_reward(part) for part, _ in pairs)
    if len(parts) == 1 and pairs[0][1] == 1:
        return parts[0]
    return WeightedSum(parts, tuple(float(w) for _, w in pairs))


def _function(given: Callable[..., Any]) -> Function:
    call = given.forward if isinstance(given, torch.nn.Module) else given
    try:
        parameters = inspect.signature(call).parameters.values()
    except (TypeError, ValueError):  # a builtin without a signature
        parameters = ()
    plain = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = sum(p.default is p.empty for p in plain)
    if needed > 3:
        raise TypeError(f"reward {name_of(given)!r} needs {needed} arguments; it is called with (images, prompts)")
    several = len(plain) >= 2 or any(p.kind is p.VAR_POSITIONAL for p in parameters) or not parameters
    # a second argument with a default is passed only if it is called like prompts
    if needed <= 1 and len(plain) >= 2 and not plain[1].name.startswith(("prompt", "text", "caption")):
        several = False
    arguments = max(needed, 2 if several else 1)
    return Function(given, name_of(given), is_differentiable(given), cost_of(given), arguments)


def with_name(reward: Function, name: str) -> Function:
    """The same function under another name."""
    return replace(reward, name=name)
