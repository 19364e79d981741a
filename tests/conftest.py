"""Shared fixtures: generators, dtypes, the three paths, and a flow map that counts its calls."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from steer.analytic import GaussianMixture
from steer.flow_map import Cond, FlowMap
from steer.interpolants import VP, Interpolant, Linear, Time, Trigonometric

PATHS = [Linear(), Trigonometric(), VP()]


def plainly(part: object) -> str:
    """What it says of itself, without places in memory: the name of a case, the same in every process."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(part))


@pytest.fixture
def rng() -> torch.Generator:
    """A fresh generator with a fixed seed."""
    return torch.Generator().manual_seed(0)


@pytest.fixture(params=PATHS, ids=lambda path: type(path).__name__)
def path(request: pytest.FixtureRequest) -> Interpolant:
    """Each of the three paths."""
    return request.param


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Both precisions."""
    return request.param


@pytest.fixture(scope="session")
def mixture() -> GaussianMixture:
    """Three correlated Gaussians in the plane, far enough apart that the flow is not linear."""
    weights = torch.tensor([0.2, 0.5, 0.3]).double()
    means = torch.tensor([[-1.5, 0.5], [1.0, 1.0], [0.5, -1.5]]).double()
    covs = torch.tensor([[[0.2, 0.1], [0.1, 0.3]], [[0.5, 0.0], [0.0, 0.1]], [[0.3, -0.2], [-0.2, 0.4]]]).double()
    return GaussianMixture(weights, means, covs)


@dataclass
class Counting:
    """A flow map that counts the rows put through it and those sent back."""

    flow: FlowMap
    forward: int = 0
    backward: int = 0
    calls: int = 0
    seen: list[Cond] = field(default_factory=list)

    def __call__(self, x: Tensor, s: Time, t: Time, cond: Cond = None) -> Tensor:
        """The wrapped map's velocity."""
        self.calls += 1
        self.forward += x.shape[0]
        self.seen.append(cond)
        v = self.flow(x, s, t, cond)
        if v.requires_grad:
            v.register_hook(self._count)
        return v

    def _count(self, gradient: Tensor) -> None:
        self.backward += gradient.shape[0]


@pytest.fixture
def counting() -> Callable[[FlowMap], Counting]:
    """Wraps a flow map in a counter."""
    return Counting


def z_score(estimates: Tensor, truth: Tensor | float) -> float:
    """Largest distance of the mean over the first axis from the truth, in standard errors."""
    error = estimates.std(0) / estimates.shape[0] ** 0.5
    return float(((estimates.mean(0) - truth).abs() / error).max())
