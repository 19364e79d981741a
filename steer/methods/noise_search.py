"""Search over noises and over paths, for the sample that a reward likes best.

    ZeroOrder   n = x0                                                     the pivot
                repeat `steps` times:
                    n_j, j = 1 .. N: noises of cosine `closeness` with n
                    n = the best of n and n_j by r(X_{0,1}(n_j))           N calls

    PathSearch  x = X_{0,start}(x0), n of them                             paths at t = start
                repeat `steps` times:
                    x_j, j = 1 .. M: x renoised to the time u = t - back   by the forward kernel
                    keep the n best of n M by r(X_{u,1}(x_j))              M calls each
                    x = X_{u,t'}(x_j), a little later than t               one call each

As the flow from x_j has a single end, the jump from u shows the reward of the path at t' before it is taken there; only
what is kept is moved. Random search, the third method of the paper, is best-of-n.

Source: "Inference-time scaling for diffusion models beyond scaling denoising steps" (arXiv:2501.09732), section 3.2 and
appendix A.3: N = 4 (2 for text to image); start = .89, back = .78, forward .81. The paper gives no formula for a
neighbour; .95 is the closeness of a public implementation. Here the cosine is exact, and the neighbour of a standard
normal noise is one too: its length is drawn afresh.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from steer.draws import Rng, randn_like
from steer.flow_map import Cond, FlowMap, jump
from steer.interpolants import Interpolant
from steer.moves import renoise
from steer.particles import Particles, Reward, Trace, gather, length, steps_within
from steer.population import Population
from steer.run import Run


@dataclass(frozen=True)
class ZeroOrder:
    """Each particle searches the noises near the best it has found; equal weights, no target law, log_z is NaN.

    Attributes:
        steps: rounds. Anytime: a longer search begins as a shorter one does, and never ends worse.
        neighbours: N in a round; a particle costs 1 + steps N calls.
        closeness: cosine of the angle between a noise and its neighbours.
    """

    steps: int = 8
    neighbours: int = 4
    closeness: float = 0.95
    needs_gradient: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name in ("steps", "neighbours"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not -1 < self.closeness < 1:
            raise ValueError(f"closeness must be a cosine between -1 and 1, got {self.closeness}")

    @torch.no_grad()
    def __call__(
        self,
        flow: FlowMap,
        path: Interpolant,
        reward: Reward,
        x0: Tensor,
        cond: Cond = None,
        *,
        rng: Rng,
    ) -> tuple[Particles, Trace]:
        """Particles and trace of the pivots x0 [p n *d]."""
        run = Run(flow, path, reward, x0, cond, rng=rng)
        population, x1 = Population(run, x0), jump(run.flow, x0, 0.0, 1.0)
        state = (x0, x1, run.rewards(x1))
        population.weigh(torch.zeros_like(state[2]), 0.0)
        for _ in range(self.steps):
            near = neighbours(state[0], self.neighbours, self.closeness, rng=rng)
            x1 = jump(run.flow, near, 0.0, 1.0)
            both = tuple(torch.cat(pair, 1) for pair in zip(state, (near, x1, run.rewards(x1)), strict=True))
            own = both[2].unflatten(1, (self.neighbours + 1, run.n))  # the pivots, then the j-th neighbours of all
            state = gather(both, own.argmax(1) * run.n + torch.arange(run.n, device=x0.device))
            population.weigh(torch.zeros_like(state[2]), 0.0)
        return population.finish(state[1], state[2], log_z=False)

    def with_budget(self, calls: int, n: int = 16) -> "ZeroOrder":
        """The same method with as many steps as `calls` a prompt pay for, with fewer neighbours if not even one is."""
        near = min(self.neighbours, steps_within(calls, n, a_step=1, besides=1))
        return replace(self, neighbours=near, steps=steps_within(calls, n, a_step=near, besides=1))


@dataclass(frozen=True)
class PathSearch:
    """The n best paths of a prompt, renoised and carried on; equal weights, no target law, log_z is NaN.

    What is returned are the n best ends that were seen.

    Attributes:
        steps: rounds; they take the paths from `start` to the end, evenly.
        children: M of each path in a round; a particle costs steps (1 + M) calls.
        start: where the search begins (the paper: .89).
        back: how far it goes back in time in each round (the paper: .78, which forgets nearly all that was chosen, and
            finds little more than best-of-n); less searches more locally.
    """

    steps: int = 4
    children: int = 4
    start: float = 0.3
    back: float = 0.2
    needs_gradient: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name in ("steps", "children"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.start < 1:
            raise ValueError(f"start must be between 0 (noise) and 1 (data), got {self.start}")
        if not 0 < self.back <= self.start:
            raise ValueError(f"back must be between 0 and start={self.start}, got {self.back}")

    @torch.no_grad()
    def __call__(
        self,
        flow: FlowMap,
        path: Interpolant,
        reward: Reward,
        x0: Tensor,
        cond: Cond = None,
        *,
        rng: Rng,
    ) -> tuple[Particles, Trace]:
        """Particles and trace of x0 [p n *d]."""
        run = Run(flow, path, reward, x0, cond, rng=rng)
        population, t, best = Population(run, x0), self.start, None
        x = jump(run.flow, x0, 0.0, t)
        for k in range(1, self.steps + 1):
            u, after = t - self.back, self.start + (1 - self.start) * k / self.steps
            near = renoise(path, x.repeat_interleave(self.children, 1), t, u, rng=rng)
            line = population.ancestors.repeat_interleave(self.children, 1)
            x1 = jump(run.flow, near, u, 1.0)
            r = run.rewards(x1)
            near, x1, r, line = gather((near, x1, r, line), r.topk(run.n).indices)
            best = (x1, r, line) if best is None else _best(best, (x1, r, line))
            population.ancestors = line
            population.weigh(torch.zeros_like(r), u)
            if k < self.steps:
                x, t = jump(run.flow, near, u, after), after
        assert best is not None
        x1, r, population.ancestors = best
        return population.finish(x1, r, log_z=False)

    def with_budget(self, calls: int, n: int = 16) -> "PathSearch":
        """The same method with as many steps as `calls` a prompt pay for, with fewer children where not even one is."""
        children = min(self.children, steps_within(calls, n, a_step=1, besides=1))
        return replace(self, children=children, steps=steps_within(calls, n, a_step=1 + children))


_Ends = tuple[Tensor, Tensor, Tensor]  # x1, rewards, ancestors


def _best(old: _Ends, new: _Ends) -> _Ends:
    """The n best of 2 n ends."""
    both = tuple(torch.cat(pair, 1) for pair in zip(old, new, strict=True))
    return gather(both, both[1].topk(new[1].shape[1]).indices)  # pyright: ignore[reportReturnType]


def neighbours(x: Tensor, k: int, closeness: float, *, rng: Rng) -> Tensor:
    """Noises [p k n *d] as [p (k n) *d], each of cosine `closeness` with its x [p n *d] and standard normal if x is.

    ``|z| (closeness x / |x| + sqrt(1 - closeness^2) w)``, w the direction of the part of z that is orthogonal to x:
    |z| and w are independent. For a single number, which has no sphere: ``closeness x + sqrt(1 - closeness^2) z``.
    """
    x = x.repeat((1, k) + (1,) * (x.ndim - 2))
    z, far = randn_like(x, rng), (1 - closeness**2) ** 0.5
    if x[0, 0].numel() == 1:
        return closeness * x + far * z
    tiny = torch.finfo(x.dtype).tiny
    u = x / length(x).clamp(min=tiny)
    w = z - (z * u).flatten(2).sum(-1).view_as(length(x)) * u
    return length(z) * (closeness * u + far * w / length(w).clamp(min=tiny))
