"""Averages of weights: the recursion, buffers, several at once, and what is stored of them."""

import copy
from pathlib import Path

import pytest
import torch
from tiny import trainer
from torch import nn

from steer.averages import Averages

CPU = torch.device("cpu")


def network() -> nn.Module:
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    return net.requires_grad_(True)


def weights(net: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def test_each_decay_by_hand(rng: torch.Generator) -> None:
    net, decays = network(), (0.0, 0.3, 0.95)
    averages = Averages(net, decays, CPU)
    truth = {decay: weights(net).double() for decay in decays}
    for step in range(300):
        with torch.no_grad():
            for p in net.parameters():
                p += torch.randn(p.shape, generator=rng)
        averages.update(net, step)
        for decay in decays:
            d = min(decay, (1 + step) / (10 + step))
            truth[decay] = d * truth[decay] + (1 - d) * weights(net).double()
    for decay, average in zip(decays, averages.nets, strict=True):
        torch.testing.assert_close(weights(average).double(), truth[decay], atol=2e-4, rtol=1e-5)
    torch.testing.assert_close(weights(averages.nets[0]), weights(net))


def test_of_constant_weights_it_is_those() -> None:
    net = network()
    averages = Averages(net, (0.999,), CPU)
    for step in range(50):
        averages.update(net, step)
    assert torch.equal(weights(averages.first), weights(net))


def test_buffers_are_copied_and_nothing_is_trained(rng: torch.Generator) -> None:
    net = network()
    averages = Averages(net, (0.9, 0.5), CPU)
    net(torch.randn(8, 2, generator=rng))
    averages.update(net, 0)
    for average in averages.nets:
        assert torch.equal(average[1].running_mean, net[1].running_mean) and average[1].num_batches_tracked == 1  # type: ignore[index]
        assert not average.training and not any(p.requires_grad for p in average.parameters())
    assert net.training and all(p.requires_grad for p in net.parameters())


def test_it_starts_from_the_weights_that_training_does() -> None:
    net, other = network(), network()
    averages = Averages(net, (0.9,), CPU)
    averages.start(other)
    assert torch.equal(weights(averages.first), weights(other))


def test_decays_that_begin_alike_are_told_apart() -> None:
    net = network()
    averages = Averages(net, (0.9, 0.99, 0.999), CPU)
    for k, average in enumerate(averages.nets):
        nn.init.constant_(average[0].weight, k)  # type: ignore[index]
    state = copy.deepcopy(averages.state())
    fresh = Averages(net, (0.9, 0.99, 0.999), CPU)
    fresh.load(state)
    assert [float(average[0].weight.detach().mean()) for average in fresh.nets] == [0, 1, 2]  # type: ignore[index]
    fresh.update(net, 10**6)  # what was loaded is what goes on
    assert float(fresh.nets[2][0].weight.detach().mean()) == pytest.approx(  # type: ignore[index]
        2 * 0.999 + 0.001 * float(net[0].weight.detach().mean()), abs=1e-5
    )


def test_what_does_not_fit_is_refused() -> None:
    state = Averages(network(), (0.9,), CPU).state()
    with pytest.raises(ValueError, match=r"ema=\[0.5\]"):
        Averages(network(), (0.5,), CPU).load(state)
    with pytest.raises(ValueError, match="this network"):
        Averages(nn.Linear(2, 3), (0.9,), CPU).load(state)


def adapted() -> nn.Module:
    """A network of which only the second layer is trained."""
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1), nn.BatchNorm1d(1, affine=False))
    net[0].requires_grad_(False)
    return net


def test_frozen_weights_are_shared_and_trained_ones_are_not() -> None:
    net = adapted()
    averages = Averages(net, (0.5, 0.9), CPU)
    for average in averages.nets:
        pairs = zip(average.named_parameters(), net.parameters(), strict=True)
        shared = {name: a.data_ptr() == p.data_ptr() for (name, a), p in pairs}
        assert shared == {"0.weight": True, "0.bias": True, "1.weight": False, "1.bias": False}
    assert averages.nets[0][1].weight.data_ptr() != averages.nets[1][1].weight.data_ptr()  # type: ignore[index]
    assert all(p.requires_grad for p in net[1].parameters())  # type: ignore[index]


def test_frozen_weights_stay_and_are_not_stored() -> None:
    """The state is what is trained, and buffers; it goes round, and one with a weight too few is refused."""
    net = adapted()
    averages, fixed = Averages(net, (0.5,), CPU), net[0].weight.clone()  # type: ignore[index]
    nn.init.constant_(net[1].weight, 4.0)  # type: ignore[index]
    nn.init.constant_(averages.first[1].weight, 0.0)  # type: ignore[index]
    averages.update(net, 100)
    state = {key: value.clone() for key, value in averages.state().items()}
    buffers = {f"0.5.2.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    assert state.keys() == {"0.5.1.weight", "0.5.1.bias"} | buffers
    assert torch.equal(state["0.5.1.weight"], torch.full((1, 3), 2.0))  # half of 0 and 4
    fresh = Averages(net, (0.5,), CPU)
    fresh.load(state)
    assert torch.equal(fresh.first[1].weight, state["0.5.1.weight"])  # type: ignore[index]
    assert torch.equal(fresh.first[0].weight, fixed) and torch.equal(net[1].weight, torch.full((1, 3), 4.0))  # type: ignore[index]
    with pytest.raises(ValueError, match="some weights are missing"):
        fresh.load({key: value for key, value in state.items() if "bias" not in key})


def test_the_trainer_updates_them_every_few_steps(tmp_path: Path) -> None:
    """After steps 3 and 6 of 7, and the last, with decays by the count of updates: d_0 = 1/10, d_1 = 2/11, ..."""
    run = trainer(tmp_path, ema=(0.5,), average_every=3, steps=7)
    truth, seen = weights(run.plain.flow), []
    for _ in range(7):
        before = weights(run.averages.first)
        run.update()
        seen.append(not torch.equal(weights(run.averages.first), before))
        if run.step in (3, 6, 7):
            count = -(-run.step // 3)
            decay = count / (9 + count)
            truth = decay * truth + (1 - decay) * weights(run.plain.flow)
    assert seen == [False, False, True, False, False, True, True]
    torch.testing.assert_close(weights(run.averages.first), truth, atol=1e-6, rtol=1e-5)
