"""Look-aheads that draw from the posterior p(x1 | x_t) itself, k draws with a noise for each (see lookahead)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from steer.draws import Rng, draws_like
from steer.flow_map import Cond, FlowMap, denoise, jump, score
from steer.interpolants import Interpolant, Time


class _Draws:
    """K draws of p(x1 | x_t), a noise in each."""

    k: int

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, int) and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")

    def noise(self, x: Tensor, *, rng: Rng) -> Tensor | None:
        """Standard normal [k *b *d]."""
        return draws_like(x, self.k, rng)

    def _noise(self, x: Tensor, rng: Rng | None, noise: Tensor | None) -> Tensor:
        if noise is None and rng is None:
            raise ValueError("rng=None: draws of the posterior need a torch.Generator, or their noise")
        return noise if noise is not None else draws_like(x, self.k, rng)  # pyright: ignore[reportArgumentType]

    def __call__(
        self,
        flow: FlowMap,
        path: Interpolant,
        x: Tensor,
        t: Time,
        *,
        cond: Cond = None,
        rng: Rng | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Draws [k b *d] for flat particles x [b *d]; those that have weights are resampled by them."""
        event = x.ndim - 1

        def over(z: Tensor, s: Time, u: Time, extra: Cond = None) -> Tensor:
            """The map on [k b *d], which itself takes flat rows."""
            k = len(z) if z.ndim > x.ndim else 1
            rows = {key: c.repeat(k, *[1] * (c.ndim - 1)) for key, c in (cond or {}).items()}
            rows |= {key: c.reshape(-1, *c.shape[z.ndim - event :]) for key, c in (extra or {}).items()}
            return flow(z.reshape(-1, *x.shape[1:]), s, u, rows or None).view_as(z)

        z, log_w = self.weighted(over, path, x, t, rng=rng, noise=noise, event=event)
        if log_w is None:
            return z
        if not isinstance(rng, torch.Generator):
            raise ValueError(f"rng={rng!r} must be a torch.Generator: the draws are resampled by their weights")
        chosen = torch.multinomial(log_w.softmax(0).T.to(rng.device), self.k, replacement=True, generator=rng).T
        return z[chosen.to(z.device), torch.arange(len(x), device=z.device)]

    def weighted(
        self,
        flow: FlowMap,
        path: Interpolant,
        x: Tensor,
        t: Time,
        *,
        cond: Cond = None,
        rng: Rng | None = None,
        noise: Tensor | None = None,
        event: int = 1,
    ) -> tuple[Tensor, Tensor | None]:
        """The draws, and their log-weights [k *b] or None; each kind has its own."""
        raise NotImplementedError


@dataclass(frozen=True)
class Glass(_Draws):
    """K draws of p(x1 | x_t) [k *b *d], without training: the inner flow of GLASS, ``steps`` denoiser calls a draw.

    From z_0 ~ N(0, I) at s = 0 to z_1 at s = 1, with two views of x1, x_t itself and z_s, combined by their precisions
    ``lambda = (s / (1-s))^2 + (beta/alpha)^2`` into one view ``S = (s z / (1-s)^2 + beta x_t / alpha^2) / lambda`` of
    the time t* whose beta/alpha is sqrt(lambda):

        dz/ds = (D_{t*}(beta_{t*} S) - z) / (1 - s)

    by Heun's method; the last step, an Euler one, lands on D itself. Exact as `steps` grows.

    Source: "GLASS Flows" (arXiv:2509.25170), section 4, in our letters.

    Attributes:
        k: draws.
        steps: of the inner flow.
    """

    k: int = 4
    steps: int = 6

    @property
    def calls(self) -> int:
        """``k (2 steps - 1)``."""
        return self.k * (2 * self.steps - 1)

    def weighted(
        self,
        flow: FlowMap,
        path: Interpolant,
        x: Tensor,
        t: Time,
        *,
        cond: Cond = None,
        rng: Rng | None = None,
        noise: Tensor | None = None,
        event: int = 1,
    ) -> tuple[Tensor, Tensor | None]:
        """The draws, all of the same weight; t is a float."""
        z = self._noise(x, rng, noise)
        return (x.expand_as(z) if t == 1 else glass(flow, path, x, float(t), z, 0.0, 1.0, self.steps, cond)), None


@dataclass(frozen=True)
class Renoised(_Draws):
    """K draws of p(x1 | x_t) by importance [k *b *d]: renoise x_t to an earlier time, jump to the end, and weigh.

        x_u = (beta_u / beta_t) x_t + kappa eps,   z = X_{u,1}(x_u),   u = back t
        w = p_u(x_u) N(x_t; beta_t z, alpha_t^2 I) exp(|eps|^2 / 2)

    since z = X_{u,1}(x_u) makes p_1(z) dz = p_u(x_u) dx_u. The ratio of p_u(x_u) to its value at the reference
    ``x_ref = (beta_u / beta_t) x_t``, at the SAME time u, is the line integral of the score between them, by `nodes`
    Gauss-Legendre points. (A trapezoid from (x_t, t) to (x_u, u) instead, as first published, is biased.)

    One call a draw and `nodes` for its weight. The draws are a function of eps, so gradients pass through them; their
    effective number falls exponentially with the dimension: for small problems, or k large.

    Source: weighted Diamond maps, "Diamond maps" (arXiv:2602.05993), section 5, with the reference point corrected.

    Attributes:
        k: draws.
        back: the time to which is renoised, as a share of t.
        nodes: quadrature points of the weight.
    """

    k: int = 8
    back: float = 0.5
    nodes: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.back < 1:
            raise ValueError(f"back must be a share between 0 and 1, got {self.back}")

    @property
    def calls(self) -> int:
        """``k (1 + nodes)``."""
        return self.k * (1 + self.nodes)

    def weighted(
        self,
        flow: FlowMap,
        path: Interpolant,
        x: Tensor,
        t: Time,
        *,
        cond: Cond = None,
        rng: Rng | None = None,
        noise: Tensor | None = None,
        event: int = 1,
    ) -> tuple[Tensor, Tensor | None]:
        """Draws and their log-weights [k *b]; t is a float. At t = 0 the posterior is the law of the data."""
        eps = self._noise(x, rng, noise)
        if t in (0, 1):  # at 0 the draws do not depend on x: a gradient of zero, rather than none
            return (jump(flow, eps, 0.0, 1.0, cond) + 0 * x if t == 0 else x.expand_as(eps)), None
        u = self.back * float(t)
        ratio = path.beta(u) / path.beta(float(t))
        alpha = path.alpha(float(t))
        kappa = math.sqrt(path.alpha(u) ** 2 - (ratio * alpha) ** 2)
        shift = kappa * eps
        z = jump(flow, ratio * x + shift, u, 1.0, cond)
        log_p = torch.zeros_like(_sum(eps, event))
        points, shares = _legendre(self.nodes)
        for point, share in zip(points, shares, strict=True):
            log_p = log_p + share * _sum(score(flow, path, ratio * x + point * shift, u, cond) * shift, event)
        miss = (x - path.beta(float(t)) * z) / alpha
        return z, log_p - _sum(miss**2, event) / 2 + _sum(eps**2, event) / 2


@dataclass(frozen=True)
class Learned(_Draws):
    """K draws of p(x1 | x_t) [k *b *d], one call each, by a flow map that was trained to make them.

    Such a map carries noise eps to x1 given a context: it is called as an ordinary one from s = 0 to 1, the context in
    cond as "x_t" [b *d] and "t" [b]. At t = 0 it is a plain flow map.

    Source: "Meta flow maps" (arXiv:2601.14430); "Posterior Diamond maps" (arXiv:2602.05993).

    Attributes:
        k: draws.
        steps: jumps from noise to the end; 1 as published, more where the map's long jumps are coarse.
    """

    k: int = 4
    steps: int = 1

    @property
    def calls(self) -> int:
        """``k steps``."""
        return self.k * self.steps

    def weighted(
        self,
        flow: FlowMap,
        path: Interpolant,
        x: Tensor,
        t: Time,
        *,
        cond: Cond = None,
        rng: Rng | None = None,
        noise: Tensor | None = None,
        event: int = 1,
    ) -> tuple[Tensor, Tensor | None]:
        """The draws, all of the same weight; a sample has `event` axes."""
        eps = self._noise(x, rng, noise)
        lead = eps.shape[: eps.ndim - event]
        context = {"x_t": x.expand_as(eps), "t": torch.as_tensor(t, dtype=x.dtype, device=x.device).expand(lead)}
        z = eps
        for j in range(self.steps):
            z = jump(flow, z, j / self.steps, (j + 1) / self.steps, {**(cond or {}), **context})
        return z, None


def glass(
    flow: FlowMap, path: Interpolant, x: Tensor, t: float, z: Tensor, start: float, stop: float, steps: int, cond: Cond
) -> Tensor:
    """The inner flow of `Glass` from z [k *b *d] at inner time `start` to `stop`, given x [*b *d] at time t.

    Stopping before 1 leaves a view of x1 with ``beta/alpha = stop / (1 - stop)``, see `steer.moves.early_stop`.
    """

    def slope(z: Tensor, s: float) -> Tensor:
        alpha, beta = path.alpha(t), path.beta(t)
        precision = (s / (1 - s)) ** 2 + (beta / alpha) ** 2
        u = path.when(math.sqrt(precision))
        view = (s / (1 - s) ** 2 * z + beta / alpha**2 * x) / precision if precision > 0 else torch.zeros_like(z)
        seen = path.beta(u) * view if precision > 0 else torch.zeros_like(z)
        return (denoise(flow, path, seen, u, cond) - z) / (1 - s)

    for j in range(steps):
        s, after = (start + (stop - start) * i / steps for i in (j, j + 1))
        first = slope(z, s)
        if after < 1:
            z = z + (after - s) / 2 * (first + slope(z + (after - s) * first, after))
        else:
            z = z + (after - s) * first
    return z


def _sum(x: Tensor, event: int) -> Tensor:
    """The sum over the axes of one sample."""
    return x.flatten(x.ndim - event).sum(-1)


def _legendre(nodes: int) -> tuple[list[float], list[float]]:
    """Points and weights of Gauss-Legendre quadrature on [0, 1]."""
    from numpy.polynomial.legendre import leggauss

    points, weights = leggauss(nodes)
    return ((points + 1) / 2).tolist(), (weights / 2).tolist()
