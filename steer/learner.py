"""What is trained, as one module whose forward pass is the loss."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from steer.draws import Shard
from steer.flow_map import Cond
from steer.interpolants import Time
from steer.objectives import Batch, LearnedWeight, Objective, Student, TimeWeight


class Learner(nn.Module):
    """What is trained, as one module whose forward pass is the loss of a batch.

    So distributed data parallelism sees every use of the weights, those inside a jvp too.
    """

    def __init__(self, flow: nn.Module, objective: Objective, student: Student, seed: int = 0) -> None:
        super().__init__()
        self.flow = flow
        self.weight = _weight(seed) if needs_weight(objective) else None
        self.objective, self.student = objective, student

    def forward(
        self, batch: Batch, rng: Shard, average: nn.Module | None, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and what to write down."""
        student = replace(
            self.student, flow=self.flow, average=None if average is None else Own(average), weight=self.weight,
            progress=progress, null=described(self.flow, self.student.null),
        )  # fmt: skip
        return self.objective(student, replace(batch, cond=described(self.flow, batch.cond)), rng)


class Own:
    """A network that reads the words itself, rather than take what the one in training has made of them."""

    def __init__(self, flow: nn.Module) -> None:
        self.flow = flow

    def __call__(self, x: Tensor, s: Time, t: Time, cond: Cond = None) -> Tensor:
        """v_{s,t}(x) [b *d]."""
        return self.flow(x, s, t, unread(self.flow, cond))


def unread(flow: nn.Module, cond: Cond) -> Cond:
    """Cond without what another network's `condition` has made of the words, where the words themselves are there."""
    if cond is None or not hasattr(flow, "condition") or len(cond.keys() & {"ids", "tokens"}) == 0:
        return cond
    return {key: c for key, c in cond.items() if key != "words"}


def needs_weight(objective: object) -> bool:
    """Whether an objective, or one that it wraps, weighs its rows by a learned function of their times."""
    inner = getattr(objective, "objective", None)
    return isinstance(getattr(objective, "weighting", None), LearnedWeight) or (
        inner is not None and needs_weight(inner)
    )


def _weight(seed: int) -> TimeWeight:
    """A fresh one, the same in any process and after any restart."""
    with seeded(seed, torch.device("cpu")):
        return TimeWeight()


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """The world's own generators, of which a few modules draw, hold a seed inside; then what they held before."""
    cuda = device.type == "cuda"
    with torch.random.fork_rng([device] if cuda else []):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed takes a millisecond
        if cuda:
            torch.cuda.manual_seed(seed)
        yield


def described(flow: nn.Module, cond: Cond) -> Cond:
    """What a network that reads words makes of them, once for all calls that follow."""
    describe = getattr(flow, "condition", None)
    return cond if cond is None or describe is None else describe(cond)
