"""SIGKILL at random moments: a run always goes on, and ends with the weights of one that was let alone."""

import pytest

from steer.bench.killing import kills


def check(n: int, seed: int) -> set[object]:
    *rows, end = kills(n, seed)
    assert len(rows) == n and end["equal"] is True
    return {row["inside"] for row in rows}


def test_three_kills() -> None:
    check(3, 1)


@pytest.mark.slow
def test_twenty_kills_some_of_them_inside_checkpoints() -> None:
    assert check(20, 0) == {"step", "checkpoint"}
