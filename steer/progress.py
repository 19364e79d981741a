"""A progress bar that methods know nothing of: it hears of the network's calls."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from steer.flow_map import Cond, FlowMap
from steer.interpolants import Time

ROWS = 1024  # more are put through the network one part after the other, for the sake of memory


class Observed:
    """The same flow map, in parts of bounded size; tells `tick` the rows of each, and adds up the seconds spent."""

    def __init__(self, flow: FlowMap, tick: Callable[[int], None]) -> None:
        self.flow, self.tick, self.seconds = flow, tick, 0.0

    def __call__(self, x: Tensor, s: Time, t: Time, cond: Cond = None) -> Tensor:
        """v_{s,t}(x) [b *d]."""
        return torch.cat([self._part(x, s, t, cond, slice(i, i + ROWS)) for i in range(0, len(x), ROWS)])

    def _part(self, x: Tensor, s: Time, t: Time, cond: Cond, rows: slice) -> Tensor:
        start = time.perf_counter()
        s, t = (u[rows] if isinstance(u, Tensor) and u.ndim else u for u in (s, t))
        v = self.flow(x[rows], s, t, None if cond is None else {key: c[rows] for key, c in cond.items()})
        self.seconds += time.perf_counter() - start
        self.tick(len(v))
        return v


@contextmanager
def bar(shown: bool, name: str, rows: int | None) -> Iterator[Callable[[int], None]]:
    """A line on stderr with the network's rows so far, of `rows` where known; nothing where stderr is no terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    if not shown or not console.is_terminal:
        yield lambda rows: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    count = TextColumn("{task.completed} of {task.total} rows" if rows else "{task.completed} rows")
    columns = (TextColumn("{task.description:<12}"), BarColumn(), count, TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(name, total=rows)
        yield lambda rows: progress.advance(task, rows)
