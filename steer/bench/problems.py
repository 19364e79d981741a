"""Tasks with a known answer: a flow map, a reward, and the exact tilted law with its draws, log Z and E[r].

| task | data | reward | truth |
|---|---|---|---|
| mild ring | 8 Gaussians on a circle | quadratic | a mixture again |
| hard ring | the same | four times as steep: nearly all weight on one mode | a mixture again |
| inverse 16-D, 64-D | 8 Gaussians | log-likelihood of 6 noisy linear observations | a mixture again |
| rare mode | two Gaussians, one of mass 1e-6 | linear: gives that one .8 of the weight | a mixture again |
| mode selection | N(-3, 1), N(3, 1) | a bump at 3, flat where half of the data are | quadrature |
| double well | two Gaussians in 2-D | a quartic | quadrature |
| learned ring | what a small network samples | as the mild ring's | quadrature over the noise |

All flow maps are exact, but the last, which is judged by its own law: X_{0,1}(x0) for x0 ~ N(0, I).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from steer.analytic import GaussianMixture
from steer.flow_map import Cond, FlowMap, jump
from steer.interpolants import Time, like

ASSETS = Path(__file__).resolve().parent / "assets"
QUADRATIC, LINEAR = torch.diag(torch.tensor([0.2, 0.0])).double(), torch.tensor([0.5, 1.0]).double()


@dataclass(frozen=True, eq=False)
class Problem:
    """A flow map on the linear path, a reward, and the exact tilted law.

    Attributes:
        name: of the task.
        flow: the map.
        reward: of x1 [... d]: [...].
        draw: n exact draws [n d] of the tilted law.
        log_z: log E[exp r].
        reward_mean: E[r] under the tilted law.
        mean, std: of each coordinate of the tilted law [d].
        modes: centres [k d]; a point counts to the nearest.
        mode_weights: share of the tilted law that counts to each [k].
        prior: n draws [n d] of what the map samples unsteered.
        exact: whether the map is; the law is that of its samples in one jump where it is not.
    """

    name: str
    flow: FlowMap
    reward: Callable[[Tensor], Tensor]
    draw: Callable[[int, torch.Generator], Tensor]
    log_z: float
    reward_mean: float
    mean: Tensor
    std: Tensor
    modes: Tensor
    mode_weights: Tensor
    prior: Callable[[int, torch.Generator], Tensor]
    exact: bool = True

    @property
    def d(self) -> int:
        """Numbers of one sample."""
        return self.modes.shape[-1]


@dataclass(frozen=True, eq=False)
class BlobFlow:
    """The flow map of ``sum_i w_i N(m_i, std^2 I)`` along the linear path, fast: equal round Gaussians only.

    With ``q_t^2 = (1-t)^2 + t^2 std^2``, ``tau = t / q_t`` and ``u = x / q_t`` the flow is

        du/dtau = sum_i rho_i m_i,   rho = softmax(log w_i + tau u.m_i - tau^2 |m_i|^2 / 2)

    (for centred means), which is constant wherever one Gaussian has all the weight. So u moves by sum_i R_i m_i, and R,
    the integral of rho, is all there is to solve for, in any dimension: by `steps` steps of fourth order, a little
    shorter where the modes part; differentiable. On the ring 8 steps err by 4e-4 on the average.
    """

    weights: Tensor
    means: Tensor
    std: float
    steps: int = 8

    def __call__(self, x: Tensor, s: Time, t: Time, cond: Cond = None) -> Tensor:
        """v_{s,t}(x) [b d]."""
        if not isinstance(s, Tensor) and not isinstance(t, Tensor) and s == t:
            return self._velocity(x, like(s, x))
        s, t = like(s, x), like(t, x)
        centre, centred = self._centre.to(x), self._centred.to(x)
        q, q_end = self._q(s), self._q(t)
        u = (x - s * centre) / q
        end = q_end * (u + self._moved(u, s / q, t / q_end) @ centred) + t * centre
        gap = t - s
        return torch.where(gap == 0, self._velocity(x, s), (end - x) / torch.where(gap == 0, 1, gap))

    def _moved(self, u: Tensor, tau: Tensor, end: Tensor) -> Tensor:
        """R [b k] of u from tau to end, by the classical Runge-Kutta scheme; points are the last axis inside."""
        log_w, level, gram = (a.to(u) for a in self._constants)
        score, tau, end = self._centred.to(u) @ u.mT, tau.reshape(-1), end.reshape(-1)
        first, last = (a / (1 + self._reach * a) for a in (tau, end))

        def rho(total: Tensor, tau: Tensor) -> Tensor:
            return (torch.addmm(score, gram, total) * tau + (log_w - tau**2 * level)).softmax(0)

        total = torch.zeros_like(score)
        for j in range(self.steps):
            w = first + (last - first) * ((j + 1) / self.steps)
            after = end if j + 1 == self.steps else w / (1 - self._reach * w)
            h, half = after - tau, (tau + after) / 2
            a = rho(total, tau)
            b = rho(total + h / 2 * a, half)
            c = rho(total + h / 2 * b, half)
            d = rho(total + h * c, after)
            total, tau = total + h / 6 * (a + 2 * (b + c) + d), after
        return total.mT

    def _velocity(self, x: Tensor, t: Tensor) -> Tensor:
        log_w, level, _ = (a.to(x) for a in self._constants)
        q, centre, centred = self._q(t), self._centre.to(x), self._centred.to(x)
        u, tau = (x - t * centre) / q, t / q
        rho = (log_w.mT + tau * (u @ centred.mT) - tau**2 * level.mT).softmax(-1)
        return (t * self.std**2 - (1 - t)) / q * u + (1 - t) / q**2 * (rho @ centred) + centre

    def _q(self, t: Tensor) -> Tensor:
        return ((1 - t) ** 2 + (t * self.std) ** 2).sqrt()

    @cached_property
    def _centre(self) -> Tensor:
        return (self.weights[:, None] * self.means).sum(0) / self.weights.sum()

    @cached_property
    def _centred(self) -> Tensor:
        return self.means - self._centre

    @cached_property
    def _constants(self) -> tuple[Tensor, Tensor, Tensor]:
        """Log-weights [k 1], half the squared lengths [k 1] and the products [k k] of the centred means."""
        gram = self._centred @ self._centred.mT
        return self.weights.log()[:, None], gram.diagonal()[:, None] / 2, gram

    @cached_property
    def _reach(self) -> float:
        return 0.1 * float(self._centred.norm(dim=-1).max())


def blobs(weights: Tensor, means: Tensor, std: float) -> GaussianMixture:
    """``sum_i w_i N(m_i, std^2 I)``, in float64."""
    k, d = means.shape
    return GaussianMixture(weights.double(), means.double(), (std**2 * torch.eye(d).double()).expand(k, d, d))


def ring(modes: int = 8, radius: float = 4.0, std: float = 0.3) -> GaussianMixture:
    """Equal Gaussians on a circle, in float64."""
    angle = torch.arange(modes, dtype=torch.float64) * (2 * math.pi / modes)
    return blobs(torch.ones_like(angle), radius * torch.stack([angle.cos(), angle.sin()], -1), std)


def quadratic_reward(quadratic: Tensor, linear: Tensor, constant: float = 0.0) -> Callable[[Tensor], Tensor]:
    """``r(x) = -x'Ax/2 + h'x + c``."""

    def reward(x: Tensor) -> Tensor:
        return x @ linear.to(x) - ((x @ quadratic.to(x)) * x).sum(-1) / 2 + constant

    return reward


def gaussian_problem(
    name: str, data: GaussianMixture, std: float, quadratic: Tensor, linear: Tensor, constant: float = 0.0
) -> Problem:
    """Equal round Gaussians tilted by ``exp(-x'Ax/2 + h'x + c)``: a mixture again."""
    target, log_z = data.tilt(quadratic, linear)
    reward = quadratic_reward(quadratic, linear, constant)
    curvature = (quadratic * target.covs).sum((-1, -2)) / 2
    return Problem(
        name,
        BlobFlow(data.weights, data.means, std),
        reward,
        lambda n, rng: draws(target, n, rng),
        float(log_z) + constant,
        float((target.weights * (reward(target.means) - curvature)).sum()),
        target.mean,
        target.cov.diagonal().sqrt(),
        target.means,
        _shares(draws(target, 200_000, torch.Generator().manual_seed(0)), target.means),
        lambda n, rng: draws(data, n, rng),
    )


def draws(law: GaussianMixture, n: int, rng: torch.Generator) -> Tensor:
    """N draws [n d], one component after the other: little memory in many dimensions."""
    chosen = torch.multinomial(law.weights, n, replacement=True, generator=rng)
    x = torch.randn(n, law.means.shape[-1], generator=rng, dtype=law.means.dtype)
    for i, (mean, root) in enumerate(zip(law.means, torch.linalg.cholesky(law.covs), strict=True)):
        x[chosen == i] = mean + x[chosen == i] @ root.mT
    return x


def mild_ring() -> Problem:
    """The ring tilted by ``exp(-0.1 x0^2 + 0.5 x0 + x1)``: log Z = 2.457; weighted prior draws do well."""
    return gaussian_problem("mild ring", ring(), 0.3, QUADRATIC, LINEAR)


def hard_ring() -> Problem:
    """Four times the mild ring's reward: log Z = 14.861; nearly all of the law is on one mode's outer side."""
    return gaussian_problem("hard ring", ring(), 0.3, 4 * QUADRATIC, 4 * LINEAR)


def inverse(d: int, observed: int, noise: float, seed: int = 0) -> Problem:
    """Eight Gaussians in d dimensions, seen through `observed` random linear measurements with noise of that width.

    The reward is the log-likelihood ``-|y - Ax|^2 / (2 noise^2)``; the target is the posterior of x given y.
    """
    rng, std = torch.Generator().manual_seed(seed), 0.5
    means, a = (torch.randn(k, d, generator=rng, dtype=torch.float64) for k in (8, observed))
    data, a = blobs(torch.ones(8), means, std), a / a.norm(dim=-1, keepdim=True)
    truth = data.sample(1, rng=rng)[0]
    y = a @ truth + noise * torch.randn(observed, generator=rng, dtype=torch.float64)
    quadratic, linear, constant = a.mT @ a / noise**2, a.mT @ y / noise**2, -float(y @ y) / (2 * noise**2)
    return gaussian_problem(f"inverse {d}-D", data, std, quadratic, linear, constant)


def rare_mode(mass: float = 1e-6, share: float = 0.8) -> Problem:
    """Gaussians at (-2, 0) and, with that prior mass, at (2, 0): a linear reward gives the second one that share."""
    std, separation = 0.5, 4.0
    slope = (math.log(share / (1 - share)) - math.log(mass / (1 - mass))) / separation
    means = torch.tensor([[-separation / 2, 0.0], [separation / 2, 0.0]]).double()
    data = blobs(torch.tensor([1 - mass, mass]), means, std)
    return gaussian_problem("rare mode", data, std, torch.zeros(2, 2).double(), torch.tensor([slope, 0.0]).double())


def mode_selection() -> Problem:
    """N(-3, 1) and N(3, 1), half each; the reward is a bump of height 10 at 3, without a slope where it is not seen."""
    data = blobs(torch.ones(2), torch.tensor([[-3.0], [3.0]]), 1.0)
    grid = torch.linspace(-12, 12, 20_001, dtype=torch.float64)[:, None]

    def reward(x: Tensor) -> Tensor:
        return 10 * (-((x[..., 0] - 3) ** 2) / 2).exp()

    return quadrature_problem("mode selection", data, 1.0, reward, grid)


def double_well() -> Problem:
    """Two Gaussians at (+-2.5, 0), .2 and .8, tilted by -.125 (x0^4 - 12.5 x0^2) - (x1 - .4 x0)^2, twice."""
    data = blobs(torch.tensor([0.2, 0.8]), torch.tensor([[-2.5, 0.0], [2.5, 0.0]]), 0.5**0.5)
    axis = torch.linspace(-7, 7, 561, dtype=torch.float64)

    def reward(x: Tensor) -> Tensor:
        u, v = x.unbind(-1)
        return -0.25 * (u**4 - 12.5 * u**2) - 2 * (v - 0.4 * u) ** 2

    return quadrature_problem("double well", data, 0.5**0.5, reward, torch.cartesian_prod(axis, axis))


def quadrature_problem(
    name: str, data: GaussianMixture, std: float, reward: Callable[[Tensor], Tensor], grid: Tensor
) -> Problem:
    """Any smooth reward, by sums over a regular grid [m d]; draws are uniform in its cells."""
    flow = BlobFlow(data.weights, data.means, std)
    return _summed(
        name, flow, reward, grid, data.log_prob(grid), data.means, lambda x: x, lambda n, rng: data.sample(n, rng=rng)
    )


def learned_ring(file: Path = ASSETS / "ring.safetensors") -> Problem:
    """The mild ring's reward on what a small trained network samples in one jump: its own law, faults and all."""
    flow, data = LearnedFlow.load(file), ring()
    axis = torch.linspace(-6, 6, 481, dtype=torch.float64)
    noise = torch.cartesian_prod(axis, axis)

    def push(x0: Tensor) -> Tensor:
        with torch.no_grad():
            return jump(flow, x0, 0.0, 1.0)

    def prior(n: int, rng: torch.Generator) -> Tensor:
        return push(torch.randn(n, 2, generator=rng, dtype=torch.float64))

    reward = quadratic_reward(QUADRATIC, LINEAR)
    problem = _summed("learned ring", flow, reward, noise, -(noise**2).sum(-1) / 2, data.means, push, prior)
    return replace(problem, exact=False)


def _summed(
    name: str,
    flow: FlowMap,
    reward: Callable[[Tensor], Tensor],
    grid: Tensor,
    log_p: Tensor,
    modes: Tensor,
    push: Callable[[Tensor], Tensor],
    prior: Callable[[int, torch.Generator], Tensor],
) -> Problem:
    """The law of push(z) tilted by exp r, z of log-density log_p (up to a constant) on a regular grid [m d]."""
    x = push(grid)
    r = reward(x)
    log_w = log_p + r
    log_z = float(log_w.logsumexp(0) - log_p.logsumexp(0))
    w = log_w.softmax(0)
    mean = w @ x
    nearest = torch.cdist(x, modes).argmin(-1)
    cell = (grid.amax(0) - grid.amin(0)) / (round(len(grid) ** (1 / grid.shape[1])) - 1)
    cdf = w.cumsum(0)

    def draw(n: int, rng: torch.Generator) -> Tensor:
        u = torch.rand(n, generator=rng, dtype=torch.float64) * cdf[-1]
        within = torch.rand(n, grid.shape[1], generator=rng, dtype=torch.float64) - 0.5
        return push(grid[torch.searchsorted(cdf, u).clamp(max=len(cdf) - 1)] + cell * within)

    shares = torch.zeros(len(modes), dtype=torch.float64).index_add(0, nearest, w)
    std = (w @ (x - mean) ** 2).sqrt()
    return Problem(name, flow, reward, draw, log_z, float(w @ r), mean, std, modes, shares, prior)


def _shares(x: Tensor, modes: Tensor) -> Tensor:
    """Share of the points x [n d] that are nearest to each mode [k]."""
    return torch.bincount(torch.cdist(x, modes).argmin(-1), minlength=len(modes)).double() / len(x)


class LearnedFlow(nn.Module):
    """A flow map in 2-D of three hidden layers, v_{s,t}(x) from (x, s, t); see scripts/train_ring.py."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        sizes = [(4, width), (width, width), (width, width), (width, 2)]
        layers = [m for i, o in sizes for m in (nn.Linear(i, o), nn.SiLU())]
        self.layers = nn.Sequential(*layers[:-1])

    @classmethod
    def load(cls, file: Path) -> "LearnedFlow":
        """The network of a safetensors file, in float64 and frozen."""
        from safetensors.torch import load_file

        state = load_file(file)
        flow = cls(state["layers.0.bias"].shape[0])
        flow.load_state_dict(state)
        return flow.double().requires_grad_(False).eval()

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, in which it computes."""
        return next(self.parameters()).dtype

    def forward(self, x: Tensor, s: Time, t: Time, cond: Cond = None) -> Tensor:
        """v_{s,t}(x) [b 2]."""
        times = [like(u, x).expand(len(x), 1) for u in (s, t)]
        return self.layers(torch.cat([x / 3, *times], -1).to(self.dtype)).to(x)


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "mild ring": mild_ring,
    "hard ring": hard_ring,
    "inverse 16-D": lambda: inverse(16, 6, 0.25, seed=5),
    "inverse 64-D": lambda: inverse(64, 6, 0.25, seed=2),
    "rare mode": rare_mode,
    "mode selection": mode_selection,
    "double well": double_well,
    "learned ring": learned_ring,
}
