"""The reward's gradient straight through the jumps: DRaFT-K, DRaFT-LV and ReFL, and a penalty on leaving the reference.

    draft      x1 = X_{..,1} o ... o X_{0,..}(x0), gradient through the last K of the jumps
    draft_lv   x1 without a gradient, renoised `draws` times to the last jump's start, gradient through that jump alone
    refl       the chain without a gradient to a random one of its later times, gradient through one jump to the end

    loss = - E r(x1) / T + penalty E sum_k h_k |v(x_k) - v_ref(x_k)|^2

A flow map makes the whole sample in few calls, so that all of it can get a gradient. Without a penalty the optimum is
the single best picture, not a law: the guards stop before that.

Source: "Directly fine-tuning diffusion models on differentiable rewards" (arXiv:2309.17400); ReFL in "ImageReward"
(arXiv:2304.05977); "AlignProp" (arXiv:2310.03739).
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from steer.collecting import Noise
from steer.draws import Rng, rand_like, randn_like
from steer.flow_map import jump
from steer.interpolants import Time, interpolate, like
from steer.objectives.base import Batch, Loss, Student
from steer.objectives.tuning import mean_of_kept, row_mean


@dataclass(frozen=True)
class DirectGradient:
    """Ascent of the reward through the jumps. Needs a differentiable reward.

    Attributes:
        kind: "draft", "draft_lv" or "refl".
        steps: jumps of a sample.
        last: how many of these get a gradient, the last ones (draft); None for all.
        draws: renoised copies (draft_lv).
        penalty: on the squared distance of velocities from the reference's, per number of a sample, in units of r / T.
        collector: where noise comes from.
    """

    kind: Literal["draft", "draft_lv", "refl"] = "draft"
    steps: int = 2
    last: int | None = None
    draws: int = 2
    penalty: float = 1.0
    collector: Noise = field(default_factory=Noise)
    exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.kind not in ("draft", "draft_lv", "refl"):
            raise ValueError(f'kind must be "draft", "draft_lv" or "refl", got {self.kind!r}')
        if self.steps < 1 or self.draws < 1:
            raise ValueError(f"steps and draws must be at least 1, got {self.steps} and {self.draws}")
        if self.last is not None and not 1 <= self.last <= self.steps:
            raise ValueError(f"last must lie between 1 and steps={self.steps}, got {self.last}")

    def __call__(self, model: Student, batch: Batch, rng: Rng) -> Loss:
        """The loss of a batch of noise."""
        assert model.reward is not None
        moves = {"draft": self._draft, "draft_lv": self._renoised, "refl": self._late}[self.kind](model, batch, rng)
        x1, prompt = moves[-1].end, batch.more["prompt"]
        r = model.reward(x1, prompt.repeat(len(x1) // len(prompt)))
        if not r.requires_grad:
            raise ValueError(f"{self.kind} needs a differentiable reward; take objective=nft or grpo")
        gain = mean_of_kept(r)
        away = torch.stack([move.away for move in moves]).sum()
        return self.penalty * away - gain, {"gain": gain.detach(), "away": away.detach()}

    def _draft(self, model: Student, batch: Batch, rng: Rng) -> list["Move"]:
        first = 0 if self.last is None else self.steps - self.last
        x = self._chain(model, batch, first)[-1]
        moves = []
        for k in range(first, self.steps):
            moves.append(self._move(model, batch, x, k / self.steps, (k + 1) / self.steps))
            x = moves[-1].end
        return moves

    @torch.no_grad()
    def _renoised(self, model: Student, batch: Batch, rng: Rng) -> list["Move"]:
        x1 = self._chain(model, batch, self.steps)[-1]
        s = 1 - 1 / self.steps if self.steps > 1 else 0.5
        x = torch.cat([interpolate(model.path, randn_like(x1, rng), x1, s) for _ in range(self.draws)])
        with torch.enable_grad():
            return [self._move(model, batch, x, s, 1.0)]

    def _late(self, model: Student, batch: Batch, rng: Rng) -> list["Move"]:
        points = torch.stack(self._chain(model, batch, self.steps - 1))
        early = self.steps // 2
        k = early + (rand_like(batch.x1.new_empty(len(batch)), rng) * (self.steps - early)).long()
        rows = torch.arange(len(batch), device=k.device)
        return [self._move(model, batch, points[k, rows], k / self.steps, 1.0)]

    @torch.no_grad()
    def _chain(self, model: Student, batch: Batch, moves: int) -> list[Tensor]:
        """The points of a sample, from noise through its first moves."""
        points = [batch.x1]
        for k in range(moves):
            points.append(jump(model.flow, points[-1], k / self.steps, (k + 1) / self.steps, batch.cond))
        return points

    def _move(self, model: Student, batch: Batch, x: Tensor, s: Time, t: float) -> "Move":
        """A jump with a gradient; x holds the batch one or several times."""
        times = len(x) // len(batch)
        cond = None if batch.cond is None else {k: c.repeat(times, *[1] * (c.ndim - 1)) for k, c in batch.cond.items()}
        v = model.flow(x, s, t, cond)
        away = v.new_zeros(())
        if self.penalty:
            assert model.reference is not None
            with torch.set_grad_enabled(x.requires_grad):  # the points are the tuned map's own
                plain = model.reference(x, s, t, cond).to(v)
            away = ((t - s) * row_mean((v - plain).square())).mean()
        return Move(x + like(t - s, x) * v, away)


class Move(NamedTuple):
    """Where a jump ends [b *d], and its part of the penalty."""

    end: Tensor
    away: Tensor
