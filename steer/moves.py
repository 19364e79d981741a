"""Moves from time s to time t that keep the marginals p_s -> p_t of an exact flow map.

All have the signature ``(flow, path, x [*b *d], s, t, cond, *, rng) -> x_t [*b *d]``. They differ in how much of the
particle they forget: `ode` nothing, `restart` all that the noise at time t hides, `sde` something between. None has a
discretisation error: steps may be as long as one likes.
"""

import torch
from torch import Tensor

from steer.flow_map import Cond, FlowMap, jump
from steer.interpolants import Interpolant, Time, interpolate, like, randn_like


def restart(
    flow: FlowMap,
    path: Interpolant,
    x: Tensor,
    s: Time,
    t: Time,
    cond: Cond = None,
    *,
    rng: torch.Generator,
    x1: Tensor | None = None,
) -> Tensor:
    """Jump to the end and add fresh noise: ``x_t = beta(t) X_{s,1}(x) + alpha(t) z``, for t on either side of s.

    X_{s,1}(x) has the law of the data when x ~ p_s, so x_t ~ p_t exactly. With `x1`, a jump to the end that is known
    already, no call is made, so a look-ahead and the move after it share one call. At t = 1 it is the jump.

    Source: multistep sampling of "Consistency models" (arXiv:2303.01469), algorithm 1, here for any pair of times.
    """
    x1 = jump(flow, x, s, 1.0, cond) if x1 is None else x1
    return interpolate(path, randn_like(x1, rng), x1, t)


def ode(
    flow: FlowMap,
    path: Interpolant,
    x: Tensor,
    s: Time,
    t: Time,
    cond: Cond = None,
    *,
    rng: torch.Generator | None = None,
) -> Tensor:
    """``X_{s,t}(x)``: the flow's own trajectory; draws nothing from rng."""
    return jump(flow, x, s, t, cond)


def sde(
    flow: FlowMap,
    path: Interpolant,
    x: Tensor,
    s: float,
    t: float,
    cond: Cond = None,
    *,
    rng: torch.Generator,
    churn: float = 1.0,
) -> Tensor:
    """Jump beyond t, to ``u = min(1, t + churn (t - s))``, and renoise back to t.

    For short steps it is the process ``dx = [b + eps s] dt + sqrt(2 eps) dW`` with ``eps = churn eta``,
    ``eta = alpha^2 dbeta/beta - dalpha alpha``: churn = 0 is the ODE, churn = 1 the memoryless SDE, churn = inf
    `restart`. Unlike Euler-Maruyama it keeps the marginals at any step length. Derived from the gamma-sampling of
    "Consistency trajectory models" (arXiv:2310.02279), with the overshoot tied to the step.

    Raises ValueError when churn is negative or s >= t.
    """
    if not churn >= 0:
        raise ValueError(f"churn must be at least 0 (the ODE), got {churn}")
    if not 0 <= s < t <= 1:
        raise ValueError(f"sde moves forward in [0, 1], got s={s}, t={t}; use restart or ode to move back")
    u = min(1.0, t + churn * (t - s))
    return renoise(path, jump(flow, x, s, u, cond), u, t, rng=rng) if u > t else jump(flow, x, s, t, cond)


def renoise(path: Interpolant, x: Tensor, u: Time, t: Time, *, rng: torch.Generator) -> Tensor:
    """A draw of the forward kernel p(x_t | x_u), t <= u: ``(beta_t / beta_u) x + kappa z`` [*b *d].

    ``kappa^2 = alpha_t^2 - (beta_t / beta_u)^2 alpha_u^2``, so that p_u is carried to p_t exactly. Needs u > 0.
    """
    ratio = path.beta(t) / path.beta(u)
    variance = path.alpha(t) ** 2 - (ratio * path.alpha(u)) ** 2
    return like(ratio, x) * x + like(variance, x).clamp(min=0).sqrt() * randn_like(x, rng)
