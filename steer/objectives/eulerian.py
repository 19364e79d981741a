"""What the families share whose start moves: the derivative of v_{s,t}(x) as x flows with a velocity; its target."""

import torch
from torch import Tensor

from steer.interpolants import like
from steer.objectives.base import Rows, Student, squared
from steer.objectives.derivative import Derivative


def carried(model: Student, rows: Rows, w: Tensor, derivative: Derivative) -> tuple[Tensor, Tensor]:
    """v_{s,t}(x), with gradients, and ``d_s v_{s,t} + grad v_{s,t} w``, without [b *d]; one jvp."""
    v, slope = derivative(
        lambda x, s: model.flow(x, s, rows.t, rows.cond), (rows.x, rows.s), (w, torch.ones_like(rows.s))
    )
    return v, slope.detach()


def eulerian_target(rows: Rows, w: Tensor, slope: Tensor, share: float = 1.0) -> Tensor:
    """``w + share (t - s) (d_s v + grad v w)`` [b *d]: what v_{s,t} is, if w is the velocity at x and share is 1."""
    return w + share * like(rows.t - rows.s, rows.x) * slope


def normalised(error: Tensor, c: float) -> Tensor:
    """``error / (|error| / sqrt(d) + c)``, row by row [b *d]: no row pulls much harder than another.

    Source: tangent normalisation, "Simplifying, stabilizing and scaling continuous-time consistency models"
    (arXiv:2410.11081), section 4.
    """
    size = error.flatten(1).square().mean(1).sqrt()
    return error / like(size + c, error)


def descended(model: Student, v: Tensor, error: Tensor, c: float | None) -> tuple[Tensor, Tensor]:
    """The squared errors whose gradient to v is descended, normalised unless c is None, and the plain ones: [b]."""
    step = error.detach() if c is None else normalised(error.detach(), c)
    return squared(model, v - v.detach() + step), squared(model, error.detach())


def ramp(progress: float, warm_up: float) -> float:
    """From 0 to 1 over a share of the training."""
    return 1.0 if warm_up <= 0 else min(1.0, progress / warm_up)
