"""At the exact map of a mixture every identity holds, so every residual is 0; for all three paths."""

import pytest
import torch
from torch import Tensor

from steer.analytic import GaussianMixture
from steer.flow_map import velocity
from steer.interpolants import Interpolant, Linear
from steer.objectives import Batch, Derivative, GlassVelocity, SelfDistillation, Student, Teacher, Times
from steer.objectives.base import Rows, draw_rows
from steer.objectives.distillation import lagrangian
from steer.objectives.eulerian import carried, eulerian_target, normalised, ramp
from steer.objectives.mean_flow import improved_mean_flow, mean_flow
from steer.objectives.terminal import terminal
from steer.posterior import glass

FORWARD = Derivative("forward")


@pytest.fixture
def student(mixture: GaussianMixture, path: Interpolant) -> Student:
    """The exact map as its own teacher."""
    flow = mixture.flow(path, 1e-9)
    return Student(flow, path, average=flow)


@pytest.fixture
def rows(student: Student, mixture: GaussianMixture, rng: torch.Generator) -> Rows:
    """Points above the diagonal, off the ends, where VP and trigonometric paths are singular."""
    x1 = mixture.sample(4, rng=rng)
    s, t, _ = Times(diagonal=0.0)(x1, rng)
    return draw_rows(student.path, Batch(x1), 0.05 + 0.9 * s, 0.05 + 0.9 * t, rng)


def worst(error: Tensor) -> float:
    """Largest absolute value."""
    return error.abs().max().item()


@pytest.mark.parametrize("identity", ["lagrangian", "eulerian", "midpoint", "uniform"])
def test_self_distillation(identity: str, student: Student, rows: Rows, rng: torch.Generator) -> None:
    h = torch.rand(len(rows), generator=rng, dtype=rows.x.dtype)
    assert worst(SelfDistillation(identity, derivative=FORWARD).residual(student, rows, h)) < 1e-6  # type: ignore[arg-type]


def test_with_the_true_velocity_for_the_slope(student: Student, rows: Rows) -> None:
    b = velocity(student.flow, rows.x, rows.s)
    assert worst(mean_flow(student, rows, b, FORWARD)) < 1e-6
    assert worst(improved_mean_flow(student, rows, b, FORWARD)) < 1e-6


def test_terminal_velocity_and_distillation(student: Student, rows: Rows) -> None:
    teacher = Teacher(student.flow)
    assert worst(terminal(student, rows, FORWARD)) < 1e-6
    assert worst(lagrangian(student, rows, teacher, FORWARD)) < 1e-6
    b = teacher(student, rows.x, rows.s, rows)
    v, slope = carried(student, rows, b, FORWARD)
    assert worst(v - eulerian_target(rows, b, slope)) < 1e-6


@pytest.mark.parametrize("residual", [mean_flow, improved_mean_flow])
def test_with_conditional_slopes_the_residual_is_zero_on_the_average(
    residual: object, mixture: GaussianMixture, rng: torch.Generator
) -> None:
    student, x1 = Student(mixture.flow()), mixture.sample(1500, rng=rng)
    s, t = torch.full((1500,), 0.3, dtype=x1.dtype), torch.full((1500,), 0.8, dtype=x1.dtype)
    rows = draw_rows(Linear(), Batch(x1), s, t, rng)
    error = residual(student, rows, rows.slope, FORWARD)  # type: ignore[operator]
    assert (error.mean(0).abs() < 4 * error.std(0) / 1500**0.5).all()
    assert worst(error) > 0.1  # a single row's is not


def test_central_differences_err_by_the_square_of_their_step(student: Student, rows: Rows) -> None:
    h = torch.zeros(len(rows))
    errors = [
        worst(SelfDistillation(derivative=Derivative("central", eps=eps)).residual(student, rows, h))
        for eps in (0.02, 0.01)
    ]
    assert 3 < errors[0] / errors[1] < 5


def test_the_glass_teacher_is_the_slope_of_glass(mixture: GaussianMixture, rng: torch.Generator) -> None:
    flow = mixture.flow()
    z, x = (torch.randn(8, 2, generator=rng, dtype=torch.float64) for _ in range(2))
    context = {"x_t": x, "t": torch.full((8,), 0.3, dtype=torch.float64)}
    for s, h in ((0.0, 1e-5), (0.5, 1e-5)):
        after = glass(flow, Linear(), x, 0.3, z[None], s, s + h, 1, None)[0]
        assert worst(GlassVelocity(flow)(z, s, s, context) - (after - z) / h) < 1e-3


def test_autoguidance_and_guidance_are_linear_in_the_velocities(rng: torch.Generator) -> None:
    def strong(x: Tensor, s: object, t: object, cond: dict[str, Tensor] | None = None) -> Tensor:
        assert cond is not None
        return x + cond["c"]

    x, c = torch.randn(3, 2, generator=rng), torch.ones(3, 1)
    rows = Rows(x, x, torch.zeros(3), torch.zeros(3), x, {"c": c})
    model = Student(strong, null={"c": torch.zeros(1, 1)})
    weak = lambda x, s, t, cond=None: 0 * x  # noqa: E731
    assert torch.allclose(Teacher(strong, guidance=3.0)(model, x, rows.s, rows), x + 3)
    assert torch.allclose(Teacher(strong, weak, autoguidance=2.0)(model, x, rows.s, rows), 2 * (x + 1))
    with pytest.raises(ValueError, match="autoguidance=2.0 with no weak=: give a weaker teacher"):
        Teacher(strong, autoguidance=2.0)


def test_a_normalised_tangent_has_size_one_where_it_was_large_and_stays_small_where_it_was_small() -> None:
    error = torch.tensor([[300.0, -400.0], [3e-4, 4e-4]])
    size = normalised(error, 0.1).square().mean(1).sqrt()
    assert abs(size[0] - 1) < 1e-3 and size[1] < 0.01
    assert (ramp(0.05, 0.1), ramp(0.5, 0.1), ramp(0.0, 0.0)) == (0.5, 1.0, 1.0)
