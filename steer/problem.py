"""A model, prompts and a reward, closed into what a method takes; everything in chunks."""

import dataclasses
import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

import rewards
from steer.chunks import AtOnce, Chunks, Within, slices
from steer.draws import randn_like
from steer.flow_map import Checkpointed, Chunked
from steer.models import Model
from steer.models.noise import start
from steer.particles import BY_PROMPT, BY_STEP, Trace
from steer.progress import Observed
from steer.report import Spent
from steer.run import Seen
from steer.spreading import Shares, Spread

Tick = Callable[[int], None]
Watch = Callable[[Seen], None]


def generators(prompts: list[str], seed: int) -> list[torch.Generator]:
    """A generator for each prompt, of the seed and its text: in any company it draws what it draws alone."""
    return [generator_of(f"{seed}:{q}") for q in prompts]


def generator_of(text: str) -> torch.Generator:
    """A generator that is a function of a text alone."""
    digest = hashlib.sha256(text.encode("utf8", "surrogatepass")).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


@dataclasses.dataclass(frozen=True)
class Scored:
    """What a method returned, its rewards known for certain."""

    x: Tensor
    log_w: Tensor
    rewards: Tensor


class Scores:
    """The reward of latents, over each prompt's temperature: decoding and scoring in chunks.

    Lazy: with the keyword `where` only those latents are decoded and scored. Of several processes each decodes and
    scores its share, and no picture is scored twice.
    """

    lazy = True

    def __init__(
        self, model: Model, prompts: list[str], score: rewards.Reward, chunks: Chunks, shares: Shares | None = None
    ) -> None:
        self.model, self.prompts, self.score, self.chunks = model, prompts, score, chunks
        self.shares = shares or Shares()
        self.scale: Tensor | None = None
        self.watch: Watch | None = None  # for `steer.run.Run`
        self.seconds = 0.0

    def __call__(self, x1: Tensor, where: Tensor | None = None) -> Tensor:
        """Rewards [p m] of x1 [p m *d], divided by `scale` [p 1] if there is one; -inf outside `where` [p m]."""
        start = time.perf_counter()
        m = x1.shape[1]
        flat, prompts = x1.flatten(0, 1), [q for q in self.prompts for _ in range(m)]
        with torch.autocast(x1.device.type, enabled=False):  # pictures and scores are what they are, also in training
            if where is None:
                r = self._of(flat, prompts)
            else:
                rows = where.flatten().nonzero()[:, 0]
                r = flat.new_full((len(flat),), -math.inf)
                if len(rows):
                    r = r.index_put((rows,), self._of(flat[rows], [prompts[i] for i in rows.tolist()]))
        self.seconds += time.perf_counter() - start
        r = r.view(x1.shape[:2])
        return r if self.scale is None else over(r, self.scale)

    def _of(self, x: Tensor, prompts: list[str]) -> Tensor:
        """Raw rewards [b] of latents x [b *d]."""
        mine = self.shares.mine(len(x))
        if torch.is_grad_enabled() and x.requires_grad:
            return AtOnce.apply(x, lambda x: self._gathered(x, *self._with_gradient(x[mine], prompts[mine])))
        own, texts = x[mine], prompts[mine]
        parts = [self._rewards(self.pictures(own[part]), texts[part]) for part in slices(len(own), self.chunks.decoder)]
        return self.shares.gather(torch.cat([x.new_empty(0), *parts]), len(x))

    def _gathered(self, x: Tensor, scores: Tensor, gradient: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Scores [b] and their gradient [b *d] of all processes, or None for it, in one exchange."""
        if self.shares.world == 1:
            return scores, gradient
        known = x.new_zeros(len(scores), 2 + x[0].numel())
        known[:, 0], known[:, 1] = scores, float(gradient is not None)
        if gradient is not None:
            known[:, 2:] = gradient.flatten(1)
        known = self.shares.gather(known, len(x))
        return known[:, 0].clone(), known[:, 2:].view_as(x) if bool(known[:, 1].all()) else None

    def _rewards(self, images: Tensor, prompts: list[str]) -> Tensor:
        return torch.cat([self._score(images[part], prompts[part]) for part in slices(len(images), self.chunks.reward)])

    def _score(self, images: Tensor, prompts: list[str]) -> Tensor:
        with Within("reward", min(self.chunks.reward, self.chunks.decoder)):
            given = self.score(images, prompts)
        return rewards.check_scores(self.score, given, len(images), images)

    def pictures(self, x: Tensor) -> Tensor:
        """Pictures [b 3 h w] of latents [b *d], in their dtype; all in one go."""
        with Within("decoder", self.chunks.decoder):
            images = self.model.decode(x).to(x.dtype)
        if not bool(images.isfinite().all()):
            raise ValueError(
                f"model={self.model.name!r} draws pictures that are not finite: its weights may be damaged, or the "
                "method's steps too large; take the model anew, or raise temperature or steps"
            )
        return images

    def _with_gradient(self, x: Tensor, prompts: list[str]) -> tuple[Tensor, Tensor | None]:
        """Raw rewards [b] and their gradient [b *d] in x; 0 where a picture is rejected, None where there is none."""
        scores, gradients = [], []
        for part in slices(len(x), self.chunks.decoder):
            leaf = x[part].detach().requires_grad_()
            with torch.enable_grad():
                images = self.pictures(leaf)
                r, slope = self._slope(images, prompts[part])
            scores.append(r)
            if slope is not None and images.requires_grad:
                with Within("decoder", self.chunks.decoder):
                    gradients += torch.autograd.grad(images, leaf, slope)
        slope = torch.cat([x[:0], *gradients]) if len(gradients) == len(scores) else None
        return torch.cat([x.new_empty(0), *scores]), slope

    def _slope(self, images: Tensor, prompts: list[str]) -> tuple[Tensor, Tensor | None]:
        """Raw rewards [b] of pictures and their gradient in them."""
        scores, slopes = [], []
        for part in slices(len(images), self.chunks.reward):
            leaf = images[part].detach().requires_grad_()
            r = self._score(leaf, prompts[part])
            scores.append(r.detach())
            if r.requires_grad:
                with Within("reward", min(self.chunks.reward, self.chunks.decoder)):
                    (g,) = torch.autograd.grad(torch.where(r.isfinite(), r, 0).sum(), leaf)
                slopes.append(g.masked_fill(~r.isfinite().view(-1, 1, 1, 1), 0))
        return torch.cat(scores), torch.cat(slopes) if len(slopes) == len(scores) else None


def over(r: Tensor, scale: Tensor) -> Tensor:
    """Rewards r [p m] over temperatures [p 1].

    Raises:
        ValueError: a temperature is so small that the ratio is no number any more.
    """
    scaled = r / scale
    lost = r.isfinite() & ~scaled.isfinite()
    if bool(lost.any()):
        raise ValueError(
            f"temperature={float(scale.min()):.3g} is too small for a reward of {float(r[lost][0]):.3g}: their ratio "
            f"is beyond {r.dtype}; raise it"
        )
    return scaled


class Problem:
    """A flow, cond, and rewards of latents.

    Args:
        model: with its flow compiled or not.
        prompts, score: the p prompts, the reward.
        place: the device, where `model.encode` gives nothing that has one.
        chunks: how much is computed at once.
        checkpoint: keep no activations of the flow for a gradient, see `steer.flow_map.Checkpointed`.
        shares: of the processes that run this problem together; the chunks are what each computes at once.
    """

    def __init__(
        self,
        model: Model,
        prompts: list[str],
        score: rewards.Reward,
        place: torch.device,
        chunks: Chunks | None = None,
        checkpoint: bool = False,
        shares: Shares | None = None,
    ) -> None:
        self.model, self.prompts, self.score, self.shares = model, prompts, score, shares or Shares()
        self.chunks, self.checkpoint = chunks or Chunks(), checkpoint
        self.cond: Mapping[str, Tensor] | None = model.encode(prompts)
        self.device = next(iter(self.cond.values())).device if self.cond else place

    def noise(self, n: int, rng: list[torch.Generator]) -> Tensor:
        """x0 [p n *d], drawn on the CPU, so that a seed means the same on every device."""
        with Within("noise", len(self.prompts) * n, "lower n"):
            x0 = randn_like(torch.empty(len(self.prompts), n, *self.model.shape, device=self.device), rng)
            return start(self.model, x0, self.cond)

    def has_gradient(self, x0: Tensor) -> bool:
        """Whether the reward has one: what it says itself, or else what a call on one picture shows."""
        said = rewards.is_differentiable(self.score)
        if said is not None:
            return said
        picture = self.pictures(x0[:1, :1])[0]
        with Within("reward", 1):
            return rewards.probe_differentiable(self.score, picture, self.prompts[:1])

    def run(
        self,
        method: Any,  # noqa: ANN401 (a steer.methods.Method, which may have a temperature)
        x0: Tensor,
        rng: list[torch.Generator],
        tick: Tick,
        temperatures: Sequence[float] | None = None,
        watch: Watch | None = None,
    ) -> tuple[Scored, Spent]:
        """The method on this problem, with what it spent; `tick(rows)` hears of every network call, `watch` of all that
        is scored, see `steer.run.Seen`.

        With `temperatures`, one a prompt, it runs at temperature 1 on rewards over these: the same target, and what a
        method does then depends neither on the unit of the reward nor on the other prompts.

        Prompts go in groups where a gradient for one particle of each would be more rows than `chunks.network`.
        """
        world = self.shares.world
        size = max(1, world * self.chunks.network // _held(method)) if method.needs_gradient else len(self.prompts)
        start, flow = time.perf_counter(), Observed(self.model.flow, lambda rows: tick(rows * world))
        chunked = Chunked(Checkpointed(flow) if self.checkpoint else flow, self.chunks.network)
        spread = Spread(chunked, self.shares)
        runs, scoring = [], 0.0
        for rows in slices(len(self.prompts), size):
            part, scores = self._part(method, spread, x0, rng, temperatures, rows, watch)
            runs.append(part)
            scoring += scores.seconds
        known = Scored(*(torch.cat([getattr(s, f) for s, _ in runs]) for f in ("x", "log_w", "rewards")))
        trace = join([trace for _, trace in runs])
        total = time.perf_counter() - start
        seconds = {"network": flow.seconds, "decoding_and_reward": scoring, "total": total}
        return known, Spent(trace, seconds, world * (flow.rows - spread.count) / len(self.prompts))

    def _part(
        self,
        method: Any,  # noqa: ANN401
        flow: Spread,
        x0: Tensor,
        rng: list[torch.Generator],
        temperatures: Sequence[float] | None,
        rows: slice,
        watch: Watch | None,
    ) -> tuple[tuple[Scored, Trace], Scores]:
        """The run of some of the prompts."""
        cond = None if self.cond is None else {key: c[rows] for key, c in self.cond.items()}
        scores = Scores(self.model, self.prompts[rows], self.score, self.chunks, self.shares)
        scores.watch = watch and self._told(watch, scores)
        if temperatures is not None and all(map(math.isfinite, temperatures)):
            method = dataclasses.replace(method, temperature=1.0)
            scores.scale = x0.new_tensor(list(temperatures[rows]))[:, None]
        with Within("network", self.chunks.network):
            particles, trace = method(flow, self.model.path, scores, x0[rows], cond, rng=rng[rows])
        r = scores(particles.x) if particles.rewards is None else particles.rewards
        r = r if scores.scale is None else r * scores.scale
        return (Scored(particles.x.detach(), particles.log_w.detach(), r.detach()), trace), scores

    def _told(self, watch: Watch, scores: Scores) -> Watch:
        """`watch`, told of rewards in their own unit, with prompts and decoder."""

        def tell(seen: Seen) -> None:
            r = seen.rewards if scores.scale is None else seen.rewards * scores.scale
            watch(dataclasses.replace(seen, rewards=r, prompts=tuple(scores.prompts), decode=self.pictures))

        return tell

    def pictures(self, x1: Tensor) -> Tensor:
        """Pictures [p m 3 h w] of latents [p m *d]."""
        scores, flat = Scores(self.model, self.prompts, self.score, self.chunks), x1.flatten(0, 1)
        own = flat[self.shares.even(len(flat))]
        parts = [scores.pictures(own[part]) for part in slices(len(own), self.chunks.decoder)]
        return self.shares.gather(torch.cat(parts), len(flat)).unflatten(0, x1.shape[:2])


def _held(method: Any) -> int:  # noqa: ANN401
    """Rows of the flow that a gradient for one particle holds."""
    return max(1, getattr(getattr(method, "lookahead", None), "calls", 1))


def join(traces: list[Trace]) -> Trace:
    """The trace of all prompts; one of fewer steps than another stays as it was at its last."""
    if len(traces) == 1:
        return traces[0]
    longest = max(traces, key=lambda trace: len(trace.times))

    def steps(name: str) -> Tensor | None:
        parts = [getattr(trace, name) for trace in traces]
        if any(part is None for part in parts):
            return None
        after = [longest.times.shape[0] - len(part) for part in parts]
        return torch.cat([torch.cat([x, x[-1:].expand(k, *x.shape[1:])]) for x, k in zip(parts, after, strict=True)], 1)

    changed = {name: torch.cat([getattr(trace, name) for trace in traces]) for name in BY_PROMPT}
    return dataclasses.replace(longest, **changed, **{name: steps(name) for name in BY_STEP})
