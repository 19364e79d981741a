"""A small flow map of the plane: its training with a given number of network calls, and its samples."""

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from steer.analytic import GaussianMixture
from steer.data.mixture import Checkerboard, Points
from steer.flow_map import Cond, FlowMap, jump
from steer.interpolants import Linear, Time, like
from steer.metrics import sliced_w1
from steer.moves import restart
from steer.objectives import Batch, Objective, Student
from steer.training import Settings, Trainer

FREQUENCIES = (0.5, 1.0, 2.0, 4.0)
BINS = 8  # a side of a square of the checkerboard


class Perceptron(nn.Module):
    """v_{s,t}(x) in d dimensions: x, s, t, and cosines and sines of the times, through hidden layers of SiLU.

    x is divided by ``sqrt((1-s)^2 + s^2 std^2)``, its own size, and what comes out is in units of ``sqrt(1 + std^2)``,
    that of dI/ds; std is the standard deviation of a coordinate of the data.
    """

    def __init__(self, std: float, width: int = 128, depth: int = 3, d: int = 2) -> None:
        super().__init__()
        self.std = std
        sizes = [d + 2 + 4 * len(FREQUENCIES), *[width] * depth, d]
        layers = [m for i, o in zip(sizes, sizes[1:], strict=False) for m in (nn.Linear(i, o), nn.SiLU())]
        self.layers = nn.Sequential(*layers[:-1])
        self.register_buffer("frequencies", math.pi * torch.tensor(FREQUENCIES), persistent=False)

    frequencies: Tensor

    def forward(self, x: Tensor, s: Time, t: Time, cond: Cond = None) -> Tensor:
        """v_{s,t}(x) [b d]; cond is not looked at."""
        s, t = (like(u, x).expand(len(x), 1) for u in (s, t))
        size = ((1 - s) ** 2 + (s * self.std) ** 2).sqrt()
        angle = torch.cat([s * self.frequencies, t * self.frequencies], 1)
        inputs = torch.cat([x / size, s, t, angle.cos(), angle.sin()], 1)
        return math.sqrt(1 + self.std**2) * self.layers(inputs)


def new(std: float, seed: int = 0, width: int = 128, depth: int = 3, d: int = 2) -> Perceptron:
    """A network with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Perceptron(std, width, depth, d)


@dataclass(eq=False)
class Counted:
    """The same map; `calls` grows by one a row, by two a row inside a jvp, and by two more where a gradient is kept."""

    flow: FlowMap
    calls: int = 0

    def __call__(self, x: Tensor, s: Time, t: Time, cond: Cond = None) -> Tensor:
        """v_{s,t}(x) [b *d]."""
        dual = any(isinstance(a, Tensor) and forward_ad.unpack_dual(a).tangent is not None for a in (x, s, t))
        self.calls += len(x) * (1 + dual + 2 * torch.is_grad_enabled())
        return self.flow(x, s, t, cond)


def calls_a_row(objective: Objective, flow: FlowMap, rows: int = 64) -> float:
    """Network calls that a training step makes for each row of its batch, as `Counted` counts them.

    What an exact teacher does is not counted.
    """
    rng = torch.Generator().manual_seed(0)
    counted = Counted(flow)
    x = torch.randn(rows, 2, generator=rng)
    objective(Student(counted, average=counted, weight=lambda s, t: torch.zeros_like(s)), Batch(x), rng)
    return counted.calls / rows


@dataclass(eq=False)
class Rows:
    """The points of a law, as the trainer reads them."""

    points: Points
    null: Cond = None

    def __len__(self) -> int:
        return len(self.points)

    def __call__(self, index: Sequence[int]) -> tuple[Tensor, Cond]:
        """x1 [b 2], and no condition."""
        return self.points.rows(index)


def train(objective: Objective, law: Checkerboard | GaussianMixture, flow: nn.Module, settings: Settings) -> nn.Module:
    """The network after training on endless draws of the law, with averaged weights; its files are thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        return Trainer(flow, objective, Rows(Points(law)), settings, Path(folder), progress=False).run().eval()


@torch.no_grad()
def draw(flow: FlowMap, n: int, steps: int, rng: torch.Generator, renoised: bool = False) -> Tensor:
    """N samples [n 2] by that many equal jumps from noise, or by jumps to the end with fresh noise between them."""
    x, path = torch.randn(n, 2, generator=rng), Linear()
    for k in range(steps):
        s, t = k / steps, (k + 1) / steps
        x = restart(flow, path, x, s, t, rng=rng) if renoised else jump(flow, x, s, t)
    return x


@torch.no_grad()
def euler(flow: FlowMap, n: int, steps: int, rng: torch.Generator) -> Tensor:
    """N samples [n 2] by that many Euler steps along the diagonal's velocity."""
    x = torch.randn(n, 2, generator=rng)
    for k in range(steps):
        x = x + flow(x, k / steps, k / steps) / steps
    return x


def distance(law: GaussianMixture, sets: Sequence[Tensor], rng: torch.Generator) -> float:
    """Mean sliced W1 of sets of samples [n d], each to as many fresh exact draws; of exact draws it is the floor."""
    each = [float(sliced_w1(x.double(), law.sample(len(x), rng=rng), rng=rng)) for x in sets]
    return math.fsum(each) / len(each)


def histogram_kl(board: Checkerboard, x: Tensor) -> float:
    """KL(data | samples x [n 2]) in nats, of the shares in `BINS` x `BINS` bins of each square of the board.

    The data's shares are exact, those of samples counts, and a half in each bin that has data: with n exact draws it is
    about half the number of these over n. What lies outside of the board is one more bin.
    """
    side = board.squares * BINS
    cell = ((x.double() + board.half_width) / (2 * board.half_width) * side).floor().long()
    inside = ((cell >= 0) & (cell < side)).all(1)
    flat = torch.where(inside, cell[:, 0] * side + cell[:, 1], side * side)
    counts = torch.bincount(flat, minlength=side * side + 1).double()
    centre = (torch.cartesian_prod(*[torch.arange(side, dtype=torch.float64)] * 2) + 0.5) / side
    filled = board.filled((2 * centre - 1) * board.half_width)
    p = 1 / filled.sum().double()
    mine = counts[:-1][filled] + 0.5
    q = mine / (counts.sum() + 0.5 * filled.sum())
    return float((p * (p / q).log()).sum())
