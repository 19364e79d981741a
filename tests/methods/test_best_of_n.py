import torch
from conftest import z_score
from torch.testing import assert_close

from steer.analytic import GaussianMixture
from steer.flow_map import jump
from steer.interpolants import Linear
from steer.methods import BestOfN


def test_samples_are_plain_jumps(mixture: GaussianMixture, rng: torch.Generator) -> None:
    x0 = torch.randn(1, 20, 2, generator=rng, dtype=torch.float64)
    for steps in (1, 3):
        out, _ = BestOfN(steps)(mixture.flow(), Linear(), lambda x: x[..., 0], x0, rng=rng)
        assert_close(out.x[0], jump(mixture.flow(), x0[0], 0.0, 1.0), atol=1e-8, rtol=0)


def test_weights_are_those_of_the_tilted_law(mixture: GaussianMixture, rng: torch.Generator) -> None:
    linear = torch.tensor([1.0, -0.5]).double()
    target, log_z = mixture.tilt(torch.zeros(2, 2), linear / 0.5)
    x0 = torch.randn(100, 100, 2, generator=rng, dtype=torch.float64)
    method = BestOfN(temperature=0.5)
    out, trace = method(mixture.flow(tolerance=1e-6), Linear(), lambda x: x @ linear, x0, rng=rng)
    assert z_score(trace.log_z.exp(), log_z.exp()) < 4
    total = (trace.log_z.exp()[:, None, None] * out.log_w.exp()[..., None] * out.x).sum(1)
    assert z_score(total, log_z.exp() * target.mean) < 4


def test_rewards_find_the_best(mixture: GaussianMixture, rng: torch.Generator) -> None:
    x0 = torch.randn(3, 16, 2, generator=rng, dtype=torch.float64)
    out, _ = BestOfN()(mixture.flow(), Linear(), lambda x: x[..., 0], x0, rng=rng)
    assert out.rewards is not None
    assert torch.equal(out.rewards.argmax(-1), out.x[..., 0].argmax(-1))
    assert torch.equal(out.rewards.argmax(-1), out.log_w.argmax(-1))
