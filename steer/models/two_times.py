"""A velocity network made into a flow map's: a second time, which at first changes nothing."""

from typing import Any

import torch
from torch import Tensor, nn

from steer.flow_map import Cond
from steer.interpolants import Time
from steer.models.network import fourier, from_zero


class TwoTimes(nn.Module):
    """v_{s,t}(x) by a velocity network b(x, s, cond), told t through its own time embedding.

        embedding <- embedding(s) + second(s, t),   second = 0 at the start

    so that v_{s,t} = b_s for all t before training, and the diagonal stays the network's own as long as `second` does
    not learn otherwise. Distillation and self-distillation start from there.

    Source: section 4 of "Flow map matching" (arXiv:2406.07507); "Align your flow" (arXiv:2506.14603).

    net: the velocity network, a module; called as net(x [b *d], s [b], cond).
    clock: the name of the submodule of net, such as "time.embedding", whose output [b width] embeds the time.
    width: of that output.

    Raises:
        ValueError: net has no such submodule.
    """

    def __init__(self, net: nn.Module, clock: str, width: int, frequencies: int = 128) -> None:
        super().__init__()
        modules = dict(net.named_modules())
        if clock not in modules or not clock:
            near = [name for name in modules if "time" in name.lower() or "clock" in name.lower()]
            raise ValueError(f"clock={clock!r} is no submodule of the network; those that sound like it: {near}")
        self.net, self.frequencies = net, frequencies
        self.second = nn.Sequential(nn.Linear(2 * frequencies, width), nn.SiLU(), from_zero(nn.Linear(width, width)))
        self._told: Tensor | None = None
        modules[clock].register_forward_hook(self._add)

    def forward(self, x: Tensor, s: Time, t: Time, cond: Cond = None) -> Tensor:
        """v_{s,t}(x) [b *d]."""
        s, t = (torch.as_tensor(u, dtype=x.dtype, device=x.device).expand(len(x)) for u in (s, t))
        self._told = self.second(torch.cat([fourier(s, self.frequencies), fourier(t, self.frequencies)], 1))
        try:
            return self.net(x, s, cond)
        finally:
            self._told = None

    def _add(self, module: nn.Module, arguments: Any, embedding: Tensor) -> Tensor:  # noqa: ANN401 (a torch hook)
        """The hook: nothing when the network is called by itself."""
        return embedding if self._told is None else embedding + self._told
