"""Rows that a model makes for itself: the training data of fine-tuning, renewed as it learns."""

import warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from steer.adapters import Reference
from steer.collecting import Actor, Collector
from steer.draws import randn_like
from steer.flow_map import Cond, FlowMap
from steer.interpolants import Interpolant, Linear, Time
from steer.learner import described
from steer.particles import Reward
from steer.problem import generator_of
from steer.prompts import Prompts

if TYPE_CHECKING:
    from accelerate import Accelerator

Encode = Callable[[list[str]], Cond]


@dataclass(frozen=True)
class Rounds:
    """How much is gathered, and how long it serves.

    prompts: of a round, over all processes. group: samples of each. updates: steps of the optimiser before the next
    round. replay: rounds whose rows are kept. chunk: samples drawn at once.

    Raises:
        ValueError: a number below 1.
    """

    prompts: int = 16
    group: int = 16
    updates: int = 4
    replay: int = 1
    chunk: int = 512

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"rounds.{name} must be a whole number, at least 1, got {value!r}")


class Told:
    """A map that is told its prompts by their numbers, cond = {"prompt": [b]}, and knows what each one means to it."""

    def __init__(self, flow: FlowMap, cond: Cond) -> None:
        self.flow, self.cond = flow, cond

    def __call__(self, x: Tensor, s: Time, t: Time, cond: Cond = None) -> Tensor:
        """v_{s,t}(x) [b *d]."""
        assert cond is not None
        rest = {key: c for key, c in cond.items() if key != "prompt"}
        mine = {key: c[cond["prompt"]] for key, c in (self.cond or {}).items()}
        return self.flow(x, s, t, (mine | rest) or None)


class Experience:
    """The rows of the last rounds, as a `steer.training.TrainingData` that is renewed.

    prompts: of each round. encode: prompts -> what the network is told of them, before it reads the words.
    collector: how rows are gathered. score: prompts -> reward of latents x1 [p m *d] -> [p m]. shape: of a sample.
    reference: the map as it was before tuning. temperature: of the target.

    Rows depend on the seed, the round and the weights alone, a prompt's rows not on the other prompts: any number of
    processes gathers the same, each for its share of the prompts, and then holds them all.
    """

    def __init__(
        self,
        prompts: Prompts,
        encode: Encode,
        collector: Collector,
        score: Callable[[list[str]], Reward],
        shape: tuple[int, ...],
        reference: Reference,
        *,
        rounds: Rounds | None = None,
        temperature: float = 1.0,
        path: Interpolant | None = None,
        seed: int = 0,
    ) -> None:
        self.prompts, self.encode, self.collector, self.score = prompts, encode, collector, score
        self.shape, self.reference, self.rounds = shape, reference, rounds or Rounds()
        self.temperature, self.path, self.seed = temperature, path or Linear(), seed
        self.null: Cond = None
        self.each = self.rounds.prompts * collector.rows(self.rounds.group)
        self.kept: list[dict[str, Any]] = []  # a round: "number", "x1" [r *d], "cond" [P ...], "more" {name: [r ...]}
        self.names: list[list[str]] = []
        self.totals: dict[str, float] = {"pictures": 0, "calls": 0}
        self._told = False

    def __len__(self) -> int:
        return self.each * self.rounds.replay

    def __call__(self, index: Sequence[int]) -> tuple[Tensor, Cond]:
        """x1 and cond of rows; as long as there are fewer rounds than are kept, their rows come more often."""
        rows = self._rows(index)
        of = rows // (self.each // self.rounds.prompts)
        cond = {key: self._all("cond", key)[of] for key in self.kept[0]["cond"]}
        return self._all("x1")[rows], cond or None

    def more(self, index: Sequence[int]) -> dict[str, Tensor]:
        """What else is known of rows, and "prompt", the number of each row's prompt for `reward`."""
        rows = self._rows(index)
        found = {name: self._all("more", name)[rows] for name in self.kept[0]["more"]}
        return found | {"prompt": rows // (self.each // self.rounds.prompts)}

    def _rows(self, index: Sequence[int]) -> Tensor:
        return torch.as_tensor(index, device=self.kept[0]["x1"].device) % (self.each * len(self.kept))

    def _all(self, part: str, name: str | None = None) -> Tensor:
        """A tensor of all rounds that are kept."""
        found = [kept[part] if name is None else kept[part][name] for kept in self.kept]
        return found[0] if len(found) == 1 else torch.cat(found)

    def reward(self, x1: Tensor, prompt: Tensor) -> Tensor:
        """The reward over the temperature [b] of samples x1 [b *d] of prompts by their numbers [b]."""
        texts = [q for names in self.names for q in names]
        return self.score([texts[i] for i in prompt.tolist()])(x1[:, None])[:, 0] / self.temperature

    def renew(self, step: int, flow: nn.Module, average: nn.Module, accelerator: "Accelerator") -> dict[str, float]:
        """Before a step: gather a round where one is due; figures of it, or none."""
        number, late = divmod(step, self.rounds.updates)
        if late or (self.kept and self.kept[-1]["number"] >= number):
            return {}
        rank, world = accelerator.process_index, accelerator.num_processes
        if self.rounds.prompts % world:
            raise ValueError(
                f"rounds.prompts must be a multiple of the {world} processes, got {self.rounds.prompts}; take "
                f"{-(-self.rounds.prompts // world) * world}"
            )
        names = self.prompts.round(number, self.rounds.prompts)
        if world > 1:  # a user's function may give each process others
            from accelerate.utils import broadcast_object_list

            names = broadcast_object_list(names)
        share = self.rounds.prompts // world
        mine = range(rank * share, (rank + 1) * share)
        with torch.no_grad(), evaluating(flow), accelerator.autocast():
            parts = [
                self._collect(names, list(mine)[i : i + self._at_once()], number, flow, average, accelerator.device)
                for i in range(0, share, self._at_once())
            ]
        x1, more, calls = _join(parts)
        if world > 1:
            x1, more, calls = _gathered(x1, more, calls)
        more = self._finished(more)
        cond = {key: c.to(accelerator.device) for key, c in (self.encode(names) or {}).items()}
        rows = {key: value.flatten(0, 1) for key, value in more.items()}
        self.kept.append({"number": number, "x1": x1.flatten(0, 1), "cond": cond, "more": rows})
        self.names.append(names)
        self.kept, self.names = self.kept[-self.rounds.replay :], self.names[-self.rounds.replay :]
        return self._figures(more, calls)

    def _at_once(self) -> int:
        return max(1, self.rounds.chunk // self.rounds.group)

    def _collect(
        self, names: list[str], which: list[int], number: int, flow: nn.Module, average: nn.Module, device: torch.device
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Rows [p n ...] of some of a round's prompts."""
        some = [names[i] for i in which]
        raw = {key: c.to(device) for key, c in (self.encode(some) or {}).items()} or None
        current, averaged = (Told(net, described(net, raw)) for net in (flow, average))
        reference = Told(self.reference, raw)
        actor = Actor(current, averaged, reference, self.score(some), self.temperature, self.path)
        rng = [generator_of(f"{self.seed}:{number}:{i}:{q}") for i, q in zip(which, some, strict=True)]
        x0 = randn_like(torch.empty(len(some), self.rounds.group, *self.shape, device=device), rng)
        cond = {"prompt": torch.arange(len(some), device=device)}
        out = self.collector(actor, x0, cond, rng=rng, shared=generator_of(f"{self.seed}:{number}:-1:"))
        return out.x1.float(), {key: v.float() for key, v in out.more.items()}, out.calls

    def _finished(self, more: dict[str, Tensor]) -> dict[str, Tensor]:
        """With advantages, which may need the rewards of all prompts."""
        advantages = getattr(self.collector, "advantages", None)
        if advantages is None:
            return more
        found = advantages(more["reward"])
        if not self._told and not bool(found.any()):
            self._told = True
            warnings.warn(
                "all advantages of a round are zero: the rewards of each prompt's samples do not differ, so nothing is "
                "learned from them; raise group, take a reward with more grades, or prompts that sometimes succeed",
                stacklevel=2,
            )
        return more | {"advantage": found}

    def _figures(self, more: dict[str, Tensor], calls: Tensor) -> dict[str, float]:
        self.totals["calls"] += int(calls.sum())
        self.totals["pictures"] += self.rounds.prompts * self.rounds.group
        figures: dict[str, float] = {}
        if "reward" in more:
            kept = more["reward"][more["reward"].isfinite()]
            figures |= {"reward": float(kept.mean())} if len(kept) else {}
        if "weight" in more:
            w = more["weight"].flatten()
            figures["used"] = float(w.sum() ** 2 / (w.square().sum() * len(w)).clamp_min(1e-12))
        return figures

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and facts from which `load` makes the same rows."""
        tensors = {}
        for k, kept in enumerate(self.kept):
            tensors[f"{k}.x1"] = kept["x1"]
            tensors |= {f"{k}.{part}.{name}": v for part in ("cond", "more") for name, v in kept[part].items()}
        numbers = [kept["number"] for kept in self.kept]
        return tensors, {"rounds": numbers, "prompts": self.names, "totals": self.totals}

    def load(self, tensors: dict[str, Tensor], facts: dict[str, Any], device: torch.device) -> None:
        """Take back what `state` gave."""
        self.kept, self.names, self.totals = [], [list(names) for names in facts["prompts"]], dict(facts["totals"])
        for k, number in enumerate(facts["rounds"]):
            mine = {key[len(f"{k}.") :]: v.to(device) for key, v in tensors.items() if key.startswith(f"{k}.")}
            parts = {
                part: {key[5:]: v for key, v in mine.items() if key.startswith(f"{part}.")} for part in ("cond", "more")
            }
            self.kept.append({"number": int(number), "x1": mine["x1"], **parts})


@contextmanager
def evaluating(flow: nn.Module):  # noqa: ANN201 (a generator)
    """A network without dropout while this is open."""
    was = flow.training
    flow.eval()
    try:
        yield
    finally:
        flow.train(was)


def _join(parts: list[tuple[Tensor, dict[str, Tensor], Tensor]]) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    x1, more, calls = zip(*parts, strict=True)
    return torch.cat(x1), {key: torch.cat([m[key] for m in more]) for key in more[0]}, torch.cat(calls)


def _gathered(x1: Tensor, more: dict[str, Tensor], calls: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """The rows of all processes, in the order of the prompts."""
    from accelerate.utils import gather

    everything: Any = gather({"x1": x1, "calls": calls, **{f"more.{k}": v for k, v in more.items()}})
    return everything["x1"], {k: everything[f"more.{k}"] for k in more}, everything["calls"]
