"""Any arguments: they work, or one error says in our words what was wrong; weights and budgets hold for all of them."""

# ruff: noqa: ANN401 (values of any kind)

import math
import traceback
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from colours import colour_model, redness
from fuzzing import INSIDE, fuzz
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import steer
from steer import settings as names
from steer.analytic import GaussianMixture
from steer.interpolants import Linear
from steer.particles import gather
from steer.resampling import RESAMPLERS

HERE = [Path(package.__file__).parent for package in (steer, __import__("rewards"))]


class Own(Exception):
    """A user's own."""


def raised(error: Exception) -> Path:
    return Path(traceback.extract_tb(error.__traceback__)[-1].filename)


NUMBERS = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 4), st.sampled_from([2**31, 2**63, 10**30, -(10**30)]), st.floats(),
    st.complex_numbers(), st.sampled_from([np.int64(2), np.float64(0.5), np.bool_(True), np.array([1, 2])]),
)  # fmt: skip
ODD = st.one_of(
    NUMBERS, st.text(st.characters(), max_size=6), st.binary(max_size=3), st.lists(NUMBERS, max_size=2),
    st.dictionaries(st.text(max_size=3), NUMBERS, max_size=2),
    st.sampled_from([torch.zeros(2), torch.tensor(1), object(), object, len, Path("x"), range(2), Own("x"), set()]),
)  # fmt: skip
SOUND: dict[str, Any] = {
    "prompt": st.one_of(st.text(st.characters(), min_size=1, max_size=8), st.just(["a", "é\ud800"])),
    "n": st.integers(1, 4), "steps": st.one_of(st.none(), st.integers(1, 3)), "seed": st.integers(0, 2**63 - 1),
    "temperature": st.one_of(st.none(), st.floats(1e-3, 1e3), st.just(math.inf)),
    "budget": st.one_of(st.none(), st.integers(1, 40)), "want": st.sampled_from(["sample", "best"]),
    "method": st.one_of(st.none(), st.sampled_from(["smc", "best_of_n", "tds", "guidance", "beam"])),
    "chunk": st.one_of(st.none(), st.integers(1, 9)), "checkpoint": st.booleans(), "spread": st.none(),
    "reward": st.sampled_from([redness, "redness", {"redness": 2.0, "brightness": -1}, "jpeg-size"]),
    "model": st.sampled_from(["colours", "shapes"]), "device": st.just("cpu"), "progress": st.just(False),
}  # fmt: skip


@cache
def model(name: str) -> Any:
    return colour_model() if name == "colours" else steer.load_model(name, "cpu")


@fuzz(250)
@given(st.fixed_dictionaries(SOUND), st.sampled_from(sorted(SOUND)), ODD, st.booleans())
def test_any_arguments_work_or_are_refused_by_name(call: dict[str, Any], name: str, value: Any, odd: bool) -> None:
    """Of sound arguments, or of such with one that is anything: no other error than ours, which names the argument."""
    known = call["model"] in ("colours", "shapes")
    call["model"] = model(call["model"]) if known else call["model"]
    call |= {"steps": None, "budget": None, name: value} if odd else {}  # these two may be at odds, or too small
    prompt = call.pop("prompt")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            out = steer.sample(prompt, **call)
    except (ValueError, TypeError, OSError) as error:
        said = str(error)
        assert any(home in raised(error).parents for home in HERE), said
        assert not any(word in said for word in INSIDE), said
        assert not odd or name in said or not is_odd(name, value), said
    else:
        assert out.images.isfinite().all() and out.log_w.exp().sum(1).allclose(torch.ones(len(out.prompts)))


def is_odd(name: str, value: Any) -> bool:
    """Whether no value of this kind is sound: then the message must name it; a sound one may fail with the others."""
    if name in ("n", "steps", "budget", "seed", "chunk", "temperature", "method", "reward"):
        return not isinstance(value, int | float | np.integer | np.floating | str | dict | None) and not callable(value)
    return False


RETURNS: dict[str, Any] = {
    "none": lambda x: None, "text": lambda x: "a" * len(x), "a dict": lambda x: {"score": 1}, "a set": lambda x: {1.0},
    "a generator": lambda x: (i for i in range(len(x))), "one number": lambda x: x.mean(), "pictures": lambda x: x,
    "a column": lambda x: x.mean((1, 2, 3))[:, None], "too many": lambda x: [0.0] * (len(x) + 1), "no": lambda x: [],
    "ragged": lambda x: [[0.0] * i for i in range(len(x) + 1)], "nan": lambda x: [math.nan] * len(x),
    "infinite": lambda x: [math.inf] * len(x), "beyond": lambda x: [1e300] * len(x), "big": lambda x: [10**30] * len(x),
    "imaginary": lambda x: x.mean((1, 2, 3)) * 1j, "sparse": lambda x: x.mean((1, 2, 3)).to_sparse(),
    "meta": lambda x: x.mean((1, 2, 3)).to("meta"), "words": lambda x: np.array(["good"] * len(x)),
    "quantised": lambda x: torch.quantize_per_tensor(x.mean((1, 2, 3)), 0.1, 0, torch.qint8),
    "nested": lambda x: torch.nested.nested_tensor([torch.ones(1)] * len(x)), "objects": lambda x: [object()] * len(x),
}  # fmt: skip


@pytest.mark.parametrize("kind", RETURNS)
@pytest.mark.parametrize("method", [None, "smc", "guidance"])
def test_whatever_a_reward_returns(kind: str, method: str | None) -> None:
    def mine(images: Tensor) -> Any:
        return RETURNS[kind](images)

    with pytest.raises((ValueError, TypeError), match="reward 'mine'") as caught:
        steer.sample("a", reward=mine, model=model("colours"), method=method, n=3, progress=False, device="cpu")
    assert any(home in raised(caught.value).parents for home in HERE)


@fuzz(40)
@given(st.integers(1, 12), st.sampled_from([Own, KeyError, RuntimeError, TypeError, AttributeError]), st.booleans())
def test_an_exception_of_a_reward_passes_as_it_is(when: int, kind: type[Exception], gradient: bool) -> None:
    """From any of its calls. (An error in torch on a picture that wants a gradient is asked again without.)"""
    own, calls = kind("mine"), []

    def mine(images: Tensor) -> Tensor:
        calls.append(len(images))
        if len(calls) >= when:
            raise own
        return redness(images)

    method = "tds" if gradient else "smc"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            steer.sample("a", reward=mine, model=model("colours"), method=method, n=2, steps=2, progress=False)
        except Exception as error:
            assert error is own
        else:
            assert len(calls) < when


WEIGHTS = st.one_of(st.floats(), st.integers(-(10**6), 10**6), st.none(), st.booleans(), st.text(max_size=3))


@fuzz(80)
@given(st.dictionaries(st.sampled_from(["redness", "brightness", "jpeg-size", "clop", ""]), WEIGHTS, max_size=3))
def test_weights_of_any_kind(weights: dict[str, Any]) -> None:
    """They work where all are finite and known, and overflow nothing; the message names the reward otherwise."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            out = steer.sample("a", reward=weights, model=model("colours"), n=2, method="smc", steps=1, progress=False)
    except ValueError as error:
        assert "reward" in str(error) and not any(word in str(error) for word in INSIDE)
    else:
        assert all(math.isfinite(w) for w in weights.values()) and out.rewards.isfinite().all()


# resampling and budgets


@st.composite
def log_weights(draw: Any) -> Tensor:
    """[p n], of any scale, some of them -inf, at least one a row not."""
    p, n, scale = draw(st.integers(1, 3)), draw(st.integers(1, 9)), draw(st.sampled_from([0.1, 3.0, 300.0, 1e30]))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    log_w = scale * torch.randn(p, n, generator=rng, dtype=torch.float64)
    dead = torch.rand(p, n, generator=rng) < draw(st.sampled_from([0.0, 0.5, 1.0]))
    dead[torch.arange(p), torch.randint(n, (p,), generator=rng)] = False
    return log_w.masked_fill(dead, -math.inf)


def generators(p: int, seed: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(1000 * seed + i) for i in range(p)]


def counted(index: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(index, index.shape[-1]).sum(-2).double()


@pytest.mark.parametrize("name", sorted(RESAMPLERS))
@fuzz(40)
@given(log_weights(), st.integers(0, 2**16))
def test_resampling_is_unbiased_and_picks_nothing_dead(name: str, log_w: Tensor, seed: int) -> None:
    """Mean counts within 5 standard errors of n w, of 400 draws at once; -inf never; rows know nothing of others."""
    p, n = log_w.shape
    many = log_w.repeat(400, 1)
    counts = counted(RESAMPLERS[name](many, rng=torch.Generator().manual_seed(seed))).view(400, p, n)
    w = log_w.softmax(-1)
    assert (counts[:, log_w == -math.inf] == 0).all() and (counts.sum(-1) == n).all()
    spread = torch.maximum(counts.std(0), (n * w * (1 - w)).sqrt().clamp(max=0.5)) / 20  # rare ones may never be seen
    assert ((counts.mean(0) - n * w).abs() <= 5 * spread + 1e-9).all()
    turned = torch.arange(p).flip(0)
    index, rngs = RESAMPLERS[name](log_w, rng=generators(p, seed)), generators(p, seed)
    assert torch.equal(RESAMPLERS[name](log_w[turned], rng=[rngs[i] for i in turned]), index[turned])


@pytest.mark.parametrize("name", sorted(RESAMPLERS))
@fuzz(25)
@given(log_weights(), st.integers(0, 2**16), st.randoms(use_true_random=False))
def test_the_order_of_particles_does_not_matter(name: str, log_w: Tensor, seed: int, random: Any) -> None:
    """Mean counts of particles in another order are those in the first, in that order: within 5 standard errors."""
    order = torch.tensor(random.sample(range(log_w.shape[1]), log_w.shape[1]))
    means, errors = [], []
    for weights in (log_w, log_w[:, order]):
        counts = counted(RESAMPLERS[name](weights.repeat(400, 1), rng=torch.Generator().manual_seed(seed)))
        counts = counts.view(400, *log_w.shape)
        means.append(counts.mean(0)), errors.append((counts.var(0) / 400).sqrt() + 0.02)
    assert ((means[0][:, order] - means[1]).abs() <= 5 * (errors[0][:, order] + errors[1])).all()


@fuzz(40)
@given(log_weights(), st.integers(0, 2**16))
def test_all_of_a_particle_moves_together(log_w: Tensor, seed: int) -> None:
    index = RESAMPLERS["systematic"](log_w, rng=torch.Generator().manual_seed(seed))
    label = torch.arange(log_w.numel()).view(log_w.shape)
    parts = {"x": label[..., None, None].expand(-1, -1, 2, 3).double(), "pair": (label, [label.float()]), "n": 3}
    moved = gather(parts, index)
    assert torch.equal(moved["pair"][0], torch.gather(label, 1, index)) and moved["n"] == 3
    for part in (moved["x"][..., 0, 0], moved["x"][..., 1, 2], moved["pair"][1][0]):
        assert torch.equal(part.long(), moved["pair"][0])


def spend(name: str, budget: int, n: int, p: int, seed: int) -> None:
    """Whatever the budget, particles, prompts; one that is too small names the least, which then is kept to."""
    two = GaussianMixture(
        torch.tensor([0.4, 0.6]), torch.tensor([[-1.0, 0.0], [1.0, 0.5]]), 0.2 * torch.eye(2).repeat(2, 1, 1)
    )
    method = names.build("method", name)
    try:
        within = method.with_budget(budget, n=n)
    except ValueError as error:
        budget, least = int(str(error).rsplit(" ", 1)[1]), budget
        assert least < budget
        within = method.with_budget(budget, n=n)
    rng = torch.Generator().manual_seed(seed)
    _, trace = within(two.flow(), Linear(), lambda x: x[..., 0], torch.randn(p, n, 2, generator=rng), rng=rng)
    assert (trace.calls <= budget).all() and (trace.calls > 0).all()


ASKED = (st.integers(1, 5), st.integers(1, 2), st.integers(0, 99))  # particles, prompts, a seed


@pytest.mark.parametrize("name", names.names("method"))
@fuzz(2)
@given(st.integers(1, 40), *ASKED)
def test_no_method_spends_more_than_its_budget(name: str, budget: int, n: int, p: int, seed: int) -> None:
    spend(name, budget, n, p, seed)


@pytest.mark.slow
@fuzz(150)
@given(st.sampled_from(names.names("method")), st.integers(1, 400), *ASKED)
def test_larger_budgets(name: str, budget: int, n: int, p: int, seed: int) -> None:
    spend(name, budget, n, p, seed)
