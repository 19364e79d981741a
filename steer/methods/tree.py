"""Diffusion tree sampling (DTS) and search (DTS*): one tree a prompt, grown where its ends are worth most.

    level 0: noises at t_0 = 0; a child of a node at t_{k-1} is beta x1 + alpha z at t_k, x1 the end of the node itself
    for i = 0 .. iterations - 1, k = i mod K:                                       n new nodes of level k at once
        choose their parents v among the m nodes of level k - 1
            "sample"  with probability P(v) ~ W(v) exp(k/K V(v));  W(child) = W(v) / (m P(v)), and 1 on level 0
            "search"  one by one, the v of largest V(v) + ucb sqrt(log N / N(v)),  N(v) = 1 + its children, N their sum
        jump from each child to its end x1: r(x1) / temperature is its own value                             one call
        V(v) = log mean(exp(own value), exp V of each child), from the lowest level up
    return n of all ends, drawn by W exp(r / temperature) ("sample"), or the n best ("search")

The restart chain gives the jump from any of its nodes the law of the data, so one call rolls out a node, and every end
in the tree is a candidate. The levels take turns, and parents are chosen from a whole level, where the paper walks down
from the root and widens progressively: so a batch of n nodes needs no walk, and in "sample" the weights W undo what the
choice favours. Then E[Z_hat] = Z for ``Z_hat = mean W exp(r / temperature)`` over the ends of a tree of any size, and
the draws meet the tilted law as the tree grows. The paper's own walk by exp(V), with equal shares for all children of a
node, meets it too once all nodes have many children, but Z comes out too low before: trees grow where ends are high.

Source: "Diffusion tree sampling: scalable inference-time alignment of diffusion models" (arXiv:2506.20701), algorithms
1 and 2.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from steer.draws import Rng, rand_like, randn_like
from steer.flow_map import Cond, FlowMap, jump
from steer.interpolants import Interpolant, interpolate
from steer.moves import JumpTimes
from steer.particles import Particles, Reward, Trace, check_settings, gather, log_mean_exp, steps_within, tempered
from steer.population import Population
from steer.resampling import systematic
from steer.run import Run


@dataclass(frozen=True)
class TreeSearch(JumpTimes):
    """Ends of a tree of renoised ends, n new ones an iteration, one call each; see the module.

    Every end is kept until the last: memory grows with n iterations.

    Attributes:
        iterations: of n new nodes each. Anytime: a longer run begins with the same tree.
        steps: levels of the tree, K, at times t_k = last_time sqrt(k / (K - 1)); with 1, all ends are plain samples.
        temperature: of the tilted law, and of the soft values V.
        mode: "sample" (DTS): n draws of the tilted law; "search" (DTS*): the n best ends, equally weighted, no log Z.
        explore: share of the parents that are chosen by W alone in "sample", so that no weight grows by more than
            1 / explore a level.
        ucb: weight of the bound in "search", in units of reward / temperature.
        last_time: of the deepest level.
    """

    iterations: int = 32
    steps: int = 5
    temperature: float = 1.0
    mode: Literal["sample", "search"] = "sample"
    explore: float = 0.1
    ucb: float = 0.5
    last_time: float = 0.8
    needs_gradient: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_settings(self.steps, self.temperature)
        if self.iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {self.iterations}")
        if self.mode not in ("sample", "search"):
            raise ValueError(f"mode must be 'sample' or 'search', got {self.mode!r}")
        if not 0 < self.explore < 1:
            raise ValueError(f"explore must be a share between 0 and 1, got {self.explore}")
        if not self.ucb >= 0:
            raise ValueError(f"ucb must be at least 0, got {self.ucb}")
        self.check_last_time()

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
        """Particles and trace of x0 [p n *d], the first nodes; an ancestor is the first sample of the same noise."""
        run = Run(flow, path, reward, x0, cond, rng=rng)
        population, tree = Population(run, x0), _Tree(x0, self.iterations, self.steps)
        for i in range(self.iterations):
            k = i % self.steps
            t, x, parent, log_w = self.times[k], x0, None, torch.zeros_like(population.log_w)
            if i > 0:
                x = randn_like(x0, rng)
            if k > 0:
                parent, log_w = self._parents(tree, tree.level(k - 1), k, run)
                x = interpolate(path, x, gather(tree.x1, parent), t)
            x1 = jump(run.flow, x, t, 1.0)
            tree.add(parent, x1, run.rewards(x1), log_w, self.temperature)
            population.weigh(torch.zeros_like(log_w), t)
        ends = tree.log_w + tempered(tree.rewards, self.temperature)
        population.log_z = log_mean_exp(ends)
        sample = self.mode == "sample"
        chosen = draw(ends, run.n, rng=rng) if sample else tree.rewards.topk(run.n).indices
        x1, rewards, noise = gather((tree.x1, tree.rewards, tree.noise), chosen)
        population.ancestors = (noise[:, :, None] == noise[:, None]).int().argmax(-1)
        return population.finish(x1, rewards, log_z=sample)

    def with_budget(self, calls: int, n: int = 16) -> "TreeSearch":
        """The same method with as many iterations as `calls` a prompt pay for; raises ValueError below n calls."""
        return replace(self, iterations=steps_within(calls, n, a_step=1))

    def _parents(self, tree: "_Tree", above: Tensor, k: int, run: Run) -> tuple[Tensor, Tensor]:
        """Parents [p n], of the nodes `above` [m], for children of level k, and log W of the children."""
        log_w, value = tree.log_w[:, above] - math.log(len(above)), tree.value[:, above]
        if self.mode == "search":
            count = tree.count[:, above, None]
            after = count + torch.arange(run.n, device=count.device)  # when the j-th of this batch chooses
            score = value[..., None] + self.ucb * (count.sum(1, keepdim=True).log() / after).sqrt()
            chosen = score.flatten(1).topk(run.n).indices // run.n
            return above[chosen], torch.zeros_like(gather(log_w, chosen))
        value = torch.where((value == -math.inf).all(-1, keepdim=True), 0, value)
        by_value = (log_w + k / self.steps * value).log_softmax(-1) + math.log1p(-self.explore)
        log_p = torch.logaddexp(by_value, log_w.log_softmax(-1) + math.log(self.explore))
        chosen = draw(log_p, run.n, rng=run.rng)
        return above[chosen], gather(log_w - log_p, chosen)


class _Tree:
    """Nodes [p N], n an iteration; those of iteration i are on level i mod K.

    x1, rewards: of each node's jump to the end.
    log_w, value, count: log W, V, and one more than its children.
    parent, noise: indices of the parent, and of the node of level 0 from which it descends.
    """

    def __init__(self, x0: Tensor, iterations: int, steps: int) -> None:
        p, n = x0.shape[:2]
        self.node = torch.arange(iterations * n, device=x0.device).view(iterations, n)
        self.steps, self.made = steps, 0  # levels; iterations so far
        self.x1 = x0.new_zeros(p, iterations * n, *x0.shape[2:])
        self.rewards = x0.new_full((p, iterations * n), -math.inf)
        self.value, self.log_w, self.count = self.rewards, torch.zeros_like(self.rewards), torch.ones_like(self.rewards)
        self.parent = torch.zeros_like(self.rewards, dtype=torch.long)
        self.noise = self.node.flatten().repeat(p, 1)

    def level(self, k: int) -> Tensor:
        """The nodes of level k so far [m]."""
        return self.node[k : self.made : self.steps].flatten()

    def add(self, parent: Tensor | None, x1: Tensor, rewards: Tensor, log_w: Tensor, temperature: float) -> None:
        """Add n children of `parent` [p n] (None: noises), and the values and counts that follow."""
        new = self.node[self.made]
        self.x1[:, new], self.rewards[:, new], self.log_w[:, new] = x1, rewards, log_w
        if parent is not None:
            self.parent[:, new], self.noise[:, new] = parent, gather(self.noise, parent)
        self.made += 1
        self.value, self.count = tempered(self.rewards, temperature), torch.ones_like(self.rewards)
        for k in range(self.steps - 1, 0, -1):
            below = self.level(k)
            parent, value = self.parent[:, below], self.value[:, below]
            peak = self.value.scatter_reduce(1, parent, value, "amax").nan_to_num(neginf=0.0)
            total = (self.value - peak).exp().scatter_add(1, parent, (value - peak.gather(1, parent)).exp())
            count = torch.ones_like(total).scatter_add(1, parent, torch.ones_like(value))
            self.value, self.count = peak + (total / count).log(), self.count + count - 1


def draw(log_w: Tensor, n: int, *, rng: Rng) -> Tensor:
    """Indices [p n] in proportion to the weights of log_w [p m], m a multiple of n: one in each n-th of their sum."""
    share = log_w.shape[1] // n
    drawn = systematic(log_w, rng=rng).unflatten(1, (n, share))
    which = (rand_like(log_w[:, :n], rng) * share).long()
    return drawn.gather(2, which[..., None])[..., 0]
