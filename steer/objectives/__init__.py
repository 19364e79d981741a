"""Objectives: how a flow map is learned. One file a family; each is `(model, batch, rng) -> (loss, metrics)`."""

from steer.objectives.base import Batch, Objective, Rows, Student
from steer.objectives.consistency import Consistency
from steer.objectives.derivative import Derivative
from steer.objectives.direct import DirectGradient
from steer.objectives.distillation import Distillation, Teacher
from steer.objectives.flow_matching import FlowMatching
from steer.objectives.guidance import FoldedGuidance
from steer.objectives.mean_flow import MeanFlow
from steer.objectives.negative_aware import NegativeAware
from steer.objectives.noise_network import NoiseNetwork
from steer.objectives.policy_gradient import PolicyGradient
from steer.objectives.posterior import GlassVelocity, PosteriorMap
from steer.objectives.preference import Preference
from steer.objectives.self_distillation import SelfDistillation
from steer.objectives.shift_matching import ShiftMatching
from steer.objectives.terminal import TerminalVelocity
from steer.objectives.times import Times
from steer.objectives.trajectory import TrajectoryDistillation
from steer.objectives.tuning import Tuning
from steer.objectives.weighted import Weighted
from steer.objectives.weighting import AdaptiveWeight, LearnedWeight, TimeWeight, Uniform

__all__ = [
    "AdaptiveWeight", "Batch", "Consistency", "Derivative", "DirectGradient", "Distillation",
    "FlowMatching", "FoldedGuidance", "GlassVelocity", "LearnedWeight", "MeanFlow", "NegativeAware", "NoiseNetwork",
    "Objective", "PolicyGradient", "PosteriorMap", "Preference", "Rows", "SelfDistillation", "ShiftMatching",
    "Student", "Teacher", "TerminalVelocity", "TimeWeight", "Times", "TrajectoryDistillation", "Tuning", "Uniform",
    "Weighted",
]  # fmt: skip
