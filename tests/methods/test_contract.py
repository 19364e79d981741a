"""What every method promises, checked on each of them."""

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from conftest import Counting
from torch import Tensor
from torch.testing import assert_close

from steer import settings
from steer.analytic import GaussianMixture
from steer.flow_map import FlowMap
from steer.interpolants import Interpolant, Linear
from steer.methods import SMC, BestOfN, Guidance, Method

SPEND = 40  # calls a particle, within which every method is tried here
METHODS: dict[str, Method] = {name: settings.build("method", name) for name in settings.names("method")} | {
    "smc, residual": SMC(steps=4, ess_threshold=1.0, resample="residual"),
    "guidance, path weights": Guidance(steps=2, weights="path"),
}


@pytest.fixture(scope="module")
def mixture() -> GaussianMixture:
    """One Gaussian: these tests are about bookkeeping, and its flow map is a formula."""
    cov = torch.tensor([[0.8, 0.3], [0.3, 0.5]]).double()
    return GaussianMixture(torch.ones(1).double(), torch.tensor([[0.4, -0.2]]).double(), cov[None])


@pytest.fixture(params=METHODS)
def name(request: pytest.FixtureRequest) -> str:
    """Each method by name: all of configs/method, and some with other settings."""
    return request.param


@pytest.fixture
def method(name: str) -> Method:
    """The method, at a size that suits a test of 6 particles."""
    return METHODS[name].with_budget(SPEND * 6, n=6)


def slope(x: Tensor) -> Tensor:
    """A reward that is linear in the first coordinate."""
    return x[..., 0]


def start(p: int = 2, n: int = 6, dtype: torch.dtype = torch.float64) -> Tensor:
    """Noise in the plane."""
    return torch.randn(p, n, 2, generator=torch.Generator().manual_seed(5), dtype=dtype)


def seed(s: int = 0) -> torch.Generator:
    """A generator."""
    return torch.Generator().manual_seed(s)


def test_shapes_weights_and_dtype(
    method: Method, mixture: GaussianMixture, path: Interpolant, dtype: torch.dtype
) -> None:
    out, trace = method(mixture.flow(path), path, slope, start(dtype=dtype), rng=seed())
    assert out.x.shape == (2, 6, 2) and out.log_w.shape == (2, 6)
    assert out.x.dtype == out.log_w.dtype == trace.log_z.dtype == dtype
    assert_close(out.log_w.exp().sum(-1), torch.ones(2, dtype=dtype))
    assert trace.log_z.shape == trace.calls.shape == (2,) and trace.ancestors.shape == (2, 6)
    assert trace.ess.shape == trace.resampled.shape == (len(trace.times), 2)
    assert ((trace.ess >= 0) & (trace.ess <= 6 + 1e-4)).all()


def test_rewards_are_those_of_what_is_returned(method: Method, mixture: GaussianMixture) -> None:
    out, _ = method(mixture.flow(), Linear(), slope, start(), rng=seed())
    assert out.rewards is not None
    assert_close(out.rewards, slope(out.x))


@pytest.mark.parametrize("n", [1, 5])
def test_calls_are_counted_truly(
    method: Method, n: int, mixture: GaussianMixture, counting: Callable[[FlowMap], Counting]
) -> None:
    flow, scored = counting(mixture.flow()), []

    def reward(x: Tensor) -> Tensor:
        scored.append(x.shape[1])
        return slope(x)

    _, trace = method(flow, Linear(), reward, start(3, n), rng=seed())
    assert trace.forward.tolist() == [flow.forward // 3] * 3
    assert trace.backward.tolist() == [flow.backward // 3] * 3
    assert trace.reward_calls.tolist() == [sum(scored)] * 3
    assert (trace.calls == trace.forward + 2 * trace.backward).all()


@pytest.mark.parametrize("n", [1, 3])
def test_budget_is_never_overspent_and_mostly_spent(name: str, n: int, mixture: GaussianMixture) -> None:
    """Whatever the budget; one that is too small names the least, and that one works."""
    method, flow = METHODS[name], mixture.flow()
    budgets = [1, 2 * n, 5 * n + 1, 16 * n, 33 * n + 2, 128 * n]
    for calls in budgets:
        try:
            within = method.with_budget(calls, n=n)
        except ValueError as error:
            least = int(str(error).rsplit(" ", 1)[1])
            assert calls < least <= budgets[-1]
            calls, within = least, method.with_budget(least, n=n)
        assert type(within) is type(method)
        _, trace = within(flow, Linear(), slope, start(1, n), rng=seed())
        assert calls / 2 < int(trace.calls[0]) <= calls


def test_budget_keeps_the_other_settings() -> None:
    assert SMC(temperature=0.3, resample="residual").with_budget(64, n=8) == SMC(8, 0.3, resample="residual")
    assert Guidance(strength=2.0).with_budget(70, n=10) == Guidance(2, strength=2.0)
    assert BestOfN(temperature=2.0).with_budget(70, n=10) == BestOfN(7, 2.0)


def test_same_seed_same_output(method: Method, mixture: GaussianMixture) -> None:
    flow = mixture.flow()
    runs = [method(flow, Linear(), slope, start(), rng=seed(7))[0] for _ in range(2)]
    assert torch.equal(runs[0].x, runs[1].x) and torch.equal(runs[0].log_w, runs[1].log_w)


def test_nothing_is_seeded_globally_and_inputs_are_untouched(method: Method, mixture: GaussianMixture) -> None:
    x0, before = start(), torch.get_rng_state()
    kept = x0.clone()
    method(mixture.flow(), Linear(), slope, x0, rng=seed())
    assert torch.equal(torch.get_rng_state(), before) and torch.equal(x0, kept) and not x0.requires_grad


def test_infinite_temperature_gives_equal_weights(method: Method, mixture: GaussianMixture) -> None:
    if not hasattr(method, "temperature"):
        pytest.skip("has no temperature")
    hot = dataclasses.replace(method, temperature=math.inf)  # pyright: ignore[reportArgumentType]
    out, _ = hot(mixture.flow(), Linear(), slope, start(), rng=seed())
    assert_close(out.log_w.exp(), torch.full((2, 6), 1 / 6).double())


def test_steered_rewards_rise(method: Method, mixture: GaussianMixture) -> None:
    flow, x0 = mixture.flow(), start(2, 100)
    plain, _ = BestOfN(temperature=math.inf)(flow, Linear(), slope, x0, rng=seed())
    out, _ = method(flow, Linear(), slope, x0, rng=seed())
    steered = (out.log_w.exp() * slope(out.x)).sum(-1)
    assert (steered > slope(plain.x).mean(-1) + 0.02).all()  # weak pushes, but of the same noise


def test_some_rejections_are_legal(method: Method, mixture: GaussianMixture) -> None:
    def half(x: Tensor) -> Tensor:
        return torch.where(x[..., 1] > 0, x[..., 0], -math.inf)

    out, trace = method(mixture.flow(), Linear(), half, start(2, 40), rng=seed())
    assert out.x.isfinite().all() and not out.log_w.isnan().any()
    assert_close(out.log_w.exp().sum(-1), torch.ones(2).double())
    assert (out.log_w[out.x[..., 1] <= 0] == -math.inf).all() and not (trace.log_z == -math.inf).any()


def test_nan_rewards_raise_and_name_the_prompt(method: Method, mixture: GaussianMixture) -> None:
    def broken(x: Tensor) -> Tensor:
        return slope(x) * torch.tensor([[1.0], [math.nan]])

    with pytest.raises(ValueError, match="NaN or .inf for prompt row 1"):
        method(mixture.flow(), Linear(), broken, start(), rng=seed())


def test_all_rejected_raises_and_names_the_prompt(method: Method, mixture: GaussianMixture) -> None:
    def harsh(x: Tensor) -> Tensor:
        return slope(x) + torch.tensor([[0.0], [-math.inf]])

    with pytest.raises(ValueError, match="every particle of prompt row 1"):
        method(mixture.flow(), Linear(), harsh, start(), rng=seed())


def test_prompts_with_their_own_generators_get_what_they_get_alone(method: Method, mixture: GaussianMixture) -> None:
    x0, flow = start(), mixture.flow()
    sign = torch.tensor([[1.0], [-1.0]]).double()
    together, _ = method(flow, Linear(), lambda x: sign * slope(x), x0, rng=[seed(3), seed(4)])
    for i in (0, 1):
        alone, _ = method(flow, Linear(), lambda x, i=i: sign[i] * slope(x), x0[i : i + 1], rng=[seed(3 + i)])
        assert_close(together.x[i], alone.x[0])
        assert_close(together.log_w[i], alone.log_w[0])


def test_one_particle_of_one_prompt(name: str, mixture: GaussianMixture) -> None:
    method = METHODS[name].with_budget(SPEND, n=1)
    out, trace = method(mixture.flow(), Linear(), slope, start(1, 1), rng=seed())
    assert out.x.shape == (1, 1, 2) and (out.log_w == 0).all() and out.x.isfinite().all() and trace.calls.shape == (1,)


def test_rewards_reduced_over_the_batch_raise(method: Method, mixture: GaussianMixture) -> None:
    with pytest.raises(ValueError, match="one number a sample"):
        method(mixture.flow(), Linear(), lambda x: slope(x).mean(), start(), rng=seed())


def test_a_user_s_exception_comes_through_unwrapped(method: Method, mixture: GaussianMixture) -> None:
    def mine(x: Tensor) -> Tensor:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        method(mixture.flow(), Linear(), mine, start(), rng=seed())


def test_cond_reaches_every_particle_of_its_prompt(method: Method) -> None:
    def shifted(x: Tensor, s: object, t: object, cond: object = None) -> Tensor:
        assert isinstance(cond, dict)
        return 0 * x + cond["to"][:, None]

    cond = {"to": torch.tensor([10.0, -10.0]).double()}
    out, _ = method(shifted, Linear(), slope, start(), cond, rng=seed())
    assert (out.x[0] > 0).any() and out.x[0].mean() > out.x[1].mean() + 10


@pytest.mark.parametrize(("field", "value"), [("steps", 0), ("temperature", -1.0), ("temperature", 0.0)])
def test_bad_settings_raise(name: str, field: str, value: float) -> None:
    if not hasattr(METHODS[name], field):
        pytest.skip(f"has no {field}")
    with pytest.raises(ValueError, match=f"{field}.*got {value}"):
        dataclasses.replace(METHODS[name], **{field: value})  # pyright: ignore


@pytest.mark.parametrize("x0", [torch.zeros(3, 2), torch.zeros(2, 0, 2), torch.zeros(2, 3, 2, dtype=torch.long)])
def test_what_is_no_noise_raises(method: Method, x0: Tensor, mixture: GaussianMixture) -> None:
    with pytest.raises(ValueError, match=r"x0 must be floats \[p n \*d\]"):
        method(mixture.flow(), Linear(), slope, x0, rng=seed())
