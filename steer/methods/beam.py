"""Soft value-based decoding (SVDD) and beam search: of the next states, keep those that look best.

    children of nothing: x0 and M - 1 more noises, for each particle
    for k = 0 .. K-1:
        V_j = r(X_{t_k,1}(x_j)) / temperature                  the look-ahead, of each child j              M calls
        "local": keep one of the M children of each particle, by softmax(V)
        "beam":  keep the n best of the n M children of the prompt
        M children of each that is kept: beta x1 + alpha z at t_{k+1}, x1 its jump to the end

Under "local" the samples of a prompt know nothing of each other. What is met: with weights = "nested",

    log w = sum_k (log mean_j exp(V_j^k) - V_chosen^{k-1}) + r / temperature - V_chosen^{K-1},   V^{-1} = 0,

each sample is a nested importance sample of the tilted law: E[mean w] = Z and E[w f] = Z E*[f] for any M and any
look-ahead, if the map keeps the marginals. What is not met: without the weights ("uniform", as published) the law is
the tilted one only as M grows, and then only if K = 1 or V is the chain's own soft value, which no look-ahead is: few
children fall short of it, and many choices in a row count the reward more than once and go beyond it.

Sources: "Derivative-free guidance in continuous and discrete diffusion models with soft value-based decoding"
(SVDD, arXiv:2408.08252), there M = 20 for images and 10 for DNA; the n best of all, with the jump to the end as look,
is the search of "Meta flow maps" (arXiv:2601.14430).
"""

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from steer.draws import Rng, rand_like, randn_like
from steer.flow_map import Cond, FlowMap, jump
from steer.interpolants import Interpolant, interpolate
from steer.lookahead import Jump, LookAhead
from steer.moves import JumpTimes
from steer.particles import Particles, Reward, Trace, check_settings, gather, log_mean_exp, steps_within
from steer.population import Population
from steer.run import Run


@dataclass(frozen=True)
class Beam(JumpTimes):
    """Particles that go on with the best-looking of their children; see the module.

    Attributes:
        steps: choices, K, at times t_k = last_time sqrt(k / (K - 1)).
        children: M of each particle; 1 is the plain sampler. By default a particle costs K M calls.
        temperature: of the choice and the weights under "local"; towards 0 the best child is taken. No part of "beam".
        selection: "local": one of a particle's own children; the last ones are returned. "beam": the n best of the
            prompt; returned are the n best of all ends that were seen.
        weights: "uniform", as published: no law is claimed, and log_z is NaN; "nested" (for "local"): exact weights.
        lookahead: from `steer.lookahead` or `steer.posterior`. The jump shares its call with the move; any other costs
            one more call a step.
        last_time: where the last look starts.
    """

    steps: int = 8
    children: int = 4
    temperature: float = 1.0
    selection: Literal["local", "beam"] = "local"
    weights: Literal["uniform", "nested"] = "uniform"
    lookahead: LookAhead = field(default_factory=Jump)
    last_time: float = 0.8
    needs_gradient: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_settings(self.steps, self.temperature)
        if self.children < 1:
            raise ValueError(f"children must be at least 1, got {self.children}")
        self.check_last_time()
        for name, known in (("selection", ("local", "beam")), ("weights", ("uniform", "nested"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if self.weights == "nested" and self.selection == "beam":
            raise ValueError(
                "selection='beam' has no weights, got weights='nested'; use 'uniform', or selection='local'"
            )

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
        run, times, local = Run(flow, path, reward, x0, cond, rng=rng), self.times, self.selection == "local"
        looks = list(zip([self.lookahead] * self.steps, times, strict=True))
        if not self._lands:
            looks.append((Jump(), times[-1]))  # from the chosen alone
        population, spent, best = Population(run, x0), x0.new_zeros(x0.shape[:2]), None
        ends = (x0, spent, population.ancestors)
        x = randn_like(x0.repeat_interleave(self.children, 1), rng)
        x[:, :: self.children] = x0
        for k, (lookahead, t) in enumerate(looks):
            look = run.look(lookahead, x, t, self.temperature if local else 1.0)
            value = look.value if k == len(looks) - 1 else floored(look.value)
            gain = log_mean_exp(value.unflatten(1, (run.n, -1))) - spent
            population.weigh(gain if self.weights == "nested" else torch.zeros_like(gain), t)
            line = population.ancestors.repeat_interleave(x.shape[1] // run.n, 1)
            seen = (look.x1[0], look.rewards[0], line)
            if isinstance(lookahead, Jump) and not local:
                both = seen if best is None else tuple(torch.cat(pair, 1) for pair in zip(best, seen, strict=True))
                best = gather(both, both[1].topk(run.n).indices)
            chosen = choose(value, run.n, rng) if local else value.topk(run.n).indices
            x, ends, spent = gather((x, seen, value), chosen)
            population.ancestors = ends[2]
            if k < self.steps - 1:
                x1 = ends[0] if self._lands else jump(run.flow, x, t, 1.0)
                x1 = x1.repeat_interleave(self.children, 1)
                x = interpolate(path, randn_like(x1, rng), x1, times[k + 1])
        x1, r, population.ancestors = ends if best is None else best
        return population.finish(x1, r, log_z=self.weights == "nested")

    def with_budget(self, calls: int, n: int = 16) -> "Beam":
        """The same method with as many steps as `calls` a prompt pay for, with fewer children where not even one is."""
        besides, each = (0 if self._lands else 1), self.lookahead.calls
        children = min(self.children, steps_within(calls, n, a_step=each, besides=besides))
        return replace(self, steps=steps_within(calls, n, a_step=children * each + besides), children=children)

    @property
    def _lands(self) -> bool:
        """Whether the look-ahead is the jump that the move makes."""
        return isinstance(self.lookahead, Jump)


def choose(value: Tensor, n: int, rng: Rng) -> Tensor:
    """One index [p n] into each n-th of the values [p n M], by softmax of the M."""
    gumbel = -(-rand_like(value, rng).log()).log()  # the largest of V + gumbel is a draw from softmax(V)
    children = value.shape[1] // n
    first = torch.arange(0, value.shape[1], children, device=value.device)
    return first + (value + gumbel).unflatten(1, (n, children)).argmax(-1)


def floored(value: Tensor) -> Tensor:
    """Values [p m]; a rejected child, whose own may be accepted, gets exp(-3) of the chance of the worst accepted."""
    rejected = value == -math.inf
    worst = torch.where(rejected, math.inf, value).amin(-1, keepdim=True)
    return torch.where(rejected, torch.where(worst == math.inf, 0, worst) - 3, value)
