"""Averages of weights over the training (EMA), several decays at once."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from steer.distributed import whole


class Averages:
    """Copies of a network whose weights follow it: ``a <- d a + (1 - d) w``, d rising to its value over the first steps.

    ``d_k = min(d, (1 + k) / (10 + k))`` at step k. Buffers are copied. The copies are whole on every process, also where
    the weights are not, so that any of them can be called.
    """

    def __init__(self, net: nn.Module, decays: Sequence[float], device: torch.device) -> None:
        self.decays = tuple(decays)
        self.nets = [copy.deepcopy(net).to(device).eval().requires_grad_(False) for _ in decays]

    @property
    def first(self) -> nn.Module:
        """The network with the first of the averages."""
        return self.nets[0]

    @torch.no_grad()
    def update(self, net: nn.Module, step: int) -> None:
        """Take in the weights after a step."""
        weights = [whole(p.detach()) for p in net.parameters()]
        for average, decay in zip(self.nets, self.decays, strict=True):
            share = 1 - min(decay, (1 + step) / (10 + step))
            torch._foreach_lerp_(list(average.parameters()), weights, share)
            for mine, theirs in zip(average.buffers(), net.buffers(), strict=True):
                mine.copy_(whole(theirs))

    def state(self) -> dict[str, Tensor]:
        """All weights, named by decay."""
        pairs = zip(self.decays, self.nets, strict=True)
        return {f"{decay}.{key}": value for decay, net in pairs for key, value in net.state_dict().items()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Take back what `state` gave.

        Raises:
            ValueError: it is of other decays, or another network.
        """
        for decay, net in zip(self.decays, self.nets, strict=True):
            mine = {k.removeprefix(f"{decay}."): v for k, v in state.items() if k.startswith(f"{decay}.")}
            try:
                net.load_state_dict(mine)
            except RuntimeError as error:
                raise ValueError(
                    f"the checkpoint does not fit ema={list(self.decays)} or this network: {error}; train in another folder"
                ) from error
