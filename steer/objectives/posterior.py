"""Posterior maps: a flow map from noise to draws of p(x1 | x_u), told x_u and u.

    u, x_u = alpha_u x0' + beta_u x1 with a noise x0' of its own;   any objective, told cond["x_t"] = x_u, cond["t"] = u

With flow matching on the diagonal, from data, these are "Meta flow maps" (arXiv:2601.14430). With a frozen flow's own
inner velocity as the teacher of a Lagrangian distillation (`GlassVelocity`), "Posterior Diamond maps"
(arXiv:2602.05993). The trained map is a look-ahead: `steer.posterior.Learned`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from steer.draws import Rng, rand_like, randn_like
from steer.flow_map import Cond, FlowMap, denoise
from steer.interpolants import Interpolant, Linear, Time, interpolate, like
from steer.objectives.base import Batch, Loss, Objective, Student
from steer.objectives.distillation import Distillation, Teacher
from steer.objectives.self_distillation import SelfDistillation
from steer.objectives.trajectory import TrajectoryDistillation

KEYS = ("x_t", "t")


@dataclass(frozen=True)
class PosteriorMap:
    """An objective for maps that draw from the posterior.

    Attributes:
        objective: what the conditional map learns by; it sees batches whose cond holds "x_t" [b *d] and "t" [b].
        zeros: the share of rows with u = 0, where the map is an ordinary flow map.
        power: u is a uniform draw to this power: above 1 looks more at noise.
        largest: u is at most this; at 1 there is nothing to draw.
    """

    objective: Objective = SelfDistillation()
    zeros: float = 0.1
    power: float = 1.0
    largest: float = 0.98

    def __post_init__(self) -> None:
        if not 0 <= self.zeros <= 1:
            raise ValueError(f"zeros must be a share between 0 and 1, got {self.zeros}")
        if not (self.power > 0 and 0 < self.largest <= 1):
            raise ValueError(f"power must be above 0 and largest in (0, 1], got {self.power} and {self.largest}")

    def __call__(self, model: Student, batch: Batch, rng: Rng) -> Loss:
        """The loss of a batch."""
        u = self.largest * rand_like(batch.x1.new_empty(len(batch)), rng) ** self.power
        u = torch.where(rand_like(u, rng) < self.zeros, 0.0, u)
        x = interpolate(model.path, randn_like(batch.x1, rng), batch.x1, u)
        return self.objective(model, replace(batch, cond={**(batch.cond or {}), "x_t": x, "t": u}), rng)


@dataclass(frozen=True)
class GlassVelocity:
    """The inner velocity of GLASS Flows as a flow map's diagonal, a teacher of `steer.objectives.Distillation`.

    With x_u and u read from cond, and views of x1 combined as in `steer.posterior.Glass`:

        v_{s,s}(z | x_u) = (D_{t*}(beta_{t*} S) - z) / (1 - s)

    on the linear inner path; s is held below `largest`, where the difference of two near numbers is divided by little.

    Source: "GLASS flows" (arXiv:2509.25170), section 4.
    """

    flow: FlowMap
    path: Interpolant = Linear()
    largest: float = 0.99

    def __call__(self, z: Tensor, s: Time, t: Time, cond: Cond = None) -> Tensor:
        """The velocity [b *d] at inner time s [b]; t is not read."""
        context: Mapping[str, Tensor] = cond or {}
        if any(key not in context for key in KEYS):
            raise ValueError(f"cond must hold {KEYS}, the context; it holds {sorted(context)}")
        rest = {key: c for key, c in context.items() if key not in KEYS} or None
        s = torch.as_tensor(s, dtype=z.dtype, device=z.device).expand(len(z)).clamp(max=self.largest)
        x, u = context["x_t"], context["t"].clamp(max=self.largest)
        alpha, beta = self.path.alpha(u), self.path.beta(u)
        precision = ((s / (1 - s)).square() + (beta / alpha).square()).clamp_min(1e-12)
        when = torch.as_tensor([self.path.when(float(r)) for r in precision.sqrt()], dtype=z.dtype, device=z.device)
        view = like(s / (1 - s) ** 2, z) * z + like(beta / alpha**2, z) * x
        seen = like(self.path.beta(when) / precision, z) * view
        return (denoise(self.flow, self.path, seen, when, rest) - z) / like(1 - s, z)


def glass_distillation(
    teacher: FlowMap,
    *,
    trajectories: bool = False,
    zeros: float = 0.1,
    power: float = 1.0,
    **settings: Any,  # noqa: ANN401
) -> PosteriorMap:
    """The objective of posterior maps that are distilled from a frozen flow map on the linear path.

    trajectories: whether by regression on trajectories of the inner flow (`TrajectoryDistillation`) or by a Lagrangian
    `Distillation`; settings are those of either. zeros, power: of `PosteriorMap`.

    Raises ValueError for a `Teacher` with guidance.
    """
    if isinstance(teacher, Teacher):
        raise ValueError("a posterior map is distilled from a plain flow map; leave weak= and autoguidance= out")
    kind = TrajectoryDistillation if trajectories else Distillation
    return PosteriorMap(kind(GlassVelocity(teacher), **settings), zeros, power)
