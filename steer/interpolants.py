"""Mathematics of time: the noise-to-data paths, and what a velocity says about both of their ends.

The conventions of the whole library are stated here, once.

- ``t = 0`` is noise and ``t = 1`` is data; ``x0 ~ N(0, I)`` is noise and ``x1`` is data.
- ``I_t = alpha(t) x0 + beta(t) x1``: **alpha is on the noise**, ``alpha(0) = beta(1) = 1``, ``alpha(1) = beta(0) = 0``.
- velocity ``b_t(x) = E[dI_t/dt | I_t = x]``, score ``s_t(x) = grad log p_t(x)``,
  ``D_t(x) = E[x1 | I_t = x]`` (data mean), ``N_t(x) = E[x0 | I_t = x]`` (noise mean).

With ``Delta = alpha dbeta - dalpha beta`` the four are tied by

    D = (alpha b - dalpha x) / Delta      N = (dbeta x - beta b) / Delta      s = -N / alpha      b = dalpha N + dbeta D

Other papers and libraries, in these letters:

| source | their time | to ours |
|---|---|---|
| Stochastic interpolants, flow-map matching | 0 noise, 1 data, alpha on the noise | identical |
| MeanFlow and its kin | 0 data, 1 noise, jump from t to r | (s, t) = (1 - t, 1 - r), velocity changes sign |
| Rectified-flow samplers with a sigma | sigma 1 noise, 0 data | t = 1 - sigma, velocity changes sign |
| GLASS, Diamond maps, Adjoint Matching | 0 noise, 1 data, alpha on the data | swap alpha with their sigma or beta |
| TrigFlow, sCM | angle pi/2 noise, 0 data | t = 1 - 2 angle / pi, ``Trigonometric`` |
| EDM | noise level sigma from 80 to 0 | alpha / beta = sigma |

The path fixes the law of each ``I_t``, not the joint law of ``I_s`` and ``I_t``: many processes share the marginals.
"""

import math
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

Time = float | Tensor
T = TypeVar("T", float, Tensor, Time)


class Interpolant(Protocol):
    """A path ``I_t = alpha(t) x0 + beta(t) x1``; each method takes a float or a tensor and returns its kind."""

    def alpha(self, t: T) -> T:
        """Coefficient of the noise."""
        ...

    def beta(self, t: T) -> T:
        """Coefficient of the data."""
        ...

    def dalpha(self, t: T) -> T:
        """Time derivative of ``alpha``."""
        ...

    def dbeta(self, t: T) -> T:
        """Time derivative of ``beta``."""
        ...

    def when(self, ratio: float) -> float:
        """The time at which ``beta / alpha`` is `ratio` >= 0; the inverse of the signal-to-noise ratio's root."""
        ...


@dataclass(frozen=True)
class Linear:
    """``alpha = 1 - t``, ``beta = t``: straight lines from noise to data (rectified flow, flow matching)."""

    def alpha(self, t: T) -> T:
        """``1 - t``."""
        return 1 - t

    def beta(self, t: T) -> T:
        """``t``."""
        return t

    def dalpha(self, t: T) -> T:
        """``-1``."""
        return 0 * t - 1

    def dbeta(self, t: T) -> T:
        """``1``."""
        return 0 * t + 1

    def when(self, ratio: float) -> float:
        """``ratio / (1 + ratio)``."""
        return _share(ratio)


@dataclass(frozen=True)
class Shifted:
    """The linear path at other times: ``alpha = k (1-t) / (1 + (k-1) (1-t))``, ``beta = 1 - alpha``, with k = `shift`.

    The shift of rectified-flow samplers: k > 1 spends more of the time near the noise, as pictures of more pixels want;
    equal steps of t are then the steps that such samplers take. At k = 1 it is `Linear`.

    Source: "Scaling rectified flow transformers for high-resolution image synthesis" (arXiv:2403.03206, 5.3.2).

    Raises:
        ValueError: shift is not above 0.
    """

    shift: float = 3.0

    def __post_init__(self) -> None:
        if not 0 < self.shift < math.inf:
            raise ValueError(f"shift must be a number above 0, got {self.shift}")

    def alpha(self, t: T) -> T:
        """``k (1-t) / (1 + (k-1) (1-t))``."""
        return self.shift * (1 - t) / self._q(t)

    def beta(self, t: T) -> T:
        """``t / (1 + (k-1) (1-t))``, which is ``1 - alpha``."""
        return t / self._q(t)

    def dalpha(self, t: T) -> T:
        """``-k / (1 + (k-1) (1-t))^2``."""
        return -self.dbeta(t)

    def dbeta(self, t: T) -> T:
        """``k / (1 + (k-1) (1-t))^2``."""
        return self.shift / self._q(t) ** 2

    def when(self, ratio: float) -> float:
        """``k ratio / (1 + k ratio)``."""
        return _share(self.shift * ratio)

    def _q(self, t: T) -> T:
        return 1 + (self.shift - 1) * (1 - t)


@dataclass(frozen=True)
class Trigonometric:
    """``alpha = cos(pi t / 2)``, ``beta = sin(pi t / 2)``: variance preserving at a constant angular speed."""

    def alpha(self, t: T) -> T:
        """``cos(pi t / 2)``, written as a sine so that it is exactly 0 at t = 1."""
        return _sin(math.pi / 2 * (1 - t))

    def beta(self, t: T) -> T:
        """``sin(pi t / 2)``."""
        return _sin(math.pi / 2 * t)

    def dalpha(self, t: T) -> T:
        """``-pi/2 sin(pi t / 2)``."""
        return -math.pi / 2 * self.beta(t)

    def dbeta(self, t: T) -> T:
        """``pi/2 cos(pi t / 2)``."""
        return math.pi / 2 * self.alpha(t)

    def when(self, ratio: float) -> float:
        """``2 / pi arctan(ratio)``."""
        return 2 / math.pi * math.atan(ratio)


@dataclass(frozen=True)
class VP:
    """The linear path scaled to keep its variance: ``alpha = (1-t)/q``, ``beta = t/q``, ``q = sqrt((1-t)^2 + t^2)``.

    ``alpha^2 + beta^2 = 1`` and the signal-to-noise ratio is the linear path's, ``(t / (1-t))^2``. The schedule
    ``beta = exp(-int)`` of DDPM (arXiv:2006.11239) and score SDEs (arXiv:2011.13456) stops short of pure noise
    (``beta(0) > 0``); this one reaches both ends, with bounded derivatives, so that starting from N(0, I) is exact.
    Any other variance-preserving schedule visits the same laws at other times.
    """

    def alpha(self, t: T) -> T:
        """``(1-t) / q``."""
        return (1 - t) / self._q(t)

    def beta(self, t: T) -> T:
        """``t / q``."""
        return t / self._q(t)

    def dalpha(self, t: T) -> T:
        """``-t / q^3``."""
        return -t / self._q(t) ** 3

    def dbeta(self, t: T) -> T:
        """``(1-t) / q^3``."""
        return (1 - t) / self._q(t) ** 3

    def when(self, ratio: float) -> float:
        """``ratio / (1 + ratio)``, as on the linear path."""
        return _share(ratio)

    def _q(self, t: T) -> T:
        return ((1 - t) ** 2 + t**2) ** 0.5  # pyright: ignore[reportReturnType]


def like(t: Time, x: Tensor) -> Tensor:
    """A time (or any number a row) as a tensor that multiplies x: floats become 0-d, [b] becomes [b 1 ... 1]."""
    if not isinstance(t, Tensor):
        return torch.as_tensor(t, dtype=x.dtype, device=x.device)
    if t.ndim > x.ndim or (t.ndim and t.shape != x.shape[: t.ndim]):
        raise ValueError(
            f"times of shape {tuple(t.shape)} do not lead x of shape {tuple(x.shape)}; pass a float or [b]"
        )
    return t.to(x).reshape(t.shape + (1,) * (x.ndim - t.ndim))


def interpolate(path: Interpolant, x0: Tensor, x1: Tensor, t: Time) -> Tensor:
    """``I_t = alpha(t) x0 + beta(t) x1`` for x0, x1 [b *d] and t a float or [b]."""
    return like(path.alpha(t), x0) * x0 + like(path.beta(t), x1) * x1


def data_from_velocity(path: Interpolant, x: Tensor, v: Tensor, t: Time) -> Tensor:
    """``E[x1 | x_t] = (alpha b - dalpha x) / Delta``; finite on all of [0, 1]."""
    alpha, dalpha = like(path.alpha(t), x), like(path.dalpha(t), x)
    return (alpha * v - dalpha * x) / _delta(path, x, t)


def noise_from_velocity(path: Interpolant, x: Tensor, v: Tensor, t: Time) -> Tensor:
    """``E[x0 | x_t] = (dbeta x - beta b) / Delta``; finite on all of [0, 1]."""
    beta, dbeta = like(path.beta(t), x), like(path.dbeta(t), x)
    return (dbeta * x - beta * v) / _delta(path, x, t)


def score_from_velocity(path: Interpolant, x: Tensor, v: Tensor, t: Time) -> Tensor:
    """``grad log p_t(x) = -E[x0 | x_t] / alpha``; NaN at t = 1, where the velocity no longer holds the score."""
    return -noise_from_velocity(path, x, v, t) / like(path.alpha(t), x)


def velocity_from_data(path: Interpolant, x: Tensor, data: Tensor, t: Time) -> Tensor:
    """``b = dalpha N + dbeta D`` with ``N = (x - beta D) / alpha``; at t = 1 the limit N = 0 is taken."""
    alpha, beta = like(path.alpha(t), x), like(path.beta(t), x)
    end = alpha == 0
    noise = torch.where(end, 0, (x - beta * data) / torch.where(end, 1, alpha))
    return like(path.dalpha(t), x) * noise + like(path.dbeta(t), x) * data


def velocity_from_noise(path: Interpolant, x: Tensor, noise: Tensor, t: Time) -> Tensor:
    """``b = dalpha N + dbeta D`` with ``D = (x - alpha N) / beta``; NaN at t = 0, where N = x whatever the data."""
    alpha, beta = like(path.alpha(t), x), like(path.beta(t), x)
    return like(path.dalpha(t), x) * noise + like(path.dbeta(t), x) * (x - alpha * noise) / beta


def velocity_from_score(path: Interpolant, x: Tensor, score: Tensor, t: Time) -> Tensor:
    """``b = (dbeta / beta) x + eta s`` with ``eta = alpha Delta / beta``; NaN at t = 0, as from the noise."""
    return velocity_from_noise(path, x, -like(path.alpha(t), x) * score, t)


def posterior_variance(path: Interpolant, t: float, data_std: float) -> float:
    """``(data_std alpha)^2 / (alpha^2 + (beta data_std)^2)``, that of p(x1 | x_t) for data N(m, data_std^2 I)."""
    alpha, beta = path.alpha(t), path.beta(t)
    return (data_std * alpha) ** 2 / (alpha**2 + (beta * data_std) ** 2)


def delta(path: Interpolant, t: T) -> T:
    """``alpha dbeta - dalpha beta``; 1 on the linear path."""
    return path.alpha(t) * path.dbeta(t) - path.dalpha(t) * path.beta(t)


def eta(path: Interpolant, t: T) -> T:
    """``alpha (alpha dbeta - dalpha beta) / beta``: half the squared noise of the memoryless SDE; infinite at t = 0.

    ``b* = b + eta grad V`` is the velocity of the law tilted by the value V.
    """
    return path.alpha(t) * delta(path, t) / path.beta(t)


def _share(ratio: float) -> float:
    return ratio / (1 + ratio) if math.isfinite(ratio) else 1.0


def _delta(path: Interpolant, x: Tensor, t: Time) -> Tensor:
    return like(delta(path, t), x)


def _sin(t: T) -> T:
    return torch.sin(t) if isinstance(t, Tensor) else math.sin(t)  # pyright: ignore[reportReturnType]
