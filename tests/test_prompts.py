"""Prompts of rounds: what a file holds, what is held out, and that a round depends on seed and number alone."""

import random
from collections import Counter
from pathlib import Path

import pytest

from steer.prompts import Prompts, read

MANY = [f"picture {i}" for i in range(50)]


def few(count: int, seed: int) -> list[str]:
    """Draws with repetition from 40 prompts."""
    return random.Random(seed).choices(MANY[:40], k=count)


def endless(count: int, seed: int) -> list[str]:
    return [f"picture {seed} {i}" for i in range(count)]


def rounds(prompts: Prompts, number: int, count: int) -> list[str]:
    """All prompts of the first rounds."""
    return [q for k in range(number) for q in prompts.round(k, count)]


def test_a_file_has_a_prompt_a_line(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("# of animals\n  a fox \n\na cat # not a comment\n   # nor a prompt\nein Käfer", encoding="utf8")
    assert read(file) == ["a fox", "a cat # not a comment", "ein Käfer"]
    assert Prompts(str(file)).pool == Prompts(file).pool == read(file)


def test_errors_name_the_argument_and_the_cure(tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("# nothing\n\n", encoding="utf8")
    with pytest.raises(ValueError, match="prompts='missing.txt' is no file; give a text file with a prompt a line"):
        Prompts("missing.txt")
    with pytest.raises(ValueError, match="empty.txt' holds no prompt; write one a line"):
        Prompts(empty)
    for bad in ([], ["a fox", " "], ["a fox", 3], 7):
        with pytest.raises(ValueError, match="^prompts=.*must be a list of texts, a file with one a line, or a func"):
            Prompts(bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="^held_out_prompts=.*must be a list of texts"):
        Prompts(MANY, [])
    with pytest.raises(ValueError, match="all prompts are among held_out_prompts; none is left to tune with"):
        Prompts(["a fox"], ["a cat", "a fox"])
    with pytest.raises(ValueError, match="was asked for 128 prompts and gave 2"):
        Prompts(lambda count, seed: ["a fox", "a cat"])


@pytest.mark.parametrize("count", [1, 4, 7, 50])
def test_each_epoch_is_another_permutation(count: int) -> None:
    prompts = Prompts(MANY, held_out=["another"])
    drawn = rounds(prompts, 3 * 50 // count + 1, count)
    epochs = [drawn[50 * k : 50 * (k + 1)] for k in range(3)]
    assert all(sorted(epoch) == sorted(MANY) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] and epochs[0] != MANY


@pytest.mark.parametrize("source", [MANY, few, endless])
def test_rounds_are_a_function_of_seed_and_number(source: object) -> None:
    one, same, other = (Prompts(source, seed=seed) for seed in (0, 0, 1))  # type: ignore[arg-type]
    assert one.round(7, 5) == same.round(7, 5) and one.held_out == same.held_out
    one.round(2, 5)
    assert one.round(7, 5) == same.round(7, 5)
    assert one.round(7, 5) != other.round(7, 5) and one.round(7, 5) != one.round(8, 5)


def test_more_are_asked_for_than_there_are() -> None:
    assert sorted(Counter(Prompts(["a", "b", "c"]).round(0, 7)).values()) == [2, 2, 3]


def test_a_prompt_that_stands_twice_comes_twice_as_often() -> None:
    drawn = rounds(Prompts(["a", "b", "a", "c"]), 3, 4)
    assert [sorted(drawn[i : i + 4]) for i in (0, 4, 8)] == [["a", "a", "b", "c"]] * 3


@pytest.mark.parametrize(("source", "expected"), [(MANY, 5), (few, 3), (endless, 12), (MANY * 2, 5)])
def test_a_tenth_is_held_out_and_never_used(source: object, expected: int) -> None:
    prompts = Prompts(source)  # type: ignore[arg-type]
    assert len(set(prompts.held_out)) == len(prompts.held_out) == expected
    for count in (1, 16, 60):
        drawn = [prompts.round(k, count) for k in range(40)]
        assert all(len(names) == count for names in drawn)
        assert not set(prompts.held_out) & {q for names in drawn for q in names}


def test_at_most_so_many_are_held_out() -> None:
    prompts = Prompts([str(i) for i in range(1000)])
    assert len(prompts.held_out) == Prompts.MOST and len(prompts.pool) == 1000 - Prompts.MOST


@pytest.mark.parametrize("source", [MANY, few])
def test_held_out_prompts_that_are_given_are_never_used(source: object) -> None:
    given = MANY[:30] + ["a fox", "a fox"]
    prompts = Prompts(source, given)  # type: ignore[arg-type]
    assert prompts.held_out == [*MANY[:30], "a fox"]
    drawn = [prompts.round(k, 16) for k in range(20)]
    assert {len(names) for names in drawn} == {16}
    assert {q for names in drawn for q in names} == set(MANY[30:] if source is MANY else MANY[30:40])


@pytest.mark.parametrize("drawn", [False, True])
def test_of_fewer_than_twenty_all_are_used_and_judged_by(drawn: bool) -> None:
    names = MANY[:19]
    prompts = Prompts((lambda count, seed: random.Random(seed).choices(names, k=count)) if drawn else names)
    assert sorted(prompts.held_out) == sorted(names)
    assert {len(prompts.round(k, 6)) for k in range(20)} == {6} and set(rounds(prompts, 20, 6)) == set(names)


def test_one_more_and_some_are_held_out() -> None:
    prompts = Prompts(MANY[:20])
    assert len(prompts.held_out) == 2 and sorted(prompts.held_out + prompts.pool) == sorted(MANY[:20])


def test_a_function_that_draws_held_out_prompts_alone_is_told_so() -> None:
    late = lambda count, seed: MANY[:1] * count if seed > 0 else [*MANY[:1], *MANY[1:2] * (count - 1)]  # noqa: E731
    with pytest.raises(ValueError, match="draws hardly any prompt that is not held out"):
        Prompts(late, MANY[:1]).round(3, 4)
