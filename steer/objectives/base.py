"""What an objective is given and gives: (model, batch, rng) -> (loss, metrics), and the parts that families share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from steer.draws import Rng, randn_like
from steer.flow_map import Cond, FlowMap
from steer.interpolants import Interpolant, Linear, interpolate, like

Loss = tuple[Tensor, dict[str, Tensor]]


@dataclass(frozen=True)
class Batch:
    """Rows of data.

    x1: data [b *d].
    cond: what the map is told [b ...], or None.
    dropped: True where cond was replaced by that of no prompt [b], or None.
    more: what else is known of samples that a model made, by name [b ...]: see `steer.experience`.
    """

    x1: Tensor
    cond: Cond = None
    dropped: Tensor | None = None
    more: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.x1)

    def __getitem__(self, rows: Tensor) -> "Batch":
        """Some of the rows, by a mask [b] or indices."""
        dropped = None if self.dropped is None else self.dropped[rows]
        return Batch(self.x1[rows], take(self.cond, rows), dropped, {k: v[rows] for k, v in self.more.items()})


@dataclass(frozen=True)
class Student:
    """The model in training.

    flow: the map v_{s,t}(x) whose weights are trained.
    path: the interpolant.
    average: the same map with averaged weights (EMA), never trained; None takes `flow` itself as its own teacher.
    null: the condition of no prompt, one row; needed for guidance.
    weight: w(s [b], t [b]) -> [b], a small network trained beside the map; needed by `LearnedWeight`.
    metric: what the squared error of each number of a sample counts [*d]; None counts all the same.
    progress: share of the training that is done, in [0, 1].
    reference: in fine-tuning, the map as it was before, never trained.
    reward: in fine-tuning, the reward of latents, (x1 [b *d], prompts [b]) -> [b], prompts by their numbers.
    """

    flow: FlowMap
    path: Interpolant = Linear()
    average: FlowMap | None = None
    null: Cond = None
    weight: Callable[[Tensor, Tensor], Tensor] | None = None
    metric: Tensor | None = None
    progress: float = 1.0
    reference: FlowMap | None = None
    reward: Callable[[Tensor, Tensor], Tensor] | None = None

    @property
    def teacher(self) -> FlowMap:
        """`average` where there is one, else the map itself."""
        return self.flow if self.average is None else self.average


class Objective(Protocol):
    """(model, batch, rng) -> (loss, metrics): a scalar to descend, and detached scalars to write down.

    All draws are made for all rows of the batch, through `steer.draws`: so a batch that is spread over processes sees
    the numbers that one process would.
    """

    def __call__(self, model: Student, batch: Batch, rng: Rng) -> Loss:
        """The loss of a batch."""
        ...


@dataclass(frozen=True)
class Rows:
    """Points of paths: x at time s of the line from x0 to x1, its slope, and the end time t that is asked for.

    x, slope: [b *d]. s, t: [b]. `slope` is the derivative ``dalpha x0 + dbeta x1`` at s, of expectation b_s(x).
    """

    x: Tensor
    slope: Tensor
    s: Tensor
    t: Tensor
    x1: Tensor
    cond: Cond = None
    dropped: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: Tensor) -> "Rows":
        """Some of the rows, by a mask [b] or indices."""
        dropped = None if self.dropped is None else self.dropped[rows]
        x, slope, s, t, x1 = (a[rows] for a in (self.x, self.slope, self.s, self.t, self.x1))
        return Rows(x, slope, s, t, x1, take(self.cond, rows), dropped)

    def ending(self, t: Tensor) -> "Rows":
        """The same with other end times [b]."""
        return replace(self, t=t)

    def told(self, **more: Tensor) -> "Rows":
        """The same with more in the condition."""
        return replace(self, cond={**(self.cond or {}), **more})


def take(cond: Cond, rows: Tensor) -> Cond:
    """Some rows of a condition."""
    return None if cond is None else {key: c[rows] for key, c in cond.items()}


def expand(null: Cond, b: int) -> Cond:
    """The condition of no prompt for b rows."""
    return None if null is None else {key: c.expand(b, *c.shape[1:]) for key, c in null.items()}


def draw_rows(path: Interpolant, batch: Batch, s: Tensor, t: Tensor, rng: Rng) -> Rows:
    """Noise, and with it the points at the times s [b]."""
    x0 = randn_like(batch.x1, rng)
    slope = like(path.dalpha(s), x0) * x0 + like(path.dbeta(s), x0) * batch.x1
    return Rows(interpolate(path, x0, batch.x1, s), slope, s, t, batch.x1, batch.cond, batch.dropped)


def squared(model: Student, error: Tensor) -> Tensor:
    """Mean square of each row's error [b *d], by the metric: [b]."""
    square = error.float().square() if error.dtype in (torch.float16, torch.bfloat16) else error.square()
    return (square if model.metric is None else square * model.metric).flatten(1).mean(1)


def total(parts: Mapping[str, tuple[Tensor, Tensor]], b: int) -> Loss:
    """The sum of all rows' losses over b, and each part's mean squared error: {name: (weighted [m], plain [m])}."""
    loss = torch.stack([weighted.sum() for weighted, _ in parts.values()]).sum() / b
    return loss, {name: plain.detach().mean() for name, (_, plain) in parts.items() if len(plain)}
