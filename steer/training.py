"""The one loop with an optimiser, on accelerate: for training flow maps, and for tuning them with rewards.

All randomness of a step, the order of the data included, is a function of the seed and the step, drawn for the whole
batch and shared out among processes and accumulated parts. Hence a run that was killed ends with the same weights as
one that was not, and two processes compute what one does with the same batch.
"""

import hashlib
import math
import signal
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from steer import checkpoints
from steer.averages import Averages
from steer.distributed import full_state, load_full_state, make_accelerator
from steer.draws import Shard, rand_like
from steer.flow_map import Cond
from steer.learner import Learner, Own, seeded
from steer.objectives import Batch, Objective, Student
from steer.sameness import check_same, described, some_rows
from steer.stopping import Signals, Stopped
from steer.tracking import Log, Means
from steer.training_settings import Settings

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["ENDLESS", "Judge", "Learner", "Own", "Renewed", "Settings", "Stopped", "Trainer", "TrainingData"]

ENDLESS = 1 << 30  # this many rows are not permuted: such data are drawn as they are needed

Judge = Callable[[nn.Module, Path, int], dict[str, float]]


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


@runtime_checkable
class Renewed(TrainingData, Protocol):
    """Rows that the model in training makes itself, such as `steer.experience.Experience`.

    totals: what the rows have cost so far, by name.
    """

    totals: dict[str, float]

    def renew(self, step: int, flow: nn.Module, average: nn.Module, accelerator: "Accelerator") -> dict[str, float]:
        """Make new rows before a step, where they are due, in every process; figures of them."""
        ...

    def more(self, index: Sequence[int]) -> dict[str, Tensor]:
        """What else is known of some rows, by name [b ...]."""
        ...

    def reward(self, x1: Tensor, prompt: Tensor) -> Tensor:
        """The reward [b] of samples x1 [b *d] of prompts by their numbers [b]."""
        ...

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and facts, of which `load` makes the same rows."""
        ...

    def load(self, tensors: dict[str, Tensor], facts: dict[str, Any], device: torch.device) -> None:
        """Take them back."""
        ...


class Trainer:
    """A flow map, an objective, data and settings; `run` trains it in a folder, going on from what is there.

    flow: the network, an nn.Module v(x, s, t, cond); it may have `condition(cond) -> cond`, applied once a step.
    student: path, null, metric; what else an objective is told.
    save: called as save(averaged flow, folder) before each checkpoint, by the first process.
    judge: called as judge(averaged flow, folder, step) -> numbers, by the first process. If it has a `verdict` that is
        not empty, the run ends there.
    facts: what else tells this run from others, as JSON; one with other facts is not taken up.

    Raises ValueError where the settings do not fit the data or the number of processes.
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
        if not len(data):
            raise ValueError("data must hold at least one row, got none")
        self.settings, self.folder, self.data, self.objective = settings, Path(folder), data, objective
        self.made = data if isinstance(data, Renewed) else None
        self.save, self.judge, self.progress, self.more_facts = save, judge, progress, facts or {}
        self.accelerator = make_accelerator(settings.precision, settings.tracker, self.folder)
        self.world, self.device = self.accelerator.num_processes, self.accelerator.device
        if self.made and "FSDP" in str(self.accelerator.distributed_type):
            raise ValueError(
                "fine-tuning draws samples with the weights as they are, which FSDP spreads over processes; launch "
                "with DDP (multi-GPU), where adapters (rank=) keep memory low"
            )
        parts = self.world * settings.accumulate
        if settings.batch % parts:
            raise ValueError(
                f"batch must be a multiple of {self.world} processes times accumulate={settings.accumulate}, got "
                f"{settings.batch}; take {-(-settings.batch // parts) * parts}"
            )
        self.averages = Averages(flow, settings.ema, self.device)
        student = replace(student or Student(flow), null=data.null, reward=self.made and self.made.reward)
        learner = Learner(flow, objective, student, settings.seed).train()
        trained = [p for p in learner.parameters() if p.requires_grad]
        fused = self.device.type in ("cpu", "cuda")
        optimiser = torch.optim.AdamW(
            trained, settings.lr, settings.betas, weight_decay=settings.weight_decay, fused=fused
        )
        self.learner, self.optimiser = self.accelerator.prepare(learner, optimiser)
        self.plain: Learner = self.accelerator.unwrap_model(self.learner)
        self.averages.start(self.plain.flow)
        self.step, self.means, self.signals = 0, Means(), Signals()
        self._epoch: tuple[int, np.ndarray] = (-1, np.empty(0))

    @property
    def main(self) -> bool:
        """Whether this is the first process."""
        return self.accelerator.is_main_process

    def run(self) -> nn.Module:
        """Train to the last step; returns the flow with the first of the averaged weights.

        Raises:
            FloatingPointError: the loss or its gradient is not finite.
            Stopped: the process was told to; a checkpoint is written first.
            ValueError: the folder holds another run, or no checkpoint that can be read.
        """
        settings = self.settings
        self.resume()
        log = Log(self) if self.main else None
        with self.signals, log or nullcontext():
            over = self._judge(log)  # what a stopped run still owed
            while self.step < settings.steps and not over:
                row = self.update()
                if log is not None:
                    log.step(self.step, row["loss"])
                last = self.step == settings.steps
                if self.step % settings.log_every == 0 or last:
                    means = self.means.take(self.world > 1) | (dict(self.made.totals) if self.made else {})
                    if log is not None:
                        log.means(self.step, means)
                if self.step % settings.save_every == 0 or self.signals.asked or last:
                    self.checkpoint()
                if self.signals.asked and not last:
                    done = f"stopped as asked, after step {self.step} of {settings.steps}"
                    cure = f"the same command goes on from the checkpoint in {self.folder}"
                    raise Stopped(f"{done}; {cure}", self.signals.asked)
                over = self._judge(log)
        self.accelerator.wait_for_everyone()
        return self.averages.first

    def _judge(self, log: Log | None) -> bool:
        """Judge the averaged weights where that is due and not done; whether the judge wants no more steps."""
        every = self.settings.sample_every
        due = self.step == self.settings.steps or bool(every and self.step and self.step % every == 0)
        if log is not None and self.judge is not None and due and self.step not in log.judged_at:
            log.judged(self.step, self.judge(self.averages.first, self.folder, self.step))
        over = [due and self.main and bool(getattr(self.judge, "verdict", ""))]
        if self.world > 1 and due:
            from accelerate.utils import broadcast_object_list

            over = broadcast_object_list(over)
        if over[0] and self.step % self.settings.save_every and self.step < self.settings.steps:
            self.checkpoint()
        return over[0]

    def order(self, step: int) -> list[int]:
        """The rows of a step's batch: each epoch is another permutation of the data; endless data come in order."""
        n, b = len(self.data), self.settings.batch
        if n >= ENDLESS:
            return list(range(step * b, (step + 1) * b))
        rows: list[int] = []
        while len(rows) < b:
            epoch, place = divmod(step * b + len(rows), n)
            rows += self._permutation(epoch)[place : place + b - len(rows)].tolist()
        return rows

    def _permutation(self, epoch: int) -> np.ndarray:
        if self._epoch[0] != epoch:
            self._epoch = epoch, np.random.default_rng([self.settings.seed, epoch]).permutation(len(self.data))
        return self._epoch[1]

    def update(self) -> dict[str, Any]:
        """One step: the loss, its gradient, the weights, their averages.

        Returns the loss and the gradient's norm (float), of all processes, and this process's other figures (Tensor).
        """
        settings = self.settings
        told = self.made.renew(self.step, self.plain.flow, self.averages.first, self.accelerator) if self.made else {}
        index, rate = self.order(self.step), settings.rate(self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        sums: dict[str, Tensor] = {}
        for part in range(settings.accumulate):
            ahead = part + 1 < settings.accumulate
            with self.accelerator.no_sync(self.learner) if ahead else nullcontext():
                loss, metrics = self._part(index, part)
                scale = self.accelerator.scaler  # as accelerator.backward, less its search for packages at each call
                (loss / settings.accumulate if scale is None else scale.scale(loss / settings.accumulate)).backward()
            for key, value in {"loss": loss, **metrics}.items():
                share = value.detach() / settings.accumulate
                sums[key] = sums[key] + share if key in sums else share
        norm = self.accelerator.clip_grad_norm_(self.learner.parameters(), settings.clip)
        row = {**sums, "loss": self._told(sums["loss"]), "norm": float("nan" if norm is None else norm)}
        if not (math.isfinite(row["loss"]) and (settings.precision == "fp16" or math.isfinite(row["norm"]))):
            raise FloatingPointError(self._not_finite(row, index))
        stepping = self.optimiser.optimizer if self.accelerator.scaler is None else self.optimiser
        stepping.step()
        stepping.zero_grad()
        if (self.step + 1) % settings.average_every == 0 or self.step + 1 == settings.steps:
            self.averages.update(self.plain.flow, self.step // settings.average_every)
        self.step += 1
        self.means.add({**row, **told, "lr": rate})
        return row

    def _part(self, index: list[int], part: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of this process's share of one accumulated part."""
        settings = self.settings
        rank, count = part * self.world + self.accelerator.process_index, self.world * settings.accumulate
        b, seed = settings.batch // count, _seed(settings.seed, self.step)
        rng = Shard(torch.Generator(self.device).manual_seed(seed), rank, count)
        rows = index[rank * b : (rank + 1) * b]
        x1, cond = self.data(rows)
        x1, more = x1.to(self.device), self.made.more(rows) if self.made else {}
        cond = None if cond is None else {key: c.to(self.device) for key, c in cond.items()}
        dropped = rand_like(x1.new_empty(b), rng) < settings.drop
        if cond is not None and self.data.null is not None:
            cond = {k: torch.where(_beside(dropped, c), self.data.null[k].to(c), c) for k, c in cond.items()}
        batch = Batch(x1, cond, None if cond is None else dropped, more)
        with seeded(seed + rank, self.device):  # for dropout, which takes no generator
            return self.learner(batch, rng, self.averages.first, self.step / settings.steps)

    def _told(self, loss: Tensor) -> float:
        """The mean loss of all processes, which learn at once whether any was asked to stop."""
        if self.world == 1:
            return loss.item()
        asked = [float(self.signals.asked == number) for number in (signal.SIGTERM, signal.SIGINT)]
        mean: Any = self.accelerator.reduce(torch.stack([loss.float(), *loss.new_tensor(asked).float()]), "mean")
        value, term, interrupt = mean.tolist()
        self.signals.asked = signal.SIGTERM if term else signal.SIGINT if interrupt else 0
        return value

    def _not_finite(self, row: dict[str, Any], index: list[int]) -> str:
        """What the error says; all the rows go to a file."""
        x1 = self.data(index)[0]
        bad = [i for i, fine in zip(index, x1.flatten(1).isfinite().all(1).tolist(), strict=True) if not fine]
        if self.main:
            figures = {key: float(value) for key, value in row.items()}
            content = {"step": self.step, **figures, "rows": index, "rows_not_finite": bad}
            checkpoints.write_json(self.folder / "not_finite.json", content)
        good = checkpoints.found(self.folder)
        whose = f"rows {bad[:8]} of the data hold numbers that are not finite" if bad else "all its data are finite"
        cure = "mend these rows" if bad else "lower lr or clip"
        return (
            f"step {self.step}: the loss is {row['loss']} and its gradient's norm {row['norm']}; rows of the batch: "
            f"{index[:8]}, ... (all in {self.folder / 'not_finite.json'}); {whose}; last good checkpoint: "
            f"{good[-1] if good else 'none yet'}; {cure}"
        )

    def facts(self) -> dict[str, Any]:
        """What makes this run the one it is."""
        first = list(dict.fromkeys((0, len(self.data) // 2)))
        return {
            "settings": described(self.settings),
            "objective": described(self.objective),
            "rows": len(self.data),
            **({} if self.made and self.made.totals else {"some_rows": some_rows(self.data(first)[0])}),
            **self.more_facts,
        }

    def checkpoint(self) -> None:
        """Write everything that the next step depends on, and, before it, the model as it is so far."""
        tensors, groups = full_state(self.learner, self.optimiser)
        means, scaler = self.means.state(self.world > 1), self.accelerator.scaler
        if self.main:
            if self.save is not None:
                self.save(self.averages.first, self.folder)
            tensors |= {f"ema.{k}": v for k, v in self.averages.state().items()}
            made, facts = self.made.state() if self.made else ({}, None)
            tensors |= {f"made.{k}": v for k, v in made.items()}
            more = {"optimiser": groups, "means": means, "scaler": scaler and scaler.state_dict(), "made": facts}
            checkpoints.write(self.folder, self.step, tensors, {**self.facts(), **more}, self.settings.keep)
        self.accelerator.wait_for_everyone()

    def resume(self) -> None:
        """Go on from the newest checkpoint of the folder that can be read, where there is one.

        Raises:
            ValueError: all are damaged, or of another run.
        """
        state = checkpoints.newest(self.folder)
        if state is None:
            return
        tensors, facts = state
        try:
            check_same(facts, self.facts(), self.folder)
            try:
                self._take(tensors, facts)
            except ValueError as error:
                raise ValueError(f"{self.folder}: {error}") from error
        except (KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise ValueError(
                f"the checkpoint of step {facts['step']} in {self.folder} is damaged ({error!r}); remove it to go on "
                "from the one before"
            ) from error

    def _take(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Take back what `checkpoint` wrote."""
        self.averages.load({k[4:]: v for k, v in tensors.items() if k.startswith("ema.")})
        load_full_state(self.learner, self.optimiser, tensors, facts["optimiser"])
        if self.accelerator.scaler is not None and facts.get("scaler"):
            self.accelerator.scaler.load_state_dict(facts["scaler"])
        if self.made and facts.get("made"):
            mine = {k[5:]: v for k, v in tensors.items() if k.startswith("made.")}
            self.made.load(mine, facts["made"], self.device)
        if self.main:
            self.means.load(facts.get("means", {}))
        self.step = int(facts["step"])


def _seed(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256(":".join(map(str, parts)).encode()).digest()[:7], "big")


def _beside(mask: Tensor, c: Tensor) -> Tensor:
    return mask.view(-1, *[1] * (c.ndim - 1))
