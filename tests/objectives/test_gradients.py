"""Gradients flow where they are published to flow: each objective's, against an expression that was written by hand.

The map is ``v_{s,t}(x) = (a + b s + c t + d x) x`` of four numbers. In the expressions `p` are the numbers that learn
and `q` the same numbers, stopped; with V(p, x, s, t) the map, and its derivatives by hand.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from steer.flow_map import Cond
from steer.interpolants import Time
from steer.objectives import Derivative, SelfDistillation, Student, Teacher
from steer.objectives.base import Rows
from steer.objectives.distillation import lagrangian
from steer.objectives.eulerian import carried, eulerian_target
from steer.objectives.mean_flow import improved_mean_flow, mean_flow
from steer.objectives.terminal import terminal

FORWARD = Derivative("forward")
START, MEAN, TEACHER = [0.3, -0.7, 0.5, 0.2], [0.1, 0.4, -0.2, 0.3], [-0.5, 0.2, 0.6, -0.1]


class Four(nn.Module):
    """The map."""

    def __init__(self, p: list[float]) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor(p, dtype=torch.float64))

    def forward(self, x: Tensor, s: Time, t: Time, cond: Cond = None) -> Tensor:
        """v_{s,t}(x) [b 1]."""
        s, t = (torch.as_tensor(u, dtype=x.dtype).expand(len(x))[:, None] for u in (s, t))
        return v(self.p, x, s, t)


def v(p: Tensor, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
    return (p[0] + p[1] * s + p[2] * t + p[3] * x) * x


def dx(p: Tensor, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
    return p[0] + p[1] * s + p[2] * t + 2 * p[3] * x


@pytest.fixture
def rows(rng: torch.Generator) -> Rows:
    x, slope, x1 = torch.randn(3, 9, 1, generator=rng, dtype=torch.float64)
    s, t = torch.rand(2, 9, generator=rng, dtype=torch.float64).sort(0).values
    return Rows(x, slope, s, t, x1)


Expression = Callable[[Tensor, Tensor, Tensor, Tensor, Rows, Tensor, Tensor], Tensor]


def to_end(p: Tensor, rows: Rows, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """X_{s,t}(x) and its derivative in t."""
    x = rows.x
    return x + (t - s) * v(p, x, s, t), v(p, x, s, t) + (t - s) * p[2] * x


def start_slope(p: Tensor, w: Tensor, rows: Rows, s: Tensor, t: Tensor) -> Tensor:
    """``d_s v + grad v w``."""
    return p[1] * rows.x + dx(p, rows.x, s, t) * w


def lagrangian_by_hand(p: Tensor, q: Tensor, m: Tensor, o: Tensor, rows: Rows, s: Tensor, t: Tensor) -> Tensor:
    return to_end(p, rows, s, t)[1] - v(q, to_end(q, rows, s, t)[0], t, t)


def eulerian_by_hand(p: Tensor, q: Tensor, m: Tensor, o: Tensor, rows: Rows, s: Tensor, t: Tensor) -> Tensor:
    b = v(q, rows.x, s, s)
    return v(p, rows.x, s, t) - (t - s) * p[1] * rows.x - (1 + (t - s) * dx(q, rows.x, s, t)) * b


def midpoint_by_hand(p: Tensor, q: Tensor, m: Tensor, o: Tensor, rows: Rows, s: Tensor, t: Tensor) -> Tensor:
    u = (s + t) / 2
    first = v(q, rows.x, s, u)
    return v(p, rows.x, s, t) - (first + v(q, rows.x + (u - s) * first, u, t)) / 2


def mean_flow_by_hand(p: Tensor, q: Tensor, m: Tensor, o: Tensor, rows: Rows, s: Tensor, t: Tensor) -> Tensor:
    return v(p, rows.x, s, t) - rows.slope - (t - s) * start_slope(q, rows.slope, rows, s, t)


def improved_by_hand(p: Tensor, q: Tensor, m: Tensor, o: Tensor, rows: Rows, s: Tensor, t: Tensor) -> Tensor:
    b = v(q, rows.x, s, s)
    return v(p, rows.x, s, t) - (t - s) * start_slope(q, b, rows, s, t) - rows.slope


def terminal_by_hand(p: Tensor, q: Tensor, m: Tensor, o: Tensor, rows: Rows, s: Tensor, t: Tensor) -> Tensor:
    """The end X inside the averaged map learns too."""
    there, slope = to_end(p, rows, s, t)
    return slope - v(m, there, t, t)


def taught_end_by_hand(p: Tensor, q: Tensor, m: Tensor, o: Tensor, rows: Rows, s: Tensor, t: Tensor) -> Tensor:
    return to_end(p, rows, s, t)[1] - v(o, to_end(q, rows, s, t)[0], t, t)


def taught_start_by_hand(p: Tensor, q: Tensor, m: Tensor, o: Tensor, rows: Rows, s: Tensor, t: Tensor) -> Tensor:
    b = v(o, rows.x, s, s)
    return v(p, rows.x, s, t) - b - (t - s) * start_slope(q, b, rows, s, t)


def own(identity: str) -> Callable[[Student, Rows, Four], Tensor]:
    """An identity of self-distillation, whose teacher is the map itself."""
    return lambda model, rows, _: SelfDistillation(identity, derivative=FORWARD).residual(  # type: ignore[arg-type]
        Student(model.flow), rows, torch.full_like(rows.s, 0.5)
    )


def taught_start(model: Student, rows: Rows, other: Four) -> Tensor:
    """The Eulerian identity with a teacher, as distillation and consistency models have it."""
    b = Teacher(other)(model, rows.x, rows.s, rows)
    value, slope = carried(model, rows, b, FORWARD)
    return value - eulerian_target(rows, b, slope)


CASES: dict[str, tuple[Callable[[Student, Rows, Four], Tensor], Expression]] = {
    "lagrangian": (own("lagrangian"), lagrangian_by_hand),
    "eulerian": (own("eulerian"), eulerian_by_hand),
    "midpoint": (own("midpoint"), midpoint_by_hand),
    "mean flow": (lambda model, rows, _: mean_flow(model, rows, rows.slope, FORWARD), mean_flow_by_hand),
    "improved": (lambda model, rows, _: improved_mean_flow(model, rows, rows.slope, FORWARD), improved_by_hand),
    "terminal": (lambda model, rows, _: terminal(model, rows, FORWARD), terminal_by_hand),
    "taught end": (lambda model, rows, other: lagrangian(model, rows, Teacher(other), FORWARD), taught_end_by_hand),
    "taught start": (taught_start, taught_start_by_hand),
}


@pytest.mark.parametrize("name", CASES)
def test_residual_and_gradient_are_those_written_by_hand(name: str, rows: Rows) -> None:
    residual, by_hand = CASES[name]
    flow, mean, other = Four(START), Four(MEAN).requires_grad_(False), Four(TEACHER).requires_grad_(False)
    ours = residual(Student(flow, average=mean), rows, other)
    p = torch.tensor(START, dtype=torch.float64, requires_grad=True)
    s, t = rows.s[:, None], rows.t[:, None]
    theirs = by_hand(p, p.detach(), mean.p, other.p, rows, s, t)
    assert torch.allclose(ours, theirs, atol=1e-12)
    gradient, expected = (
        torch.autograd.grad(e.square().sum(), weights)[0] for e, weights in ((ours, flow.p), (theirs, p))
    )
    assert torch.allclose(gradient, expected, atol=1e-10)
    free = torch.autograd.grad(by_hand(p, p, mean.p, other.p, rows, s, t).square().sum(), p)[0]
    if name != "terminal":  # where nothing that depends on the map is stopped
        assert not torch.allclose(gradient, free, rtol=1e-2)
