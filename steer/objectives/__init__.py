"""Objectives: how a flow map is learned. One file a family; each is `(model, batch, rng) -> (loss, metrics)`."""

from steer.objectives.base import Batch, Objective, Rows, Student
from steer.objectives.consistency import Consistency
from steer.objectives.derivative import Derivative
from steer.objectives.distillation import Distillation, Teacher
from steer.objectives.flow_matching import FlowMatching
from steer.objectives.guidance import FoldedGuidance
from steer.objectives.mean_flow import MeanFlow
from steer.objectives.posterior import GlassVelocity, PosteriorMap
from steer.objectives.self_distillation import SelfDistillation
from steer.objectives.terminal import TerminalVelocity
from steer.objectives.times import Times
from steer.objectives.trajectory import TrajectoryDistillation
from steer.objectives.weighting import AdaptiveWeight, LearnedWeight, TimeWeight, Uniform

__all__ = [
    "AdaptiveWeight", "Batch", "Consistency", "Derivative", "Distillation", "FlowMatching", "FoldedGuidance",
    "GlassVelocity", "LearnedWeight", "MeanFlow", "Objective", "PosteriorMap", "Rows", "SelfDistillation", "Student",
    "Teacher", "TerminalVelocity", "TimeWeight", "Times", "TrajectoryDistillation", "Uniform",
]  # fmt: skip
