"""Low-rank adapters in a flow (LoRA, by peft): what fine-tuning trains, and the map as it was without them.

    W x  ->  W x + (alpha / rank) B A x,   B = 0 at the start

Source: "LoRA: low-rank adaptation of large language models" (arXiv:2106.09685).
"""

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rewards.towers import mend_torchvision
from steer.flow_map import Cond
from steer.interpolants import Time
from steer.learner import seeded, unread

WORDS = ("tokens", "pool", "words")  # the modules of a native network that read the prompt


def import_peft() -> Any:  # noqa: ANN401 (a module)
    """Import peft, which takes some seconds.

    Raises:
        ValueError: it is not installed.
    """
    mend_torchvision()
    try:
        import peft
    except ImportError as error:
        raise ValueError(
            f"adapters need peft ({error}); pip install peft, or rank=0 to tune all the weights"
        ) from error
    return peft


def adapt(net: nn.Module, rank: int, alpha: float | None = None, *, seed: int = 0, words: bool = True) -> nn.Module:
    """Put adapters into the linear and convolutional layers of a network, in place; they alone are trained then.

    rank: of each adapter; alpha: its scale times the rank, 2 rank by default. words: whether layers that read the
    prompt get one too. A network may name its layers that get one in `adapted`, a regular expression. Calls give what
    they gave before until the adapters learn.

    Raises:
        ValueError: rank < 1, or a network without such layers.
    """
    if rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}; 0 stands for tuning all the weights")
    kinds = (nn.Linear, nn.Conv2d)
    names = [name for name, layer in net.named_modules() if isinstance(layer, kinds)]
    names = names if words else [name for name in names if name.split(".")[0] not in WORDS]
    chosen = getattr(net, "adapted", None)
    names = names if chosen is None else [name for name in names if re.fullmatch(chosen, name)]
    if not names:
        raise ValueError(f"{type(net).__name__} has no linear or convolutional layer to adapt; take rank=0")
    peft = import_peft()
    whole = "|".join(map(re.escape, names))  # a list would be taken for endings of names
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank if alpha is None else alpha, target_modules=whole)
    net.requires_grad_(False)
    with seeded(seed, torch.device("cpu")):
        peft.inject_adapter_in_model(config, net)
    return net


def adapters(net: nn.Module) -> list[Any]:
    """The layers of a network that hold an adapter."""
    return [layer for layer in net.modules() if hasattr(layer, "get_base_layer")]


@contextmanager
def switched_off(net: nn.Module) -> Iterator[None]:
    """The network as it was before `adapt`, to the last bit, while this context is open."""
    layers = adapters(net)
    trained = [p for layer in layers for p in layer.parameters() if p.requires_grad]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        if not trained:  # switching on makes adapters trainable, which those of an average are not
            for layer in layers:
                layer.requires_grad_(False)


class Reference:
    """The flow map as it was before fine-tuning: its own adapters switched off, or a frozen copy where it has none.

    It reads the words by itself, since adapters may change how they are read.
    """

    def __init__(self, flow: nn.Module) -> None:
        self.flow = flow
        self.copy = None if adapters(flow) else copy.deepcopy(flow).eval().requires_grad_(False)

    def __call__(self, x: Tensor, s: Time, t: Time, cond: Cond = None) -> Tensor:
        """v_{s,t}(x) [b *d]; gradients reach x, and no weight."""
        told = unread(self.flow, cond)
        if self.copy is not None:
            return self.copy(x, s, t, told)
        with switched_off(self.flow):
            return self.flow(x, s, t, told)


def lora_weights(net: nn.Module) -> dict[str, Tensor]:
    """The adapters of a network by the names of their layers, as diffusers' files have them; the scale is in B.

    {"LAYER.lora_A.weight": [rank in ...], "LAYER.lora_B.weight": alpha / rank times [out rank ...]}
    """
    out = {}
    for name, layer in net.named_modules():
        if hasattr(layer, "get_base_layer"):
            found: Any = layer
            out[f"{name}.lora_A.weight"] = found.lora_A["default"].weight.detach().clone()
            out[f"{name}.lora_B.weight"] = found.lora_B["default"].weight.detach() * found.scaling["default"]
    return out


@torch.no_grad()
def fill_lora(net: nn.Module, weights: dict[str, Tensor]) -> None:
    """Put what `lora_weights` gave into the adapters of a network.

    Raises:
        ValueError: they are those of other layers.
    """
    mine = lora_weights(net)
    if mine.keys() != weights.keys():
        odd = sorted(mine.keys() ^ weights.keys())[:3]
        raise ValueError(f"the adapters do not fit the network: {', '.join(odd)}")
    for name, layer in net.named_modules():
        if hasattr(layer, "get_base_layer"):
            found: Any = layer
            found.lora_A["default"].weight.copy_(weights[f"{name}.lora_A.weight"])
            found.lora_B["default"].weight.copy_(weights[f"{name}.lora_B.weight"] / found.scaling["default"])


def merged(net: nn.Module) -> nn.Module:
    """A copy of the network with each adapter added to its layer's weights: a plain network again."""
    net = copy.deepcopy(net)
    found: list[tuple[str, Any]] = [(name, m) for name, m in net.named_modules() if hasattr(m, "get_base_layer")]
    for name, layer in found:
        parent: Any = net.get_submodule(name.rpartition(".")[0])
        layer.merge()
        setattr(parent, name.rpartition(".")[2], layer.get_base_layer())
    return net.requires_grad_(False)
