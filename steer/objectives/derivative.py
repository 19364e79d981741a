"""The derivative of a map along a direction: forward-mode, or central differences where an operator lacks it."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel


@dataclass
class Derivative:
    """f(primals) and its derivative along the tangents, both with gradients to the weights.

    Attributes:
        mode: "forward" is `torch.func.jvp`, exact, in one pass of about twice the cost; "central" is
            ``(f(a + eps d) - f(a - eps d)) / (2 eps)``, two more passes, for networks with operators that have no
            forward mode; "auto" takes the first, and the second from the first failure on, with a warning.
        eps: of the central differences, in units of time.
        precise: whether mixed precision is off inside: differences of rounded numbers are noise.

    Fused attention has no forward mode; inside, attention is computed by its formula instead.
    """

    mode: Literal["auto", "forward", "central"] = "auto"
    eps: float = 0.005
    precise: bool = True
    fallen_back: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        if self.mode not in ("auto", "forward", "central"):
            raise ValueError(f'mode must be "auto", "forward" or "central", got {self.mode!r}')
        if self.eps <= 0:
            raise ValueError(f"eps must be above 0, got {self.eps}")

    def __call__(
        self, f: Callable[..., Tensor], primals: tuple[Tensor, ...], tangents: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        """f(*primals) [b *d] and its derivative along `tangents` [b *d]."""
        kind = primals[0].device.type
        enabled = torch.is_autocast_enabled(kind) and not self.precise
        with torch.autocast(kind, enabled=enabled, dtype=torch.get_autocast_dtype(kind)):
            if self.mode == "central" or self.fallen_back:
                return self._central(f, primals, tangents)
            try:
                with sdpa_kernel(SDPBackend.MATH):
                    both: Any = torch.func.jvp(f, primals, tangents)
                return both
            except (NotImplementedError, RuntimeError) as error:
                if self.mode == "forward" or "forward" not in str(error).lower():
                    raise
                first = str(error).strip().split("\n")[0]
                warnings.warn(f"derivatives by central differences from here on, since {first}", stacklevel=2)
                self.fallen_back = True
                return self._central(f, primals, tangents)

    def _central(
        self, f: Callable[..., Tensor], primals: tuple[Tensor, ...], tangents: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        after, before = (
            f(*(a + sign * self.eps * d for a, d in zip(primals, tangents, strict=True))) for sign in (1, -1)
        )
        return f(*primals), (after - before) / (2 * self.eps)
