"""Several calls at once in one process: each gets what it gets alone, and what they share is made once."""

# ruff: noqa: ANN401 (whatever a call returns)

import random
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from colours import colour_model, redness
from studio_parts import asked, colours
from torch import Tensor

import rewards
import steer
from rewards.vision import Kept
from steer.studio.running import Run

THREADS = 4


@pytest.fixture(autouse=True)
def often() -> Iterator[None]:
    """Threads change every 10 microseconds, in place of 5 milliseconds, and torch has no others of its own."""
    interval, threads = sys.getswitchinterval(), torch.get_num_threads()
    sys.setswitchinterval(1e-5)
    torch.set_num_threads(1)
    yield
    sys.setswitchinterval(interval)
    torch.set_num_threads(threads)


def together(calls: list[Callable[[], Any]]) -> list[Any]:
    """What calls return that start at once, each in a thread of its own; their exceptions are raised here."""
    start, found, errors = threading.Barrier(len(calls)), [None] * len(calls), []

    def work(i: int) -> None:
        torch.set_num_threads(1)
        start.wait()
        try:
            found[i] = calls[i]()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return found


def same(a: steer.Samples, b: steer.Samples) -> bool:
    """Bit for bit."""
    fields = ("images", "rewards", "log_w", "unsteered")
    return (
        all(torch.equal(getattr(a, name), getattr(b, name)) for name in fields) and a.report["seed"] == b.report["seed"]
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", ["smc", "guidance", "tds", "reno", "beam", "noise_mala", "smc_sde"])
def test_calls_at_once_get_what_they_get_alone(method: str) -> None:
    """Of one model and one reward that all share, each with a prompt and a seed of its own."""
    model = colour_model()

    def call(i: int) -> steer.Samples:
        return steer.sample(
            f"prompt {i}", reward=redness, model=model, method=method, n=4, budget=160, seed=i, progress=False,
        )  # fmt: skip

    alone = [call(i) for i in range(THREADS)]
    assert not torch.equal(alone[0].images, alone[1].images)
    for _ in range(3):
        at_once = together([lambda i=i: call(i) for i in range(THREADS)])
        assert all(same(a, b) for a, b in zip(alone, at_once, strict=True))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", ["smc", "guidance"])
def test_an_embedded_model_and_a_reward_with_networks(method: str) -> None:
    """The first calls of a reward that nobody has loaded yet; gradients through both networks among them."""
    model, prompts = steer.load_model("shapes", "cpu"), ["a red circle", "a blue star", "two squares", "a green circle"]

    def call(reward: Any, prompt: str) -> steer.Samples:
        return steer.sample(prompt, reward=reward, model=model, method=method, n=2, steps=2, seed=3, progress=False)

    fresh = rewards.get("clip")
    at_once = together([lambda q=q: call(fresh, q) for q in prompts])
    alone = [call(rewards.get("clip"), q) for q in prompts]
    assert all(same(a, b) for a, b in zip(alone, at_once, strict=True))
    assert not torch.equal(alone[0].rewards, alone[1].rewards)


def test_one_that_fails_leaves_the_others_alone() -> None:
    def broken(images: Tensor) -> Tensor:
        raise ZeroDivisionError("mine")

    def call(i: int) -> Any:
        given = {"model": model, "method": "smc", "n": 4, "seed": i, "progress": False, "temperature": 1.0}
        if i % 2 == 0:
            return steer.sample("a", reward=redness, **given)
        with pytest.raises(ZeroDivisionError, match="mine"):
            steer.sample("a", reward=broken, **given)

    model = colour_model()
    alone = [call(i) for i in range(THREADS)]
    at_once = together([lambda i=i: call(i) for i in range(THREADS)])
    assert all(same(alone[i], at_once[i]) for i in (0, 2))


@pytest.mark.filterwarnings("ignore")
def test_warnings_are_shown_as_before() -> None:
    """Whoever listens to warnings puts all of Python's handling of them aside for a while."""
    before = warnings.showwarning, list(warnings.filters)
    model = colour_model()

    def call(i: int) -> None:
        for seed in range(12):
            steer.sample(f"prompt {i}", reward=redness, model=model, n=2, steps=1, method="smc", seed=seed,
                         temperature=1.0, progress=False)  # fmt: skip

    together([lambda i=i: call(i) for i in range(THREADS)])
    assert (warnings.showwarning, list(warnings.filters)) == before


def test_what_a_reward_keeps_is_loaded_once() -> None:
    kept, loads = Kept[list[int]](), []

    def load(device: torch.device) -> list[int]:
        time.sleep(0.02)
        loads.append(device)
        return [len(loads)]

    found = together([lambda: kept.on(torch.device("cpu"), load) for _ in range(8)])
    assert len(loads) == 1 and all(one is found[0] for one in found)


def test_texts_of_a_reward_are_its_own_while_others_drop_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for four texts only, so that threads throw out what others have just put in."""
    monkeypatch.setattr(Kept, "TEXTS", 4)
    kept = Kept[None]()

    def encode(prompts: list[str]) -> Tensor:
        time.sleep(1e-4)
        return torch.tensor([[float(p), -float(p)] for p in prompts])

    def ask(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(200):
            numbers = [rng.randrange(12) for _ in range(3)]
            rows = kept.texts([str(n) for n in numbers], encode)
            assert rows[:, 0].tolist() == numbers and rows[:, 1].tolist() == [-n for n in numbers]

    together([lambda i=i: ask(i) for i in range(THREADS)])


@pytest.mark.filterwarnings("ignore")
def test_two_runs_of_a_studio_at_once() -> None:
    """Each shows its own steps and ends with the pictures that it ends with alone."""
    shelf = colours()

    def run(seed: str) -> Run:
        made = Run(asked(shelf, model="colours", reward="mine", budget=96, n=4, temperature="0.5", seed=seed))
        for sight in made.sights():
            assert len(sight.rewards) == 4
        return made

    alone = [run(seed) for seed in ("1", "2")]
    at_once = together([lambda: run("1"), lambda: run("2")])
    for a, b in zip(alone, at_once, strict=True):
        assert a.samples is not None and b.samples is not None and same(a.samples, b.samples)
        assert a.steps == b.steps and a.calls == b.calls
    assert alone[0].steps != alone[1].steps
