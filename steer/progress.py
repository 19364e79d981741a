"""A progress bar that methods know nothing of: it hears of the network's calls."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from steer.flow_map import FlowMap


class Observed:
    """The same flow map; tells `tick` the rows of every call, and adds up the seconds spent in it."""

    def __init__(self, flow: FlowMap, tick: Callable[[int], None]) -> None:
        self.flow, self.tick, self.seconds = flow, tick, 0.0

    def __call__(self, x: Tensor, s: Any, t: Any, cond: Any = None, /) -> Tensor:  # noqa: ANN401
        start = time.perf_counter()
        v = self.flow(x, s, t, cond)
        self.seconds += time.perf_counter() - start
        self.tick(len(x))
        return v


@contextmanager
def bar(shown: bool, name: str) -> Iterator[Callable[[int], None]]:
    """A line on stderr with the network rows so far and the time; nothing where stderr is no terminal."""
    if not shown or not sys.stderr.isatty():
        yield lambda rows: None
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TextColumn("{task.completed} network rows"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(name, total=None)
        yield lambda rows: progress.advance(task, rows)
