"""Thousands of calls in one process: memory, threads and open files stay as they are."""

import gc
import os
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from colours import colour_model, redness
from torch import Tensor

import steer

MODEL = colour_model()
METHODS = ("best_of_n", "smc", "guidance", None)
MEGABYTE = 1 << 20


class Own(Exception):
    """A user's own."""


@dataclass
class Failing:
    """A reward that raises once `left` calls are counted down; at 0 never."""

    left: int = 0
    name: str = "mine"

    def __call__(self, images: Tensor) -> Tensor:
        self.left -= 1
        if self.left == 0:
            raise Own
        return redness(images)


def call(i: int, reward: Callable[[Tensor], Tensor]) -> int:
    """One call with a prompt of its own; whether its reward raised."""
    MODEL.flow.rows.clear()  # type: ignore[attr-defined]
    method = METHODS[i % len(METHODS)]
    try:
        out = steer.sample(f"prompt {i}", reward=reward, model=MODEL, method=method, n=2, seed=i, progress=False)
    except Own:
        return 1
    assert out.report["seed"] == i
    return 0


def held() -> tuple[int, int, int]:
    """Bytes of memory, threads, open files."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE"), threading.active_count(), len(os.listdir("/proc/self/fd"))


def soak(calls: int, warm_up: int, failing: bool) -> None:
    reward, raised = Failing(), 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for i in range(warm_up):
            call(i, reward)
        memory, *others = held()
        for i in range(warm_up, warm_up + calls):
            reward.left = 1 + i % 2 if failing and i % 3 == 0 else 0  # at its first or its second call
            raised += call(i, reward)
    more, *now = held()
    print(f"{calls} calls, {raised} of which raised: {(more - memory) / MEGABYTE:+.1f} MB, threads and files {others}")
    assert now == others
    assert more - memory < 20 * MEGABYTE
    assert raised == (sum(i % 3 == 0 for i in range(warm_up, warm_up + calls)) if failing else 0)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
@pytest.mark.parametrize("failing", [False, True], ids=["plain", "a reward that raises"])
def test_a_hundred_calls_leave_nothing_behind(failing: bool) -> None:
    soak(100, 20, failing)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
@pytest.mark.parametrize("failing", [False, True], ids=["plain", "a reward that raises"])
def test_two_thousand_calls_leave_nothing_behind(failing: bool) -> None:
    soak(2000, 100, failing)
