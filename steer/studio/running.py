"""One run in a thread of its own: what it sees, step by step, and how it ends."""

import dataclasses
import queue
import threading
import time
import warnings
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

import steer
from steer.progress import Observed
from steer.run import Seen
from steer.samples import Samples
from steer.studio.offers import Asked

EVERY = 0.4  # seconds between two sights with pictures: no eye follows more


class Stopped(Exception):
    """The run was told to end."""


@dataclass(frozen=True)
class Step:
    """What one look told, as plain numbers: rewards of all that was scored; weights and size where there are some."""

    rewards: list[float]
    t: float | None = None
    weights: list[float] | None = None
    ess: float | None = None

    @classmethod
    def of(cls, seen: Seen) -> "Step":
        """Of the first prompt, which is the only one here."""
        r = seen.rewards[:, 0].flatten()
        weights = None if seen.log_w is None else seen.log_w[0].softmax(-1).nan_to_num(0.0).tolist()
        ess = None if seen.ess is None else seen.ess[0].item()
        return cls(r[r.isfinite()].tolist(), seen.t, weights, ess)


@dataclass(frozen=True)
class Sight:
    """A run as it stands: its steps so far, the pictures [m 3 h w] of the last and their rewards [m]."""

    steps: tuple[Step, ...]
    pictures: Tensor = field(repr=False)
    rewards: Tensor
    calls: int
    seconds: float


class Run:
    """A run of `steer.sample`; go through its `sights`, then ask for its `samples`.

    watching: told of every `Seen`, in the run's thread; for tests.
    """

    def __init__(self, asked: Asked, watching: Callable[[Seen], None] = lambda seen: None) -> None:
        self.asked, self.watching, self.calls, self.steps = asked, watching, 0, []
        self.samples: Samples | None = None
        self.said: list[str] = []
        self._stop, self._sights = threading.Event(), queue.Queue[Sight | None]()
        self._error: Exception | None = None
        self._begun = self._shown = time.perf_counter()

    def stop(self) -> None:
        """End it at its next network call, or what it sees next."""
        self._stop.set()

    def sights(self) -> Generator[Sight, None, None]:
        """Sights as they come; where the reader is slow, the latest.

        Raises:
            Stopped: it was told to end. Exception: what the run raised.
        """
        thread = threading.Thread(target=self._run, daemon=True)
        thread.start()
        try:
            while (sight := self._latest()) is not None:
                yield sight
        finally:  # also where the reader went away
            self.stop()
            thread.join()
        if self._error is not None:
            raise self._error

    def _latest(self) -> Sight | None:
        sight = self._sights.get()
        while sight is not None and not self._sights.empty():
            sight = self._sights.get()
        return sight

    def _run(self) -> None:
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always", UserWarning)
                model = self.asked.shelf.model(self.asked.model)
                told: dict[str, Any] = self.asked.given() | {
                    "model": dataclasses.replace(model, flow=Observed(model.flow, self._tick)),
                    "progress": False,
                    "watch": self._watch,
                }
                self.samples = steer.sample(self.asked.prompt, **told)
            self.said = [str(w.message) for w in said if w.category is UserWarning]
        except Exception as error:
            self._error = error
        finally:
            self._sights.put(None)

    def _tick(self, rows: int) -> None:
        self.calls += rows
        if self._stop.is_set():
            raise Stopped

    def _watch(self, seen: Seen) -> None:
        if self._stop.is_set():
            raise Stopped
        self.watching(seen)
        self.steps.append(Step.of(seen))
        now = time.perf_counter()
        if len(self.steps) == 1 or now - self._shown >= EVERY:
            self._shown = now
            pictures = seen.pictures()[0].cpu()
            self._sights.put(
                Sight(tuple(self.steps), pictures, seen.rewards[0, 0].cpu(), self.calls, now - self._begun)
            )
