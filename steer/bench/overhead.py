"""What `steer.sample` costs beyond the network, the decoder and the rewards that it calls.

One run is recorded, call by call; the same calls are then made bare, with the same inputs, and the times compared.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

import rewards
from steer.api import sample
from steer.models import Model, load_model

Call = tuple[Callable[..., Any], tuple[Any, ...]]


@dataclass
class Recorded:
    """The same callable; keeps what it was called with, while `calls` is a list."""

    function: Callable[..., Any]
    calls: list[Call] | None = field(default_factory=list)
    name: str = "recorded"
    differentiable: bool = False
    cost: float = 1.0

    def __call__(self, *arguments: Any) -> Any:  # noqa: ANN401 (whatever is recorded)
        """Record the call and make it."""
        if self.calls is not None:
            self.calls.append((self.function, arguments))
        return self.function(*arguments)


def run(fast: bool = False) -> list[dict[str, object]]:
    """Rows for SMC on the embedded model, with the reward `clip`: seconds of a whole run, bare seconds, their ratio."""
    model = load_model("emoji", "cpu")
    sizes = [(1, 16)] if fast else [(1, 16), (4, 16), (4, 64)]
    return [
        measure(model, ["a red heart", "a fox", "a house", "a cup"][:p], n, repeats=3 if fast else 7) for p, n in sizes
    ]


def measure(model: Model, prompts: list[str], n: int, repeats: int) -> dict[str, object]:
    """Medians over alternating runs of the whole and of its bare calls; the judge's calls count as the reward's."""
    calls: list[Call] = []
    reward, judge = (Recorded(rewards.get(name), calls, name) for name in ("clip", "clip-judge"))
    flow, decode = Recorded(model.flow, calls), Recorded(model.decode, calls)
    watched = dataclasses.replace(model, flow=flow, decode=decode)

    def whole() -> None:
        sample(prompts, reward=reward, model=watched, method="smc", n=n, temperature=1.0, seed=0, progress=False)

    whole()
    pictures = n * len(prompts)
    shown = torch.rand(pictures, 3, 64, 64)
    texts = [q for q in prompts for _ in range(n)]
    judged: list[Call] = [(judge.function, (shown, texts))] * 2  # of the unsteered and of the steered pictures
    record = [*calls, *(judged if model.name == "emoji" else [])]
    for part in (reward, flow, decode):
        part.calls = None
    times = [(_seconds(whole), _seconds(lambda: _replay(record))) for _ in range(repeats)]
    total, bare = (statistics.median(column) for column in zip(*times, strict=True))
    return {
        "prompts": len(prompts),
        "n": n,
        "calls": len(record),
        "seconds": total,
        "bare": bare,
        "ratio": total / bare,
    }


@torch.no_grad()
def _replay(record: list[Call]) -> None:
    for function, arguments in record:
        function(*arguments)


def _seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
