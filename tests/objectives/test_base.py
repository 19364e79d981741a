"""The parts that all objectives share: laws of times, weights of rows, derivatives in time, folded guidance."""

import math
import warnings
from dataclasses import replace

import pytest
import torch
from conftest import z_score
from torch import Tensor

from steer.draws import Shard
from steer.objectives import (
    AdaptiveWeight,
    Batch,
    Derivative,
    FoldedGuidance,
    LearnedWeight,
    Rows,
    Student,
    Times,
    TimeWeight,
    Uniform,
)
from steer.objectives.base import draw_rows, squared, total

N = 40_000
LIKE = torch.zeros(N, 1, dtype=torch.float64)


def nothing(x: Tensor, s: object, t: object, cond: object = None) -> Tensor:
    """A map that stays."""
    return torch.zeros_like(x)


@pytest.mark.parametrize("diagonal", [0.0, 0.25, 0.75, 1.0])
def test_each_process_has_the_share_of_the_diagonal(diagonal: float, rng: torch.Generator) -> None:
    s, t, on = Times(diagonal=diagonal)(LIKE[:64], rng)
    assert [int(part.sum()) for part in on.chunk(4)] == [16 * diagonal] * 4
    assert torch.equal(s == t, on) and (s[~on] < t[~on]).all()


def test_pairs_are_uniform_on_the_triangle(rng: torch.Generator) -> None:
    """E s = 1/3, E t = 2/3, E st = 1/4 there; (s, t) with s < t < 1/2 is a quarter of it."""
    s, t, _ = Times(diagonal=0.0)(LIKE, rng)
    inside = (t < 0.5).to(s)
    assert z_score(torch.stack([s, t, s * t, inside], 1), torch.tensor([1 / 3, 2 / 3, 1 / 4, 1 / 4])) < 4


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_times_of_the_diagonal(power: float, rng: torch.Generator) -> None:
    t = Times(diagonal=1.0, power=power)(LIKE, rng)[1]
    assert z_score(t[:, None], 1 / (power + 1)) < 4


def test_logit_normal_times(rng: torch.Generator) -> None:
    logit = Times(diagonal=1.0, law="logit-normal", mean=0.4, std=1.5)(LIKE, rng)[0].logit()
    assert z_score(torch.stack([logit, (logit - 0.4).square()], 1), torch.tensor([0.4, 1.5**2])) < 4


def test_shares_of_pairs_at_the_ends(rng: torch.Generator) -> None:
    s, t, _ = Times(diagonal=0.0, from_noise=0.2, to_data=0.5)(LIKE, rng)
    assert z_score(torch.stack([s == 0, t == 1], 1).double(), torch.tensor([0.2, 0.5])) < 4
    assert not ((s == 0) & (t == 1)).any()


@pytest.mark.parametrize("law", ["uniform", "logit-normal"])
def test_two_processes_draw_the_times_of_one(law: str) -> None:
    times = Times(law=law)  # type: ignore[arg-type]
    whole = times(LIKE[:32], torch.Generator().manual_seed(3))
    parts = [times(LIKE[:16], Shard(torch.Generator().manual_seed(3), rank, 2)) for rank in (0, 1)]
    assert all(torch.equal(torch.cat([a, b]), c) for a, b, c in zip(*parts, whole, strict=True))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"diagonal": 1.1}, "diagonal must be a share between 0 and 1, got 1.1"),
        ({"from_noise": 0.6, "to_data": 0.6}, "from_noise .* at most 1, got 1.2"),
        ({"law": "beta"}, "law must be .* got 'beta'"),
        ({"std": 0.0}, "std must be above 0, got 0.0"),
    ],
)
def test_bad_times(bad: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Times(**bad)


def test_points_lie_on_their_lines(rng: torch.Generator) -> None:
    """x + (t - s) slope at s is the point at t of the same line, on the linear path."""
    x1 = torch.randn(50, 2, generator=rng, dtype=torch.float64)
    s, t = torch.rand(2, 50, generator=rng, dtype=torch.float64)
    model = Student(nothing)
    a, b = (draw_rows(model.path, Batch(x1), u, u, torch.Generator().manual_seed(1)) for u in (s, t))
    assert torch.allclose(a.x + (t - s)[:, None] * a.slope, b.x)
    assert torch.allclose(a.x + (1 - s)[:, None] * a.slope, x1)


def test_the_metric_and_the_sum_of_parts() -> None:
    error = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    model = Student(nothing, metric=torch.tensor([1.0, 3.0]))
    assert squared(model, error).tolist() == [6.5, 4.5]
    one, two = torch.tensor([1.0, 2.0]), torch.tensor([6.0])
    loss, told = total({"a": (one, 10 * one), "b": (two, two), "none": (one[:0], one[:0])}, 3)
    assert loss == 3 and told == {"a": 15.0, "b": 6.0}


def test_a_learned_weight_is_best_at_the_logarithm_of_the_loss() -> None:
    """There exp(-w) l + w is least, and every row's gradient to l is 1 / l; e^w is a floor and what is learned."""
    loss = torch.tensor([0.1, 5.0], requires_grad=True)
    w = (loss.detach() - 0.05).log().requires_grad_()
    LearnedWeight(floor=0.05)(loss, loss, loss, Student(nothing, weight=lambda s, t: w)).sum().backward()
    assert w.grad is not None and loss.grad is not None
    assert torch.allclose(w.grad, torch.zeros(2), atol=1e-6) and torch.allclose(loss.grad, 1 / loss)
    tiny = torch.tensor([1e-9], requires_grad=True)
    LearnedWeight(floor=0.05)(
        tiny, tiny, tiny, Student(nothing, weight=lambda s, t: tiny.detach().log())
    ).sum().backward()
    assert tiny.grad is not None and torch.allclose(tiny.grad, torch.tensor([20.0]), rtol=1e-4)
    assert (TimeWeight()(torch.rand(5), torch.rand(5)) == 0).all()
    with pytest.raises(ValueError, match="needs model.weight"):
        LearnedWeight()(loss, loss, loss, Student(nothing))


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_an_adaptive_weight_has_no_gradient_of_its_own(power: float) -> None:
    loss = torch.tensor([0.01, 4.0], requires_grad=True)
    AdaptiveWeight(power, c=0.1)(loss, loss, loss, Student(nothing)).sum().backward()
    assert loss.grad is not None and torch.allclose(loss.grad, (loss.detach() + 0.1) ** -power)


def test_a_uniform_weight_undoes_the_division_by_what_is_left_of_time() -> None:
    t = torch.tensor([0.0, 0.5, 0.99])
    out = Uniform(least=0.1)(torch.ones(3), t, t, Student(nothing))
    assert torch.allclose(out, torch.tensor([1.0, 0.25, 0.01]))


def curve(x: Tensor, s: Tensor) -> Tensor:
    """A function of a point and a time."""
    return (x * s.exp()[:, None]).sin()


def test_the_derivative_is_that_along_the_direction(rng: torch.Generator) -> None:
    x, d = torch.randn(2, 7, 2, generator=rng, dtype=torch.float64)
    s, one = torch.rand(7, generator=rng, dtype=torch.float64), torch.ones(7, dtype=torch.float64)
    grow = s.exp()[:, None]
    exact = (x * grow).cos() * grow * (d + x)
    value, slope = Derivative("forward")(curve, (x, s), (d, one))
    assert torch.allclose(value, curve(x, s)) and torch.allclose(slope, exact)
    errors = [(Derivative("central", eps)(curve, (x, s), (d, one))[1] - exact).abs().max() for eps in (0.02, 0.01)]
    assert errors[1] < 0.02 and 3.9 < errors[0] / errors[1] < 4.1  # of order eps^2


@pytest.mark.parametrize("mode", ["forward", "central"])
def test_both_the_value_and_the_derivative_have_gradients(mode: str) -> None:
    a = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0.5], dtype=torch.float64)
    value, slope = Derivative(mode)(lambda t: a * t**2, (t,), (torch.ones_like(t),))  # type: ignore[arg-type]
    assert torch.autograd.grad(value.sum(), a, retain_graph=True)[0] == pytest.approx(0.25)
    assert torch.autograd.grad(slope.sum(), a)[0] == pytest.approx(1.0)


def test_an_operator_without_a_forward_mode_is_told_of_once() -> None:
    x, one = torch.rand(4, 3, dtype=torch.float64), torch.ones(4, 3, dtype=torch.float64)

    def f(x: Tensor) -> Tensor:
        return torch.segment_reduce(x.square(), "sum", lengths=torch.tensor([2, 2]))

    derivative = Derivative()
    with pytest.warns(UserWarning, match="central differences"):
        _, slope = derivative(f, (x,), (one,))
    assert torch.allclose(slope, 2 * x.unflatten(0, (2, 2)).sum(1))  # of a square they are exact
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        derivative(f, (x,), (one,))
    with pytest.raises(NotImplementedError):
        Derivative("forward")(f, (x,), (one,))


def test_other_errors_of_a_network_are_its_own() -> None:
    def broken(x: Tensor) -> Tensor:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        Derivative()(broken, (torch.ones(1),), (torch.ones(1),))


class Table:
    """A velocity for a prompt and one for none."""

    def __init__(self, told: float, plain: float) -> None:
        self.v = torch.tensor([plain, told])

    def __call__(self, x: Tensor, s: object, t: object, cond: dict[str, Tensor] | None = None) -> Tensor:
        assert cond is not None
        return self.v[cond["told"].long()][:, None].expand_as(x)


def two_rows(dropped: bool) -> Rows:
    """Rows of slope 1: one with a prompt, one that may have lost it."""
    x, u = torch.zeros(2, 1), torch.full((2,), 0.5)
    return Rows(x, x + 1, u, u, x, {"told": torch.tensor([1.0, float(not dropped)])}, torch.tensor([False, dropped]))


@pytest.mark.parametrize("scale", [1.0, 2.0, 7.0])
def test_the_fixed_point_of_folded_guidance_is_the_guided_velocity(scale: float) -> None:
    """``v(c) = scale b(c) + (1 - scale) v(nothing)`` with b(c) = 1 and v(nothing) = 0.25."""
    flow, rows = Table(told=0.0, plain=0.25), two_rows(dropped=False)
    model = Student(flow, null={"told": torch.zeros(1)})
    for _ in range(300):
        flow.v[1] = FoldedGuidance(scale).target(model, rows, flow(rows.x, 0, 0, dict(rows.cond or {})))[0, 0]
    assert float(flow.v[1]) == pytest.approx(scale * 1 + (1 - scale) * 0.25, abs=1e-4)


def test_rows_without_a_prompt_and_early_rows_keep_their_slope() -> None:
    flow, rows = Table(told=3.0, plain=0.25), two_rows(dropped=True)
    model = Student(flow, null={"told": torch.zeros(1)})
    v = flow(rows.x, 0, 0, dict(rows.cond or {}))
    assert FoldedGuidance(2.0).target(model, rows, v)[:, 0].tolist() == [1 + (3 - 0.25) / 2, 1.0]
    early = replace(model, progress=0.1)
    assert torch.equal(FoldedGuidance(2.0, start=0.2).target(early, rows, v), rows.slope)
    with pytest.raises(ValueError, match="model.null"):
        FoldedGuidance(2.0).target(replace(model, null=None), rows, v)


def test_scales_that_are_told_are_log_uniform(rng: torch.Generator) -> None:
    x, u = LIKE, LIKE[:, 0]
    told = FoldedGuidance(largest=8.0).tell(Rows(x, x, u, u, x, {}), rng).cond
    assert told is not None
    assert z_score(told["guidance"].log()[:, None] / math.log(8.0), 0.5) < 4
    assert told["guidance"].min() >= 1 and told["guidance"].max() <= 8
