"""How a model's own samples are gathered for fine-tuning: each way gives rows [p n ...] for the p prompts of a round.

A way is a frozen dataclass, ``(actor, x0 [p n *d], cond, *, rng, shared) -> Collected``. `rng` holds one generator a
prompt, so a prompt's rows do not depend on the others; `shared` draws what all prompts have in common. No weight gets a
gradient here.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from steer.draws import Rng
from steer.flow_map import Cond, FlowMap, jump
from steer.interpolants import Interpolant, Linear
from steer.methods import BestOfN
from steer.moves import Kernel, restart_kernel, sde_kernel
from steer.particles import Reward, gather
from steer.resampling import systematic
from steer.run import Run

Source = Literal["average", "current", "reference"]


@dataclass(frozen=True)
class Actor:
    """What samples are drawn with.

    current, average, reference: the map in training, the one of its averaged weights, and as it was before.
    reward: x1 [p m *d] -> [p m], in its own units.
    temperature: of the target p exp(reward / temperature).
    """

    current: FlowMap
    average: FlowMap
    reference: FlowMap
    reward: Reward
    temperature: float = 1.0
    path: Interpolant = Linear()

    def of(self, source: Source) -> FlowMap:
        """One of the three maps."""
        return getattr(self, source)


class Collected(NamedTuple):
    """Rows of a round: samples x1 [p m *d], what else is known of each {name: [p m ...]}, and network calls [p]."""

    x1: Tensor
    more: dict[str, Tensor]
    calls: Tensor


class Collector(Protocol):
    """A way to gather rows."""

    def rows(self, n: int) -> int:
        """How many rows n samples of a prompt give."""
        ...

    def __call__(self, actor: Actor, x0: Tensor, cond: Cond, *, rng: Rng, shared: torch.Generator) -> Collected:
        """The rows of p prompts from noise x0 [p n *d]; cond [p ...]."""
        ...


class Each:
    """A way that gives one row a sample."""

    def rows(self, n: int) -> int:
        """N."""
        return n


@dataclass(frozen=True)
class Advantages:
    """``A = (r - mean r) / max(std r, least)``, the mean over the n samples of a prompt, held within +-clip.

    spread: over what the standard deviation is taken: "prompt" makes each prompt count alike, "all" (over the round,
    of what is left when each prompt's mean is taken off) keeps easy prompts, whose rewards hardly differ, quiet.
    least: of that deviation, in units of the reward: where nearly all samples are good, the last faults then weigh as
    much as before, not as all faults did together.
    Rejected samples (-inf) count as one standard deviation below the worst of the others.

    Source: "DeepSeekMath" (arXiv:2402.03300); "DiffusionNFT" (arXiv:2509.16117) takes "all".
    """

    spread: Literal["prompt", "all"] = "all"
    clip: float = 5.0
    least: float = 0.0

    def __post_init__(self) -> None:
        if not self.least >= 0:
            raise ValueError(f"least must be at least 0, got {self.least}")
        if self.spread not in ("prompt", "all"):
            raise ValueError(f'spread must be "prompt" or "all", got {self.spread!r}')
        if not self.clip > 0:
            raise ValueError(f"clip must be above 0, got {self.clip}")

    def __call__(self, r: Tensor) -> Tensor:
        """Advantages [p n] of rewards [p n]; 0 where the rewards of a prompt do not differ."""
        r = finite_rewards(r.double())
        off = r - r.mean(1, keepdim=True)
        off = off.masked_fill(off.abs() <= 1e-9 * r.abs().amax(1, keepdim=True), 0.0)
        std = off.square().mean(1, keepdim=True).sqrt()
        std = std.square().mean().sqrt() if self.spread == "all" else std
        return (off / std.clamp_min(max(self.least, torch.finfo(off.dtype).tiny))).clamp(-self.clip, self.clip).float()


def finite_rewards(r: Tensor) -> Tensor:
    """Rewards [p n] with numbers in place of -inf: one standard deviation below the prompt's worst, or 0 for all.

    Where the others do not differ it is a little below them, so little that float32 still tells it.
    """
    kept = r.isfinite()
    count = kept.sum(1, keepdim=True).clamp_min(1)
    mean = r.masked_fill(~kept, 0).sum(1, keepdim=True) / count
    std = ((r - mean).masked_fill(~kept, 0).square().sum(1, keepdim=True) / count).sqrt()
    least = r.masked_fill(~kept, math.inf).amin(1, keepdim=True)
    low = least - torch.maximum(std, 1e-6 * least.abs().clamp_min(1))
    low = torch.where(kept.any(1, keepdim=True), low, 0)
    return torch.where(kept, r, low)


@dataclass(frozen=True)
class Noise(Each):
    """The starting noise itself as x1, for objectives that draw samples with a gradient; nothing is scored."""

    def __call__(self, actor: Actor, x0: Tensor, cond: Cond, *, rng: Rng, shared: torch.Generator) -> Collected:
        """Noise [p n *d]."""
        return Collected(x0, {}, x0.new_zeros(len(x0)))


@dataclass(frozen=True)
class Samples(Each):
    """Samples by `steps` equal jumps, with "reward" and "advantage".

    source: whose; policies are usually sampled with averaged weights.
    advantages: how they are made of the rewards of all prompts of the round; None makes none.
    """

    steps: int = 4
    source: Source = "average"
    advantages: Advantages | None = Advantages()

    def __call__(self, actor: Actor, x0: Tensor, cond: Cond, *, rng: Rng, shared: torch.Generator) -> Collected:
        """Rows [p n ...]."""
        run = Run(actor.of(self.source), actor.path, actor.reward, x0, cond, rng=rng)
        x = jumps(run.flow, x0, self.steps)
        return Collected(x, {"reward": run.rewards(x)}, run.forward)


def jumps(flow: FlowMap, x: Tensor, steps: int) -> Tensor:
    """X by `steps` equal jumps from noise to data."""
    for k in range(steps):
        x = jump(flow, x, k / steps, (k + 1) / steps)
    return x


@dataclass(frozen=True)
class Pairs:
    """The better and the worse half of the samples of a prompt, the best with the worst: x1 and "loser", "margin".

    A margin of 0 tells of a pair that says nothing.
    """

    steps: int = 4
    source: Source = "average"

    def rows(self, n: int) -> int:
        """Half of n; raises ValueError for n = 1."""
        if n < 2:
            raise ValueError(f"pairs need group >= 2 samples a prompt, got {n}")
        return n // 2

    def __call__(self, actor: Actor, x0: Tensor, cond: Cond, *, rng: Rng, shared: torch.Generator) -> Collected:
        """Rows [p n/2 ...]."""
        x, more, calls = Samples(self.steps, self.source)(actor, x0, cond, rng=rng, shared=shared)
        r = finite_rewards(more["reward"])
        order, half = r.argsort(dim=1, descending=True, stable=True), r.shape[1] // 2
        ranked, r = gather(x, order), r.gather(1, order)
        worst = slice(r.shape[1] - half, None)
        margin = r[:, :half] - r[:, worst].flip(1)
        more = {"loser": ranked[:, worst].flip(1), "margin": margin, "reward": r[:, :half]}
        return Collected(ranked[:, :half], more, calls)


@dataclass(frozen=True)
class Steered:
    """What a steering method finds, to be learned: its particles, resampled by their weights, or the best of them.

    Rows: x1, "reward", "weight": 0 where the reward rejects (-inf), else 1.

    With `BestOfN` these are rewards as weights of plain samples; with a search, the pictures that it finds.

    method: any of steer.methods, or its name; it is set to the target's temperature where it has one.
    source: what is steered: "reference" makes the law of the rows p exp(reward / temperature) as far as the method
        does; "average" tilts again what was learned.
    best: None resamples; k takes the k of highest reward.
    """

    method: Any = field(default_factory=lambda: BestOfN(steps=4))
    source: Source = "reference"
    best: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.method, str):
            from steer.settings import build

            object.__setattr__(self, "method", build("method", self.method))

    def rows(self, n: int) -> int:
        """N, or `best`; raises ValueError where that is more."""
        if self.best is not None and not 1 <= self.best <= n:
            raise ValueError(f"best must lie between 1 and group={n}, got {self.best}")
        return n if self.best is None else self.best

    def __call__(self, actor: Actor, x0: Tensor, cond: Cond, *, rng: Rng, shared: torch.Generator) -> Collected:
        """Rows [p n ...], or [p best ...]."""
        method: Any = self.method
        if hasattr(method, "temperature") and math.isfinite(actor.temperature):
            method = replace(method, temperature=actor.temperature)
        particles, trace = method(actor.of(self.source), actor.path, _forgiving(actor.reward), x0, cond, rng=rng)
        r = actor.reward(particles.x) if particles.rewards is None else particles.rewards
        index = systematic(particles.log_w, rng=rng) if self.best is None else r.topk(self.best, 1).indices
        x, r = gather((particles.x.detach(), r.detach()), index)
        rejected = r <= REJECTED / 2
        r = r.masked_fill(rejected, -math.inf)
        return Collected(x, {"reward": r, "weight": (~rejected).to(x.dtype)}, trace.calls)


REJECTED = -1e30  # what stands for -inf where a method could not go on with nothing else


def _forgiving(reward: Reward) -> Reward:
    """The reward, with a finite number where all samples of a prompt are rejected."""

    def of(x1: Tensor) -> Tensor:
        r = reward(x1)
        return torch.where((r == -math.inf).all(1, keepdim=True), torch.full_like(r, REJECTED), r)

    return of


@dataclass(frozen=True)
class Chain(Each):
    """Noisy chains, the actions of a policy: "points" [p n steps+1 *d], "log_p" [p n steps-1] of their moves.

    kind: "sde" jumps beyond the next time and renoises (`churn` as in `steer.moves.sde`); "restart" jumps to the end
        and renoises. The last move, to t = 1, is a jump without noise, and no action.
    """

    kind: Literal["sde", "restart"] = "sde"
    steps: int = 6
    churn: float = 1.0
    source: Source = "current"
    advantages: Advantages | None = Advantages()

    def __post_init__(self) -> None:
        if self.kind not in ("sde", "restart"):
            raise ValueError(f'kind must be "sde" or "restart", got {self.kind!r}')
        if self.steps < 2:
            raise ValueError(f"steps must be at least 2: the last is no action, got {self.steps}")
        if not self.churn > 0:
            raise ValueError(f"churn must be above 0: without noise there is no policy, got {self.churn}")

    def kernel(self, flow: FlowMap, path: Interpolant, x: Tensor, k: int, cond: Cond = None) -> Kernel:
        """The law of move k from x [... *d]."""
        s, t = k / self.steps, (k + 1) / self.steps
        if self.kind == "restart":
            return restart_kernel(path, jump(flow, x, s, 1.0, cond), t)
        return sde_kernel(flow, path, x, s, t, cond, churn=self.churn)

    def __call__(self, actor: Actor, x0: Tensor, cond: Cond, *, rng: Rng, shared: torch.Generator) -> Collected:
        """Rows [p n ...]."""
        run = Run(actor.of(self.source), actor.path, actor.reward, x0, cond, rng=rng)
        points, log_p, axes = [x0], [], x0.ndim - 2
        for k in range(self.steps):
            kernel = self.kernel(run.flow, actor.path, points[-1], k)
            x = kernel.mean if k + 1 == self.steps else kernel.draw(rng)[0]
            log_p += [] if k + 1 == self.steps else [log_density(kernel, x, axes)]
            points.append(x)
        more = {"points": torch.stack(points, 2), "log_p": torch.stack(log_p, 2), "reward": run.rewards(points[-1])}
        return Collected(points[-1], more, run.forward)


def log_density(kernel: Kernel, x: Tensor, axes: int) -> Tensor:
    """Log N(x; mean, std^2 I) up to its constant, of samples with so many axes."""
    return -((x - kernel.mean) / kernel.std).square().flatten(x.ndim - axes).sum(-1) / 2
