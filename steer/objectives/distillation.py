"""Distillation of a velocity model into a flow map: the identities of `self_distillation`, with a teacher's velocity.

    diagonal     |v_{s,s}(x) - b_s(x)|^2
    Lagrangian   |d/dt X_{s,t}(x) - b_t(sg X_{s,t}(x))|^2                     the teacher sees the student's ends
    Eulerian     |v_{s,t}(x) - sg(b + (t-s) (d_s v + grad v b))|^2, normalised      the teacher sees the path alone

Source: "Flow map matching" (arXiv:2406.07507), LMD and EMD; "Align your flow: scaling continuous-time flow map
distillation" (arXiv:2506.14603) for the normalised tangent, its warm-up, and autoguidance.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from steer.draws import Rng
from steer.flow_map import FlowMap, velocity
from steer.objectives.base import Batch, Loss, Rows, Student, expand, squared, total
from steer.objectives.derivative import Derivative
from steer.objectives.eulerian import carried, descended, eulerian_target, ramp
from steer.objectives.flow_matching import prepare
from steer.objectives.self_distillation import end_and_slope
from steer.objectives.times import Times
from steer.objectives.weighting import Uniform, Weighting


@dataclass(frozen=True)
class Teacher:
    """The velocity of a frozen flow map, under guidance if that is wanted.

    Attributes:
        flow: the map; its diagonal is the velocity.
        weak: a weaker map of the same data; with `autoguidance` > 1 the velocity is
            ``autoguidance b + (1 - autoguidance) b_weak`` ("Guiding a diffusion model with a bad version of itself",
            arXiv:2406.02507).
        autoguidance: 1 is none.
        guidance: of a prompt against none, ``guidance b(c) + (1 - guidance) b(nothing)``; 1 is none.
    """

    flow: FlowMap
    weak: FlowMap | None = None
    autoguidance: float = 1.0
    guidance: float = 1.0

    def __post_init__(self) -> None:
        if (self.autoguidance != 1) != (self.weak is not None):
            given = "no weak=" if self.weak is None else "weak="
            raise ValueError(
                f"autoguidance={self.autoguidance} with {given}: give a weaker teacher and a scale, or none"
            )

    @torch.no_grad()
    def __call__(self, model: Student, x: Tensor, t: Tensor, rows: Rows) -> Tensor:
        """b_t(x) [b *d]."""
        b = velocity(self.flow, x, t, rows.cond)
        if self.guidance != 1:
            if model.null is None or rows.cond is None:
                raise ValueError(f"guidance={self.guidance} needs prompts and model.null; take 1")
            nothing = velocity(self.flow, x, t, {**rows.cond, **(expand(model.null, len(x)) or {})})
            b = self.guidance * b + (1 - self.guidance) * nothing
        if self.weak is not None:
            b = self.autoguidance * b + (1 - self.autoguidance) * velocity(self.weak, x, t, rows.cond)
        return b.to(x)

    @classmethod
    def of(cls, teacher: "FlowMap | Teacher", guidance: float) -> "Teacher":
        """A teacher as it is, or a flow map under guidance."""
        return teacher if isinstance(teacher, Teacher) else cls(teacher, guidance=guidance)


def lagrangian(model: Student, rows: Rows, teacher: Teacher, derivative: Derivative) -> Tensor:
    """``d/dt X_{s,t}(x) - b_t(sg X_{s,t}(x))`` [b *d]."""
    there, slope = end_and_slope(model, rows, derivative)
    return slope - teacher(model, there.detach().to(rows.x), rows.t, rows)


@dataclass(frozen=True)
class Distillation:
    """A flow map of a teacher's velocity.

    Attributes:
        teacher: the flow map, or a `Teacher` with guidance.
        identity: "lagrangian" (LMD), or "eulerian" (EMD; AYF with its normalised tangent).
        times, weighting, derivative: as in `steer.objectives.SelfDistillation`.
        c: of the Eulerian tangent's normalisation; None leaves it as it is.
        warm_up: the share of the training over which the Eulerian tangent's derivative comes in.
        guidance: the scale of guidance of a teacher that is given as a flow map.
    """

    teacher: FlowMap | Teacher
    identity: str = "lagrangian"
    times: Times = Times()
    weighting: Weighting = Uniform()
    derivative: Derivative = field(default_factory=Derivative)
    c: float | None = 0.1
    warm_up: float = 0.1
    guidance: float = 1.0

    def __post_init__(self) -> None:
        if self.identity not in ("lagrangian", "eulerian"):
            raise ValueError(f'identity must be "lagrangian" or "eulerian", got {self.identity!r}')

    def __call__(self, model: Student, batch: Batch, rng: Rng) -> Loss:
        """The loss of a batch."""
        teacher = Teacher.of(self.teacher, self.guidance)
        rows, diagonal = prepare(model, batch, self.times, None, rng)
        on, off = rows[diagonal], rows[~diagonal]
        parts = {}
        if len(on):
            plain = squared(model, model.flow(on.x, on.s, on.s, on.cond) - teacher(model, on.x, on.s, on))
            parts["diagonal"] = (self.weighting(plain, on.s, on.t, model), plain)
        if len(off):
            error, plain = self._jumps(model, off, teacher)
            parts[self.identity] = (self.weighting(error, off.s, off.t, model), plain)
        return total(parts, len(batch))

    def _jumps(self, model: Student, rows: Rows, teacher: Teacher) -> tuple[Tensor, Tensor]:
        """The squared errors whose gradient is descended, and those of the identity, each [b]."""
        if self.identity == "lagrangian":
            error = squared(model, lagrangian(model, rows, teacher, self.derivative))
            return error, error.detach()
        b = teacher(model, rows.x, rows.s, rows)
        v, slope = carried(model, rows, b, self.derivative)
        error = v - eulerian_target(rows, b, slope, ramp(model.progress, self.warm_up))
        return descended(model, v, error, self.c)
