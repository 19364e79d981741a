"""Gaussian mixtures: a data law for which every object of this library is known exactly.

For p_1 = sum_i w_i N(m_i, C_i) and a path (alpha, beta), the marginals are p_t = sum_i w_i N(beta m_i, S_i) with
S_i = alpha^2 I + beta^2 C_i, and with responsibilities rho_i(x) the velocity is

    b_t(x) = sum_i rho_i(x) [ dbeta m_i + (alpha dalpha I + beta dbeta C_i) S_i^-1 (x - beta m_i) ].

The posterior p(x1 | x_t) and the tilt by a quadratic are mixtures again. The flow map solves dx/dt = b_t(x): in closed
form for one component, else integrated here in float64 to about 1e-11. Methods that claim to sample a law are tested
against these.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from steer.flow_map import Cond
from steer.interpolants import Interpolant, Linear, Time, like, score_from_velocity

LINEAR = Linear()


@dataclass(frozen=True, eq=False)
class GaussianMixture:
    """``p(x) = sum_i w_i N(x; m_i, C_i)``, or a batch of such laws.

    Attributes:
        weights: positive, scaled to sum to one, [*b k].
        means: [*b k d].
        covs: symmetric and positive definite [*b k d d].

    The leading axes *b are those of a batch of mixtures, as `posterior` returns; usually there are none. A point x is
    [... *b d]. Raises ValueError on shapes that do not fit, negative weights and singular covariances.
    """

    weights: Tensor
    means: Tensor
    covs: Tensor

    def __post_init__(self) -> None:
        w, m, c = self.weights, self.means, self.covs
        if m.shape[:-1] != w.shape or c.shape != (*m.shape, m.shape[-1]):
            raise ValueError(f"need weights [k], means [k d], covs [k d d]; got {[tuple(a.shape) for a in (w, m, c)]}")
        if not bool((w >= 0).all()) or not bool((w.sum(-1) > 0).all()):
            raise ValueError(f"weights must be at least 0 with a positive sum, got {w.tolist()}")
        if not bool((self._eigen[0] > 0).all()):
            raise ValueError(f"covs must be positive definite, least eigenvalue {self._eigen[0].min().item():.3g}")
        object.__setattr__(self, "weights", w / w.sum(-1, keepdim=True))

    @property
    def mean(self) -> Tensor:
        """``E[x]`` [*b d]."""
        return (self.weights[..., None] * self.means).sum(-2)

    @property
    def cov(self) -> Tensor:
        """``Cov[x]`` [*b d d]."""
        off = self.means - self.mean[..., None, :]
        return (self.weights[..., None, None] * (self.covs + off[..., :, None] * off[..., None, :])).sum(-3)

    def to(self, like_: Tensor | torch.dtype | torch.device | str) -> "GaussianMixture":
        """The same law in another dtype or on another device (or on both, those of a tensor)."""
        return GaussianMixture(self.weights.to(like_), self.means.to(like_), self.covs.to(like_))

    def sample(self, n: int, *, rng: torch.Generator) -> Tensor:
        """N independent draws [*b n d]."""
        w, m = self.weights, self.means
        *batch, _, d = m.shape
        u = torch.rand((*batch, n), generator=rng, device=rng.device, dtype=w.dtype).to(w.device)
        last = (w > 0).long().cumsum(-1).argmax(-1, keepdim=True)
        i = torch.searchsorted(w.cumsum(-1).contiguous(), u, right=True).minimum(last)[..., None]
        z = torch.randn((*batch, n, d), generator=rng, device=rng.device, dtype=w.dtype).to(w.device)
        e, q = self._eigen
        root = (q * e.sqrt()[..., None, :]).flatten(-2).gather(-2, i.expand(*i.shape[:-1], d * d)).unflatten(-1, (d, d))
        return m.gather(-2, i.expand(*i.shape[:-1], d)) + (root @ z[..., None])[..., 0]

    def log_prob(self, x: Tensor) -> Tensor:
        """Log p(x) [... *b] for x [... *b d]."""
        return self._log_joint(x, 0.0, 1.0).logsumexp(-1)

    def marginal(self, t: float, path: Interpolant = LINEAR) -> "GaussianMixture":
        """p_t, the law of ``alpha x0 + beta x1``."""
        alpha, beta = path.alpha(t), path.beta(t)
        eye = torch.eye(self.means.shape[-1], dtype=self.covs.dtype, device=self.covs.device)
        return GaussianMixture(self.weights, beta * self.means, alpha**2 * eye + beta**2 * self.covs)

    def velocity(self, x: Tensor, t: Time, path: Interpolant = LINEAR) -> Tensor:
        """``b_t(x) = E[dI_t/dt | I_t = x]`` [... d] of an unbatched mixture, t a float or [...]; smooth on [0, 1].

        Raises ValueError for a batch of mixtures.
        """
        if self.weights.ndim > 1:
            raise ValueError(
                f"velocity needs one mixture, got a batch {tuple(self.weights.shape[:-1])}; index it first"
            )
        alpha, beta, dalpha, dbeta = (_flat(f(t), x) for f in (path.alpha, path.beta, path.dalpha, path.dbeta))
        e, axes = self._eigen[0][..., None], self._eigen[1].mT.flatten(0, 1)  # [k d 1], [k*d d]
        centre = axes.unflatten(0, e.shape[:2]) @ self.means[..., None]  # [k d 1]
        # the points are the last axis throughout: several times faster than a trailing axis of d numbers
        z = (axes @ x.flatten(0, -2).mT).unflatten(0, e.shape[:2]) - beta * centre
        s = alpha**2 + beta**2 * e
        w = z / s
        rho = (self.weights.log()[:, None] - (z * w + s.log()).sum(1) / 2).softmax(0)
        drift = (alpha * dalpha + beta * dbeta * e) * w * rho[:, None]
        return (axes.mT @ drift.flatten(0, 1) + dbeta * (self.means.mT @ rho)).mT.reshape(x.shape)

    def score(self, x: Tensor, t: Time, path: Interpolant = LINEAR) -> Tensor:
        """``grad log p_t(x)`` [... *b d], for t < 1 (at t = 1 differentiate `log_prob`)."""
        return score_from_velocity(path, x, self.velocity(x, t, path), t)

    def posterior(self, x: Tensor, t: Time, path: Interpolant = LINEAR) -> "GaussianMixture":
        """p(x1 | x_t = x), one mixture a point: weights [*b k] for x [*b d], of an unbatched mixture; t in [0, 1).

        Component i has covariance ``alpha^2 C_i S_i^-1`` and mean ``m_i + beta C_i S_i^-1 (x - beta m_i)``.
        Raises ValueError at t = 1, where the posterior is a point.
        """
        alpha, beta = _row(path.alpha(t), x), _row(path.beta(t), x)
        if bool(torch.as_tensor(alpha == 0).any()):
            raise ValueError(f"p(x1 | x_t) is a point at t={t}; pass t < 1")
        e, q = self._eigen
        z, s = self._whiten(x, alpha, beta)
        rho = self._log_mass(z, s).softmax(-1)
        means = self.means + torch.einsum("...kde,...ke->...kd", q, beta * e / s * z)
        covs = torch.einsum("...kde,...ke,...kfe->...kdf", q, alpha**2 * e / s, q)
        return GaussianMixture(rho, means, covs.expand(*means.shape, means.shape[-1]))

    def tilt(self, quadratic: Tensor, linear: Tensor) -> tuple["GaussianMixture", Tensor]:
        """The law ``p(x) exp(-x'Ax/2 + h'x) / Z`` for A [d d] (its symmetric part) and h [d], and log Z [*b].

        Component i gets precision ``P = C^-1 + A``, mean ``P^-1 (C^-1 m + h)`` and its own share of Z. Raises
        ValueError when some P is not positive definite, that is when the integral diverges.
        """
        a = (quadratic + quadratic.mT) / 2
        inverse = torch.linalg.inv(self.covs)
        precision = inverse + a.to(inverse)
        least = torch.linalg.eigvalsh(precision).min().item()
        if least <= 0:
            raise ValueError(f"the tilt diverges: C^-1 + quadratic has eigenvalue {least:.3g}; use a larger quadratic")
        covs = torch.linalg.inv(precision)
        pull = torch.einsum("...kde,...ke->...kd", inverse, self.means)
        means = torch.einsum("...kde,...ke->...kd", covs, pull + linear.to(pull))
        gain = ((pull + linear.to(pull)) * means).sum(-1) - (pull * self.means).sum(-1)
        log_share = self.weights.log() + (gain + torch.logdet(covs) - torch.logdet(self.covs)) / 2
        return GaussianMixture(log_share.softmax(-1), means, (covs + covs.mT) / 2), log_share.logsumexp(-1)

    def flow(self, path: Interpolant = LINEAR, tolerance: float = 1e-12) -> "MixtureFlow":
        """The exact flow map of this law along `path` (see `MixtureFlow`)."""
        return MixtureFlow(self, path, tolerance)

    @cached_property
    def _eigen(self) -> tuple[Tensor, Tensor]:
        return torch.linalg.eigh(self.covs)

    def _whiten(self, x: Tensor, alpha: Time, beta: Time) -> tuple[Tensor, Tensor]:
        """X - beta m_i in the axes of C_i [... *b k d], and the variances of p_t along them."""
        e, q = self._eigen
        z = torch.einsum("...kde,...kd->...ke", q, x[..., None, :] - beta * self.means)
        return z, alpha**2 + beta**2 * e

    def _log_mass(self, z: Tensor, s: Tensor) -> Tensor:
        d = z.shape[-1]
        return self.weights.log() - (z**2 / s + s.log()).sum(-1) / 2 - d / 2 * math.log(2 * math.pi)

    def _log_joint(self, x: Tensor, alpha: float, beta: float) -> Tensor:
        return self._log_mass(*self._whiten(x, alpha, beta))


@dataclass(frozen=True, eq=False)
class MixtureFlow:
    """The exact average velocity ``v_{s,t}`` of a mixture's flow, for any s and t in [0, 1], either way in time.

    One component: ``X_{s,t}(x) = beta_t m + S_t^(1/2) S_s^(-1/2) (x - beta_s m)``. More: with u(0) = 0,
    ``du/dtau = b_r(x + (t - s) u)``, ``r = s + tau (t - s)``, gives ``v_{s,t}(x) = u(1)`` without a division by t - s;
    the diagonal and derivatives at it are as accurate as the rest. Solved by extrapolated midpoint steps of order
    12 with step control, in float64 whatever the dtype of x; differentiable in x, s and t, forwards and backwards.

    Source of the integrator: "Solving ordinary differential equations I" (Hairer, Norsett, Wanner, 1993), II.9.
    """

    mixture: GaussianMixture
    path: Interpolant = LINEAR
    tolerance: float = 1e-12

    def __call__(self, x: Tensor, s: Time, t: Time, cond: Cond = None) -> Tensor:
        """v_{s,t}(x) [b d] for x [b d], s and t floats or [b]; cond is not looked at."""
        wide = x.double()
        s, t = (u.to(wide) if isinstance(u, Tensor) else u for u in (s, t))
        if not isinstance(s, Tensor) and not isinstance(t, Tensor) and s == t:
            return self._exact.velocity(wide, t, self.path).to(x.dtype)
        solve = self._integrate if self.mixture.weights.shape[-1] > 1 else self._closed_form
        return solve(wide, s, t).to(x.dtype)

    @cached_property
    def _exact(self) -> GaussianMixture:
        return self.mixture.to(torch.float64)

    def _integrate(self, x: Tensor, s: Time, t: Time) -> Tensor:
        span = like(t - s, x)

        def rate(tau: float, u: Tensor) -> Tensor:
            return self._exact.velocity(x + span * u, s + tau * (t - s), self.path)

        return integrate(rate, torch.zeros_like(x), self.tolerance)

    def _closed_form(self, x: Tensor, s: Time, t: Time) -> Tensor:
        """(X - x) / (t - s) with the differences of beta and of the standard deviations divided before they cancel."""
        e, q = (a[..., 0, :] if i == 0 else a[..., 0, :, :] for i, a in enumerate(self._exact._eigen))
        mean = self._exact.means[..., 0, :]
        alpha_s, beta_s, alpha_t, beta_t = (like(f(u), x) for u in (s, t) for f in (self.path.alpha, self.path.beta))
        std_s, std_t = (alpha_s**2 + beta_s**2 * e).sqrt(), (alpha_t**2 + beta_t**2 * e).sqrt()
        z = torch.einsum("...de,...d->...e", q, x - beta_s * mean) / std_s
        dalpha, dbeta = (
            _slope(self.path.alpha, self.path.dalpha, s, t, x),
            _slope(self.path.beta, self.path.dbeta, s, t, x),
        )
        dstd = ((alpha_s + alpha_t) * dalpha + (beta_s + beta_t) * e * dbeta) / (std_s + std_t)
        return dbeta * mean + torch.einsum("...de,...e->...d", q, dstd * z)


ORDERS = (2, 4, 6, 8, 10, 12)


def integrate(rate: Callable[[float, Tensor], Tensor], u: Tensor, tolerance: float) -> Tensor:
    """u(1) of ``du/dtau = rate(tau, u)`` from u(0), by extrapolated midpoint steps of order 12 under step control.

    The error a step is held below ``tolerance (1 + |u|)`` in every row, as told from the last column but one, so the
    result is usually some digits better. Steps are chosen on values without a gradient, derivatives pass through them.
    Raises RuntimeError when steps below 1e-9, or more than 10,000, would be needed.
    """
    tau, h, steps = 0.0, 0.25, 0
    while tau < 1:
        h, steps = min(h, 1 - tau), steps + 1
        if (h < 1e-9 and tau < 1 - 1e-8) or steps > 10_000:
            raise RuntimeError(f"the flow is too stiff at tau={tau:.6g}: a covariance is too small for float64")
        new, error = _extrapolated_step(rate, tau, u, h)
        size = (error / (tolerance * (1 + new.detach().abs()))).nan_to_num(0.0).max().item() if u.numel() else 0.0
        if size <= 1:
            tau, u = (1.0 if tau + h > 1 - 1e-12 else tau + h), new
        h *= min(3.0, max(0.2, 0.9 * max(size, 1e-12) ** (-1 / (2 * len(ORDERS) - 1))))
    return u


def _extrapolated_step(
    rate: Callable[[float, Tensor], Tensor], tau: float, u: Tensor, h: float
) -> tuple[Tensor, Tensor]:
    first = rate(tau, u)
    row: list[Tensor] = []
    for j, n in enumerate(ORDERS):
        new = [_midpoint_steps(rate, tau, u, first, h / n, n)]
        for k in range(1, j + 1):
            new.append(new[-1] + (new[-1] - row[k - 1]) / ((n / ORDERS[j - k]) ** 2 - 1))
        row = new
    return row[-1], (row[-1] - row[-2]).detach().abs()


def _midpoint_steps(
    rate: Callable[[float, Tensor], Tensor], tau: float, u: Tensor, first: Tensor, h: float, n: int
) -> Tensor:
    """N leapfrog steps; n is even, so that the error is a series in h^2."""
    before, now = u, u + h * first
    for m in range(1, n):
        before, now = now, before + 2 * h * rate(tau + m * h, now)
    return now


def _slope(f: Callable[[Time], Time], df: Callable[[Time], Time], s: Time, t: Time, x: Tensor) -> Tensor:
    """(f(t) - f(s)) / (t - s), and where s and t meet its limit, to first order in t - s too."""
    gap = like(t - s, x)
    near = gap.abs() < 1e-5
    far = (like(f(t), x) - like(f(s), x)) / torch.where(near, 1, gap)
    return torch.where(near, like(df((s + t) / 2), x), far)


def _flat(t: Time, x: Tensor) -> Time:
    """A time for each of the points x [... d], in one axis."""
    return like(t, x).expand(*x.shape[:-1], 1).flatten() if isinstance(t, Tensor) else t


def _row(t: Time, x: Tensor) -> Time:
    """A time beside the axes [... k d] of the components."""
    return like(t, x)[..., None] if isinstance(t, Tensor) else t
