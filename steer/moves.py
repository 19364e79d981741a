"""Moves from time s to time t that keep the marginals p_s -> p_t of an exact flow map.

All have the signature ``(flow, path, x [*b *d], s, t, cond, *, rng) -> x_t [*b *d]``. They differ in how much of the
particle they forget: `ode` nothing, `restart` all that the noise at time t hides, `sde` something between, and
`early_stop` draws the transition p(x_t | x_s) of the memoryless process itself. None has a discretisation error: steps
may be as long as one likes (`early_stop` as its inner steps grow).

A move that ends in Gaussian noise is also at hand as its `Kernel`, whose mean can be shifted by guidance with an exact
weight for it (`Kernel.draw`): `restart_kernel`, `sde_kernel`, and `euler_kernel`, which does have a step error.
"""

import math
from typing import NamedTuple

from torch import Tensor

from steer.draws import Rng, randn_like
from steer.flow_map import Cond, FlowMap, jump, velocity
from steer.interpolants import Interpolant, Time, interpolate, like, score_from_velocity
from steer.posterior import glass


class JumpTimes:
    """What begins K jumps to the end at ``t_k = last_time sqrt(k / (K - 1))``: even in t^2, most of them late."""

    steps: int
    last_time: float

    @property
    def times(self) -> list[float]:
        """t_0 = 0 .. t_{K-1} = last_time."""
        return [self.last_time * math.sqrt(k / max(self.steps - 1, 1)) for k in range(self.steps)]

    def check_last_time(self) -> None:
        """Raises ValueError where last_time is not inside (0, 1)."""
        if not 0 < self.last_time < 1:
            raise ValueError(f"last_time must be between 0 (noise) and 1 (data), got {self.last_time}")


class Kernel(NamedTuple):
    """``N(mean, std^2 I)``, the law of a move: mean [p n *d], std a number."""

    mean: Tensor
    std: float

    def draw(self, rng: Rng, shift: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """A draw of N(mean + shift, std^2 I), and the log of its density under the kernel over its own [p n].

        ``log w = -(shift . z / std + |shift|^2 / (2 std^2))``, for any shift that is known before z is: with it a
        guided path stands for the unguided one, exactly. Raises ValueError for a shift where std = 0: nothing can
        weigh that.
        """
        z = randn_like(self.mean, rng)
        x = self.mean + self.std * z
        if shift is None:
            return x, z.new_zeros(z.shape[:2])
        if self.std == 0:
            raise ValueError("a move without noise has no weight for a shift; move with std > 0")
        return x + shift, -(shift * z / self.std + shift**2 / (2 * self.std**2)).flatten(2).sum(-1)


def restart(
    flow: FlowMap,
    path: Interpolant,
    x: Tensor,
    s: Time,
    t: Time,
    cond: Cond = None,
    *,
    rng: Rng,
    x1: Tensor | None = None,
) -> Tensor:
    """Jump to the end and add fresh noise: ``x_t = beta(t) X_{s,1}(x) + alpha(t) z``, for t on either side of s.

    X_{s,1}(x) has the law of the data when x ~ p_s, so x_t ~ p_t exactly. With `x1`, a jump to the end that is known
    already, no call is made, so a look-ahead and the move after it share one call. At t = 1 it is the jump.

    Source: multistep sampling of "Consistency models" (arXiv:2303.01469), algorithm 1, here for any pair of times.
    """
    x1 = jump(flow, x, s, 1.0, cond) if x1 is None else x1
    return interpolate(path, randn_like(x1, rng), x1, t)


def restart_kernel(path: Interpolant, x1: Tensor, t: float) -> Kernel:
    """The law of `restart` to time t from a jump x1 to the end: ``N(beta_t x1, alpha_t^2 I)``."""
    return Kernel(path.beta(t) * x1, path.alpha(t))


def ode(
    flow: FlowMap,
    path: Interpolant,
    x: Tensor,
    s: Time,
    t: Time,
    cond: Cond = None,
    *,
    rng: Rng | None = None,
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
    rng: Rng,
    churn: float = 1.0,
) -> Tensor:
    """Jump beyond t, to ``u = min(1, t + churn (t - s))``, and renoise back to t.

    For short steps it is the process ``dx = [b + eps s] dt + sqrt(2 eps) dW`` with ``eps = churn eta``,
    ``eta = alpha^2 dbeta/beta - dalpha alpha``: churn = 0 is the ODE, churn = 1 the memoryless SDE, churn = inf
    `restart`. Unlike Euler-Maruyama it keeps the marginals at any step length. Derived from the gamma-sampling of
    "Consistency trajectory models" (arXiv:2310.02279), with the overshoot tied to the step.

    Raises ValueError when churn is negative or s >= t.
    """
    kernel = sde_kernel(flow, path, x, s, t, cond, churn=churn)
    return kernel.mean if kernel.std == 0 else kernel.mean + kernel.std * randn_like(x, rng)


def sde_kernel(
    flow: FlowMap, path: Interpolant, x: Tensor, s: float, t: float, cond: Cond = None, *, churn: float = 1.0
) -> Kernel:
    """The law of `sde` from x at s to t, in one call; raises what `sde` raises."""
    if not churn >= 0:
        raise ValueError(f"churn must be at least 0 (the ODE), got {churn}")
    if not 0 <= s < t <= 1:
        raise ValueError(f"sde moves forward in [0, 1], got s={s}, t={t}; use restart or ode to move back")
    u = min(1.0, t + churn * (t - s))
    end = jump(flow, x, s, u, cond)
    if u == t:
        return Kernel(end, 0.0)
    ratio = path.beta(t) / path.beta(u)
    return Kernel(ratio * end, math.sqrt(max(path.alpha(t) ** 2 - (ratio * path.alpha(u)) ** 2, 0.0)))


def euler_kernel(
    flow: FlowMap, path: Interpolant, x: Tensor, s: float, t: float, cond: Cond = None, *, epsilon: float
) -> Kernel:
    """Euler-Maruyama: ``N(x + (t - s) (b_s + epsilon s_s), 2 epsilon (t - s) I)``, in one call; s < t, s < 1.

    Keeps the marginals as steps grow short. Raises ValueError when epsilon is negative.
    """
    if not epsilon >= 0:
        raise ValueError(f"epsilon must be at least 0 (the ODE), got {epsilon}")
    b = velocity(flow, x, s, cond)
    drift = b + epsilon * score_from_velocity(path, x, b, s) if epsilon > 0 else b
    return Kernel(x + (t - s) * drift, math.sqrt(2 * epsilon * (t - s)))


def early_stop(
    flow: FlowMap,
    path: Interpolant,
    x: Tensor,
    s: float,
    t: float,
    cond: Cond = None,
    *,
    rng: Rng,
    steps: int = 4,
) -> Tensor:
    """A draw of p(x_t | x_s), s < t <= 1, of the memoryless process: the inner flow of GLASS, stopped early.

    A second view of x1 with precision ``(beta_t/alpha_t)^2 - (beta_s/alpha_s)^2`` is drawn given x_s, and both views
    together are x_t. ``2 steps`` calls of the denoiser (one less at t = 1). Exact as `steps` grows.

    Source: "GLASS Flows" (arXiv:2509.25170); early stopping from "Diamond maps" (arXiv:2602.05993).
    """
    if not 0 <= s < t <= 1:
        raise ValueError(f"early_stop moves forward in [0, 1], got s={s}, t={t}; use restart to move back")
    z = randn_like(x, rng)
    if t == 1:
        return glass(flow, path, x, s, z, 0.0, 1.0, steps, cond)
    old, new = ((path.beta(u) / path.alpha(u)) ** 2 for u in (s, t))
    stop = math.sqrt(new - old) / (1 + math.sqrt(new - old))
    z = glass(flow, path, x, s, z, 0.0, stop, steps, cond)
    view = (stop / (1 - stop) ** 2 * z + path.beta(s) / path.alpha(s) ** 2 * x) / new
    return path.beta(t) * view


def renoise(path: Interpolant, x: Tensor, u: Time, t: Time, *, rng: Rng) -> Tensor:
    """A draw of the forward kernel p(x_t | x_u), t <= u: ``(beta_t / beta_u) x + kappa z`` [*b *d].

    ``kappa^2 = alpha_t^2 - (beta_t / beta_u)^2 alpha_u^2``, so that p_u is carried to p_t exactly. Needs u > 0.
    """
    ratio = path.beta(t) / path.beta(u)
    variance = path.alpha(t) ** 2 - (ratio * path.alpha(u)) ** 2
    return like(ratio, x) * x + like(variance, x).clamp(min=0).sqrt() * randn_like(x, rng)
