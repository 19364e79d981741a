"""The one loop with an optimiser, on accelerate: for training flow maps, and for tuning them with rewards.

What is trained is one module whose forward pass is the loss: so that distributed data parallelism sees every use of
the weights, those inside a jvp too. All randomness of a step, the order of the data included, is a function of the
seed and the step, drawn for the whole batch and shared out among processes and accumulated parts. Hence a run that was
killed ends with the same weights as one that was not, and two processes compute what one does with the same batch.
"""

import hashlib
import math
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from steer import checkpoints
from steer.averages import Averages
from steer.draws import Shard, rand_like
from steer.flow_map import Cond
from steer.interpolants import Time
from steer.objectives import Batch, Objective, Student, TimeWeight

ENDLESS = 1 << 30  # this many rows are not permuted: such data are drawn as they are needed


class TrainingData(Protocol):
    """Rows of training data, by index; the same index gives the same row in any process."""

    null: Cond
    """The condition of no prompt, one row, or None."""

    def __len__(self) -> int:
        """How many rows there are."""
        ...

    def __call__(self, index: Sequence[int]) -> tuple[Tensor, Cond]:
        """x1 [b *d] and cond [b ...] of some rows."""
        ...


@dataclass(frozen=True)
class Settings:
    """How the loop runs.

    Attributes:
        steps: updates of the weights.
        batch: rows of an update, over all processes and accumulated parts.
        accumulate: parts that an update's rows are computed in, to bound memory.
        lr: peak learning rate of AdamW.
        schedule: after the warm-up, "cosine" down to `final` of the peak, "constant", or "sqrt": constant for a third,
            then falling with the root of the step.
        warm_up: share of the steps over which the rate rises linearly.
        final: share of the peak that "cosine" ends at.
        betas, weight_decay: of AdamW.
        clip: largest norm of the gradient.
        ema: decays of averaged weights, kept at once; the first is the result (and the teacher, where one is wanted).
        drop: share of rows that are told nothing, for guidance.
        precision: "no" (float32), "bf16" or "fp16": mixed precision, with derivatives in float32 all the same.
        seed: of everything.
        save_every, keep: steps between checkpoints, and how many stay.
        log_every: steps between lines of the log.
        sample_every: steps between judgements of the averaged weights, and pictures; 0 for none but the last.
        tracker: "tensorboard", "wandb", or None; log.jsonl is written in any case.
    """

    steps: int = 10_000
    batch: int = 256
    accumulate: int = 1
    lr: float = 1e-3
    schedule: Literal["cosine", "constant", "sqrt"] = "cosine"
    warm_up: float = 0.02
    final: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    clip: float = 1.0
    ema: tuple[float, ...] = (0.999,)
    drop: float = 0.1
    precision: Literal["no", "bf16", "fp16"] = "no"
    seed: int = 0
    save_every: int = 1000
    keep: int = 2
    log_every: int = 100
    sample_every: int = 0
    tracker: Literal["tensorboard", "wandb"] | None = "tensorboard"

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate", "save_every", "keep", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("warm_up", "drop", "final"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be a share between 0 and 1, got {getattr(self, name)}")
        if self.lr <= 0 or self.clip <= 0:
            raise ValueError(f"lr and clip must be above 0, got {self.lr} and {self.clip}")
        if not self.ema or not all(0 <= d < 1 for d in self.ema):
            raise ValueError(f"ema must hold decays in [0, 1), at least one, got {self.ema}")
        known = {"schedule": ("cosine", "constant", "sqrt"), "precision": ("no", "bf16", "fp16"),
                 "tracker": ("tensorboard", "wandb", None)}  # fmt: skip
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name} must be one of {', '.join(map(str, values))}, got {getattr(self, name)!r}")

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        done, start = step / self.steps, self.warm_up
        if done < start:
            return self.lr * max(done / start, 0.01)
        if self.schedule == "cosine":
            fall = 0.5 * (1 + math.cos(math.pi * (done - start) / max(1 - start, 1e-9)))
            return self.lr * (self.final + (1 - self.final) * fall)
        return self.lr if self.schedule == "constant" or done < 1 / 3 else self.lr * (1 / 3 / done) ** 0.5


class Learner(nn.Module):
    """What is trained, as one module whose forward pass is the loss of a batch."""

    def __init__(self, flow: nn.Module, objective: Objective, student: Student) -> None:
        super().__init__()
        self.flow = flow
        self.weight = TimeWeight() if _needs_weight(objective) else None
        self.objective, self.student = objective, student

    def forward(self, batch: Batch, rng: Shard, average: nn.Module | None, progress: float) -> tuple[Tensor, dict]:
        """The loss, and what to write down."""
        student = replace(
            self.student, flow=self.flow, average=average and Own(average), weight=self.weight, progress=progress,
            null=_described(self.flow, self.student.null),
        )  # fmt: skip
        return self.objective(student, replace(batch, cond=_described(self.flow, batch.cond)), rng)


def _needs_weight(objective: object) -> bool:
    from steer.objectives import LearnedWeight

    inner = getattr(objective, "objective", None)
    return isinstance(getattr(objective, "weighting", None), LearnedWeight) or (
        inner is not None and _needs_weight(inner)
    )


def _described(flow: nn.Module, cond: Cond) -> Cond:
    """What a network that reads words makes of them, once for all calls of a step."""
    describe = getattr(flow, "condition", None)
    return cond if cond is None or describe is None else describe(cond)


class Own:
    """A network that reads the words itself, rather than take what the one in training has made of them."""

    def __init__(self, flow: nn.Module) -> None:
        self.flow = flow

    def __call__(self, x: Tensor, s: Time, t: Time, cond: Cond = None) -> Tensor:
        """v_{s,t}(x) [b *d]."""
        return self.flow(x, s, t, None if cond is None else {k: c for k, c in cond.items() if k != "words"})


class Stopped(Exception):
    """The run was asked to stop (SIGTERM, SIGINT); its checkpoint is written."""


Judge = Callable[[nn.Module, Path, int], dict[str, float]]


class Trainer:
    """A flow map, an objective, data and settings; `run` trains it in a folder, going on from what is there.

    flow: the network, an nn.Module v(x, s, t, cond); it may have `condition(cond) -> cond`, applied once a step.
    student: path, null, metric; what else an objective is told.
    save: called as save(averaged flow, folder) beside each checkpoint, by the first process.
    judge: called as judge(averaged flow, folder, step) -> numbers, by the first process.
    """

    def __init__(
        self,
        flow: nn.Module,
        objective: Objective,
        data: TrainingData,
        settings: Settings,
        folder: Path,
        *,
        student: Student | None = None,
        save: Callable[[nn.Module, Path], None] | None = None,
        judge: Judge | None = None,
        progress: bool = True,
        facts: dict[str, Any] | None = None,
    ) -> None:
        from accelerate import Accelerator, DistributedDataParallelKwargs

        self.settings, self.folder, self.data, self.objective = settings, folder, data, objective
        self.save, self.judge, self.progress, self.facts = save, judge, progress, facts or {}
        self.accelerator = Accelerator(
            mixed_precision=settings.precision,
            log_with=settings.tracker,
            project_dir=str(folder),
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
        parts = self.accelerator.num_processes * settings.accumulate
        if settings.batch % parts:
            raise ValueError(
                f"batch={settings.batch} must be a multiple of {self.accelerator.num_processes} processes times "
                f"accumulate={settings.accumulate}; take {-(-settings.batch // parts) * parts}"
            )
        student = replace(student or Student(flow), null=data.null)
        self.averages = Averages(flow, settings.ema, self.accelerator.device)
        learner = Learner(flow, objective, student)
        trained = [p for p in learner.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(trained, settings.lr, settings.betas, weight_decay=settings.weight_decay)
        self.learner, self.optimiser = self.accelerator.prepare(learner, optimiser)
        self.step = 0
        self._epoch: tuple[int, np.ndarray] = (-1, np.empty(0))
        self.asked_to_stop = False

    @property
    def main(self) -> bool:
        """Whether this is the first process."""
        return self.accelerator.is_main_process

    @property
    def plain(self) -> Learner:
        """The learner without what accelerate wraps around it."""
        return self.accelerator.unwrap_model(self.learner)

    def run(self) -> nn.Module:
        """Train to the last step; returns the flow with the first of the averaged weights.

        Raises:
            FloatingPointError: the loss or its gradient is not finite.
            Stopped: the process was told to; a checkpoint is written first.
        """
        from steer.tracking import Log

        self.resume()
        log = Log(self) if self.main else None
        with self._signals(), log or _nothing():
            while self.step < self.settings.steps:
                row = self.update()
                if log is not None:
                    log.step(self.step, row)
                stop = self._anyone_asked()
                last = self.step == self.settings.steps
                if self.step % self.settings.save_every == 0 or stop or last:
                    self.checkpoint()
                if stop and not last:
                    raise Stopped(f"stopped after step {self.step}, as asked; the same command goes on from there")
                every = self.settings.sample_every
                if log is not None and self.judge and (last or (every and self.step % every == 0)):
                    log.judged(self.step, self.judge(self.averages.first, self.folder, self.step))
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
        return self.averages.first

    def order(self, step: int) -> list[int]:
        """The rows of a step's batch: each epoch is another permutation of the data; endless data come in order."""
        n, b = len(self.data), self.settings.batch
        if n >= ENDLESS:
            return list(range(step * b, (step + 1) * b))
        return [int(self._permutation(i // n)[i % n]) for i in range(step * b, (step + 1) * b)]

    def _permutation(self, epoch: int) -> np.ndarray:
        if self._epoch[0] != epoch:
            self._epoch = epoch, np.random.default_rng([self.settings.seed, epoch]).permutation(len(self.data))
        return self._epoch[1]

    def update(self) -> dict[str, float]:
        """One step: the loss, its gradient, the weights, their averages."""
        settings, index = self.settings, self.order(self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = settings.rate(self.step)
        self.learner.train()
        sums: dict[str, Tensor] = {}
        for part in range(settings.accumulate):
            ahead = part + 1 < settings.accumulate
            with self.accelerator.no_sync(self.learner) if ahead else _nothing():
                loss, metrics = self._part(index, part)
                self.accelerator.backward(loss / settings.accumulate)
            for key, value in {"loss": loss.detach(), **metrics}.items():
                sums[key] = sums.get(key, 0) + value.detach().float() / settings.accumulate  # type: ignore[operator]
        norm = self.accelerator.clip_grad_norm_(self.learner.parameters(), settings.clip)
        row = {key: self.accelerator.reduce(value, "mean").item() for key, value in sums.items()}  # type: ignore[union-attr]
        row["norm"] = float(norm) if norm is not None else math.nan
        if not (math.isfinite(row["loss"]) and (settings.precision == "fp16" or math.isfinite(row["norm"]))):
            raise FloatingPointError(self._not_finite(row, index))
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.averages.update(self.plain.flow, self.step)
        self.step += 1
        return {**row, "lr": settings.rate(self.step - 1)}

    def _part(self, index: list[int], part: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of this process's share of one accumulated part."""
        settings, world = self.settings, self.accelerator.num_processes
        rank, count = part * world + self.accelerator.process_index, world * settings.accumulate
        b, device = settings.batch // count, self.accelerator.device
        generator = torch.Generator(device).manual_seed(_seed(settings.seed, self.step))
        rng = Shard(generator, rank, count)
        x1, cond = self.data(index[rank * b : (rank + 1) * b])
        x1 = x1.to(device)
        cond = None if cond is None else {key: c.to(device) for key, c in cond.items()}
        dropped = rand_like(x1.new_empty(b), rng) < settings.drop
        if cond is not None and self.data.null is not None:
            cond = {k: torch.where(_beside(dropped, c), self.data.null[k].to(c), c) for k, c in cond.items()}
        average = self.averages.first
        batch = Batch(x1, cond, None if cond is None else dropped)
        return self.learner(batch, rng, average, self.step / settings.steps)

    def _not_finite(self, row: dict[str, float], index: list[int]) -> str:
        """What the error says; all the rows go to a file."""
        if self.main:
            checkpoints.write_json(self.folder / "not_finite.json", {"step": self.step, **row, "rows": index})
        good = checkpoints.found(self.folder)
        where = str(good[-1]) if good else "none yet"
        return (
            f"step {self.step}: the loss is {row['loss']} and its gradient's norm {row['norm']}; rows of the batch: "
            f"{index[:8]}, ... (all in {self.folder / 'not_finite.json'}); last good checkpoint: {where}; lower lr "
            f"or clip, or look at these rows"
        )

    def checkpoint(self) -> None:
        """Write everything that the next step depends on, and the model as it is so far."""
        from steer.distributed import full_state

        tensors, groups = full_state(self.learner, self.optimiser)
        if self.main:
            tensors |= {f"ema.{k}": v for k, v in self.averages.state().items()}
            facts = {"settings": _as_json(self.settings), "optimiser": groups, **self.facts}
            checkpoints.write(self.folder, self.step, tensors, facts, self.settings.keep)
            if self.save is not None:
                self.save(self.averages.first, self.folder)
        self.accelerator.wait_for_everyone()

    def resume(self) -> None:
        """Go on from the newest checkpoint of the folder, where there is one.

        Raises:
            ValueError: it is damaged, or of another network.
        """
        from steer.distributed import load_full_state

        there = checkpoints.found(self.folder)
        if not there:
            return
        tensors, facts = checkpoints.read(there[-1])
        self.averages.load({k[4:]: v for k, v in tensors.items() if k.startswith("ema.")})
        load_full_state(self.learner, self.optimiser, tensors, facts["optimiser"])
        self.step = int(facts["step"])

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT end the run after the step, with a checkpoint; a second SIGINT at once."""

        def ask(number: int, frame: object) -> None:
            if self.asked_to_stop and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.asked_to_stop = True

        try:
            before = {n: signal.signal(n, ask) for n in (signal.SIGTERM, signal.SIGINT)}
        except ValueError:  # not in the main thread: signals are someone else's
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _anyone_asked(self) -> bool:
        if self.accelerator.num_processes == 1:
            return self.asked_to_stop
        flag = torch.tensor(float(self.asked_to_stop), device=self.accelerator.device)
        return self.accelerator.reduce(flag, "sum").item() > 0  # type: ignore[union-attr]


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def _seed(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256(":".join(map(str, parts)).encode()).digest()[:7], "big")


def _beside(mask: Tensor, c: Tensor) -> Tensor:
    return mask.view(-1, *[1] * (c.ndim - 1))


def _as_json(settings: Settings) -> dict[str, Any]:
    return {key: list(v) if isinstance(v, tuple) else v for key, v in vars(settings).items()}
