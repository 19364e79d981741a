"""Tilt matching and adjoint matching: regress the velocity on what is known of the tilt at a point.

    loss = E w |v_{t,t}(x_t) - b_ref(x_t) - shift|^2
    E[w shift | x_t] / E[w | x_t] = eta grad V,   V = log E[e^{r/T} | x_t]

At its optimum ``v = b_ref + eta grad V``, the velocity of p exp(r / T): exactly. Where rows come from is what differs:

    tilt       draws of the reference's posterior at noised samples: nothing is simulated, rows can be used again
    adjoint    lean adjoints along paths of the memoryless SDE of the map in training; needs the reward's gradient

Source: "Meta flow maps" (arXiv:2601.14430), section 5; "Tilt matching" (arXiv:2512.21829); "Adjoint matching:
fine-tuning flow and diffusion generative models with memoryless stochastic optimal control" (arXiv:2409.08861), whose
``|(2 / sigma) (b - b_ref) + sigma a|^2`` is this with shift = -eta a, up to its weight.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from steer.draws import Rng
from steer.flow_map import velocity
from steer.objectives.base import Batch, Loss, Student, squared
from steer.objectives.tuning import LEAST, step, with_jumps
from steer.value_targets import Adjoints, PosteriorDraws


@dataclass(frozen=True)
class ShiftMatching:
    """Regression of the velocity's shift.

    Attributes:
        collector: `steer.value_targets.PosteriorDraws` or `steer.value_targets.Adjoints`.
        jumps: how much the loss of the jumps counts.
    """

    collector: PosteriorDraws | Adjoints = field(default_factory=PosteriorDraws)
    jumps: float = 1.0
    exact: ClassVar[bool] = True

    def __call__(self, model: Student, batch: Batch, rng: Rng) -> Loss:
        """The loss of a batch."""
        assert model.reference is not None
        x, t, shift, weight = (batch.more[name] for name in ("point", "time", "shift", "weight"))
        with torch.no_grad():
            target = velocity(model.reference, x, t, batch.cond).to(x) + shift
        error = (velocity(model.flow, x, t, batch.cond) - target) * step(model.path, x, t).clamp_min(LEAST)
        plain = squared(model, error)
        return with_jumps((weight * plain).mean(), {"shift": plain.detach().mean()}, self.jumps, model, batch, rng)
