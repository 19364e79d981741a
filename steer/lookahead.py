"""Guesses of the end: where will a half-made sample land?

A look-ahead is a callable ``(flow, path, x [*b *d], t, *, cond, rng, noise) -> x1 [k *b *d]``, always with the k axis
of its draws in front. `noise` [k *b *d] stands for the draws of rng, so that a caller may know them. None of them
computes a value; one function, `soft_value`, turns k rewards into one, and two ways lead from it to a gradient:

    grad V = sum_k softmax(r / temperature)_k grad_x r(z_k(x)) / temperature       autograd through `soft_value`
    grad V = beta / alpha^2 (sum_k softmax(r / temperature)_k z_k - mean_k z_k)     `value_score`, for any reward

The draws of `steer.posterior` (`Glass`, `Renoised`, `Learned`) are of the posterior p(x1 | x_t) itself, for which
V_t(x) = log E[exp(r(x1) / temperature) | x_t = x] and both are consistent as k grows; the others are plug-in guesses.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from steer.draws import Rng
from steer.flow_map import Cond, FlowMap, denoise, jump
from steer.interpolants import Interpolant, Time, like, posterior_variance


class LookAhead(Protocol):
    """A guess of x1 from x_t."""

    @property
    def calls(self) -> int:
        """Network calls a particle."""
        ...

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
        """x1 [k *b *d] for x [*b *d]."""
        ...

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
        """The draws, and their log-weights [k *b] (None: all the same) where they need any to stand for the law.

        A sample has `event` axes.
        """
        ...

    def noise(self, x: Tensor, *, rng: Rng) -> Tensor | None:
        """The draws [k *b *d] that the look-ahead would take from rng; None from one that takes none."""
        ...


class _Plain:
    """A look-ahead without draws of its own."""

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
        """Its guess, unweighted."""
        return self(flow, path, x, t, cond=cond, rng=rng, noise=noise), None  # pyright: ignore[reportCallIssue]

    def noise(self, x: Tensor, *, rng: Rng) -> Tensor | None:
        """None."""
        return None


@dataclass(frozen=True)
class Denoiser(_Plain):
    """``E[x1 | x_t]`` [1 *b *d]: one call; an average of possible ends, so off the data where they differ."""

    calls = 1

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
        """The posterior mean; draws nothing from rng."""
        return denoise(flow, path, x, t, cond)[None]


@dataclass(frozen=True)
class Jump(_Plain):
    """``X_{t,1}(x_t)`` [1 *b *d]: one call; the end of the flow's own trajectory, on the data wherever the map is good.

    One point of the posterior p(x1 | x_t), not its mean: with x_t ~ p_t it has exactly the law of the data.
    """

    calls = 1

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
        """The jump to t = 1; draws nothing from rng."""
        return jump(flow, x, t, 1.0, cond)[None]


@dataclass(frozen=True)
class Rollout(_Plain):
    """``X_{t_{m-1},1} o ... o X_{t,t_1}(x_t)`` [1 *b *d] in `jumps` equal jumps: the same end, for maps that are poor
    over long ones. ``jumps`` calls. Raises ValueError when jumps < 1.
    """

    jumps: int = 4

    def __post_init__(self) -> None:
        if self.jumps < 1:
            raise ValueError(f"jumps must be at least 1, got {self.jumps}")

    @property
    def calls(self) -> int:
        """Jumps."""
        return self.jumps

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
        """The end of the flow's trajectory; draws nothing from rng."""
        for j in range(self.jumps):
            s, u = (t + (1 - t) * i / self.jumps for i in (j, j + 1))
            x = jump(flow, x, s, u, cond)
        return x[None]


def soft_value(r: Tensor, temperature: float = 1.0, log_w: Tensor | None = None) -> Tensor:
    """``V = temperature log (sum_i w_i exp(r_i / temperature))`` [*b] for r [k *b]; weights 1/k, or softmax(log_w).

    In log space. temperature -> 0 gives the maximum, temperature = inf the mean. Rows of -inf alone give -inf. Biased
    low for finite k (Jensen). Raises ValueError when temperature is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}; math.inf gives the mean")
    if len(r) == 1:
        return r[0]
    log_share = r.new_full((1,) * r.ndim, -math.log(len(r))) if log_w is None else log_w.log_softmax(0)
    if math.isinf(temperature):
        return (r * log_share.exp()).sum(0)
    return temperature * (r / temperature + log_share).logsumexp(0)


def mean_shift(x1: Tensor, r: Tensor, temperature: float = 1.0, log_w: Tensor | None = None) -> Tensor:
    """``E[x1 e^{r/T}] / E[e^{r/T}] - E[x1]`` [*b *d] of draws x1 [k *b *d] with rewards r [k *b]: what the tilt adds.

    log_w [k *b]: the draws' weights, if they have any. 0 where all draws are rejected.
    """
    plain = torch.zeros_like(r) if log_w is None else log_w
    gain = torch.where(r == -math.inf, r, r / temperature)
    tilted = (plain + gain).softmax(0).nan_to_num(0.0)
    plain = torch.where((tilted.sum(0) > 0), plain.softmax(0), 0)
    share = (tilted - plain).reshape(r.shape + (1,) * (x1.ndim - r.ndim))
    return (share * x1).sum(0)


def value_score(
    path: Interpolant, x1: Tensor, r: Tensor, t: Time, temperature: float = 1.0, log_w: Tensor | None = None
) -> Tensor:
    """``grad V = beta / alpha^2 (E[x1 e^{r/T}] / E[e^{r/T}] - E[x1])`` [*b *d], see `mean_shift`; for t < 1.

    Needs no gradient of the reward. Consistent for draws of p(x1 | x_t).
    """
    alpha, beta = (like(f(t), x1[0]) for f in (path.alpha, path.beta))
    return beta / alpha**2 * mean_shift(x1, r, temperature, log_w)


def damping(path: Interpolant, t: float, lam: float, data_std: float) -> float:
    """``1 / (1 + 2 lam s^2)``, s^2 the variance of p(x1 | x_t) for data of that width: what a gradient is to lose.

    For a reward -lam |x1 - c|^2 it makes the gradient at one guess of the end that of V_t, exactly for Gaussian data; a
    steep reward can then push no further than the posterior is wide. Source: "Are we really tilting?"
    (arXiv:2606.02884).
    """
    return 1 / (1 + 2 * lam * posterior_variance(path, t, data_std))
