"""Classifier-free guidance folded into the target, so that the trained map needs one call for a guided jump."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from steer.draws import Rng, rand_like
from steer.objectives.base import Rows, Student, expand


@dataclass(frozen=True)
class FoldedGuidance:
    """The diagonal's target ``b + (1 - 1 / scale) sg(v_{t,t}(x | c) - v_{t,t}(x | nothing))``.

    Its fixed point is ``v(c) = scale b(c) + (1 - scale) v(nothing)``, the velocity under guidance of that scale;
    rows without a prompt keep b. Guidance must act on the velocity: extrapolating v_{s,t} off the diagonal gives no
    flow map.

    Source: "Improved mean flows" (arXiv:2512.02012), section 4; "Visual generation without guidance"
    (arXiv:2501.15420).

    Attributes:
        scale: 1 is no guidance.
        largest: with this the scale is drawn for each row, log-uniformly between 1 and `largest`, and told to the map
            as ``cond["guidance"]`` [b]: one map for all scales (`scale` is then what `steer.sample` asks for).
        start: the share of the training before which nothing is folded in.
    """

    scale: float = 2.0
    largest: float | None = None
    start: float = 0.0

    def __post_init__(self) -> None:
        for name in ("scale", "largest"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1 (no guidance), got {value}")

    def tell(self, rows: Rows, rng: Rng) -> Rows:
        """The rows, told the scale where it is an input of the map."""
        if self.largest is None:
            return rows
        scale = (math.log(self.largest) * rand_like(rows.s, rng)).exp()
        return rows.told(guidance=scale if rows.dropped is None else torch.where(rows.dropped, 1.0, scale))

    def target(self, model: Student, rows: Rows, v: Tensor) -> Tensor:
        """The target [b *d] of rows on the diagonal, where the map says v [b *d] now."""
        if model.progress < self.start:
            return rows.slope
        if model.null is None or rows.cond is None:
            raise ValueError("guidance needs prompts and model.null, the condition of none; leave guidance out")
        nothing = dict(expand(model.null, len(rows)) or {})
        if "guidance" in rows.cond:
            nothing["guidance"] = torch.ones_like(rows.cond["guidance"])
        with torch.no_grad():
            plain = model.flow(rows.x, rows.s, rows.t, {**rows.cond, **nothing})
        scale = rows.cond.get("guidance", torch.full_like(rows.s, self.scale))
        share = 1 - 1 / scale if rows.dropped is None else torch.where(rows.dropped, 0.0, 1 - 1 / scale)
        share = share.view(-1, *[1] * (v.ndim - 1))
        return rows.slope + share * (v.detach().to(rows.slope) - plain.to(rows.slope))
