"""The bench of several processes: real launches of it, and what its table makes of times that are known."""

from typing import Any

import pytest

from steer.bench import scale


def told(world: int, particles: float, prompts: float, alone: float | None = None) -> dict[str, Any]:
    seconds = {"particles": particles, "prompts": prompts} | ({"one process": alone} if alone else {})
    pictures = {"particles": 16, "prompts": 64}
    busiest = {way: taken / 2 for way, taken in seconds.items()}
    row = {"processes": world, "seconds": seconds, "busiest": busiest, "pictures": pictures}
    return row | {"exchange": 0.5, "bytes": 2_000_000}


def test_the_table_takes_the_least_times_and_the_rates_of_one_process() -> None:
    rows = scale.table([told(1, 9.0, 40.0, 8.0), told(2, 5.0, 20.0), told(1, 8.5, 50.0, 8.2), told(2, 6.0, 16.0)])
    found = {(row["way"], row["processes"]): (row["seconds"], row["of one process"]) for row in rows}
    assert found == {
        ("one process", 1): (8.0, 1.0), ("particles", 1): (8.5, 8 / 8.5), ("particles", 2): (5.0, 8 / 5),
        ("prompts", 1): (40.0, 1.0), ("prompts", 2): (16.0, 40 / 16),
    }  # fmt: skip
    assert rows[0]["pictures a second"] == pytest.approx(2) and rows[-1]["pictures a second"] == pytest.approx(4)
    assert rows[2]["received MB"] == 2 and rows[2]["exchange"] == 0.1 and "exchange" not in rows[0]
    assert all(row["of one, by the busiest"] == row["of one process"] for row in rows)


def test_two_processes_are_measured() -> None:
    row = scale.launch(2, scale.FAST)
    assert row["processes"] == 2 and set(row["seconds"]) == {"particles", "prompts"}
    assert min(row["busiest"].values()) > 0 and 0 < row["exchange"] < row["seconds"]["particles"]
    assert row["pictures"] == {"particles": 4, "prompts": 8} and row["bytes"] > 4 * 3 * 64 * 64 * 4
