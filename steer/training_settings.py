"""How the training loop runs: its length, batch, rates and files."""

import math
from dataclasses import dataclass, fields
from importlib.util import find_spec
from numbers import Integral, Real
from typing import Any, Literal

CHOICES = {
    "schedule": ("cosine", "constant", "sqrt"),
    "precision": ("no", "bf16", "fp16"),
    "tracker": ("tensorboard", "wandb", None),
}


def check_kinds(settings: Any, owner: str = "") -> None:  # noqa: ANN401 (a dataclass)
    """Hold the fields that are numbers by default to numbers of that kind, and whole ones to what 63 bits hold.

    Raises:
        ValueError: one is not; `owner` stands before its name.
    """
    for field in fields(settings):
        value, kind = getattr(settings, field.name), {int: Integral, float: Real}.get(type(field.default))
        if kind and (isinstance(value, bool) or not isinstance(value, kind)):
            what = "a whole number" if kind is Integral else "a number"
            raise ValueError(f"{owner}{field.name} must be {what}, got {value!r}")
        if kind is Integral and value >= 2**63:
            raise ValueError(f"{owner}{field.name} must be at most {2**63 - 1}, got {value}")


def _are_shares(values: object) -> bool:
    """Whether they are numbers in [0, 1)."""
    return isinstance(values, tuple | list) and all(isinstance(v, int | float) and 0 <= v < 1 for v in values)


@dataclass(frozen=True)
class Settings:
    """How the loop runs.

    Attributes:
        steps: updates of the weights.
        batch: rows of an update, over all processes and accumulated parts.
        accumulate: parts that an update's rows are computed in, to bound memory.
        lr: peak learning rate of AdamW.
        schedule: after the warm-up, "cosine" down to `final` of the peak, "constant", or "sqrt": constant for a third,
            then falling with the root of the step.
        warm_up: share of the steps over which the rate rises linearly.
        final: share of the peak that "cosine" ends at.
        betas, weight_decay: of AdamW.
        clip: largest norm of the gradient.
        ema: decays of averaged weights, kept at once; the first is the result (and the teacher, where one is wanted).
        average_every: steps between their updates; the last step is taken in, too.
        drop: share of rows that are told nothing, for guidance.
        precision: "no" (float32), "bf16" or "fp16": mixed precision, with derivatives in float32 all the same.
        seed: of everything.
        save_every, keep: steps between checkpoints, and how many stay.
        log_every: steps between lines of the log.
        sample_every: steps between judgements of the averaged weights, and pictures; 0 for none but the last.
        tracker: "tensorboard", "wandb", or None; log.jsonl is written in any case.
    """

    steps: int = 10_000
    batch: int = 256
    accumulate: int = 1
    lr: float = 1e-3
    schedule: Literal["cosine", "constant", "sqrt"] = "cosine"
    warm_up: float = 0.02
    final: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    clip: float = 1.0
    ema: tuple[float, ...] = (0.999,)
    average_every: int = 1
    drop: float = 0.1
    precision: Literal["no", "bf16", "fp16"] = "no"
    seed: int = 0
    save_every: int = 1000
    keep: int = 2
    log_every: int = 100
    sample_every: int = 0
    tracker: Literal["tensorboard", "wandb"] | None = "tensorboard"

    def __post_init__(self) -> None:
        check_kinds(self)
        self._check_numbers()
        for name, values in CHOICES.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name} must be one of {', '.join(map(str, values))}, got {getattr(self, name)!r}")
        if self.tracker and find_spec(self.tracker) is None:
            raise ValueError(
                f"tracker={self.tracker!r} is not installed; pip install {self.tracker}, or take tracker=null "
                f"(None in Python): log.jsonl is written in any case"
            )

    def _check_numbers(self) -> None:
        for name in ("steps", "batch", "accumulate", "save_every", "keep", "log_every", "average_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("seed", "sample_every", "weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        for name in ("warm_up", "drop", "final"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be a share between 0 and 1, got {getattr(self, name)}")
        for name in ("lr", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("lr", "weight_decay"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be finite, got {getattr(self, name)}")
        if not _are_shares(self.betas) or len(self.betas) != 2:
            raise ValueError(f"betas must be two numbers in [0, 1), got {self.betas}")
        if not _are_shares(self.ema) or not self.ema or len(set(self.ema)) < len(self.ema):
            raise ValueError(f"ema must hold decays in [0, 1), at least one and none twice, got {self.ema}")

    def rate(self, step: int) -> float:
        """The learning rate of a step.

        With u = step / steps and w = warm_up: ``lr max(u / w, 1/100)`` while u < w; then for "cosine"
        ``lr (final + (1 - final) (1 + cos(pi (u - w) / (1 - w))) / 2)``, for "sqrt" ``lr min(1, (3 u)^-1/2)``.
        """
        done, start = step / self.steps, self.warm_up
        if done < start:
            return self.lr * max(done / start, 0.01)
        if self.schedule == "cosine":
            fall = 0.5 * (1 + math.cos(math.pi * (done - start) / max(1 - start, 1e-9)))
            return self.lr * (self.final + (1 - self.final) * fall)
        return self.lr if self.schedule == "constant" or done < 1 / 3 else self.lr * (1 / 3 / done) ** 0.5
