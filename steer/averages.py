"""Averages of weights over the training (EMA), several decays at once."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from steer.distributed import whole


class Averages:
    """Copies of a network whose weights follow it: ``a <- d a + (1 - d) w``, d rising to its value in the first steps.

    ``d_k = min(d, (1 + k) / (10 + k))`` at step k. Buffers are copied; weights that are not trained are shared, and
    cost no memory. The copies are whole on every process, also where the weights are not, so that any of them can be
    called.
    """

    def __init__(self, net: nn.Module, decays: Sequence[float], device: torch.device) -> None:
        self.decays = tuple(decays)
        self.trained = [name for name, p in net.named_parameters() if p.requires_grad]
        self.nets = [self._copy(net).to(device).eval().requires_grad_(False) for _ in decays]
        self._weights = [_named(average, self.trained) for average in self.nets]

    def _copy(self, net: nn.Module) -> nn.Module:
        return copy.deepcopy(net, {id(p): p for p in net.parameters() if not p.requires_grad})

    @property
    def first(self) -> nn.Module:
        """The network with the first of the averages."""
        return self.nets[0]

    def start(self, net: nn.Module) -> None:
        """Take over the weights as they are, which on several processes may be those of the first."""
        self._take_in(net, [1.0] * len(self.nets))

    def update(self, net: nn.Module, step: int) -> None:
        """Take in the weights after a step."""
        self._take_in(net, [1 - min(decay, (1 + step) / (10 + step)) for decay in self.decays])

    @torch.no_grad()
    def _take_in(self, net: nn.Module, shares: Sequence[float]) -> None:
        weights = [whole(p.detach()) for p in _named(net, self.trained)]
        buffers = [whole(b) for b in net.buffers()]
        for average, mine, share in zip(self.nets, self._weights, shares, strict=True):
            torch._foreach_lerp_(mine, weights, share)  # pyright: ignore[reportPrivateImportUsage]
            for ours, theirs in zip(average.buffers(), buffers, strict=True):
                ours.copy_(theirs)

    def state(self) -> dict[str, Tensor]:
        """All weights that are trained, and buffers, named by decay."""
        pairs = zip(self.decays, self.nets, strict=True)
        return {f"{decay}.{key}": value for decay, net in pairs for key, value in self._kept(net).items()}

    def _kept(self, net: nn.Module) -> dict[str, Tensor]:
        fixed = {name for name, _ in net.named_parameters()} - set(self.trained)
        return {key: value for key, value in net.state_dict().items() if key not in fixed}

    def load(self, state: dict[str, Tensor]) -> None:
        """Take back what `state` gave.

        Raises:
            ValueError: it is of other decays, or another network.
        """
        for decay, net in zip(self.decays, self.nets, strict=True):
            mine = {k.removeprefix(f"{decay}."): v for k, v in state.items() if k.startswith(f"{decay}.")}
            try:
                net.load_state_dict(net.state_dict() | mine)
                if mine.keys() != self._kept(net).keys():
                    raise RuntimeError("some weights are missing")
            except RuntimeError as error:
                raise ValueError(
                    f"the checkpoint is not of ema={list(self.decays)} and this network: {error}; train in another "
                    f"folder"
                ) from error


def _named(net: nn.Module, names: Sequence[str]) -> list[Tensor]:
    there = dict(net.named_parameters())
    return [there[name] for name in names]
