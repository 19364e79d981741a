"""Learning from good and bad samples by flow matching alone: DiffusionNFT, and its form for flow maps.

    share = A / (2 clip) + 1/2 in [0, 1];   v+ = (1-beta) v_old + beta v,   v- = (1+beta) v_old - beta v
    loss = E share |x1(v+) - x1|^2 / m+ + c (1 - share) |x1(v-) - x1|^2 / m-,   m = mean |x1(v) - x1|, no gradient

x1(v) is the data that a velocity predicts at x_t = alpha x0 + beta x1. The gradient vanishes where
``v = v_old + E[(2 share - 1) (dI/dt - v_old) | x_t] / beta``: towards the good, away from the bad. Any solver may have
made the samples, and no chance of a move is computed. (The published code also scales the first two terms by the clip
over beta.) That is c = 1; with c < 1 samples of no advantage hold the velocity to what the jumps make of it, which in
long runs keeps it from running ahead of them.

The map's form (MeanFlowNFT) puts ``V_{s,t} = v_{s,t} - (t - s) d/ds v_old,s,t`` in the place of v, the velocity that a
jump from s to t stands for; the derivative goes along the path, by central differences.

Source: "DiffusionNFT: online diffusion reinforcement with forward process" (arXiv:2509.16117); "MeanFlowNFT"
(arXiv:2607.15273).
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from steer.collecting import Samples
from steer.draws import Rng, rand_like
from steer.interpolants import like
from steer.objectives.base import Batch, Loss, Rows, Student, draw_rows
from steer.objectives.tuning import LEAST, row_mean, step, with_jumps


@dataclass(frozen=True)
class NegativeAware:
    """DiffusionNFT on the samples that the averaged weights make.

    Attributes:
        beta: how far v+ and v- lie from v_old; smaller moves further.
        clip: the advantage at which a sample is wholly good.
        negative: c, how much the loss of the bad counts.
        kl: weight of |x1(v) - x1(v_ref)|^2, in the same units; without it the push away from the bad has no end.
        jumps: "follow" leaves the jumps to self-distillation, "mean_flow" learns them from the samples too.
        share: how much the loss of jumps that follow counts; of "mean_flow" the share of rows off the diagonal.
        eps: of the central differences.
        collector: the samples.
    """

    beta: float = 1.0
    clip: float = 2.5
    negative: float = 1.0
    kl: float = 0.01
    jumps: Literal["follow", "mean_flow"] = "follow"
    share: float = 0.5
    eps: float = 0.005
    collector: Samples = field(default_factory=Samples)
    exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.jumps not in ("follow", "mean_flow"):
            raise ValueError(f'jumps must be "follow" or "mean_flow", got {self.jumps!r}')
        if not 0 <= self.negative <= 1:
            raise ValueError(f"negative must lie in [0, 1], got {self.negative}")
        for name in ("beta", "clip", "eps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")

    def __call__(self, model: Student, batch: Batch, rng: Rng) -> Loss:
        """The loss of a batch."""
        rows = self._rows(model, batch, rng)
        old, correction = self._old(model, rows)
        v = model.flow(rows.x, rows.s, rows.t, rows.cond)
        good = 0.5 + batch.more["advantage"].clamp(-self.clip, self.clip) / (2 * self.clip)
        unit = step(model.path, rows.x, rows.s).clamp_min(LEAST)
        miss = unit * (old + correction - rows.slope)  # x1(v_old) - x1
        moved = unit * self.beta * (v - old)
        loss = good * _relative(miss + moved) + self.negative * (1 - good) * _relative(miss - moved)
        told = {"miss": row_mean(miss.detach().square()).mean(), "moved": row_mean(moved.detach().square()).mean()}
        if self.kl:
            assert model.reference is not None
            with torch.no_grad():
                reference = model.reference(rows.x, rows.s, rows.t, rows.cond).to(rows.x)
            away = row_mean((unit * (v - reference)).square())
            loss, told = loss + self.kl * away, told | {"away": away.detach().mean()}
        return with_jumps(loss.mean(), told, self.share if self.jumps == "follow" else 0.0, model, batch, rng)

    def _rows(self, model: Student, batch: Batch, rng: Rng) -> Rows:
        """Points of paths to the samples; of "mean_flow" a share with end times of their own, half of these at 1."""
        pair = rand_like(batch.x1.new_empty(len(batch), 2), rng)
        kind = rand_like(batch.x1.new_empty(len(batch)), rng)
        s, t = pair.sort(1).values.unbind(1)
        on = kind >= (self.share if self.jumps == "mean_flow" else 0.0)
        t = torch.where(kind < self.share / 2, torch.ones_like(t), t)
        return draw_rows(model.path, batch, torch.where(on, pair[:, 0], s), torch.where(on, pair[:, 0], t), rng)

    @torch.no_grad()
    def _old(self, model: Student, rows: Rows) -> tuple[Tensor, Tensor]:
        """v_old, and what is added to it for the velocity that it stands for: ``-(t - s) d/ds v_old`` [b *d]."""
        old, x = model.teacher, rows.x
        v = old(x, rows.s, rows.t, rows.cond).to(x)
        if self.jumps == "follow":
            return v, torch.zeros_like(v)
        ends = [(rows.s + sign * self.eps).clamp(0, 1) for sign in (1, -1)]
        after, before = (
            old(x + like(s - rows.s, x) * rows.slope, s, torch.maximum(s, rows.t), rows.cond).to(x) for s in ends
        )
        slope = (after - before) / like((ends[0] - ends[1]), x)
        return v, -like(rows.t - rows.s, x) * slope


def _relative(error: Tensor) -> Tensor:
    """The mean square of each row over its mean size, which gets no gradient: [b]."""
    return row_mean(error.square()) / row_mean(error.detach().abs()).clamp_min(1e-5)
