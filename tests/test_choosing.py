"""Which method is taken where none is named, and what becomes of the settings that are asked for."""

import dataclasses
import itertools
import math

import pytest
from colours import redness

import rewards
from steer import settings
from steer.choosing import Asked, choose, ranked
from steer.methods import SMC, Guidance

PLAIN = rewards.to_reward(redness)


@dataclasses.dataclass(frozen=True)
class Bare:
    """A method without a setting."""


def asked(differentiable: bool = True, **given: object) -> Asked:
    return Asked(PLAIN, differentiable, **({"prompts": 1, "n": 16} | given))  # type: ignore[arg-type]


def test_only_methods_that_exist_and_suit_the_reward_are_ranked() -> None:
    known = settings.names("method")
    for want, gradient, n, budget in itertools.product(("sample", "best"), (True, False), (1, 4, 64), (None, 4, 999)):
        names = ranked(want, gradient, n, budget)
        assert names and names[-1] == "best_of_n" and set(names) <= set(known)
        assert gradient or not any(settings.build("method", name).needs_gradient for name in names)


@pytest.mark.parametrize("want", ["sample", "best"])
@pytest.mark.parametrize("differentiable", [True, False])
@pytest.mark.parametrize("n", [1, 3, 16])
def test_any_budget_of_a_call_a_particle_is_kept(want: str, differentiable: bool, n: int) -> None:
    """By a method that can divide it, whatever it is."""
    for each in (1, 2, 3, 4, 5, 8, 20, 100):
        chosen = choose(None, asked(differentiable, want=want, n=n, budget=each * n))
        again = chosen.method.with_budget(each * n, n)
        assert again == chosen.method and (differentiable or not chosen.method.needs_gradient)


def test_a_budget_below_one_call_a_particle_names_the_least() -> None:
    with pytest.raises(ValueError, match="budget of 15 calls is too small for 16 particles.*the least is 16"):
        choose(None, asked(budget=15))


@pytest.mark.parametrize(
    "given, name",
    [
        ({}, "tds"),
        ({"differentiable": False}, "smc_sde"),
        ({"differentiable": False, "budget": 31}, "best_of_n"),
        ({"budget": 64}, "smc"),
        ({"budget": 16 * 15}, "smc_sde"),
        ({"budget": 16 * 16}, "tds"),
        ({"n": 2}, "guidance"),
        ({"n": 2, "differentiable": False}, "best_of_n"),
        ({"want": "best"}, "fmrg_e"),
        ({"want": "best", "differentiable": False}, "beam"),
    ],
)
def test_what_is_taken(given: dict[str, object], name: str) -> None:
    assert choose(None, asked(**given)).name == name  # type: ignore[arg-type]


def test_settings_reach_the_method_and_its_own_stay() -> None:
    chosen = choose(SMC(last_time=0.6, temperature=2.0), asked(steps=3))
    assert chosen.method == SMC(steps=3, last_time=0.6, temperature=2.0)
    assert (chosen.temperatures, chosen.origin) == ((2.0,), "the method's own")
    assert choose("smc", asked(prompts=2, temperature=0.5)).temperatures == (0.5, 0.5)
    assert choose("smc", asked(temperature=math.inf)).method.temperature == math.inf
    assert (choose("smc", asked()).temperatures, choose("smc", asked()).origin) == ((), "")  # to be measured


def test_measured_temperatures_are_kept_and_their_mean_is_the_method_s() -> None:
    chosen = choose("smc", asked(prompts=2)).at([1.0, 3.0], "measured")
    assert (chosen.temperatures, chosen.method.temperature, chosen.origin) == ((1.0, 3.0), 2.0, "measured")


def test_what_does_not_suit_is_an_error_with_the_cure() -> None:
    with pytest.raises(ValueError, match="method='guidance' follows the reward's gradient.*use method='smc'"):
        choose(Guidance(), asked(differentiable=False))
    with pytest.raises(ValueError, match="steps=4: method 'Bare' has no steps; leave it out"):
        choose(Bare(), asked(steps=4))
    assert (choose(Bare(), asked()).temperatures, choose(Bare(), asked()).origin) == (None, "the method has none")


def test_a_budget_that_only_makes_more_steps_is_told_of() -> None:
    (note,) = choose("smc", asked(budget=16 * 65)).notes
    assert note == "budget=1040 makes 65 steps of smc, and more than 64 gain little: raise n, or lower budget"
    assert choose("smc", asked(budget=16 * 64)).notes == () and choose("smc", asked(steps=100)).notes == ()
