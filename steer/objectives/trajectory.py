"""Distillation by regression on the teacher's own trajectories: many exact jumps of one solve.

    x_0 ~ N(0, I), x_{t_1}, ..., x_{t_n} by Heun's method along the teacher's velocity, t_0 = 0 < t_1 < ... < t_n = 1

    loss = E_{i<j} (1 - t_i)^2 |v_{t_i,t_j}(x_{t_i}) - (x_{t_j} - x_{t_i}) / (t_j - t_i)|^2

No derivative in time is taken and no target moves with the student: where the weights learned beside the identities of
`steer.objectives.distillation` run away, this does not. What it costs are the teacher's calls, 2 n - 1 a trajectory.

Source: "Knowledge distillation in iterative generative models for improved sampling speed" (arXiv:2101.02388), from
noise to data; here between all pairs of times, as "Flow map matching" (arXiv:2406.07507) has them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from steer.draws import Rng, rand_like, randn_like
from steer.flow_map import FlowMap
from steer.interpolants import like
from steer.objectives.base import Batch, Loss, Rows, Student, squared, take, total
from steer.objectives.distillation import Teacher
from steer.objectives.flow_matching import prepare
from steer.objectives.times import Times
from steer.objectives.weighting import Uniform, Weighting


@dataclass(frozen=True)
class TrajectoryDistillation:
    """A flow map of a teacher's velocity, from pairs of points of its trajectories.

    Attributes:
        teacher: the flow map, or a `Teacher` with guidance.
        times: the share of rows on the diagonal, where the teacher's velocity is learned; each other row is a
            trajectory. `from_noise` and `to_data` are the shares of its pairs that begin at noise, and end at data.
        weighting: of the rows on the diagonal.
        steps: n, of a trajectory.
        pairs: of each trajectory that are learned; each counts as a row of the batch.
        guidance: the scale of guidance of a teacher that is given as a flow map.
    """

    teacher: FlowMap | Teacher
    times: Times = Times(from_noise=0.3, to_data=0.3)
    weighting: Weighting = Uniform()
    steps: int = 8
    pairs: int = 8
    guidance: float = 1.0

    def __post_init__(self) -> None:
        for name in ("steps", "pairs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def __call__(self, model: Student, batch: Batch, rng: Rng) -> Loss:
        """The loss of a batch."""
        teacher = Teacher.of(self.teacher, self.guidance)
        rows, diagonal = prepare(model, batch, self.times, None, rng)
        x0 = randn_like(batch.x1, rng)
        places = [rand_like(x0.new_empty(len(x0), n), rng)[~diagonal] for n in (self.steps, *[self.pairs] * 4)]
        on, off = rows[diagonal], rows[~diagonal]
        parts = {}
        if len(on):
            plain = squared(model, model.flow(on.x, on.s, on.s, on.cond) - teacher(model, on.x, on.s, on))
            parts["diagonal"] = (self.weighting(plain, on.s, on.t, model), plain)
        if len(off):
            points, times = solve(model, teacher, x0[~diagonal], off, stratified(places[0]))
            error = self._pairs(model, off, points, times, places[1:])
            parts["trajectory"] = (error, error)
        return total(parts, len(batch))

    def _pairs(self, model: Student, rows: Rows, points: Tensor, times: Tensor, places: list[Tensor]) -> Tensor:
        """Squared errors [b * pairs] at pairs drawn by `places`, 4 of [b pairs] in [0, 1], from points [b n+1 *d]."""
        n = self.steps
        first = torch.where(places[2] < self.times.from_noise, 0, (places[0] * n).long())
        last = first + 1 + (places[1] * (n - first)).long()
        last = torch.where(places[3] < self.times.to_data, n, last)
        row = torch.arange(len(rows), device=points.device).repeat_interleave(self.pairs)
        i, j = first.flatten(), last.flatten()
        (x, s), (y, t) = ((points[row, k], times[row, k]) for k in (i, j))
        v = model.flow(x, s, t, take(rows.cond, row))
        return (1 - s).square() * squared(model, v - (y - x) / like(t - s, x))


def stratified(places: Tensor) -> Tensor:
    """Times 0 = t_0 < ... < t_n = 1 [b n+1], one near each k / n, from uniform numbers [b n] (one is not needed)."""
    b, n = places.shape
    inner = (torch.arange(1, n, device=places.device, dtype=places.dtype) + 0.9 * (places[:, 1:] - 0.5)) / n
    return torch.cat([places.new_zeros(b, 1), inner, places.new_ones(b, 1)], 1)


@torch.no_grad()
def solve(model: Student, teacher: Teacher, x: Tensor, rows: Rows, times: Tensor) -> tuple[Tensor, Tensor]:
    """Points [b n+1 *d] of the teacher's trajectories from x [b *d] at t = 0, at the times [b n+1], and these times.

    Heun's method; the last step is an Euler one, since velocities at t = 1 are the worst known.
    """
    points = [x]
    for k in range(times.shape[1] - 1):
        s, t = times[:, k], times[:, k + 1]
        h, v = like(t - s, x), teacher(model, x, s, rows)
        if k < times.shape[1] - 2:
            v = (v + teacher(model, x + h * v, t, rows)) / 2
        x = x + h * v
        points.append(x)
    return torch.stack(points, 1), times
