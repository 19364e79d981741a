"""Every objective that configs/tuning can build: rewards rise, gradients go where they should, and it can be spread."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from steer.adapters import Reference, adapt, merged
from steer.analytic import GaussianMixture
from steer.bench import plane
from steer.collecting import Actor, Steered
from steer.draws import Shard
from steer.experience import Experience, Rounds
from steer.flow_map import Cond, FlowMap
from steer.methods import TreeSearch
from steer.objectives import Batch, Student
from steer.posterior import Glass
from steer.prompts import Prompts
from steer.settings import build, names
from steer.training import Settings, Trainer
from steer.value_targets import Adjoints, PosteriorDraws

NAMES = names("tuning")
TEMPERATURE = 0.5
LAW = GaussianMixture(
    torch.tensor([0.5, 0.5]),
    torch.tensor([[-1.0, 0.0], [1.0, 0.0]]),
    torch.diag_embed(torch.tensor([[0.2, 0.3], [0.2, 0.3]])),
)


def reward(x: Tensor) -> Tensor:
    """How near the middle of the right mode is: what runs away loses."""
    return -(x - torch.tensor([1.0, 0.0]).to(x)).square().sum(-1) / 2


@functools.cache
def taught(steps: int = 500) -> plane.Perceptron:
    """A small map that has learned the law from its exact trajectories."""
    net, rng = plane.new(1.0, width=48, depth=2), torch.Generator().manual_seed(0)
    x = torch.randn(4096, 2, generator=rng)
    s, t = torch.rand(4096, 2, generator=rng).sort(1).values.unbind(1)
    s = torch.where(torch.arange(4096) % 3 == 0, t, s)
    flow = LAW.flow(tolerance=1e-5)
    x = x + s[:, None] * flow(x, torch.zeros(()), s)
    v = flow(x, s, t)
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        rows = torch.randint(4096, (256,), generator=rng)
        optimiser.zero_grad()
        (net(x[rows], s[rows], t[rows]) - v[rows]).square().mean().backward()
        optimiser.step()
        schedule.step()
    return net


def start(rank: int = 6, seed: int = 0) -> nn.Module:
    """That map with adapters; rank 0 gives its own weights."""
    net = plane.new(1.0, width=48, depth=2)
    net.load_state_dict(taught().state_dict())
    return adapt(net, rank, seed=seed) if rank else net


def make(name: str) -> Any:  # noqa: ANN401
    """An objective; searches and paths as short as suit a plane."""
    goal = build("tuning", name)
    way = goal.collector
    if isinstance(way, Steered) and isinstance(way.method, TreeSearch):
        return replace(goal, collector=replace(way, method=replace(way.method, iterations=6)))
    if isinstance(way, PosteriorDraws):
        return replace(goal, collector=replace(way, lookahead=Glass(k=4, steps=3)))
    return replace(goal, collector=replace(way, steps=8, keep=4)) if isinstance(way, Adjoints) else goal


class Given:
    """Pairs that are given: of two samples of the law the better one, and the worse."""

    def __init__(self, n: int = 128) -> None:
        x = LAW.sample(2 * n, rng=torch.Generator().manual_seed(3)).view(n, 2, 2)
        order = reward(x).argsort(dim=1, descending=True)
        self.winners, self.losers = (x[torch.arange(n), order[:, k]] for k in (0, 1))
        self.null: Cond = None
        self.totals: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self.winners)

    def __call__(self, index: Sequence[int]) -> tuple[Tensor, Cond]:
        return self.winners[torch.as_tensor(index)], None

    def more(self, index: Sequence[int]) -> dict[str, Tensor]:
        return {"loser": self.losers[torch.as_tensor(index)]}

    def renew(self, *_: object) -> dict[str, float]:
        return {}

    def reward(self, x1: Tensor, prompt: Tensor) -> Tensor:
        raise AssertionError("pairs that are given have no reward")

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {}

    def load(self, *_: object) -> None: ...


def experience(goal: Any, reference: Reference, seed: int) -> Experience:  # noqa: ANN401
    return Experience(
        Prompts(["left", "right"]), lambda texts: None, goal.collector, lambda texts: reward, (2,), reference,
        rounds=Rounds(prompts=4, group=32, updates=2), temperature=TEMPERATURE, seed=seed,
    )  # fmt: skip


def tuned(name: str, flow: nn.Module, folder: Path, **more: Any) -> nn.Module:  # noqa: ANN401
    """The averaged map after tuning in place: `more` are settings, and an objective in place of the named one."""
    goal = more.pop("goal", None) or make(name)
    more = {"lr": 0.02 if name.startswith("grpo") else 0.005} | more
    settings = Settings(**{"steps": 40, "batch": 64, "schedule": "constant", "warm_up": 0.0,
                           "ema": (0.8,), "tracker": None, "save_every": 1000} | more)  # fmt: skip
    reference = Reference(flow)
    data = Given() if goal.collector is None else experience(goal, reference, settings.seed)
    student = Student(flow, reference=reference)
    return Trainer(flow, goal, data, settings, folder, student=student, progress=False).run().eval()


class Tuned(NamedTuple):
    """A run: the weights that are frozen, before; the map after; and its averaged weights."""

    before: dict[str, Tensor]
    flow: nn.Module
    average: nn.Module


@pytest.fixture(scope="module", params=NAMES)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Tuned]:
    """Each objective's run, once."""
    flow = start()
    before = {key: p.clone() for key, p in flow.state_dict().items()}
    average = tuned(request.param, flow, tmp_path_factory.mktemp(request.param))
    return request.param, Tuned(before, flow, average)


def samples(name: str, flow: FlowMap, n: int = 4000) -> Tensor:
    """Plain samples; where the noise is tuned, of the map as it was from the noise that the tuned one makes."""
    rng = torch.Generator().manual_seed(11)
    if name != "noise":
        return plane.draw(flow, n, 4, rng)
    with torch.no_grad():
        x0 = torch.randn(n, 2, generator=rng)
        x = x0 + flow(x0, 0.0, 1.0) - taught()(x0, 0.0, 1.0)
        return x + taught()(x, 0.0, 1.0)


def test_the_start_has_learned_the_law() -> None:
    """Else a rise would be easy to have."""
    x = samples("", taught())
    assert x.mean(0).abs().max() < 0.1 and (x.square().mean(0) - torch.tensor([1.2, 0.3])).abs().max() < 0.1


def test_rewards_rise(run: tuple[str, Tuned]) -> None:
    name, (_, _, average) = run
    before, after = reward(samples(name, start())).double(), reward(samples(name, average)).double()
    error = (before.var() / len(before) + after.var() / len(after)).sqrt()
    assert (after.mean() - before.mean()) / error > 4


def test_adapters_alone_are_tuned(run: tuple[str, Tuned]) -> None:
    _, (before, flow, average) = run
    for net in (flow, average):
        now = net.state_dict()
        moved = {key for key in before if not torch.equal(now[key], before[key])}
        assert moved == {key for key in before if "lora_" in key} and len(moved) == 6


def test_the_reference_stays_what_it_was_to_the_last_bit(run: tuple[str, Tuned]) -> None:
    _, (_, flow, average) = run
    x, s, t = torch.randn(64, 2, generator=torch.Generator().manual_seed(1)), torch.rand(64) * 0.5, torch.ones(64)
    expected = taught()(x, s, t)
    assert torch.equal(Reference(flow)(x, s, t), expected)
    assert torch.equal(Reference(average)(x, s, t), expected) and not torch.equal(average(x, s, t), expected)
    assert (merged(average)(x, s, t) - average(x, s, t)).abs().max() < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(name: str, tmp_path: Path) -> None:
    nets = []
    for k, seed in enumerate((0, 0, 1)):
        flow = start(rank=0)
        tuned(name, flow, tmp_path / str(k), steps=3, batch=16, seed=seed)
        nets.append(torch.cat([p.detach().flatten() for p in flow.parameters()]))
    assert torch.equal(nets[0], nets[1]) and not torch.equal(nets[0], nets[2])


def rows(goal: Any, flow: Any, score: Callable[[Tensor], Tensor], b: int = 32) -> tuple[Batch, Student]:  # noqa: ANN401
    """Rows of four prompts that the map itself makes, in float64, and the model that an objective is given."""
    own = start(rank=0).double().requires_grad_(False)
    if goal.collector is None:  # its pairs are given
        pairs = Given(4 * b)
        told = {"loser": pairs.losers.double()}
        return Batch(pairs.winners.double(), more=told), Student(flow, average=own, reference=own)
    rng = [torch.Generator().manual_seed(seed) for seed in range(4)]
    x0 = torch.stack([torch.randn(b, 2, generator=g, dtype=torch.float64) for g in rng])
    with torch.no_grad():
        actor = Actor(own, own, own, score, TEMPERATURE)
        x1, more, _ = goal.collector(actor, x0, None, rng=rng, shared=torch.Generator().manual_seed(4))
    advantages = getattr(goal.collector, "advantages", None)
    more |= {} if advantages is None else {"advantage": advantages(more["reward"]).double()}
    more |= {"prompt": torch.arange(4)[:, None].expand(x1.shape[:2])}
    batch = Batch(x1.flatten(0, 1), more={key: value.flatten(0, 1) for key, value in more.items()})
    told = lambda x, prompt: score(x) / TEMPERATURE  # noqa: E731
    return batch, Student(flow, average=own, reference=own, reward=told)


def moved(net: nn.Module) -> nn.Module:
    """A network in float64 whose trained weights are a little off, so that no term of a loss vanishes."""
    rng = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for p in net.double().parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=rng, dtype=p.dtype) * p.requires_grad)
    return net


@pytest.mark.parametrize("name", NAMES)
def test_a_finite_loss_with_gradients_to_the_trained_weights_alone(name: str) -> None:
    goal, flow = make(name), moved(start(3))
    batch, model = rows(goal, flow, reward)
    loss, metrics = goal(model, batch, torch.Generator().manual_seed(0))
    loss.backward()
    assert loss.ndim == 0 and loss.isfinite()
    assert metrics and all(m.ndim == 0 and not m.requires_grad and m.isfinite() for m in metrics.values())
    got = {key for key, p in flow.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert got == {key for key, _ in flow.named_parameters() if "lora_" in key}


@pytest.mark.parametrize("name", NAMES)
def test_shares_of_a_batch_have_the_mean_of_the_whole(name: str) -> None:
    """What makes two processes, and accumulated parts, equal to one."""
    goal, flow = make(name), moved(start(rank=0))
    batch, model = rows(goal, flow, reward, 24)
    half = len(batch) // 2
    loss = lambda part, rank, world: goal(model, part, Shard(torch.Generator().manual_seed(7), rank, world))[0].item()  # noqa: E731
    parts = [loss(batch[torch.arange(half) + rank * half], rank, 2) for rank in (0, 1)]
    assert abs(sum(parts) / 2 - loss(batch, 0, 1)) < 1e-9
    assert abs(parts[0] - parts[1]) > 1e-6


@pytest.mark.parametrize("name", ["nft", "mean_flow_nft", "grpo", "grpo_restart", "online_dpo"])
def test_where_rewards_do_not_differ_there_is_no_gradient(name: str) -> None:
    """Of the map that made the samples; jumps that follow are left out."""
    goal, sizes = make(name), []
    goal = replace(goal, share=0.0) if "nft" in name else replace(goal, jumps=0.0)
    for score in (lambda x: 0 * x[..., 0], reward):
        flow = start(rank=0).double()
        batch, model = rows(goal, flow, score)
        goal(model, batch, torch.Generator().manual_seed(0))[0].backward()
        sizes.append(sum(float(p.grad.square().sum()) for p in flow.parameters() if p.grad is not None) ** 0.5)
    assert sizes[0] < 1e-9 * sizes[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if build("tuning", name).exact])
def test_what_claims_the_tilted_law_meets_it(name: str, tmp_path: Path) -> None:
    """Up to what a small network and so many steps of paths and draws leave; the start is far off."""
    goal, flow = build("tuning", name), start(rank=0)
    if isinstance(goal.collector, PosteriorDraws):
        goal = replace(goal, collector=replace(goal.collector, lookahead=Glass(k=4, steps=12)))
    average = tuned(name, flow, tmp_path, goal=goal, steps=300, batch=256, schedule="cosine", ema=(0.95,))
    assert distance(average) < 0.05 and distance(start(rank=0)) > 0.5


def distance(net: nn.Module) -> float:
    """The largest error of means and variances of samples by 16 jumps, against the tilted law's."""
    tilted, _ = LAW.tilt(torch.eye(2) / TEMPERATURE, torch.tensor([1.0, 0.0]) / TEMPERATURE)
    x = plane.draw(net, 20_000, 16, torch.Generator().manual_seed(1))
    return float(torch.cat([x.mean(0) - tilted.mean, x.var(0) - tilted.cov.diagonal()]).abs().max())
