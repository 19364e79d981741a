"""The reward call styles of other libraries, told apart by signs that nothing else has, and `Loss` to say it oneself.

    FK steering              fn(images, prompts) -> list, of PIL pictures: annotated so, or `Pil(fn)`
    DAS                      loss_fn(images) -> rewards, whatever it is called: a warning asks to say so
    ReNO, HyperNoise         BaseRewardLoss(image, prompt) -> loss, lower better: `Loss`
    Diamond maps             the same with raw_image, where some are lower and some higher better: must be said
    imscore, ImageReward     object.score(images, prompts)
    azula                    twist(x_hat, sigma) -> log-density: sigma = 0
    TFG                      object.get_guidance(x, return_logp=True)
    flow_grpo, DiffusionNFT, TRL    fn(images, prompts, metadata) -> (scores, info)
    Flow-Factory             BaseRewardModel(prompt=, image=) -> object with rewards
    UniRL                    object.compute_rewards_differentiable(images, prompts), or compute_rewards(request)

Repositories: zacharyhorvitz/Fk-Diffusion-Steering, krafton-ai/DAS, ExplainableML/ReNO, RE-N-Y/imscore,
probabilists/azula, YWolfeee/Training-Free-Guidance, yifan123/flow_grpo, huggingface/trl, X-GenGroup/Flow-Factory,
Tencent-Hunyuan/UniRL.
"""

import functools
import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from rewards.contract import Reward, cost_of, is_differentiable, name_of
from rewards.function import Bytes, Function, PerPrompt, Pil
from rewards.signature import body, parameters_of, role_of, wants_one, wants_pil
from rewards.vision import Look


@dataclass(frozen=True)
class Loss:
    """Minus a loss of one picture and its prompt, loss(image [1 3 h w], prompt) -> a number, lower better.

    Objects that derive from `BaseRewardLoss` (ReNO, Enhancing One-Step Text-to-Image Models through Reward-based Noise
    Optimization, arXiv:2406.04312) get pictures as ReNO's trainer prepares them, resized, cropped and normalised for
    CLIP at 224; others get them in [0,1]. Their `weighting` is left out: weights belong to `WeightedSum`. A loss of a
    whole batch is `Negated(function)`. One in an adapter, such as `Loss(PerPrompt(function))`, is called as that says.

    prepare: what is done to [1 3 h w] in [0,1] before, in the place of that.

    Raises:
        TypeError: it needs other arguments than a picture and a prompt, or an adapter is given with `prepare`.
    """

    function: Callable[..., Any] = field(repr=False)
    prepare: Callable[[Tensor], Tensor] | None = None
    name: str = ""
    differentiable: bool | None = None
    cost: float = 0.0
    _positive: Function | Pil | Bytes | PerPrompt = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or name_of(self.function))
        if isinstance(self.function, Function | Pil | Bytes | PerPrompt):
            if self.prepare is not None:
                kind = type(self.function).__name__
                raise TypeError(
                    f"Loss({kind}(function), prepare=...): {kind} calls the function; leave one of them out"
                )
            object.__setattr__(self, "_positive", self.function)
            object.__setattr__(self, "differentiable", is_differentiable(self.function))
            return
        prepare = self.prepare or (Look(224) if _derives(self.function, "BaseRewardLoss") else None)
        object.__setattr__(self, "_positive", PerPrompt(self.function, prepare=prepare, name=self.name))

    @property
    def assumed(self) -> str:
        """How the loss is called, and which way is better."""
        return self._positive.assumed.replace("higher is better", "lower is better: scores are minus it")

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Scores [b] of pictures [b 3 h w] in [0,1]."""
        r = self._positive(images, prompts)
        return (-r).masked_fill(r == -torch.inf, -torch.inf)


def from_callable(given: object) -> Reward:
    """A reward of a function, of a torch module, or of an object in one of the styles above.

    Raises:
        TypeError: nothing of these, it needs other arguments, or nothing says which way is better.
    """
    if isinstance(given, type):
        raise TypeError(f"reward={given.__name__} is a class; give an instance, such as {given.__name__}()")
    function = _foreign(given) or _scorer(given) or given
    if isinstance(function, Loss | Pil | Function):
        return function
    if not callable(function):
        raise TypeError(
            f"reward={given!r} is no reward; give a name, a function of pictures, an object with "
            "score(images, prompts), or a list or dict of these with weights"
        )
    _doubt(given)
    name, cost, pil = name_of(given), cost_of(given), wants_pil(function)
    if wants_one(function):
        return PerPrompt(function, "pil" if pil else "floats", None, name, is_differentiable(given), cost)
    return Pil(function, name, cost=cost) if pil else Function(function, name, is_differentiable(given), cost)


def _derives(given: object, *names: str) -> bool:
    """Whether a class of one of these names is among its own and those above it."""
    return any(kind.__name__ in names for kind in type(given).__mro__)


def _foreign(given: Any) -> Reward | None:  # noqa: ANN401
    """The reward of an object of a library that is known by its class or its method; None of anything else."""
    if _derives(given, "BaseRewardLoss") and "raw" not in map(role_of, inspect.signature(body(given)).parameters):
        return Loss(given)
    if _derives(given, "GroupwiseRewardModel"):
        raise TypeError(f"reward {name_of(given)!r} compares the pictures of a group; give one that scores each alone")
    if _derives(given, "BaseRewardModel", "PointwiseRewardModel"):
        return _of_flow_factory(given)
    if callable(getattr(given, "compute_rewards_differentiable", None)):
        return Function(given.compute_rewards_differentiable, name_of(given), cost=cost_of(given))
    if callable(getattr(given, "compute_rewards", None)):
        return _of_unirl(given)
    if callable(getattr(given, "get_guidance", None)):
        named = {p.name for p in parameters_of(given.get_guidance) or ()}
        free = {"check_grad": False} if "check_grad" in named else {}
        return Function(functools.partial(given.get_guidance, return_logp=True, **free), name_of(given))
    return None


def _of_flow_factory(given: Any) -> Reward:  # noqa: ANN401
    """A model that is called by keyword, with lists of PIL pictures or, where it says so, of tensors [3 h w]."""

    def model(images: Any, prompts: list[str]) -> Any:  # noqa: ANN401
        return given(prompt=prompts, image=list(images))

    return (Function if getattr(given, "use_tensor_inputs", False) else Pil)(model, name_of(given))


def _of_unirl(given: Any) -> Reward:  # noqa: ANN401
    """A backend that is asked by a request and answers by a response."""
    kind = getattr(given, "input_kind", "image")
    if kind != "image":
        raise TypeError(f"reward {name_of(given)!r} scores {kind}, not pictures")

    def compute_rewards(images: list[Any], prompts: list[str]) -> Any:  # noqa: ANN401
        texts = SimpleNamespace(texts=prompts)
        response = given.compute_rewards(SimpleNamespace(
            images=images, prompts=prompts, original_prompt=texts, generation_prompt=texts, batch_size=len(prompts),
            metadata=[{} for _ in prompts],
        ))  # fmt: skip
        failed = [str(error) for error in getattr(response, "errors", ()) if error]
        if failed:
            raise RuntimeError(f"reward {name_of(given)!r} failed for {len(failed)} pictures: {failed[0]}")
        return response

    return Pil(compute_rewards, name_of(given))


def _doubt(given: object) -> None:
    """Speak up where the name says loss and nothing says which way is better."""
    if inspect.isroutine(given):
        if "loss" in name_of(given).lower():
            warnings.warn(
                f"reward {name_of(given)!r} is taken as it is, higher better, although it is called a loss; say which: "
                "rewards.Negated(rewards.Function(fn)) where lower is better, rewards.Function(fn) where it is not",
                stacklevel=4,
            )
    elif any(kind.__name__.endswith("Loss") for kind in type(given).__mro__):
        raise TypeError(
            f"reward {type(given).__name__} is called a loss, and libraries disagree on which way is better: say "
            "rewards.Loss(it) where lower is better and it takes one prompt at a time, rewards.PerPrompt(it) where "
            "higher is, or of whole batches rewards.Negated(rewards.Function(it)) or rewards.Function(it)"
        )


def _scorer(given: object) -> Callable[..., Any] | None:
    """Its method `score`, if it is no function itself; of a module, if it takes pictures or there is no `forward`."""
    score = getattr(given, "score", None)
    if not callable(score) or isinstance(score, torch.nn.Module):
        return None
    if isinstance(given, torch.nn.Module):
        forward = body(given) != given.forward or type(given).forward is not torch.nn.Module.forward
        pictures = role_of(next(iter(inspect.signature(score).parameters), "")) == "images"
        return _unsqueezed(score) if pictures or not forward else None
    return None if callable(given) else _unsqueezed(score)


def _unsqueezed(score: Callable[..., Any]) -> Callable[..., Any]:
    """The same scores as [b]: libraries of scorers return [b 1], or squeeze a batch of one."""

    @functools.wraps(score)
    def scores(*given: Any, **named: Any) -> Any:  # noqa: ANN401
        out = score(*given, **named)
        flat = isinstance(out, Tensor) and out.numel() == max(out.shape, default=1)
        return out.reshape(-1) if flat else out

    return scores
