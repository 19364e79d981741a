"""Averages of weights: the recursion, buffers, several at once, and what is stored of them."""

import copy

import pytest
import torch
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
