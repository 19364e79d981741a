"""Steering methods: one published method, one file.

A method is a frozen dataclass, pure: ``m(flow, path, reward, x0 [p n *d], cond=None, *, rng) -> (Particles, Trace)``,
where the reward takes x1 [p m *d] to [p m]. ``m.with_budget(calls, n)`` is the same method set to spend at most that
many calls a prompt on n particles; ``m.needs_gradient`` says whether it differentiates the reward.
"""

from typing import Protocol

from torch import Tensor

from steer.draws import Rng
from steer.flow_map import Cond, FlowMap
from steer.interpolants import Interpolant
from steer.methods.beam import Beam
from steer.methods.best_of_n import BestOfN
from steer.methods.guidance import Guidance
from steer.methods.noise_optimisation import NoiseOptimisation
from steer.methods.noise_search import PathSearch, ZeroOrder
from steer.methods.noise_smc import NoiseSMC
from steer.methods.posterior_guidance import PosteriorGuidance
from steer.methods.reward_guidance import FlowMapGuidance
from steer.methods.rollover import Rollover
from steer.methods.smc import SMC
from steer.methods.tilting import FMTT, FlowMapTilting
from steer.methods.training_free import TrainingFreeGuidance
from steer.methods.tree import TreeSearch
from steer.methods.warm_start import WarmStart
from steer.particles import Particles, Reward, Trace

__all__ = [
    "FMTT",
    "SMC",
    "BestOfN",
    "FlowMapTilting",
    "Guidance",
    "Method",
    "PosteriorGuidance",
    "FlowMapGuidance",
    "TrainingFreeGuidance",
    "Beam",
    "NoiseOptimisation",
    "NoiseSMC",
    "WarmStart",
    "PathSearch",
    "Rollover",
    "TreeSearch",
    "ZeroOrder",
]


class Method(Protocol):
    """What every steering method is."""

    @property
    def needs_gradient(self) -> bool:
        """Whether it differentiates the reward."""
        ...

    def __call__(
        self,
        flow: FlowMap,
        path: Interpolant,
        reward: Reward,
        x0: Tensor,
        cond: Cond = None,
        *,
        rng: Rng,
    ) -> tuple[Particles, Trace]:
        """Steered particles from the noise x0 [p n *d]."""
        ...

    def with_budget(self, calls: int, n: int = 16) -> "Method":
        """The same method within `calls` network calls a prompt."""
        ...
