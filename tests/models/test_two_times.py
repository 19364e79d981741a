"""A velocity network with a second time: the same at the start, a flow map after training."""

import pytest
import torch
from torch import Tensor, nn

from steer.flow_map import jump, velocity
from steer.models.two_times import TwoTimes
from steer.objectives import Batch, SelfDistillation, Student, Times, Uniform


class Velocity(nn.Module):
    """b(x, t) of Gaussian data N(2, .25) in one dimension, in closed form, with a time embedding that it ignores."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = nn.Linear(1, 8)
        self.read = nn.Linear(8 + 1, 1)
        nn.init.zeros_(self.read.weight)
        nn.init.zeros_(self.read.bias)
        self.hidden = nn.Sequential(nn.Linear(9, 64), nn.SiLU(), nn.Linear(64, 1))
        nn.init.zeros_(self.hidden[2].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.hidden[2].bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, t: Tensor, cond: object = None) -> Tensor:
        """b_t(x) [b 1]."""
        t = t[:, None]
        q = (1 - t) ** 2 + t**2 / 4
        exact = 2 + (t / 4 - (1 - t)) / q * (x - 2 * t)
        return exact + self.hidden(torch.cat([x, self.clock(t)], 1))


def test_at_the_start_the_map_is_the_velocity_whatever_the_end(rng: torch.Generator) -> None:
    net = Velocity()
    nn.init.normal_(net.hidden[2].weight)  # type: ignore[arg-type]
    flow, x = TwoTimes(net, "clock", 8), torch.randn(5, 1, generator=rng)
    own = net(x, torch.full((5,), 0.3))
    assert torch.equal(flow(x, 0.3, 1.0), own)
    assert torch.equal(velocity(flow, x, 0.3), own)


def test_it_learns_to_jump(rng: torch.Generator) -> None:
    torch.manual_seed(0)
    flow = TwoTimes(Velocity(), "clock", 8)
    objective = SelfDistillation(times=Times(diagonal=0.5), weighting=Uniform())
    x = torch.randn(2000, 1, generator=rng)
    before = (jump(flow, x, 0.0, 1.0) - (2 + x / 2)).abs().mean().item()
    optimiser = torch.optim.Adam(flow.parameters(), 3e-3)
    for _ in range(400):
        batch = Batch(2 + torch.randn(256, 1, generator=rng) / 2)
        loss, _ = objective(Student(flow), batch, rng)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    after = (jump(flow, x, 0.0, 1.0) - (2 + x / 2)).abs().mean().item()
    assert after < 0.1 < before  # X_{0,1}(x) = 2 + x / 2


def test_the_second_time_has_a_gradient(rng: torch.Generator) -> None:
    net = Velocity()
    nn.init.normal_(net.hidden[2].weight)  # type: ignore[arg-type]
    flow = TwoTimes(net, "clock", 8)
    flow(torch.randn(4, 1, generator=rng), 0.2, 0.9).sum().backward()
    assert flow.second[2].weight.grad.abs().sum() > 0  # type: ignore[union-attr]


def test_an_unknown_clock_is_named_with_those_that_sound_like_it() -> None:
    with pytest.raises(ValueError, match=r"clock='time' is no submodule of the network; .*\['clock'\]"):
        TwoTimes(Velocity(), "time", 8)
