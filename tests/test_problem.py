"""A model, prompts and a reward, closed into what a method takes: bounded parts, lazy rewards, costs, temperatures."""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from colours import MEAN, SCALE, STD, CountingFlow, colour_model, decode, redness
from conftest import plainly
from torch import Tensor
from torch.testing import assert_close

import rewards
import steer
from steer import settings
from steer.analytic import GaussianMixture
from steer.chunks import Chunks
from steer.flow_map import Autocast, Checkpointed, Cond, FlowMap
from steer.interpolants import Time
from steer.lookahead import Rollout
from steer.methods import SMC, BestOfN, Guidance, Method
from steer.posterior import Renoised
from steer.problem import Problem, Scores, generators

PROMPTS = ["a", "bb", "ccc"]
CPU = torch.device("cpu")


def bent(images: Tensor) -> Tensor:
    """A reward with a gradient of its own for each picture, in units of x."""
    x = (images[:, :, 0, 0] - 0.5) / SCALE
    return (x * x.new_tensor([1.0, -1.0, 0.5])).sum(1).sin() - 0.1 * x.square().sum(1)


@dataclasses.dataclass
class Watched:
    """The colour model and a reward, in float64; keeps the sizes of all batches of each part."""

    reward: Callable[[Tensor], Tensor] = bent
    differentiable: bool = True
    sizes: dict[str, list[int]] = dataclasses.field(
        default_factory=lambda: {"network": [], "decoder": [], "reward": []}
    )

    def __post_init__(self) -> None:
        cov = STD**2 * torch.eye(3)[None]
        self.exact = GaussianMixture(torch.ones(1).double(), MEAN[None].double(), cov.double()).flow()
        self.model = dataclasses.replace(colour_model(), flow=self.flow, decode=self.decode)

    def flow(self, x: Tensor, s: Time, t: Time, cond: Cond = None) -> Tensor:
        self.sizes["network"].append(len(x))
        assert cond is not None
        return self.exact(x, s, t) + 0.1 * cond["length"].to(x)

    def decode(self, x: Tensor) -> Tensor:
        self.sizes["decoder"].append(len(x))
        return decode(x)

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        assert len(prompts) == len(images)
        self.sizes["reward"].append(len(images))
        return self.reward(images)

    def run(
        self, method: Method, chunks: Chunks | None = None, n: int = 5, checkpoint: bool = False
    ) -> tuple[Any, Any]:
        """The method on this problem."""
        rng = generators(PROMPTS, 0)
        problem = Problem(self.model, PROMPTS, self, CPU, chunks, checkpoint)
        return problem.run(method, problem.noise(n, rng).double(), rng, lambda rows: None)


METHODS = [
    BestOfN(2),
    SMC(steps=3, ess_threshold=1.0),
    SMC(steps=3, twist=1.0, max_ratio=0.3),
    Guidance(steps=3, weights="path"),
    SMC(steps=2, lookahead=Renoised(k=4), twist=1.0),
]


@pytest.mark.parametrize("method", METHODS, ids=plainly)
@pytest.mark.parametrize("chunks", [Chunks(1, 1, 1), Chunks(4, 3, 2), Chunks(7, 2, 100), Chunks(16, 100, 4)], ids=str)
def test_chunks_bound_every_part_and_change_nothing(method: Method, chunks: Chunks) -> None:
    whole, free = Watched(), Watched()
    plain, before = whole.run(method)
    parts, after = free.run(method, chunks)
    for name in ("x", "log_w", "rewards"):
        assert_close(getattr(parts, name), getattr(plain, name), atol=1e-6, rtol=0)
    assert_close(after.trace.log_z, before.trace.log_z, atol=1e-6, rtol=0, equal_nan=True)
    assert after.trace.calls.tolist() == before.trace.calls.tolist()
    limits = {"network": chunks.network, "decoder": chunks.decoder, "reward": min(chunks.decoder, chunks.reward)}
    for part, limit in limits.items():
        assert max(free.sizes[part]) <= limit and sum(free.sizes[part]) == sum(whole.sizes[part])


@pytest.mark.parametrize("draws", [1, 4])  # a look costs 1 or 12 rows of the network
def test_no_more_rows_are_held_for_a_gradient_than_the_chunk_of_the_network(draws: int) -> None:
    """Counted as what autograd keeps alive: velocities whose graph has not been freed."""
    held, most = [0], [0]

    class Kept(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, v: Tensor) -> Tensor:
            held[0] += len(v)
            most[0] = max(most[0], held[0])
            return v.clone()

        @staticmethod
        def backward(ctx: object, *upstream: Tensor) -> Tensor:
            held[0] -= len(upstream[0])
            return upstream[0]

    watched = Watched()
    model = watched.model

    def flow(x: Tensor, s: Time, t: Time, cond: Cond = None) -> Tensor:
        v = model.flow(x, s, t, cond)
        return Kept.apply(v) if v.requires_grad else v

    watched.model = dataclasses.replace(model, flow=flow)
    lookahead = steer.lookahead.Jump() if draws == 1 else Renoised(k=draws, back=0.5)
    watched.run(SMC(steps=3, twist=1.0, lookahead=lookahead), Chunks(network=25), n=19)
    assert 12 < most[0] <= 25


def gradient(chunks: Chunks, reward: Callable[[Tensor], Tensor] = bent, rejected: float = -math.inf) -> Tensor:
    """Of the scores [3 4] in latents, with uneven weights from above, 0 where a picture is rejected."""
    watched = Watched(lambda images: torch.where(images[:, 0, 0, 0] > 0.52, rejected, reward(images)))
    x = torch.randn(3, 4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    with torch.enable_grad():
        r = Scores(watched.model, PROMPTS, watched, chunks)(x)
        weighted = torch.where(r.isfinite(), r, 0) * torch.arange(12).view(3, 4)
    return torch.autograd.grad(weighted.sum(), x)[0]


def test_gradients_in_parts_are_those_of_the_formula() -> None:
    """Sin of a plane less a bowl, times the weights; the chain of decoder and reward is the identity in x."""
    g = torch.Generator().manual_seed(1)
    x = torch.randn(3, 4, 3, generator=g, dtype=torch.float64)
    plane = torch.tensor([1.0, -1.0, 0.5]).double()
    truth = ((x @ plane).cos()[..., None] * plane - 0.2 * x) * torch.arange(12).view(3, 4, 1)
    truth[0.5 + SCALE * x[..., 0] > 0.52] = 0
    for chunks in (Chunks(), Chunks(1, 1, 1), Chunks(100, 5, 2)):
        assert_close(gradient(chunks), truth, atol=1e-6, rtol=0)


def test_a_lazy_reward_sees_the_chosen_latents_alone() -> None:
    watched = Watched()
    scores = Scores(watched.model, PROMPTS, watched, Chunks(decoder=2))
    x = torch.randn(3, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    where = torch.zeros(3, 4, dtype=torch.bool)
    where[0, 1] = where[2, 0] = where[2, 3] = True
    some, all_of_them = scores(x, where=where), scores(x)
    assert torch.equal(some[where], all_of_them[where]) and (some[~where] == -math.inf).all()
    assert watched.sizes["reward"] == [2, 1] + [2] * 6


def test_a_search_asks_the_reward_for_no_more_than_it_counts() -> None:
    for name in ("tree_search", "rollover", "svdd"):
        watched = Watched(differentiable=False)
        method = settings.build("method", name).with_budget(60, 5)
        _, spent = watched.run(method)
        assert sum(watched.sizes["reward"]) == int(spent.trace.reward_calls.sum())


@pytest.mark.parametrize("part", ["network", "decoder", "reward"])
@pytest.mark.parametrize("method", ["smc", "guidance"])
@pytest.mark.parametrize("limit", [3, 0])
def test_out_of_memory_names_the_part(part: str, method: str, limit: int) -> None:
    """A device on which no more than `limit` rows of one part fit."""
    watched = Watched()

    def small(f: Callable[..., Tensor], name: str) -> Callable[..., Tensor]:
        def bounded(x: Tensor, *rest: object) -> Tensor:
            if name == part and len(x) > limit:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return f(x, *rest)

        return bounded

    model = dataclasses.replace(
        watched.model, flow=small(watched.model.flow, "network"), decode=small(watched.model.decode, "decoder")
    )
    score = rewards.Function(small(watched.reward, "reward"), differentiable=True)

    def draw(chunk: dict[str, int]) -> None:
        with torch.no_grad():
            steer.sample(
                "a", reward=score, model=model, method=method, n=8, temperature=1.0, seed=0, progress=False, chunk=chunk
            )

    with pytest.raises(torch.OutOfMemoryError, match=f"in the {part}, 8 rows at once; lower chunk={{'{part}': 4}}"):
        draw({"network": 8, "decoder": 8, "reward": 8})
    if limit:
        draw({part: limit})
    else:
        with pytest.raises(torch.OutOfMemoryError, match=f"in the {part}, 1 rows at once; not even one row fits"):
            draw({part: 1})


@pytest.mark.parametrize("method", [SMC(steps=2, twist=1.0, lookahead=Rollout(4)), Guidance(steps=2)], ids=plainly)
def test_checkpoints_change_memory_alone_and_the_recomputed_rows_are_told(method: Method) -> None:
    plain, before = Watched().run(method)
    again, after = Watched().run(method, checkpoint=True)
    assert_close(again.x, plain.x, atol=1e-9, rtol=0)
    assert_close(again.log_w, plain.log_w, atol=1e-9, rtol=0)
    assert after.trace.calls.tolist() == before.trace.calls.tolist()
    assert before.recomputed == 0 and after.recomputed == after.trace.backward.double().mean().item() > 0


def test_checkpoints_keep_no_activations_from_jump_to_jump() -> None:
    """What is saved between the passes grows by the inputs of a jump, not by the activations in it."""
    weight = torch.randn(3, 512, generator=torch.Generator().manual_seed(0))

    def wide(x: Tensor, s: Time, t: Time, cond: Cond = None) -> Tensor:
        return 0.1 * (x @ weight).tanh().square().tanh() @ weight.T

    def saved(flow: FlowMap) -> int:
        numbers = [0]

        def pack(x: Tensor) -> Tensor:
            numbers[0] += x.numel()
            return x

        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            Rollout(8)(flow, steer.interpolants.Linear(), torch.zeros(4, 3, requires_grad=True), 0.0)
        return numbers[0]

    assert saved(wide) > 8 * 4 * 512 and saved(Checkpointed(wide)) < 8 * 4 * 512 / 10


def test_a_temperature_and_a_reward_in_other_units_are_the_same_problem() -> None:
    """For every method, also one whose damping knows the size of the reward."""
    given = {"model": colour_model(), "n": 6, "seed": 0, "progress": False}
    for method in ("guidance", "tds", "smc"):
        a = steer.sample(PROMPTS, reward=redness, temperature=0.5, method=method, **given)
        b = steer.sample(PROMPTS, reward={redness: 100.0}, temperature=50.0, method=method, **given)
        assert_close(a.images, b.images, atol=1e-5, rtol=0)
        assert_close(a.log_w, b.log_w, atol=1e-3, rtol=0)
        assert_close(100 * a.rewards, b.rewards, atol=1e-2, rtol=1e-4)


@pytest.mark.parametrize("method", ["best_of_n", "smc", "tds", "guidance", "das", "mfm_g", "svdd", "tree"])
def test_prompts_in_a_batch_get_what_they_get_alone(method: str) -> None:
    """Also their measured temperatures, and whatever the chunks."""
    given: dict[str, Any] = {"reward": redness, "model": colour_model(), "n": 6, "seed": 0, "progress": False}
    together = steer.sample(PROMPTS, method=method, **given)
    for i, prompt in enumerate(PROMPTS):
        alone = steer.sample(prompt, method=method, chunk=4, **given)
        assert_close(together.images[i], alone.images[0], atol=1e-5, rtol=0)
        assert_close(together.log_w[i], alone.log_w[0], atol=1e-3, rtol=0)
        assert together.report["temperatures"][i] == pytest.approx(alone.report["temperature"], rel=1e-4)


def test_generators_depend_on_the_prompt_and_the_seed_alone() -> None:
    def first(prompts: list[str], seed: int) -> list[float]:
        return [torch.rand(1, generator=g).item() for g in generators(prompts, seed)]

    a, b, c = first(["a", "b", "a"], 0)
    assert a == c != b and first(["b"], 0) == [b] and first(["a"], 1) != [a]
    assert first(["a"], 0) == pytest.approx([a]) and len(set(first([str(i) for i in range(99)], 2**63 - 1))) == 99
    assert math.isclose(first(["\udcff"], 0)[0], first(["\udcff"], 0)[0])  # no text at all, but no crash either


@pytest.mark.parametrize("method", ["best_of_n", "smc", "tds", "guidance", "svdd"])
def test_a_network_in_bfloat16_leaves_particles_times_and_weights_in_float32(method: str) -> None:
    """The network's own arithmetic is coarse (relative 1/256); nothing else is, so the pictures stay near."""
    seen: set[torch.dtype] = set()

    def flow(x: Tensor, s: Time, t: Time, cond: Cond = None) -> Tensor:
        seen.update(u.dtype for u in (x, s, t) if isinstance(u, Tensor))
        return CountingFlow().flow(x, s, t).to(torch.bfloat16)

    given: dict[str, Any] = {"reward": redness, "method": method, "n": 6, "temperature": 1.0, "seed": 0}
    out = steer.sample("a", model=dataclasses.replace(colour_model(), flow=flow), progress=False, **given)
    assert seen == {torch.float32}
    for x in (out.images, out.log_w, out.rewards, out.trace.log_z, out.trace.ess, out.trace.times):
        assert x.dtype == torch.float32
    assert abs(out.log_w.exp().sum().item() - 1) < 1e-6  # bfloat16 would be off by 1e-3
    plain = steer.sample("a", model=colour_model(), method="best_of_n", n=6, progress=False, reward=redness, seed=0)
    assert_close(out.unsteered, plain.unsteered, atol=0.05 * SCALE * 4, rtol=0)


def test_autocast_computes_in_bfloat16_and_gives_float32() -> None:
    layer, inner = torch.nn.Linear(3, 3), set()

    def flow(x: Tensor, s: Time, t: Time, cond: Cond = None) -> Tensor:
        v = layer(x)
        inner.update({("velocity", v.dtype), ("time", t.dtype), ("x", x.dtype)})
        return v * (1 - t)[:, None]

    x, t = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.full((4,), 1 / 3)
    v = Autocast(flow)(x, t, t)
    assert inner == {("velocity", torch.bfloat16), ("time", torch.float32), ("x", torch.float32)}
    assert v.dtype == torch.float32
    error = (v - layer(x) * (1 - t)[:, None]).abs().max().item()
    assert 0 < error < 0.02


def test_a_joined_trace_keeps_each_prompt_s_own() -> None:
    """Prompts go in groups where a gradient needs more rows than the chunk: the trace is that of one group."""
    _, whole = Watched().run(Guidance(steps=3))
    _, parts = Watched().run(Guidance(steps=3), Chunks(network=2))
    for name in ("times", "ess", "resampled", "forward", "backward", "reward_calls", "ancestors", "push"):
        assert_close(getattr(parts.trace, name), getattr(whole.trace, name))


def test_one_call_of_the_network_a_step_for_all_prompts_particles_and_draws() -> None:
    counts = set()
    for n, k in itertools.product((2, 40), (1, 8)):
        watched = Watched()
        watched.run(SMC(steps=4, lookahead=Renoised(k=k)), n=n)
        counts.add(len(watched.sizes["network"]))
        assert max(watched.sizes["network"]) == 3 * n * k
    assert len(counts) == 1
