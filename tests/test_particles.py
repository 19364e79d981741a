import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from steer import particles
from steer.particles import Particles, Trace, ess, gather, log_mean_exp, normalise


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
    start, many = torch.zeros(1, 4), torch.full((3,), 10)
    trace = Trace(torch.zeros(1), start[:, :1], start[:, :1].bool(), torch.zeros(3), many, many // 2, many, start)
    assert trace.calls.tolist() == [20] * 3 and Particles(start, start).rewards is None


def test_bounded_shortens_what_is_longer() -> None:
    x = torch.tensor([[[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]]])
    out = particles.bounded(x, torch.ones(1, 3, 1))
    assert_close(out, torch.tensor([[[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]]]))


@pytest.mark.parametrize(("calls", "steps"), [(40, 3), (39, 2), (16, 1)])
def test_steps_within_a_budget(calls: int, steps: int) -> None:
    assert particles.steps_within(calls, 4, a_step=3, besides=1) == steps


def test_too_small_a_budget_names_the_least() -> None:
    with pytest.raises(ValueError, match="budget of 15 calls.*the least is 16"):
        particles.steps_within(15, 4, a_step=3, besides=1)


def test_limited_bounds_a_push_and_says_how_long_it_was() -> None:
    push, unit = torch.tensor([[[3.0, 4.0], [0.3, 0.4]]]), torch.tensor([[[2.0], [1.0]]])
    short, ratio = particles.limited(push, unit, 0.5)
    assert_close(short, torch.tensor([[[0.6, 0.8], [0.3, 0.4]]]))
    assert_close(ratio, torch.tensor([1.5]))
    assert_close(particles.limited(push, 0 * unit, math.inf)[0], push)
    assert_close(particles.unit_length(push), torch.tensor([[[0.6, 0.8], [0.6, 0.8]]]))
    assert (particles.unit_length(0 * push) == 0).all()


def test_checks_name_the_field_and_its_value() -> None:
    class Settings:
        k, kind, share = math.nan, "other", 1.0

    with pytest.raises(ValueError, match="k must be at least 0, got nan"):
        particles.check_least(Settings(), share=0, k=0)
    with pytest.raises(ValueError, match="share must be between 0 and 1, got 1.0"):
        particles.check_between(Settings(), share=(0, 1))
    with pytest.raises(ValueError, match="kind must be one of this, that, got 'other'"):
        particles.check_choice(Settings(), kind=("this", "that"))
