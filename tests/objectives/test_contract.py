"""Every objective that configs/ can build: what it returns, where its gradient goes, and that it can be spread."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from steer.analytic import GaussianMixture
from steer.draws import Shard
from steer.interpolants import like
from steer.objectives import Batch, Student, TimeWeight
from steer.settings import build, names

NAMES = names("objective")


class Net(nn.Module):
    """A small map v(x, s, t, cond) in the plane, which also reads a context."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(8, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2)
        )

    def forward(self, x: Tensor, s: Any, t: Any, cond: dict[str, Tensor] | None = None) -> Tensor:  # noqa: ANN401
        """v_{s,t}(x) [b 2]."""
        cond = cond or {}
        other = torch.cat([cond.get("x_t", torch.zeros_like(x)), like(cond.get("t", x.new_zeros(len(x))), x)], 1)
        extra = like(cond.get("c", x.new_zeros(len(x))), x)
        times = [like(u, x).expand(len(x), 1) for u in (s, t)]
        return self.layers(torch.cat([x, *times, other, extra], 1))


def make(name: str, teacher: Callable) -> Any:  # noqa: ANN401
    """An objective; one that distils is given the teacher."""
    objective = build("objective", name)
    return objective(teacher=teacher) if isinstance(objective, functools.partial) else objective


def student(dtype: torch.dtype = torch.float64) -> tuple[Student, Net, Net]:
    """A model with an average and a network of weights; the flow, and its average."""
    torch.manual_seed(0)
    flow, average, weight = Net().to(dtype), Net().to(dtype), TimeWeight().to(dtype)
    null = {"c": torch.zeros(1, dtype=dtype)}
    return Student(flow, average=average.requires_grad_(False), weight=weight, null=null), flow, average


def batch(mixture: GaussianMixture, b: int, rng: torch.Generator) -> Batch:
    """Rows with a condition."""
    x1 = mixture.sample(b, rng=rng)
    return Batch(x1, {"c": torch.ones(b, dtype=x1.dtype)}, torch.zeros(b, dtype=torch.bool))


@pytest.mark.parametrize("name", NAMES)
def test_a_finite_loss_with_gradients_to_the_trained_weights_alone(
    name: str, mixture: GaussianMixture, rng: torch.Generator
) -> None:
    model, flow, average = student()
    teacher = Net().double()
    loss, metrics = make(name, teacher.requires_grad_(False))(model, batch(mixture, 64, rng), rng)
    loss.backward()
    assert loss.ndim == 0 and loss.isfinite()
    assert metrics and all(m.ndim == 0 and not m.requires_grad and m.isfinite() for m in metrics.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in flow.parameters())
    assert sum(float(p.grad.abs().sum()) for p in flow.parameters() if p.grad is not None) > 0
    assert all(p.grad is None for net in (teacher, average) for p in net.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_shares_of_a_batch_have_the_mean_of_the_whole(
    name: str, mixture: GaussianMixture, rng: torch.Generator
) -> None:
    """What makes two processes, and accumulated parts, equal to one."""
    model, _, _ = student()
    objective, data = make(name, Net().double()), batch(mixture, 64, rng)
    loss = lambda rows, rank, world: objective(  # noqa: E731
        model, rows, Shard(torch.Generator().manual_seed(7), rank, world)
    )[0].item()
    parts = []
    for rank in (0, 1):
        rows = slice(32 * rank, 32 * (rank + 1))
        assert data.cond is not None and data.dropped is not None
        parts.append(loss(Batch(data.x1[rows], {"c": data.cond["c"][rows]}, data.dropped[rows]), rank, 2))
    assert abs(sum(parts) / 2 - loss(data, 0, 1)) < 1e-9
    assert abs(parts[0] - parts[1]) > 1e-6
