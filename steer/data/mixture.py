"""Points in the plane as training data without an end, and their exact densities.

Row i is a pure function of the seed and of i: there is no state to save, and any process can draw any row. The words
are those of SplitMix64 ("Fast splittable pseudorandom number generators", Steele, Lea and Flood, 2014), whose k-th
word needs none of those before it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral

import numpy as np
import torch
from torch import Tensor

from steer.analytic import GaussianMixture

ENDLESS = 2**31 - 1  # rows when no number is given: more than a training sees
UNIFORMS = 4  # numbers a row is made of
EDGE = 2.0**-18  # share of a square left free at its edges: rounding to float32 must not lead across


@dataclass(frozen=True)
class Checkerboard:
    """Uniform on the squares (i, j) with i + j even of a board of `squares` x `squares` on [-half_width, half_width]^2.

    The task of "How to build a consistency model: Learning flow maps via self-distillation", arXiv:2505.18825: four
    squares a side, which its authors' code draws on [-1, 1]^2 and meets with noise of the data's own standard
    deviation, 1/sqrt(3). In units of that deviation the noise is N(0, I), as it is here, and the half width sqrt(3):
    the same task, with the same KL. Each coordinate alone is uniform; their correlation is 3 / squares^2.

    Raises:
        ValueError: `half_width` is not above 0; `squares` is not an even number (with an odd one the coordinates
            would not be uniform).
    """

    half_width: float = math.sqrt(3)
    squares: int = 4

    def __post_init__(self) -> None:
        if not 0 < self.half_width < math.inf:
            raise ValueError(f"half_width must be above 0, got {self.half_width!r}")
        if not isinstance(self.squares, Integral) or self.squares < 2 or self.squares % 2:
            raise ValueError(f"squares must be an even number, at least 2, got {self.squares!r}")

    @property
    def side(self) -> float:
        """Of one square."""
        return 2 * self.half_width / self.squares

    @property
    def std(self) -> float:
        """Of each coordinate, half_width / sqrt(3)."""
        return self.half_width / math.sqrt(3)

    def filled(self, x: Tensor) -> Tensor:
        """Whether points [... 2] are on the law's squares: [...]."""
        cell = ((x + self.half_width) / self.side).floor()
        return ((cell >= 0) & (cell < self.squares)).all(-1) & (cell.sum(-1) % 2 == 0)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density [...] of points [... 2]: -log(2 half_width^2) on the filled squares, -inf elsewhere."""
        inside = self.filled(x)
        return torch.full_like(x[..., 0], -math.inf).masked_fill(inside, -math.log(2 * self.half_width**2))

    def place(self, u: Tensor) -> Tensor:
        """Points [b 2] of uniform numbers [b 4]: a filled square, then a place in it, off its edge by EDGE."""
        half = self.squares // 2
        cell = (u[:, 0] * (self.squares * half)).long().clamp(max=self.squares * half - 1)
        row = cell // half
        column = 2 * (cell % half) + row % 2
        return (torch.stack([row, column], -1) + EDGE + (1 - 2 * EDGE) * u[:, 1:3]) * self.side - self.half_width


@dataclass(frozen=True, eq=False)
class Points:
    """Points of a law in the plane, each drawn when it is asked for.

    Args:
        law: a `Checkerboard`, or a mixture in two dimensions such as `steer.bench.problems.ring()`.
        n: rows; None for as many as a training wants (2^31 - 1). A finite set is the first n of them.
        seed: another seed draws other rows.

    Raises:
        ValueError: a law that is not of the plane; `n` below 1; a seed outside 0 to 2^63 - 1.
    """

    law: Checkerboard | GaussianMixture
    n: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.law, Checkerboard) and not (
            isinstance(self.law, GaussianMixture) and self.law.means.dim() == 2 and self.law.means.shape[1] == 2
        ):
            raise ValueError(f"law must be a Checkerboard or one GaussianMixture in two dimensions, got {self.law!r}")
        for name, value, low, high in (("n", self.n, 1, ENDLESS), ("seed", self.seed, 0, 2**63 - 1)):
            if value is None and name == "n":
                continue
            if not isinstance(value, Integral) or isinstance(value, bool) or not low <= value <= high:
                raise ValueError(f"{name} must be a whole number from {low} to {high}, got {value!r}")

    def __len__(self) -> int:
        return ENDLESS if self.n is None else self.n

    def rows(self, index: Sequence[int] | Tensor) -> tuple[Tensor, None]:
        """Points x1 [b 2] in torch's default dtype, and None in place of captions; ValueError for a row beyond."""
        wanted = torch.as_tensor(index, dtype=torch.long).reshape(-1).cpu()
        outside = wanted[(wanted < 0) | (wanted >= len(self))]
        if len(outside):
            raise ValueError(f"index must hold rows from 0 to {len(self) - 1}, got {outside[0].item()}")
        u = uniforms(self.seed, wanted, UNIFORMS)
        x = self.law.place(u) if isinstance(self.law, Checkerboard) else self._of_mixture(u)
        return x.to(torch.get_default_dtype()), None

    def log_prob(self, x: Tensor) -> Tensor:
        """The law's log-density [...] at points [... 2]."""
        return self.law.log_prob(x)

    def _of_mixture(self, u: Tensor) -> Tensor:
        """A component by inverse transform, then a normal by Box and Muller."""
        cdf, means, roots = self._parts
        chosen = torch.searchsorted(cdf, u[:, 0] * cdf[-1], right=True).clamp(max=len(cdf) - 1)
        radius, angle = (-2 * u[:, 1].log()).sqrt(), 2 * math.pi * u[:, 2]
        z = radius[:, None] * torch.stack([angle.cos(), angle.sin()], -1)
        return means[chosen] + (roots[chosen] @ z[..., None])[..., 0]

    @cached_property
    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Cumulative weights [k], means [k 2] and roots of the covariances [k 2 2] in float64."""
        assert isinstance(self.law, GaussianMixture)
        law = self.law
        weights, means, covs = (a.detach().double().cpu() for a in (law.weights, law.means, law.covs))
        return weights.cumsum(0), means, torch.linalg.cholesky(covs)


def uniforms(seed: int, rows: Tensor, k: int) -> Tensor:
    """K independent uniform numbers on (0, 1) for each row: float64 [b k], a function of the seed and the row alone."""
    counters = rows.numpy().astype(np.uint64)[:, None] * np.uint64(k) + np.arange(1, k + 1, dtype=np.uint64)
    start = _mix(np.full((1, 1), seed, np.uint64) + np.uint64(0x9E3779B97F4A7C15))
    words = _mix(start + counters * np.uint64(0x9E3779B97F4A7C15))
    return torch.from_numpy(((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53)


def _mix(z: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 on uint64 [...], which wraps around."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
