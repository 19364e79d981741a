"""Flow map reward guidance (FMRG): one trajectory, steered by the reward's gradient at the end of its own jump.

    for k = 0 .. K-1:
        move = X_{t_k,t_{k+1}}(x) - x
        "jump" (FMRG-J):       g = grad_x r(X_{t_k,1}(x)) / temperature
                               x = x + move + lambda |move| g / |g|                  or  (t_{k+1} - t_k) lambda g
        "optimise" (FMRG-E):   z0 = X_{t_k,1}(x)
                               z = Adam ascent from z0 on lambda r(z) / temperature - |z - z0|^2 / (2 s^2)
                               x = x + move + c (z - z0)
    x1 = X_{t_K,1}(x)                                                 a plain jump: ends stay on the data

The second form of FMRG-J is the control u that maximises r(x1) / temperature - int |u|^2 dt / (2 lambda) to first order
in lambda (exactly for Gaussian data and a linear reward). FMRG-E differentiates the reward alone, never the network.
With `damping` the anchor's width s^2 is the variance of p(x1 | x_t) for Gaussian data of width data_std, and
c = beta' - beta alpha' / alpha the exact weight of a shift of E[x1 | x_t] (linear path: (t' - t) / (1 - t)): for such
data and a linear reward, steps -> inf meets the tilted law. Without it, as published: no anchor, and
c = alpha beta' at each step, whatever its length, so that more steps pull more.

Source: "How to guide your flow: few-step alignment via flow map reward guidance" (arXiv:2604.27147). Damping: "Are we
really tilting?" (arXiv:2606.02884).
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from steer.draws import Rng
from steer.flow_map import Cond, FlowMap, jump
from steer.interpolants import Interpolant, posterior_variance
from steer.lookahead import Jump, damping
from steer.particles import (
    Particles,
    Reward,
    Trace,
    check_between,
    check_choice,
    check_least,
    check_settings,
    length,
    limited,
    steps_within,
    tempered,
    unit_length,
)
from steer.population import Population
from steer.run import Run


@dataclass(frozen=True)
class FlowMapGuidance:
    """Particles that each follow their own guided ODE; a heuristic that meets no law: log_z is NaN, weights are equal.

    A step costs 4 calls a particle ("jump") or 2 ("optimise"), one less with move="line"; the run one more.

    Attributes:
        steps: guided steps, K (5 to 30 in the paper).
        temperature: the reward is divided by it. Without effect where the gradient is normalised and not damped.
        variant: "jump" (FMRG-J) or "optimise" (FMRG-E).
        strength: lambda; with `normalise` the push as a multiple of the flow's own move (3 in the paper). In FMRG-E
            without damping only whether it is 0 matters, since Adam does not see the scale of what it ascends.
        normalise: scale FMRG-J's gradient to the length of the move, as in the paper's experiments.
        inner: Adam steps of FMRG-E (3 in the paper's code), at one call of the reward each.
        rate: their size in x1, which falls linearly to 0 over the K steps (0.1, as in the paper's code).
        damping: multiply FMRG-J's lambda by 1 / (1 + 2 (lambda / temperature) s^2), exact for quadratic rewards; for
            FMRG-E see the module. False as published.
        data_std: rough standard deviation of one coordinate of the data (in the space of the flow).
        move: "ode": the flow's own jump to the next time, as in the paper; "line": straight towards the end, as the
            paper's one-call mode; it saves that call, and makes modes wider than they are.
        max_ratio: bound on a push, as a multiple of the length of the flow's own move; math.inf (as published) for
            none.
        last_time: the guided times are K equal parts from 0 to here; the last, plain jump starts here.
    """

    steps: int = 8
    temperature: float = 1.0
    variant: Literal["jump", "optimise"] = "jump"
    strength: float = 1.0
    normalise: bool = True
    inner: int = 8
    rate: float = 0.1
    damping: bool = True
    data_std: float = 1.0
    move: Literal["ode", "line"] = "ode"
    max_ratio: float = 1.0
    last_time: float = 0.8
    needs_gradient: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_settings(self.steps, self.temperature)
        check_choice(self, variant=("jump", "optimise"), move=("ode", "line"))
        check_least(self, strength=0, rate=0, max_ratio=0, inner=1)
        check_between(self, data_std=(0, math.inf), last_time=(0, 1))

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
        """Particles and trace of x0 [p n *d]; draws nothing from rng; raises ValueError without a gradient."""
        run = Run(flow, path, reward, x0, cond, rng=rng)
        population, x, push = Population(run, x0), x0.detach(), []
        times = [self.last_time * k / self.steps for k in range(self.steps + 1)]
        step = self._jacobian if self.variant == "jump" else self._euclidean
        for t, after in zip(times, times[1:], strict=False):
            own, delta = step(run, x, t, after)
            delta, ratio = limited(delta, length(own), self.max_ratio)
            x = x + own + delta
            push.append(ratio)
            population.weigh(torch.zeros_like(population.log_w), t)
        last = run.look(Jump(), x, times[-1])
        population.weigh(torch.zeros_like(population.log_w), times[-1])
        push.append(torch.zeros_like(push[0]))
        return population.finish(last.x1[0], last.rewards[0], log_z=False, push=push)

    def with_budget(self, calls: int, n: int = 16) -> "FlowMapGuidance":
        """The same method with as many steps as `calls` a prompt pay for; raises ValueError below the cost of one."""
        a_step = (3 if self.variant == "jump" else 1) + (self.move == "ode")
        return replace(self, steps=steps_within(calls, n, a_step=a_step, besides=1))

    def _jacobian(self, run: Run, x: Tensor, t: float, after: float) -> tuple[Tensor, Tensor]:
        """FMRG-J: the flow's own move and the push [p n *d]."""
        look = run.look_gradient(Jump(), x, t, self.temperature)
        own, g = self._move(run, x, look.x1[0], t, after), look.gradient
        assert g is not None
        lam = self.strength
        if self.damping:
            lam = lam * damping(run.path, t, lam / self.temperature, self.data_std)
        return own, lam * (length(own) * unit_length(g) if self.normalise else (after - t) * g)

    def _euclidean(self, run: Run, x: Tensor, t: float, after: float) -> tuple[Tensor, Tensor]:
        """FMRG-E: the same."""
        path, x1 = run.path, jump(run.flow, x, t, 1.0)
        pull = path.beta(after) - path.beta(t) * path.alpha(after) / path.alpha(t)
        pull = pull if self.damping else path.alpha(t) * path.beta(after)
        return self._move(run, x, x1, t, after), pull * (self._ascend(run, x1, t) - x1)

    def _move(self, run: Run, x: Tensor, x1: Tensor, t: float, after: float) -> Tensor:
        if self.move == "ode":
            return jump(run.flow, x, t, after) - x
        path = run.path
        return path.beta(after) * x1 + path.alpha(after) / path.alpha(t) * (x - path.beta(t) * x1) - x

    def _ascend(self, run: Run, x1: Tensor, t: float) -> Tensor:
        """FMRG-E's end [p n *d]: Adam from x1, anchored to it if damped."""
        variance = posterior_variance(run.path, t, self.data_std) if self.damping else math.inf
        rate = self.rate * (1 - t / self.last_time)
        z, first, second = x1, torch.zeros_like(x1), torch.zeros_like(x1)
        for i in range(1, self.inner + 1):
            g, _ = run.gradient(lambda part, _: (tempered(run.rewards(part), self.temperature), None), z)
            g = self.strength * g - (z - x1) / variance
            first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
            z = z + rate * first / (1 - 0.9**i) / ((second / (1 - 0.999**i)).sqrt() + 1e-8)
        return z
