"""One run over several processes: each computes a share of the rows, and is told what the others made of theirs.

All processes hold the state of all particles, which is cheap, and run the same method with the same draws. Only what is
dear is split: rows of the network, and pictures that are decoded and scored, forwards and backwards. So weights,
effective sizes, resampling and log Z are those of all particles for every method, and the result is that of one
process, up to the rounding of batches of another size. The processes need one kind of device, since each computes the
rest for itself.

What moves is what a method must know of the others' rows. A process receives, of b rows of d numbers, (W - 1) / W of

    b d         numbers in a call of the network (its outputs), and as many when a gradient goes back through it
    b           in a call of the reward (the scores); b (d + 2) where it gives a gradient, which then needs no more
    b 3 h w     once, when pictures are shown

with W processes, by one all-gather each. A process that ends leaves the others with an error, not waiting.
"""

import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from steer.arguments import check_device
from steer.flow_map import Chunked, Cond
from steer.interpolants import Time

T = TypeVar("T")


class Shares:
    """This process's share of any number of rows: the ranks take equal parts in order, the last may get less, or none.

    Attributes:
        rank, world: this process, of how many.
        seconds: spent in exchanging so far; to wait for a slower process counts too.
        bytes: received from the others so far.
    """

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.rank, self.world, self.seconds, self.bytes = rank, world, 0.0, 0

    def mine(self, rows: int) -> slice:
        """The rows that are this process's own."""
        size = self._size(rows)
        return slice(min(self.rank * size, rows), min((self.rank + 1) * size, rows))

    def even(self, rows: int) -> slice | list[int]:
        """The same, with the last row again where there are too few, so that every process does the same.

        `gather` drops what is there twice.
        """
        own, size = self.mine(rows), self._size(rows)
        return own if own.stop - own.start == size else [min(self.rank * size + i, rows - 1) for i in range(size)]

    def gather(self, part: Tensor, rows: int) -> Tensor:
        """All `rows`, of which `part` [r ...] holds this process's own.

        Raises:
            RuntimeError: another process is gone.
        """
        if self.world == 1:
            return part
        from accelerate.utils import gather

        start, short = time.perf_counter(), self._size(rows) - len(part)
        part = torch.cat([part, part.new_zeros(short, *part.shape[1:])]) if short else part
        try:
            whole: Any = gather(part.contiguous())
        except RuntimeError as error:
            raise RuntimeError(self._lost(error)) from error
        self.bytes += whole.nbytes - part.nbytes
        self.seconds += time.perf_counter() - start
        return whole[:rows]

    def agree(self, make: Callable[[], T]) -> T:
        """What the first process makes, in all of them; what it raises, all raise."""
        found: list[Any] = [None]
        if self.rank == 0:
            try:
                found = [make()]
            except Exception as error:  # handed on below, here as in the others
                found = [error]
        if self.world > 1:
            from accelerate.utils import broadcast_object_list

            try:
                broadcast_object_list(found)
            except RuntimeError as error:
                raise RuntimeError(self._lost(error)) from error
        if isinstance(found[0], Exception):
            raise found[0]
        return found[0]

    def told(self) -> dict[str, float]:
        """What a report says of it."""
        return {"number": self.world, "received_bytes": self.bytes, "exchange_seconds": self.seconds}

    def _size(self, rows: int) -> int:
        return -(-rows // self.world)

    def _lost(self, error: Exception) -> str:
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        return (
            f"process {self.rank} of {self.world} has lost another one, which failed or was ended: its own message "
            f"says why ({cause})"
        )


Place = str | torch.device | None


def shares_of(spread: str | None, device: Place) -> tuple[Shares, Place]:
    """The shares of the processes there are, and this one's device; all of it where `spread` is None.

    Raises:
        ValueError: `spread` is unknown, or the processes cannot exchange what is on that device.
    """
    if spread is not None and not (isinstance(spread, str) and spread == "particles"):
        raise ValueError(f"spread={spread!r} must be 'particles' (a prompt's pictures over the processes), or None")
    return (Shares(), device) if spread is None else shares_here(device)


def shares_here(device: Place) -> tuple[Shares, Place]:
    """Those of the processes that `accelerate launch` or torchrun started; a process that is alone has everything.

    Raises:
        ValueError: the processes cannot exchange what is on that device.
    """
    from accelerate.utils import parse_flag_from_env

    from steer.distributed import process_state

    forced = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.cuda.is_available()
    cpu = forced if device is None else check_device(device).type == "cpu"
    state = process_state(cpu)
    if state.num_processes > 1 and cpu != str(state.device).startswith("cpu"):
        raise ValueError(
            f"device={str(device)!r}, but the {state.num_processes} processes were started for {state.device}; "
            "leave device out, or make their accelerator for it"
        )
    return Shares(state.process_index, state.num_processes), "cpu" if cpu else device or state.device


class Spread:
    """The same flow map; each process puts its share of the rows through it.

    Attributes:
        rows: the most rows that all processes hold for a gradient together.
        count: rows that this one has put through it.
    """

    def __init__(self, flow: Chunked, shares: Shares) -> None:
        self.flow, self.shares, self.rows, self.count = flow, shares, flow.rows * shares.world, 0

    def __call__(self, x: Tensor, s: Time, t: Time, cond: Cond = None) -> Tensor:
        """v_{s,t}(x) [b *d]; raises ValueError unless the map gives a velocity a row."""
        if self.shares.world == 1:
            self.count += len(x)
            return self.flow(x, s, t, cond)
        given = {"x": x, "s": s, "t": t} | {("cond", key): c for key, c in (cond or {}).items()}
        rows = {key: u for key, u in given.items() if isinstance(u, Tensor) and u.ndim}
        split: Any = _Split.apply(self.shares, *rows.values())
        part: dict[Any, Any] = given | dict(zip(rows, split, strict=True))
        mine = None if cond is None else {key: part["cond", key] for key in cond}
        self.count += len(part["x"])
        v = self.flow(part["x"], part["s"], part["t"], mine)
        if v.shape != part["x"].shape:
            raise ValueError(
                f"flow returned {tuple(v.shape)} for x of {tuple(part['x'].shape)}; return a velocity a row"
            )
        return _Join.apply(v.to(x.dtype), self.shares, len(x))


class _Split(torch.autograd.Function):
    """This process's rows of tensors [b ...]; backwards, the gradients of all rows from all processes."""

    @staticmethod
    def forward(ctx: Any, shares: Shares, *tensors: Tensor) -> tuple[Tensor, ...]:  # noqa: ANN401
        """Equal numbers of rows in every process, so that all of them do the same in the same order."""
        ctx.shares, ctx.rows = shares, len(tensors[0])
        return tuple(u[shares.even(ctx.rows)].clone() for u in tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401  # pyright: ignore[reportIncompatibleMethodOverride]
        """Gathered, for those that need it."""
        pairs = zip(upstream, ctx.needs_input_grad[1:], strict=True)
        return None, *(ctx.shares.gather(g, ctx.rows) if needed else None for g, needed in pairs)


class _Join(torch.autograd.Function):
    """All rows, of which each process gives its own; backwards, the gradient of these alone."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, shares: Shares, rows: int) -> Tensor:  # noqa: ANN401
        """Gathered."""
        ctx.shares, ctx.size = shares, len(part)
        return shares.gather(part, rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401  # pyright: ignore[reportIncompatibleMethodOverride]
        """Zero for a row that `even` gave twice: it counts where it is the process's own."""
        own = upstream[0][ctx.shares.mine(len(upstream[0]))]
        return torch.cat([own, own.new_zeros(ctx.size - len(own), *own.shape[1:])]), None, None
