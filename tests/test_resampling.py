import math

import pytest
import torch
from conftest import z_score
from torch import Tensor
from torch.testing import assert_close

from steer import resampling
from steer.resampling import RESAMPLERS

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


@pytest.mark.parametrize(("name", "slack"), [("systematic", 1), ("stratified", 2), ("ssp", 1)])
def test_counts_stay_close_to_n_w(name: str, slack: int, rng: torch.Generator) -> None:
    log_w = torch.randn(50, 64, generator=rng).log_softmax(-1)
    off = counts(RESAMPLERS[name](log_w, rng=rng), 64) - 64 * log_w.exp()
    assert off.abs().max() < slack


def test_residual_keeps_the_floors(rng: torch.Generator) -> None:
    log_w = torch.randn(50, 64, generator=rng).double().log_softmax(-1)
    assert (counts(resampling.residual(log_w, rng=rng), 64) >= (64 * log_w.exp()).floor()).all()


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
    with pytest.raises(ValueError, match="'multinomial', 'residual', 'ssp', 'stratified', 'systematic'"):
        resampling.resampler("systemic")
