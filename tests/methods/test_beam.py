import pytest
import torch
from conftest import z_score
from torch import Tensor
from torch.testing import assert_close

from steer.analytic import GaussianMixture
from steer.flow_map import jump
from steer.interpolants import Linear
from steer.lookahead import Denoiser, Jump, LookAhead
from steer.methods import Beam
from steer.methods.beam import choose
from steer.posterior import Glass

SLOPE = torch.tensor([1.5, -1.0]).double()
LINE = GaussianMixture(torch.ones(1).double(), torch.tensor([[0.5]]).double(), torch.tensor([[[0.64]]]).double())


def slope(x: Tensor) -> Tensor:
    """A linear reward."""
    return x @ SLOPE


def near(x: Tensor) -> Tensor:
    """High around one rare point."""
    return -10 * ((x - torch.tensor([0.0, 0.0]).double()) ** 2).sum(-1)


def noise(p: int, n: int, rng: torch.Generator, d: int = 2) -> Tensor:
    """p prompts of n particles."""
    return torch.randn(p, n, d, generator=rng, dtype=torch.float64)


@pytest.mark.parametrize("children", [1, 3])
@pytest.mark.parametrize("lookahead", [Jump(), Denoiser()], ids=["jump", "denoiser"])
def test_nested_weights_meet_the_tilted_law(
    children: int, lookahead: LookAhead, mixture: GaussianMixture, rng: torch.Generator
) -> None:
    """E[Z_hat] = Z and E[Z_hat sum w f] = Z E*[f]; a choice that is not divided out breaks both."""
    target, log_z = mixture.tilt(torch.zeros(2, 2), SLOPE)
    method = Beam(3, children, weights="nested", lookahead=lookahead)
    out, trace = method(mixture.flow(tolerance=1e-3), Linear(), slope, noise(150, 8, rng), rng=rng)
    z = trace.log_z.exp()
    assert z_score(z, log_z.exp()) < 4
    assert z_score(z[:, None] * (out.log_w.exp()[..., None] * out.x).sum(1), log_z.exp() * target.mean) < 4


def test_nested_weights_survive_rejections(mixture: GaussianMixture, rng: torch.Generator) -> None:
    """A rejected child whose own children would be accepted keeps a chance, and Z stays unbiased."""
    chance = (mixture.sample(200_000, rng=rng)[:, 0] > 0.8).double().mean()
    method = Beam(3, 3, weights="nested")
    _, trace = method(
        mixture.flow(tolerance=1e-3),
        Linear(),
        lambda x: torch.where(x[..., 0] > 0.8, 0.0, -torch.inf).double(),
        noise(150, 8, rng),
        rng=rng,
    )
    assert z_score(trace.log_z.exp(), chance) < 4


def published(steps: int, children: int, rng: torch.Generator) -> Tensor:
    """Ends of many particles, unweighted, on a line with data N(.5, .8^2) and reward x / .8; the times are 0 and .5."""
    method = Beam(steps, children, last_time=0.5)
    out, trace = method(LINE.flow(), Linear(), lambda x: x[..., 0] / 0.8, noise(1, 2000, rng, 1), rng=rng)
    assert trace.log_z.isnan().all()
    return out.x[0]


def test_one_choice_among_many_is_the_tilted_law_and_among_few_falls_short(rng: torch.Generator) -> None:
    """The tilt shifts the mean by one standard deviation; the better of two draws is less."""
    assert z_score(published(1, 200, rng), 0.5 + 0.8) < 4
    assert 0.5 + 0.1 < float(published(1, 2, rng).mean()) < 0.5 + 0.6


def test_two_choices_go_beyond_the_tilted_law(rng: torch.Generator) -> None:
    """The documented bias. Ends are an AR(1) chain of correlation rho, so the shift is 1 + rho - rho^2 deviations."""
    rho = 0.5 * 0.8 / (0.5**2 + 0.5**2 * 0.64) ** 0.5
    assert z_score(published(2, 200, rng), 0.5 + 0.8 * (1 + rho - rho**2)) < 4


def test_local_particles_know_nothing_of_each_other(mixture: GaussianMixture) -> None:
    """What the others are worth changes nothing; under "beam" it does."""
    x0, flow = noise(1, 4, torch.Generator().manual_seed(1)), mixture.flow(tolerance=1e-3)

    def favoured(x: Tensor) -> Tensor:
        return slope(x) + 100 * (torch.arange(x.shape[1]) < x.shape[1] // 4)

    for method, same in ((Beam(4, 3), True), (Beam(4, 3, selection="beam"), False)):
        ends = [
            method(flow, Linear(), r, x0, rng=torch.Generator().manual_seed(2))[0].x[:, 1:] for r in (slope, favoured)
        ]
        assert torch.equal(*ends) == same


def test_choose_draws_by_softmax_and_never_what_is_rejected(rng: torch.Generator) -> None:
    value = torch.tensor([0.0, 1.0, -torch.inf, 2.0, 2.0, 500.0]).double().expand(5_000, 6)
    chosen = choose(value, 2, rng)
    assert_close(chosen[:, 1], torch.full((5_000,), 5))
    share = torch.stack([(chosen[:, 0] == j).double() for j in range(3)], 1)
    assert z_score(share[:, :2], value[0, :3].softmax(0)[:2]) < 4 and share[:, 2].sum() == 0


def test_low_temperature_takes_the_best_child(mixture: GaussianMixture, rng: torch.Generator) -> None:
    seen = []

    def reward(x: Tensor) -> Tensor:
        seen.append(slope(x))
        return seen[-1]

    out, _ = Beam(2, 5, temperature=1e-9)(mixture.flow(tolerance=1e-3), Linear(), reward, noise(3, 4, rng), rng=rng)
    assert_close(out.rewards, seen[-1].unflatten(1, (4, 5)).amax(-1))


def test_beam_keeps_the_n_best_and_returns_the_n_best_of_all(mixture: GaussianMixture, rng: torch.Generator) -> None:
    """With a last move close to the data, children are worth what their parents are."""
    seen = []

    def reward(x: Tensor) -> Tensor:
        seen.append(slope(x))
        return seen[-1]

    method, x0 = Beam(2, 3, selection="beam", last_time=0.99999), noise(2, 5, rng)
    out, trace = method(mixture.flow(tolerance=1e-5), Linear(), reward, x0, rng=rng)
    kept = seen[0].topk(5)
    assert_close(seen[1], kept.values.repeat_interleave(3, 1), atol=1e-3, rtol=0)
    assert_close(out.rewards, torch.cat(seen, 1).topk(5).values)
    assert trace.log_z.isnan().all() and set(trace.ancestors[0].tolist()) <= set((kept.indices[0] // 3).tolist())


def test_first_children_are_the_given_noise_and_more(mixture: GaussianMixture, rng: torch.Generator) -> None:
    x0, flow = noise(2, 3, rng), mixture.flow(tolerance=1e-5)
    plain, _ = Beam(1, 1)(flow, Linear(), slope, x0, rng=rng)
    assert_close(plain.x, jump(flow, x0.flatten(0, 1), 0.0, 1.0).view_as(x0))
    best, _ = Beam(1, 4, temperature=1e-9)(flow, Linear(), slope, x0, rng=rng)
    assert plain.rewards is not None and best.rewards is not None
    assert (best.rewards >= plain.rewards).all() and (best.rewards > plain.rewards).any()


@pytest.mark.parametrize("lookahead", [Denoiser(), Glass(k=2, steps=1)], ids=["denoiser", "glass"])
@pytest.mark.parametrize("selection", ["local", "beam"])
def test_other_looks_keep_the_budget(lookahead: LookAhead, selection: str, rng: torch.Generator) -> None:
    """And return true ends with their own rewards, though what they saw on the way were none."""
    method = Beam(lookahead=lookahead, selection=selection)  # pyright: ignore[reportArgumentType]
    for calls in (15, 40, 300):
        out, trace = method.with_budget(calls, n=3)(
            LINE.flow(), Linear(), lambda x: x[..., 0], noise(1, 3, rng, 1), rng=rng
        )
        assert calls / 2 < int(trace.calls[0]) <= calls
        assert_close(out.rewards, out.x[..., 0])


@pytest.mark.parametrize("calls", [16, 64])
def test_beam_finds_more_than_best_of_n(calls: int, mixture: GaussianMixture, rng: torch.Generator) -> None:
    flow, x0 = mixture.flow(tolerance=1e-2), noise(20, 4, rng)
    plain = near(jump(flow, noise(20 * 4, calls, rng).flatten(0, 1), 0.0, 1.0)).view(20, -1).amax(-1)
    out, _ = Beam(selection="beam").with_budget(4 * calls, 4)(flow, Linear(), near, x0, rng=rng)
    assert out.rewards is not None and out.rewards.amax(-1).mean() > plain.mean()


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"children": 0}, "children.*got 0"),
        ({"last_time": 1.0}, "last_time.*got 1.0"),
        ({"selection": "global"}, "selection.*local, beam.*got 'global'"),
        ({"weights": "exact"}, "weights.*uniform, nested.*got 'exact'"),
        ({"weights": "nested", "selection": "beam"}, "got weights='nested'"),
    ],
)
def test_bad_settings_raise(kwargs: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Beam(**kwargs)
