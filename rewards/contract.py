"""What a reward promises, and the checks that hold it to that.

A reward takes pictures [b 3 h w] in [0,1] and b prompts, and gives [b] scores, higher better, one a picture: no mean
over the batch, no weight, no device inside. -inf means "reject". Three optional attributes describe it:

    name            what reports call it
    differentiable  whether the scores have gradients to the pictures; None or absent: found out by a probe
    cost            the price of one picture, in forward passes of the model that is steered; 0: negligible

Two more tell what a user should know before the first call, where there is something to tell:

    assumed         how a function of the user's is called, and which way is taken to be better
    missing()       which weights or packages are lacking, and how to get them; None: it can run here
"""

import threading
import warnings
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

HEARING = threading.RLock()  # who listens to warnings, or hushes them, does so for all threads


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


def assumed(reward: object) -> str | None:
    """How a function of the user's is called; None for a reward that says nothing, as those of this package."""
    said = getattr(reward, "assumed", None)
    return said if isinstance(said, str) else None


def missing(reward: object) -> str | None:
    """Which weights or packages a reward, or the built-in one of a name, lacks, and how to get them; None where it can
    run here, or does not say.
    """
    if isinstance(reward, str):
        from rewards import get

        reward = get(reward)
    tell = getattr(reward, "missing", None)
    told = tell() if callable(tell) else None
    return told if isinstance(told, str) else None


def check_images(images: Tensor, prompts: list[str]) -> None:
    """Hold the caller to pictures [b 3 h w] of floats and b prompts (their range is not looked at).

    Raises:
        ValueError: another shape, whole numbers, or another number of prompts.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        last = images.ndim == 4 and images.shape[3] == 3
        cure = "; images.permute(0, 3, 1, 2) puts the colours first" if last else ""
        raise ValueError(f"images have shape {list(images.shape)}; give [b, 3, h, w]{cure}")
    if not images.is_floating_point():
        raise ValueError(f"images are {images.dtype}; give floats in [0, 1], such as images.float() / 255")
    if len(prompts) != len(images):
        raise ValueError(f"{len(prompts)} prompts for {len(images)} images; give one prompt an image")


def check_scores(reward: object, scores: Any, b: int, like: Tensor) -> Tensor:  # noqa: ANN401 (a user's return value)
    """Scores [b] as a floating tensor beside `like`; lists and arrays of a black box are converted.

    Raises:
        TypeError: it is nothing that holds numbers.
        ValueError: the shape is not [b], or a score is NaN or +inf. (-inf is legal and means "reject".)
    """
    name = name_of(reward)
    try:
        scores = _as_tensor(scores)
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
    bad = scores.isnan() | (scores == torch.inf)
    if bool(bad.any()):
        rows = bad.nonzero()[:8, 0].tolist()
        raise ValueError(f"reward {name!r} returned NaN or +inf for pictures {rows}; scores must be finite or -inf")
    return scores


def _as_tensor(scores: Any) -> Tensor:  # noqa: ANN401
    """Lists of tensors are stacked, so that they keep their gradients; TypeError for tensors that are not dense."""
    if isinstance(scores, (list, tuple)) and scores and all(isinstance(s, Tensor) for s in scores):
        return torch.stack(list(scores))
    found = torch.as_tensor(scores)
    if found.is_meta or found.is_quantized or found.is_nested or found.layout != torch.strided:
        raise TypeError("it is no plain tensor")
    return found


def probe_differentiable(reward: Reward, images: Tensor, prompts: list[str]) -> bool:
    """Whether the scores of these pictures have a gradient to them: one call, and one backward pass where it can be.

    A black box may fail on pictures that require a gradient (`images.numpy()` does). It is then called once more on
    plain ones: if it fails again the fault is its own and passes unchanged, and otherwise it has no gradient.
    """
    leaf = images.detach().clone().requires_grad_(True)
    try:
        with HEARING, torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch says of a gradient that is dropped
            scores = reward(leaf, prompts)
            if not (isinstance(scores, Tensor) and scores.requires_grad):
                return False
            (gradient,) = torch.autograd.grad(scores.sum(), leaf, allow_unused=True)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        gradient = None
    else:
        return gradient is not None
    with torch.no_grad():  # outside the handler, so that an error here is shown as it is
        reward(images.detach().clone(), prompts)
    return False
