from collections.abc import Callable

import pytest
import torch
from conftest import Counting
from torch import Tensor
from torch.testing import assert_close

from steer.analytic import GaussianMixture
from steer.flow_map import (
    Autocast,
    Checkpointed,
    Chunked,
    ClassifierFree,
    Cond,
    FlowMap,
    OdeFlowMap,
    compiled,
    denoise,
    jump,
    score,
    velocity,
)
from steer.interpolants import Interpolant, Linear, Time


def scaled(x: Tensor, s: Time, t: Time, cond: Cond = None) -> Tensor:
    """A flow map whose velocity is the prompt's own number."""
    assert cond is not None
    return torch.zeros_like(x) + cond["a"].reshape(-1, *[1] * (x.ndim - 1))


def test_jump_is_the_identity_on_the_diagonal(mixture: GaussianMixture, rng: torch.Generator) -> None:
    x = torch.randn(6, 2, generator=rng, dtype=torch.float64)
    t = torch.rand(6, generator=rng, dtype=torch.float64)
    assert torch.equal(jump(mixture.flow(), x, t, t), x)


def test_denoise_and_score_of_the_exact_map(mixture: GaussianMixture, path: Interpolant, rng: torch.Generator) -> None:
    x = torch.randn(6, 2, generator=rng, dtype=torch.float64)
    assert_close(denoise(mixture.flow(path), path, x, 0.4), mixture.posterior(x, 0.4, path).mean)
    xs = x.requires_grad_()
    (exact,) = torch.autograd.grad(mixture.marginal(0.4, path).log_prob(xs).sum(), xs)
    assert_close(score(mixture.flow(path), path, x, 0.4), exact)


@pytest.mark.parametrize("rows", [1, 4, 5, 100])
def test_chunks_change_nothing(rows: int, mixture: GaussianMixture, rng: torch.Generator) -> None:
    """Whatever the size, also with a time and a cond a row."""
    x, t = torch.randn(9, 2, generator=rng, dtype=torch.float64), torch.rand(9, generator=rng, dtype=torch.float64)
    cond = {"a": torch.arange(9).double()[:, None]}

    def flow(x: Tensor, s: Time, t: Time, cond: Cond = None) -> Tensor:
        assert cond is not None
        return mixture.flow()(x, s, t) + cond["a"]

    counted = Counting(flow)
    assert_close(Chunked(counted, rows)(x, 0.0, t, cond), flow(x, 0.0, t, cond), atol=1e-9, rtol=0)
    assert counted.calls == -(-9 // rows) and counted.forward == 9


def test_chunks_of_nothing_raise() -> None:
    with pytest.raises(ValueError, match="rows must be at least 1, got 0"):
        Chunked(scaled, 0)


@pytest.mark.parametrize("scheme", ["midpoint", "heun"])
def test_ode_flow_map_is_second_order(mixture: GaussianMixture, scheme: str, rng: torch.Generator) -> None:
    x = torch.randn(64, 2, generator=rng, dtype=torch.float64)
    exact = jump(mixture.flow(), x, 0.1, 0.8)
    steps = torch.tensor([16, 32, 64])
    maps = [OdeFlowMap(lambda x, t, c=None: mixture.velocity(x, t), int(n), scheme) for n in steps]  # pyright: ignore[reportArgumentType]
    error = torch.stack([(jump(m, x, 0.1, 0.8) - exact).square().mean().sqrt() for m in maps])
    slope = (error.log().diff() / steps.double().log().diff()).mean()
    assert -2.3 < slope < -1.7


@pytest.mark.parametrize("scheme", ["midpoint", "heun"])
def test_ode_flow_map_diagonal_is_the_velocity(mixture: GaussianMixture, scheme: str) -> None:
    field = Counting(lambda x, t, _, c=None: mixture.velocity(x, t))
    flow = OdeFlowMap(lambda x, t, c=None: field(x, t, t, c), 3, scheme)  # pyright: ignore[reportArgumentType]
    x = torch.ones(4, 2, dtype=torch.float64)
    assert_close(velocity(flow, x, 0.5), mixture.velocity(x, 0.5))
    assert field.calls == 1
    t = torch.tensor([0.1, 0.2, 0.3, 0.4]).double()
    assert_close(velocity(flow, x, t), mixture.velocity(x, t))
    assert torch.equal(jump(flow, x, t, t), x) and field.calls == 1 + 2 * 6


def test_ode_flow_map_runs_backwards(mixture: GaussianMixture, rng: torch.Generator) -> None:
    x = torch.randn(8, 2, generator=rng, dtype=torch.float64)
    flow = OdeFlowMap(lambda x, t, c=None: mixture.velocity(x, t), 200)
    assert_close(jump(flow, jump(flow, x, 0.0, 0.9), 0.9, 0.0), x, atol=1e-3, rtol=0)


@pytest.mark.parametrize(("kwargs", "match"), [({"steps": 0}, "steps"), ({"scheme": "euler"}, "scheme")])
def test_ode_flow_map_settings(kwargs: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        OdeFlowMap(lambda x, t, c=None: x, **kwargs)


def test_classifier_free_guidance_extrapolates_the_velocity() -> None:
    flow = Counting(scaled)
    guided = ClassifierFree(flow, {"a": torch.tensor([10.0])}, scale=3.0)
    v = guided(torch.zeros(2, 5), 0.5, {"a": torch.tensor([1.0, 2.0])})
    assert_close(v[:, 0], torch.tensor([10 + 3 * (1 - 10.0), 10 + 3 * (2 - 10.0)]))
    assert flow.calls == 1


def test_classifier_free_guidance_of_scale_one_is_the_velocity_and_integrates_to_the_map(
    mixture: GaussianMixture, rng: torch.Generator
) -> None:
    x = torch.randn(5, 2, generator=rng, dtype=torch.float64)
    cond = {"a": torch.zeros(5, 1)}
    flow = OdeFlowMap(ClassifierFree(mixture.flow(), {"a": torch.zeros(1, 1)}, scale=1.0), 100)
    assert_close(jump(flow, x, 0.0, 1.0, cond), jump(mixture.flow(), x, 0.0, 1.0), atol=1e-2, rtol=0)
    t = torch.linspace(0.1, 0.9, 5).double()
    assert_close(ClassifierFree(mixture.flow(), {"a": torch.zeros(1, 1)})(x, t, cond), mixture.velocity(x, t))


def test_classifier_free_guidance_needs_the_same_keys() -> None:
    with pytest.raises(ValueError, match="keys of null"):
        ClassifierFree(scaled, {"a": torch.ones(1)})(torch.zeros(2, 5), 0.5, None)


def test_linear_flow_of_the_standard_normal_keeps_its_law() -> None:
    normal = GaussianMixture(torch.ones(1), torch.zeros(1, 2), torch.eye(2)[None])
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert_close(jump(normal.flow(Linear()), x, 0.0, 1.0), x)


NULL = {"a": torch.zeros(1, 1)}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda flow: flow,
        lambda flow: Chunked(Checkpointed(flow), 3),
        lambda flow: OdeFlowMap(lambda x, t, cond: flow(x, t, t, cond), 2),
        lambda flow: OdeFlowMap(ClassifierFree(flow, NULL, 2.0), 2),
    ],
)
def test_the_network_alone_is_compiled(wrap: Callable[[FlowMap], FlowMap], monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, for any number of rows, with times as tensors; the wrappers stay, and so do the values."""
    made, seen = [], []

    def compile_(function: Callable[..., Tensor], dynamic: bool) -> Callable[..., Tensor]:
        made.append(dynamic)
        return lambda x, *rest: seen.append([u.shape for u in rest[:-1]]) or function(x, *rest)

    monkeypatch.setattr(torch, "compile", compile_)

    def flow(x: Tensor, s: Time, t: Time, cond: Cond = None) -> Tensor:
        s, t = (torch.as_tensor(u, dtype=x.dtype).reshape(-1, 1) for u in (s, t))
        assert cond is not None
        return x.sin() * (1 + s) + t + cond["a"]

    x, cond = torch.linspace(-1, 1, 10).view(5, 2), {"a": torch.ones(5, 1)}
    assert_close(compiled(wrap(flow))(x, 0.2, 0.7, cond), wrap(flow)(x, 0.2, 0.7, cond))
    assert made == [True] and all(len(shape) == 1 for shapes in seen for shape in shapes) and seen


def test_checkpoints_and_autocast_keep_values_and_gradients() -> None:
    layer = torch.nn.Linear(2, 2)

    def flow(x: Tensor, s: Time, t: Time, cond: Cond = None) -> Tensor:
        return layer(x).tanh()

    x = torch.linspace(-1, 1, 10).view(5, 2).requires_grad_()
    (truth,) = torch.autograd.grad(jump(flow, jump(flow, x, 0.0, 0.5), 0.5, 1.0).sum(), x)
    for wrapped, near in ((Checkpointed(flow), 1e-7), (Autocast(flow), 0.02)):
        (g,) = torch.autograd.grad(jump(wrapped, jump(wrapped, x, 0.0, 0.5), 0.5, 1.0).sum(), x)
        assert g.dtype == torch.float32
        assert_close(g, truth, atol=near, rtol=0)
