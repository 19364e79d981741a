"""Objectives: how a flow map is learned. One file a family; each is `(model, batch, rng) -> (loss, metrics)`."""

from steer.objectives.base import Batch, Objective, Rows, Student
from steer.objectives.derivative import Derivative
from steer.objectives.flow_matching import FlowMatching
from steer.objectives.guidance import FoldedGuidance
from steer.objectives.self_distillation import SelfDistillation
from steer.objectives.times import Times
from steer.objectives.weighting import AdaptiveWeight, LearnedWeight, TimeWeight, Uniform

__all__ = [
    "AdaptiveWeight", "Batch", "Derivative", "FlowMatching", "FoldedGuidance", "LearnedWeight", "Objective", "Rows",
    "SelfDistillation", "Student", "TimeWeight", "Times", "Uniform",
]  # fmt: skip
