"""A progress bar that methods know nothing of: it hears of the network's calls."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor

from steer.flow_map import Cond, FlowMap
from steer.interpolants import Time


class Observed:
    """The same flow map; tells `tick` the rows of each call, and adds up rows and seconds."""

    def __init__(self, flow: FlowMap, tick: Callable[[int], None]) -> None:
        self.flow, self.tick, self.seconds, self.rows = flow, tick, 0.0, 0

    def __call__(self, x: Tensor, s: Time, t: Time, cond: Cond = None) -> Tensor:
        """v_{s,t}(x) [b *d]."""
        start = time.perf_counter()
        self.rows += len(x)  # before the call, which torch.utils.checkpoint leaves early when it comes again
        try:
            v = self.flow(x, s, t, cond)
        finally:
            self.seconds += time.perf_counter() - start
        self.tick(len(v))
        return v


@contextmanager
def bar(shown: bool, name: str, rows: int | None, what: str = "rows") -> Iterator[Callable[[int], None]]:
    """A line on stderr with the rows, or `what`, so far, of `rows` where known; nothing where stderr is no terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    if not shown or not console.is_terminal:
        yield lambda rows: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    count = TextColumn("{task.completed}" + (" of {task.total} " if rows else " ") + what)
    columns = (TextColumn("{task.description:<12}"), BarColumn(), count, TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(name, total=rows)

        def tick(more: int) -> None:
            progress.advance(task, more)
            if rows and progress.tasks[0].completed > rows:  # a method that takes more than its steps say
                progress.columns = (*columns[:2], TextColumn("{task.completed} " + what), columns[3])
                progress.update(task, total=None)

        yield tick
