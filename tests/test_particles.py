import math
from dataclasses import dataclass

import pytest
import torch
from conftest import z_score
from torch import Tensor
from torch.testing import assert_close

from steer import particles
from steer.particles import RESAMPLERS, Particles, Trace, ess, gather, log_mean_exp, normalise

ALL = pytest.mark.parametrize("name", sorted(RESAMPLERS))


def counts(index: Tensor, n: int) -> Tensor:
    """How often each particle was chosen [p n]."""
    return torch.nn.functional.one_hot(index, n).sum(-2)


def weights(dtype: torch.dtype = torch.float64) -> Tensor:
    """Two prompts with unequal weights, one of them zero."""
    return torch.tensor([[0.5, 0.2, 0.0, 0.29, 0.01], [0.0, 0.0, 0.3, 0.3, 0.4]], dtype=dtype)


@ALL
def test_expected_counts_are_n_w(name: str, rng: torch.Generator) -> None:
    w = weights()
    drawn = torch.stack([counts(RESAMPLERS[name](w.log(), rng=rng), 5).double() for _ in range(3000)])
    alive = w > 0
    assert (drawn[:, ~alive] == 0).all()
    exact = drawn.std(0) < 1e-9  # systematic and residual may choose a particle a fixed number of times
    assert_close(drawn.mean(0)[exact & alive], (5 * w)[exact & alive], atol=1e-6, rtol=0)
    assert z_score(drawn[:, alive & ~exact], (5 * w)[alive & ~exact]) < 4.5


@pytest.mark.parametrize(("name", "slack"), [("systematic", 1), ("stratified", 2)])
def test_counts_stay_close_to_n_w(name: str, slack: int, rng: torch.Generator) -> None:
    log_w = torch.randn(50, 64, generator=rng).log_softmax(-1)
    off = counts(RESAMPLERS[name](log_w, rng=rng), 64) - 64 * log_w.exp()
    assert off.abs().max() < slack


def test_residual_keeps_the_floors(rng: torch.Generator) -> None:
    log_w = torch.randn(50, 64, generator=rng).double().log_softmax(-1)
    assert (counts(particles.residual(log_w, rng=rng), 64) >= (64 * log_w.exp()).floor()).all()


@ALL
def test_equal_weights_of_systematic_kind_keep_everyone(name: str, rng: torch.Generator) -> None:
    index = RESAMPLERS[name](torch.zeros(3, 8), rng=rng)
    assert index.shape == (3, 8)
    if name in ("systematic", "stratified", "residual"):
        assert torch.equal(index.sort(-1).values, torch.arange(8).expand(3, 8))


class EndOfRange:
    """Stands where torch.rand stood: every uniform is `value`."""

    def __init__(self, value: float) -> None:
        self.value = value

    def __call__(self, shape: torch.Size, *, dtype: torch.dtype, **_: object) -> Tensor:
        """The constant draws."""
        return torch.full(shape, self.value, dtype=dtype)


@ALL
@pytest.mark.parametrize("u", [0.0, 1 - 2**-53])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dead_particles_are_never_chosen_at_the_ends(
    name: str, u: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, rng: torch.Generator
) -> None:
    """Zero weights at both ends, 0.1 ten times (whose float32 sum ends below one), and the extreme uniforms."""
    log_w = torch.tensor([[0.0] + [0.1] * 10 + [0.0, 0.0]], dtype=dtype).log()
    monkeypatch.setattr(torch, "rand", EndOfRange(u))
    index = RESAMPLERS[name](log_w, rng=rng)
    assert (log_w[0, index[0]] > -math.inf).all()


@ALL
def test_one_survivor_takes_all(name: str, rng: torch.Generator) -> None:
    log_w = torch.full((1, 6), -math.inf)
    log_w[0, 4] = -1e30
    assert (RESAMPLERS[name](log_w, rng=rng) == 4).all()


@ALL
def test_prompts_do_not_mix(name: str, rng: torch.Generator) -> None:
    log_w = torch.full((3, 3), -math.inf)
    log_w[torch.arange(3), torch.tensor([2, 0, 1])] = 0.0
    assert torch.equal(RESAMPLERS[name](log_w, rng=rng), torch.tensor([[2] * 3, [0] * 3, [1] * 3]))


@ALL
def test_a_row_of_rejections_raises_and_names_the_prompt(name: str, rng: torch.Generator) -> None:
    log_w = torch.zeros(3, 4)
    log_w[1] = -math.inf
    with pytest.raises(ValueError, match="prompt row 1 .*-inf"):
        RESAMPLERS[name](log_w, rng=rng)


def test_unknown_resampler_names_the_known() -> None:
    with pytest.raises(ValueError, match="'multinomial', 'residual', 'stratified', 'systematic'"):
        particles.resampler("systemic")


def test_normalise(dtype: torch.dtype) -> None:
    log_w = torch.tensor([[1000.0, 1000.0, -math.inf]], dtype=dtype)
    assert_close(normalise(log_w).exp(), torch.tensor([[0.5, 0.5, 0.0]], dtype=dtype))
    with pytest.raises(ValueError, match="prompt row 0, 2"):
        normalise(torch.tensor([[math.nan, 0.0], [0.0, 0.0], [math.inf, 0.0]]))


def test_ess_of_known_weights() -> None:
    log_w = torch.tensor([[0.0] * 4, [0.0, -math.inf, -math.inf, -math.inf], [-math.inf] * 4, [900.0, 900.0, 0.0, 0.0]])
    assert_close(ess(log_w), torch.tensor([4.0, 1.0, 0.0, 2.0]))


def test_log_mean_exp_carries_no_log_n() -> None:
    assert_close(log_mean_exp(torch.full((2, 1000), 3.0)), torch.tensor([3.0, 3.0]))


@dataclass(frozen=True)
class State:
    """A nested state."""

    x: Tensor
    more: dict[str, Tensor | None]
    pair: tuple[Tensor, int]


def test_gather_moves_everything_together() -> None:
    tag = torch.arange(8).view(2, 4)
    state = State(tag[..., None, None].expand(2, 4, 3, 2).double(), {"twist": tag * 10, "none": None}, (-tag, 7))
    index = torch.tensor([[3, 3, 0], [1, 2, 2]])
    moved, kept = gather(state, index), torch.tensor([[3, 3, 0], [5, 6, 6]])
    assert torch.equal(moved.x, kept[..., None, None].expand(2, 3, 3, 2).double())
    assert torch.equal(moved.more["twist"], 10 * kept) and moved.more["none"] is None  # pyright: ignore[reportArgumentType]
    assert torch.equal(moved.pair[0], -kept) and moved.pair[1] == 7


def test_gather_leaves_no_tensor_behind_in_silence() -> None:
    with pytest.raises(ValueError, match=r"state\['log_z'\] has shape \(4,\)"):
        gather({"x": torch.zeros(2, 4), "log_z": torch.zeros(4)}, torch.zeros(2, 4, dtype=torch.long))


def test_gather_passes_gradients() -> None:
    x = torch.ones(1, 3, 2, requires_grad=True)
    gather(x, torch.tensor([[1, 1, 2]])).sum().backward()
    assert x.grad is not None and torch.equal(x.grad[0, :, 0], torch.tensor([0.0, 2.0, 1.0]))


@pytest.mark.parametrize(
    ("r", "error", "match"),
    [
        (torch.zeros(2), ValueError, r"shape \(2, 3\), got \(2,\)"),
        (torch.zeros(()), ValueError, "one number a sample"),
        (torch.tensor([[0.0, 1.0, 2.0], [0.0, math.nan, 2.0]]), ValueError, "NaN or .inf for prompt row 1"),
        (torch.full((2, 3), math.inf), ValueError, "prompt row 0, 1"),
        (torch.zeros(2, 3, dtype=torch.complex64), TypeError, "real"),
        ([[0.0] * 3] * 2, TypeError, "must return a tensor, got list"),
    ],
)
def test_bad_rewards_raise(r: Tensor, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        particles.check_rewards(r, (2, 3), torch.float32)


def test_good_rewards_pass_in_the_dtype_of_the_particles() -> None:
    r = particles.check_rewards(torch.tensor([[1, 0, 2]]), (1, 3), torch.float64)
    assert r.dtype == torch.float64
    assert particles.check_rewards(torch.tensor([[-math.inf]]), (1, 1), torch.float32).item() == -math.inf


def test_temperature_of_infinity_keeps_rejections() -> None:
    r = torch.tensor([[5.0, -math.inf]])
    assert torch.equal(particles.tempered(r, math.inf), torch.tensor([[0.0, -math.inf]]))


def test_trace_counts_a_backward_row_as_two() -> None:
    start = torch.zeros(1, 4)
    trace = Trace.counted(
        torch.zeros(1), start[:, :1], start[:, :1].bool(), torch.zeros(3), start, 10, backward=4, reward_calls=10
    )
    assert trace.calls.tolist() == [18] * 3 and Particles(start, start).rewards is None
