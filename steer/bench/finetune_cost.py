"""What fine-tuning costs beyond the calls it makes: wall time of updates, and memory of adapters against all weights.

"bare" makes the calls of a round and its updates again, with the same batches, gradients and pictures, and nothing
else: no buffers, advantages, losses, optimiser, averages or log.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import rewards
from steer.adapters import Reference, switched_off
from steer.bench.overhead import least
from steer.bench.step_cost import Held
from steer.chunks import Chunks
from steer.experience import Experience, Rounds
from steer.models import Model, load_model
from steer.objectives import Student, Tuning
from steer.problem import Scores
from steer.prompts import Prompts
from steer.settings import build
from steer.training import Settings, Trainer
from steer.tuned import prepared, raw

Row = dict[str, Any]
AIM = 1.15
PROMPTS = ["a red heart", "a fox", "a house", "a cup"]
UPDATES = 2


def made(model: Model, goal: Tuning, rank: int, folder: Path, batch: int = 64) -> Trainer:
    """A trainer of the model with the reward `clip`, as `steer.finetune` makes it."""
    tuned = prepared(model, goal, rank)
    assert isinstance(tuned.flow, nn.Module)
    assert goal.collector is not None
    score, reference = rewards.get("clip"), Reference(tuned.flow)
    data = Experience(
        Prompts(PROMPTS), lambda texts: raw(tuned, texts), goal.collector,
        lambda texts: Scores(tuned, texts, score, Chunks()), model.shape, reference, rounds=Rounds(4, 16, UPDATES),
        temperature=2.0,
    )  # fmt: skip
    settings = Settings(steps=10**6, batch=batch, drop=0.0, tracker=None, save_every=10**6, average_every=UPDATES)
    student = Student(tuned.flow, reference=reference)
    return Trainer(tuned.flow, goal, data, settings, folder, student=student, progress=False)


def ratios(names: tuple[str, ...], repeats: int) -> list[Row]:
    """One row an objective: seconds of a round with its updates, those of the bare calls, and their ratio."""
    out = []
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            trainer = made(load_model("emoji", "cpu"), build("tuning", name), 32, Path(folder))
            calls = record(trainer)
            whole, alone = least([lambda t=trainer: a_round(t), lambda c=calls: replay(c)], repeats)
        out.append({"objective": name, "seconds": whole, "bare": alone, "ratio": whole / alone, "aim": AIM})
    return out


def a_round(trainer: Trainer) -> None:
    """One round of samples and its updates."""
    for _ in range(UPDATES):
        trainer.update()


def record(trainer: Trainer) -> list[Callable[[], object]]:
    """The calls of a round: of the tuned map, its average and the reference, of the decoder and the reward."""
    calls: list[Callable[[], object]] = []
    handles = [
        net.register_forward_pre_hook(_noted(net, calls)) for net in (trainer.plain.flow, trainer.averages.first)
    ]
    assert isinstance(trainer.made, Experience)
    score = trainer.made.score

    def scored(texts: list[str]) -> Any:  # noqa: ANN401
        inner = score(texts)

        def reward(x1: Tensor) -> Tensor:
            x, gradient = x1.detach(), torch.is_grad_enabled() and x1.requires_grad
            calls.append(lambda: _scored(inner, x, gradient))
            return inner(x1)

        return reward

    trainer.made.score = scored
    a_round(trainer)
    trainer.made.score = score
    for handle in handles:
        handle.remove()
    return calls


def _scored(reward: Callable[[Tensor], Tensor], x: Tensor, gradient: bool) -> None:
    with torch.set_grad_enabled(gradient):
        leaf = x.clone().requires_grad_(gradient)
        r = reward(leaf)
        if gradient:
            torch.autograd.grad(r.sum(), leaf)


def _noted(net: nn.Module, calls: list[Callable[[], object]]) -> Callable[..., None]:
    """A hook that adds a call of the network to the list, with the adapters on or off as they are now."""

    def hook(module: nn.Module, given: tuple[Any, ...]) -> None:
        x, s, t, cond = given
        gradient, off = torch.is_grad_enabled(), _is_off(net)
        inside = x.detach(), s, t, None if cond is None else {key: c.detach() for key, c in cond.items()}
        through = gradient and not off and any(p.requires_grad for p in net.parameters())
        calls.append(lambda: _called(net, inside, through, off, gradient and x.requires_grad))

    return hook


def _is_off(net: nn.Module) -> bool:
    return any(getattr(layer, "disable_adapters", False) for layer in net.modules())


def _called(net: nn.Module, given: tuple[Any, ...], through: bool, off: bool, to_x: bool) -> None:
    x, *rest = given
    with torch.set_grad_enabled(through or to_x):
        leaf = x.clone().requires_grad_(to_x)
        if off:
            with switched_off(net):
                v = net(leaf, *rest)
        else:
            v = net(leaf, *rest)
        if through:
            v.sum().backward()
        elif to_x:
            torch.autograd.grad(v.sum(), leaf)


def replay(calls: list[Callable[[], object]]) -> None:
    """The calls again."""
    for call in calls:
        call()


def memory(name: str = "nft") -> list[Row]:
    """Megabytes held at most by an update of 64 rows beyond the weights as they were: adapters, and all weights."""
    out = []
    for rank in (32, 0):
        model = load_model("emoji", "cpu")
        with tempfile.TemporaryDirectory() as folder:
            with Held() as held:
                trainer = made(model, build("tuning", name), rank, Path(folder))
                start = time.perf_counter()
                a_round(trainer)
                seconds = time.perf_counter() - start
            trained = sum(p.numel() for p in trainer.plain.flow.parameters() if p.requires_grad)
        out.append({"tuned": f"rank {rank}" if rank else "all weights", "trained weights": trained,
                    "peak MB": held.most / 1e6, "seconds of a round": seconds})  # fmt: skip
    return out
