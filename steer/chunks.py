"""How much is computed at once, and what is said when memory runs out."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class Chunks:
    """The most rows at once of each part, also while a gradient is taken; what they bound is memory alone.

    Attributes:
        network: rows put through the flow map.
        decoder: latents decoded.
        reward: pictures scored; no more than are decoded at once.
    """

    network: int = 1024
    decoder: int = 128
    reward: int = 128

    def __post_init__(self) -> None:
        for name, rows in asdict(self).items():
            if not isinstance(rows, int) or isinstance(rows, bool) or rows < 1:
                raise ValueError(f"chunk={{{name!r}: {rows!r}}} must be a whole number of rows, at least 1")

    @classmethod
    def of(cls, given: object) -> "Chunks":
        """None for the defaults, one number for all three, or a dict of some of them; raises ValueError otherwise."""
        known = [field.name for field in fields(cls)]
        if given is None or isinstance(given, cls):
            return given or cls()
        if isinstance(given, Mapping):
            strange = [key for key in given if key not in known]
            if strange:
                raise ValueError(f"chunk={dict(given)!r} names {strange[0]!r}; known: {', '.join(known)}")
            return cls(**given)
        if not isinstance(given, int) or isinstance(given, bool) or given < 1:
            raise ValueError(f"chunk={given!r} must be a whole number, at least 1, or a dict of {', '.join(known)}")
        return cls(given, given, given)


class OutOfMemory(torch.OutOfMemoryError):
    """Memory ran out; the message says which chunk to lower."""


class Within:
    """While this part computes, an error of memory is raised again with the chunk that would help; others pass.

    cure: what helps, where no chunk does.
    """

    def __init__(self, part: str, rows: int, cure: str | None = None) -> None:
        self.part, self.rows, self.cure = part, rows, cure

    def __enter__(self) -> None:
        """Nothing."""

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Raises OutOfMemory from any other error of memory."""
        if error is None or isinstance(error, OutOfMemory) or not _of_memory(error):
            return
        cure = self.cure or f"lower chunk={{{self.part!r}: {max(1, self.rows // 2)}}}"
        if self.rows == 1:
            cure = "not even one row fits; take a device with more memory"
        raise OutOfMemory(f"memory ran out in the {self.part}, {self.rows} rows at once; {cure}") from error


def _of_memory(error: BaseException) -> bool:
    """Of torch's own type or Python's, or what torch's CPU allocator raises."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def slices(rows: int, size: int) -> list[slice]:
    """`rows` in parts of at most `size`."""
    return [slice(i, min(i + size, rows)) for i in range(0, rows, size)]


class AtOnce(torch.autograd.Function):
    """Scores [b] of x [b *d] by `of(x) -> (scores, gradient [b *d] or None)`, which sees no graph and leaves none.

    A reward gives each picture its own score, so the gradient of their sum holds that of each: it is taken in the
    forward pass, chunk by chunk, and only multiplied in the backward one. What is held is one chunk's graph.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, of: Callable[[Tensor], tuple[Tensor, Tensor | None]]) -> Tensor:  # noqa: ANN401
        """Scores; without a gradient where they have none."""
        scores, gradient = of(x.detach())
        if gradient is None:
            ctx.mark_non_differentiable(scores)
        else:
            ctx.save_for_backward(gradient)
        return scores

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401  # pyright: ignore[reportIncompatibleMethodOverride]
        """The known gradient of each, times what comes from above."""
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[0].reshape(-1, *[1] * (gradient.ndim - 1)), None
