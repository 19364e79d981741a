"""What samples of no advantage do, and the bad ones."""

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from steer.draws import Shard
from steer.objectives import Batch, NegativeAware, Student


class Moved(nn.Module):
    """The velocity x, and a constant that is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor, s: object, t: object, cond: object = None) -> Tensor:
        return x + self.by


def gradient(advantage: float, negative: float) -> Tensor:
    flow, old = Moved(), Moved()
    x1 = torch.randn(64, 2, generator=torch.Generator().manual_seed(0)) + 1
    batch = Batch(x1, more={"advantage": torch.full((64,), advantage)})
    goal = NegativeAware(negative=negative, kl=0.0, share=0.0)
    loss, _ = goal(Student(flow, average=old), batch, Shard(torch.Generator().manual_seed(1)))
    (g,) = torch.autograd.grad(loss, flow.by)
    return g


def test_samples_of_no_advantage_pull_by_what_the_negative_half_lacks() -> None:
    assert_close(gradient(0.0, 1.0), torch.zeros(2), rtol=0, atol=1e-6)
    assert gradient(0.0, 0.0).abs().min() > 0.01
    assert_close(gradient(0.0, 0.8), 0.2 * gradient(0.0, 0.0))


def test_good_samples_pull_and_bad_ones_push_as_much() -> None:
    assert_close(gradient(2.5, 1.0), -gradient(-2.5, 1.0))
    assert_close(gradient(2.5, 0.3), gradient(2.5, 1.0))
    assert_close(gradient(-2.5, 0.3), 0.3 * gradient(-2.5, 1.0))


@pytest.mark.parametrize("negative", [-0.1, 1.5])
def test_its_weight_is_a_share(negative: float) -> None:
    with pytest.raises(ValueError, match="negative"):
        NegativeAware(negative=negative)
