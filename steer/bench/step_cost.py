"""What one training step costs: time over that of plain flow matching, and the memory that it holds at most."""

import statistics
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from steer.models import load_model
from steer.objectives import Batch, Derivative, FlowMatching, Objective, Student, TimeWeight

Row = dict[str, Any]
AIMS = {"lsd": 2.0, "mean_flow": 2.0}


class Held(TorchDispatchMode):
    """Bytes of the tensors that were made inside and are still held, and the most that there were at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.most = 0, 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """Run the operator and look at what it gave."""
        out = func(*args, **(kwargs or {}))
        old = {a.untyped_storage()._cdata for a in tree_leaves((args, kwargs)) if isinstance(a, Tensor)}
        for a in tree_leaves(out):
            if isinstance(a, Tensor) and a.untyped_storage()._cdata not in old:
                self._take(a.untyped_storage())
        return out

    def _take(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._known:
            self._known[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.now -= self._known.pop(key)


def table(make: Callable[[nn.Module], Mapping[str, Objective]], repeats: int, batch: int = 256) -> list[Row]:
    """One row an objective, with its derivative by forward mode and by central differences where it takes one.

    make: of a teacher (the network itself) the objectives by name. The network is that of the embedded emoji model, in
    float32. A step is the loss of random latents told random words, its gradient and AdamW's update. "peak MB" is what
    a step holds at most beyond the weights and the optimiser's two averages: gradients, activations and their like.
    """
    flow = load_model("emoji", "cpu").flow
    assert isinstance(flow, nn.Module)
    flow = flow.train().requires_grad_(True)
    work = {name: _step(flow, goal, batch) for name, goal in _modes(make(flow)).items()}
    seconds = medians(work, repeats)
    rows: list[Row] = []
    for name, step in work.items():
        with Held() as held:
            step()
        aim = AIMS.get(name.removesuffix(", forward"))
        rows.append({
            "objective": name, "seconds": seconds[name], "of flow matching": seconds[name] / seconds["flow_matching"],
            "aim": aim, "rows a second": batch / seconds[name], "peak MB": held.most / 1e6,
        })  # fmt: skip
    return rows


def _modes(objectives: Mapping[str, Objective]) -> dict[str, Any]:
    made: dict[str, Any] = {"flow_matching": FlowMatching()}
    for name, goal in objectives.items():
        if not isinstance(getattr(goal, "derivative", None), Derivative) or getattr(goal, "identity", "") in (
            "midpoint",
            "uniform",
        ):
            made[name] = goal
        else:
            for mode in ("forward", "central"):
                made[f"{name}, {mode}"] = replace(goal, derivative=Derivative(mode))  # type: ignore[type-var]
    return made


def _step(flow: nn.Module, objective: Objective, batch: int) -> Callable[[], None]:
    """One step on a batch of random latents, told random words: the loss, its gradient, the optimiser."""
    config: Any = flow.config
    rng, weight = torch.Generator().manual_seed(0), TimeWeight()
    x1 = torch.randn(batch, config["size"], generator=rng)
    words = torch.randn(batch, config["condition"], generator=rng)
    student = Student(flow, average=flow, weight=weight)
    optimiser = torch.optim.AdamW([*flow.parameters(), *weight.parameters()], 0.0)

    def step() -> None:
        optimiser.zero_grad()
        objective(student, Batch(x1, {"words": words}), rng)[0].backward()
        optimiser.step()

    return step


def medians(work: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """The median of each one's processor seconds, in turns, after one turn that does not count.

    Of the processor, since what else the machine does would add to the others.
    """
    times: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(repeats + 1):
        for name, step in work.items():
            start = time.process_time()
            step()
            if turn:
                times[name].append(time.process_time() - start)
    return {name: statistics.median(taken) for name, taken in times.items()}
