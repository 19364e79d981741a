"""Adapters: without effect at the start, the reference to the last bit at any time, and a plain network at the end."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from steer.adapters import Reference, adapt, adapters, merged, switched_off
from steer.flow_map import Cond
from steer.interpolants import Time, like
from steer.models import load_model


class Small(nn.Module):
    """v(x, s, t) of x [b 2 4 4], through a convolution and linear layers."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.enter = nn.Conv2d(2, 6, 3, padding=1)
            self.times = nn.Linear(2, 6)
            self.leave = nn.Sequential(nn.SiLU(), nn.Flatten(), nn.Linear(96, 32))

    def forward(self, x: Tensor, s: Time, t: Time, cond: Cond = None) -> Tensor:
        told = torch.cat([like(u, x[:, 0, 0, 0]).expand(len(x))[:, None] for u in (s, t)], 1)
        return self.leave(self.enter(x) + self.times(told)[:, :, None, None]).view_as(x)


class Reader(nn.Module):
    """A network whose layers that read the words are named as others are."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(2, 2)
        self.pool = nn.ModuleDict({"enter": nn.Linear(2, 2)})


def points(seed: int = 1) -> Tensor:
    return torch.randn(5, 2, 4, 4, generator=torch.Generator().manual_seed(seed))


def called(net: Any, x: Tensor) -> Tensor:  # noqa: ANN401
    return net(x, 0.2, torch.linspace(0.3, 0.9, len(x)), None)


def adapted(seed: int = 0, changed: bool = True) -> nn.Module:
    """With adapters that have an effect."""
    net = adapt(Small(), rank=3, seed=seed)
    return moved(net) if changed else net


@torch.no_grad()
def moved(net: nn.Module) -> nn.Module:
    rng = torch.Generator().manual_seed(5)
    for p in trained(net).values():
        p.add_(0.1 * torch.randn(p.shape, generator=rng))
    return net


def trained(net: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in net.named_parameters() if p.requires_grad}


def states(net: nn.Module) -> dict[str, bool]:
    return {name: p.requires_grad for name, p in net.named_parameters()}


def test_adapters_have_no_effect_until_they_learn() -> None:
    x = points()
    plain, net = called(Small(), x), adapted(changed=False)
    assert len(adapters(net)) == 3
    assert torch.equal(called(net, x), plain)
    assert (called(moved(net), x) - plain).abs().max() > 0.01


def test_only_adapters_get_a_gradient() -> None:
    net = adapted()
    called(net, points()).square().sum().backward()
    got = {name for name, p in net.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert got == {name for name in states(net) if "lora_" in name} and len(got) == 6


def test_the_reference_is_the_map_before_to_the_last_bit() -> None:
    net = adapted(changed=False)
    reference, x = Reference(net), points()
    before = called(reference, x)
    assert torch.equal(called(reference, x), called(Small(), x))
    moved(net)
    assert torch.equal(called(reference, x), before) and not torch.equal(called(net, x), before)
    assert reference.copy is None


def test_the_reference_of_a_network_without_adapters_is_a_frozen_copy() -> None:
    net, x = Small(), points()
    reference, before = Reference(net), called(Small(), x)
    moved(net)
    assert torch.equal(called(reference, x), before) and not torch.equal(called(net, x), before)
    assert reference.copy is not None and not any(states(reference.copy).values()) and all(states(net).values())


@pytest.mark.parametrize("with_adapters", [True, False])
def test_gradients_go_through_the_reference_to_x_and_to_no_weight(with_adapters: bool) -> None:
    net = adapted() if with_adapters else Small()
    x = points().requires_grad_()
    called(Reference(net), x).square().sum().backward()
    plain = points().requires_grad_()
    called(Small(), plain).square().sum().backward()
    assert x.grad is not None and plain.grad is not None and torch.equal(x.grad, plain.grad)
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("frozen", [False, True])
def test_switching_off_leaves_what_is_trained_as_it_was(frozen: bool) -> None:
    net, x = adapted(), points()
    net.requires_grad_(False) if frozen else None
    was, output = states(net), called(net, x)
    assert any(was.values()) is not frozen
    with switched_off(net):
        assert torch.equal(called(net, x), called(Small(), x))
    assert states(net) == was and torch.equal(called(net, x), output)


def test_adapters_are_on_again_after_an_error() -> None:
    net, x = adapted(), points()
    was, output = states(net), called(net, x)
    with pytest.raises(RuntimeError, match="inside"), switched_off(net):
        raise RuntimeError("inside")
    assert states(net) == was and torch.equal(called(net, x), output)


def test_a_gradient_is_that_of_the_network_also_where_the_reference_was_called_in_between() -> None:
    net, x = adapted(), points()
    gradients = []
    for between in (False, True):
        loss = called(net, x).square().sum()
        called(Reference(net), x) if between else None
        gradients.append(torch.autograd.grad(loss, list(trained(net).values())))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_merged_is_the_same_map_without_adapters() -> None:
    net, x = adapted(), points()
    plain, before = merged(net), called(net, x)
    assert not adapters(plain) and plain.state_dict().keys() == Small().state_dict().keys()
    assert (called(plain, x) - before).abs().max() < 2e-6 * before.abs().max()
    assert torch.equal(called(net, x), before) and len(adapters(net)) == 3 and trained(net)


def test_the_scale_of_an_adapter_is_alpha_over_its_rank() -> None:
    x, plain = points().double(), Small().double()
    moves = []
    for alpha in (None, 6.0, 3.0):  # None stands for twice the rank
        net = moved(adapt(Small(), 3, alpha)).double()
        a, b = (net.times.lora_A["default"].weight, net.times.lora_B["default"].weight)  # type: ignore[union-attr, index]
        moves.append((merged(net).times.weight - plain.times.weight, b @ a))  # type: ignore[operator]
    for (move, product), scale in zip(moves, (2.0, 2.0, 1.0), strict=True):
        assert torch.allclose(move, scale * product, atol=1e-12)
    assert called(plain, x).isfinite().all()


def test_forward_derivatives_pass_through_adapters() -> None:
    net, x, direction = adapted().double(), points().double(), points(2).double()
    f = lambda x, t: net(x, 0.2, t, None)  # noqa: E731
    t, dt, h = torch.linspace(0.3, 0.9, 5).double(), torch.ones(5).double(), 1e-5
    _, slope = torch.func.jvp(f, (x, t), (direction, dt))
    central = (f(x + h * direction, t + h * dt) - f(x - h * direction, t - h * dt)) / (2 * h)
    assert (slope - central).abs().max() < 1e-8 < slope.abs().max()


def test_adapters_are_a_function_of_the_seed_and_leave_the_world_s_own_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    weights = [trained(adapted(seed, changed=False)) for seed in (0, 0, 1)]
    assert torch.equal(torch.rand(1), expected)
    same = [all(torch.equal(weights[0][name], other[name]) for name in other) for other in weights[1:]]
    assert same == [True, False]


def test_layers_that_read_the_words_can_be_left_out() -> None:
    with_words, without = adapt(Reader(), 1), adapt(Reader(), 1, words=False)
    assert len(adapters(with_words)) == 2
    assert {name.split(".")[0] for name in trained(without)} == {"enter"}


def test_errors_name_the_cure() -> None:
    with pytest.raises(ValueError, match="rank must be at least 1, got 0; 0 stands for tuning all the weights"):
        adapt(Small(), 0)
    with pytest.raises(ValueError, match="SiLU has no linear or convolutional layer to adapt; take rank=0"):
        adapt(nn.SiLU(), 4)


@torch.no_grad()
def test_an_embedded_network(rng: torch.Generator) -> None:
    """The words are read by adapted layers too, so the reference reads them itself."""
    model = load_model("shapes", device="cpu")
    net: Any = model.flow
    ids = {"ids": model.encode.ids(["a red circle", "two blue squares"])}  # type: ignore[attr-defined]
    x = torch.randn(2, *model.shape, generator=rng)
    before = net(x, 0.1, 0.6, net.condition(ids))
    adapt(net, 2)
    reference, told = Reference(net), net.condition(ids)
    assert torch.equal(net(x, 0.1, 0.6, told), before)
    moved(net)
    told = net.condition(ids)
    after = net(x, 0.1, 0.6, told)
    assert torch.equal(reference(x, 0.1, 0.6, told), before) and (after - before).abs().max() > 0.01
    plain: Any = merged(net)
    assert not adapters(plain)
    assert (plain(x, 0.1, 0.6, plain.condition(ids)) - after).abs().max() < 1e-5 * after.abs().max()
