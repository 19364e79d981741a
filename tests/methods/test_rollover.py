from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from conftest import Counting
from torch import Tensor
from torch.testing import assert_close

from steer.analytic import GaussianMixture
from steer.flow_map import Cond, FlowMap, jump
from steer.interpolants import Linear, Time, interpolate
from steer.methods import Rollover

COV = torch.tensor([[0.8, 0.3], [0.3, 0.5]]).double()
GAUSSIAN = GaussianMixture(torch.ones(1).double(), torch.tensor([[1.0, -1.0]]).double(), COV[None])


def near(x: Tensor) -> Tensor:
    """High around one rare point."""
    return -10 * (x**2).sum(-1)


def noise(p: int, n: int, rng: torch.Generator) -> Tensor:
    """p prompts of n particles in the plane."""
    return torch.randn(p, n, 2, generator=rng, dtype=torch.float64)


def the_box(flow: FlowMap, method: Rollover, z: Tensor) -> tuple[list[float], Tensor]:
    """One particle as its paper has it, of noises z [calls d]: the times of its calls, its best end."""
    times, quota = method.times, method.calls // method.steps
    used, left, best, start, spent = [], quota, None, z[0], 0
    for k, t in enumerate(times):
        tried: list[Tensor] = []
        while left > 0 if k < len(times) - 1 else spent < method.calls:
            x1 = jump(flow, interpolate(Linear(), z[spent], start, t)[None], t, 1.0)[0]
            tried, used, left, spent = [*tried, x1], [*used, t], left - 1, spent + 1
            better = best is None or bool(near(x1) > near(best))
            best = x1 if better else best
            if better and 0 < k < len(times) - 1:
                break
        start = max(tried, key=near) if tried else start
        left += quota
    assert best is not None
    return used, best


@dataclass
class Recorded:
    """A flow map that keeps the times it was called at."""

    flow: FlowMap
    times: list[Tensor] = field(default_factory=list)

    def __call__(self, x: Tensor, s: Time, t: Time, cond: Cond = None) -> Tensor:
        """The wrapped map's velocity."""
        assert isinstance(s, Tensor)
        self.times.append(s)
        return self.flow(x, s, t, cond)


@pytest.mark.parametrize(("calls", "steps"), [(20, 4), (23, 3), (6, 6), (5, 1)])
def test_each_particle_follows_the_box_at_its_own_pace(calls: int, steps: int) -> None:
    """Accepts at once what improves, rolls over what is left, and takes the best of a step that failed."""
    method, x0 = Rollover(calls, steps), noise(2, 3, torch.Generator().manual_seed(1))
    rng, flow = torch.Generator().manual_seed(2), GAUSSIAN.flow()
    z = torch.stack([x0, *(torch.randn(x0.shape, generator=rng, dtype=x0.dtype) for _ in range(calls - 1))])
    recorded = Recorded(flow)
    out, _ = method(recorded, Linear(), near, x0, rng=torch.Generator().manual_seed(2))
    times = torch.stack(recorded.times).view(calls, 2, 3)
    for i in range(2):
        for j in range(3):
            used, best = the_box(flow, method, z[:, i, j])
            assert_close(times[:, i, j], torch.tensor(used).double(), check_dtype=False)
            assert_close(out.x[i, j], best, atol=1e-6, rtol=0)
    paces = len({tuple(times[:, i, j].tolist()) for i in range(2) for j in range(3)})
    assert paces > 1 if 1 < steps < calls else paces == 1


@pytest.mark.parametrize("calls", [3, 17, 64])
def test_spends_exactly_its_calls(calls: int, counting: Callable[[FlowMap], Counting], rng: torch.Generator) -> None:
    flow = counting(GAUSSIAN.flow())
    _, trace = Rollover(calls, steps=3)(flow, Linear(), near, noise(2, 5, rng), rng=rng)
    assert flow.calls == calls and trace.calls.tolist() == [5 * calls] * 2 == trace.reward_calls.tolist()


def test_nothing_that_was_seen_is_lost(rng: torch.Generator) -> None:
    seen = []

    def reward(x: Tensor) -> Tensor:
        seen.append(near(x))
        return seen[-1]

    out, trace = Rollover(30, steps=5)(GAUSSIAN.flow(), Linear(), reward, noise(2, 4, rng), rng=rng)
    assert torch.equal(torch.stack(seen).amax(0), out.rewards if out.rewards is not None else near(out.x))
    assert trace.log_z.isnan().all()


def test_finds_more_than_best_of_n_and_more_with_more_calls(rng: torch.Generator) -> None:
    flow, found = GAUSSIAN.flow(), []
    for calls in (16, 32, 64):
        plain = near(jump(flow, noise(60, calls, rng).flatten(0, 1), 0.0, 1.0)).view(60, calls).amax(-1)
        out, _ = Rollover().with_budget(calls, 1)(flow, Linear(), near, noise(60, 1, rng), rng=rng)
        found.append(near(out.x).mean())
        assert found[-1] > plain.mean()
    assert found == sorted(found)


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"steps": 0}, "steps.*got 0"),
        ({"calls": 3, "steps": 4}, "calls.*got 3 for 4 steps"),
        ({"last_time": 1.0}, "last_time.*got 1.0"),
    ],
)
def test_bad_settings_raise(kwargs: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Rollover(**kwargs)
