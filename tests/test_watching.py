"""Looking into a run: what `steer.sample(watch=...)` is told, against what the run reports of itself."""

import math

import pytest
import torch
from colours import CountingFlow, colour_model, redness

import steer
from steer.methods import SMC, BestOfN, WarmStart
from steer.particles import ess
from steer.settings import build, names

N = 4
GIVEN = {"reward": redness, "n": N, "seed": 0, "progress": False}
pytestmark = pytest.mark.filterwarnings("ignore:the samples descend", "ignore:nearly all weight", "ignore:the reward's")


def hot(name: str) -> dict[str, float]:
    return {"temperature": 0.5} if hasattr(build("method", name), "temperature") else {}


@pytest.mark.parametrize("name", names("method"))
def test_what_is_seen_is_what_is_reported(name: str) -> None:
    """Of every method: all that is scored and nothing twice, its own sizes, its own last rewards; nothing changes."""
    seen: list[steer.Seen] = []
    given = GIVEN | {"model": colour_model(), "method": name} | hot(name)
    out, plain = steer.sample(["a", "b"], watch=seen.append, **given), steer.sample(["a", "b"], **given)
    assert torch.equal(out.images, plain.images) and torch.equal(out.log_w, plain.log_w)
    weighed = [s for s in seen if s.ess is not None]
    assert torch.equal(torch.stack([s.ess for s in weighed]), out.trace.ess)
    assert all(torch.equal(ess(s.log_w), s.ess) for s in weighed)
    assert sum(s.rewards.isfinite().sum() for s in seen) == out.trace.reward_calls.sum()
    scored = torch.cat([s.rewards.transpose(0, 1).flatten(1) for s in seen], 1)
    nearest = (scored[:, None] - out.rewards[..., None]).abs().amin(-1)
    assert (nearest < 1e-5).all()
    assert all(s.x1.shape[:3] == s.rewards.shape and s.prompts == ("a", "b") for s in seen)


@pytest.mark.parametrize("temperature", [0.3, math.inf])
def test_the_last_look_of_smc_is_its_result(temperature: float) -> None:
    seen: list[steer.Seen] = []
    method = SMC(steps=5, last_time=0.8)
    given = GIVEN | {"model": colour_model(), "method": method, "temperature": temperature}
    out = steer.sample(["a", "b"], watch=seen.append, **given)
    assert [s.t for s in seen] == method.times
    last = seen[-1]
    assert torch.equal(last.pictures(), out.images) and torch.equal(last.rewards[0], out.rewards)
    assert torch.equal(last.log_w.log_softmax(-1), out.log_w) and torch.equal(last.ancestors, out.trace.ancestors)
    first = torch.arange(N).expand(2, N)
    assert torch.equal(seen[0].ancestors, first)
    assert torch.allclose(redness(last.pictures().flatten(0, 1)).view(2, N), last.rewards[0], atol=1e-4)


def test_ancestors_behind_a_warm_start_are_the_first_noises() -> None:
    seen: list[steer.Seen] = []
    method = WarmStart(moves=3, method=SMC(steps=3, chain="sde"))
    given = GIVEN | {"model": colour_model(), "method": method, "temperature": 0.02, "n": 16}
    out = steer.sample("a", watch=seen.append, **given)
    assert torch.equal(seen[-1].ancestors, out.trace.ancestors)
    assert len(set(out.trace.ancestors[0].tolist())) < 16


def test_what_watch_raises_ends_the_run_at_once() -> None:
    flow, calls = CountingFlow(), 0

    def watch(seen: steer.Seen) -> None:
        nonlocal calls
        calls = len(flow.rows)
        if seen.t:
            raise InterruptedError("enough")

    with pytest.raises(InterruptedError, match="enough"):
        steer.sample("a", watch=watch, **GIVEN | {"model": colour_model(flow), "method": SMC(steps=9)})
    assert len(flow.rows) == calls == 4 + 2  # the plain pictures, and two looks of nine


def test_groups_of_prompts_are_told_apart() -> None:
    """A gradient for one particle of each prompt would be more rows than the chunk: the prompts go in turn."""
    seen: list[steer.Seen] = []
    given = GIVEN | {"model": colour_model(), "method": "tds", "temperature": 0.5, "chunk": {"network": 1}}
    out = steer.sample(["a", "b"], watch=seen.append, **given)
    for i, prompt in enumerate(("a", "b")):
        of = [s.ess[0] for s in seen if s.prompts == (prompt,) and s.ess is not None]
        assert torch.equal(torch.stack(of), out.trace.ess[:, i])


def test_a_method_by_itself_is_watched_through_its_reward() -> None:
    """`watch` is an attribute of the reward; without a model there are latents, and no pictures."""

    class Watched:
        def __init__(self) -> None:
            self.seen: list[steer.Seen] = []
            self.watch = self.seen.append

        def __call__(self, x1: torch.Tensor) -> torch.Tensor:
            return x1.sum(-1)

    reward, x0 = Watched(), torch.zeros(1, 3, 3)
    BestOfN()(CountingFlow(), colour_model().path, reward, x0, rng=torch.Generator().manual_seed(0))
    (seen,) = reward.seen
    assert torch.equal(seen.rewards, seen.x1.sum(-1)) and seen.ess is not None and seen.ess.item() == pytest.approx(3)
    with pytest.raises(ValueError, match="knows no pictures; take x1"):
        seen.pictures()
