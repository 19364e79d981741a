"""What a training says while it runs: a bar with the time left, a line now and then, log.jsonl, and a tracker."""

import json
import secrets
import time
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from steer.training import Trainer

Sums = dict[str, list[float]]


class Means:
    """Means of figures over steps; a figure that some steps lack is averaged over those that have it."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, row: dict[str, Tensor | float]) -> None:
        """The figures of a step, which are not waited for."""
        for key, value in row.items():
            there = self.sums.get(key)
            value = torch.as_tensor(value, dtype=torch.float64, device=None if there is None else there.device)
            self.sums[key] = value if there is None else there + value
            self.counts[key] = self.counts.get(key, 0) + 1

    def state(self, many: bool = False) -> Sums:
        """{name: [sum, count]}, of all processes where there are many: then each must ask."""
        mine: Sums = {key: [float(self.sums[key]), count] for key, count in self.counts.items()}
        if not many:
            return mine
        from accelerate.utils import gather_object

        everyone: list[Sums] = gather_object([mine])
        keys = dict.fromkeys(key for one in everyone for key in one)
        return {key: [sum(one[key][i] for one in everyone if key in one) for i in (0, 1)] for key in keys}

    def load(self, state: Sums) -> None:
        """Take back what `state` gave."""
        self.sums = {key: torch.tensor(total, dtype=torch.float64) for key, (total, _) in state.items()}
        self.counts = {key: int(count) for key, (_, count) in state.items()}

    def take(self, many: bool = False) -> dict[str, float]:
        """The means since the last time, of all processes where there are many."""
        means = {key: total / count for key, (total, count) in self.state(many).items()}
        self.sums, self.counts = {}, {}
        return means


class Log:
    """What the first process says: used as a context, told of each step."""

    def __init__(self, trainer: "Trainer") -> None:
        from rich.console import Console

        self.trainer, self.path = trainer, trainer.folder / "log.jsonl"
        self.console = Console(stderr=True)
        self.start = self.since = time.perf_counter()
        self.steps = 0
        self.judged_at = {row["step"] for row in self._forget_beyond(trainer.step) if "loss" not in row}

    def __enter__(self) -> "Log":
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        settings, trainer = self.trainer.settings, self.trainer
        if settings.tracker:
            told = {k: str(v) for k, v in vars(settings).items()}
            trainer.accelerator.init_trackers("steer", told, {settings.tracker: self._going_on()})
        columns = (
            TextColumn("train"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[told]}"),
        )
        shown = trainer.progress and self.console.is_terminal
        self.bar = Progress(*columns, console=self.console, disable=not shown)
        self.task = self.bar.add_task("train", total=settings.steps, completed=trainer.step, told="")
        self.bar.start()
        if trainer.step:
            self.say(f"goes on from step {trainer.step}")
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()
        for tracker in self.trainer.accelerator.trackers:
            tracker.finish()

    def step(self, step: int, loss: float) -> None:
        """After a step."""
        self.steps += 1
        self.bar.update(self.task, completed=step, told=f"loss {loss:.4g}")

    def means(self, step: int, figures: dict[str, float]) -> None:
        """A line of the means since the last one; it is said where no judge says more."""
        now = time.perf_counter()
        figures = {**figures, "steps_per_second": self.steps / (now - self.since)}
        self.write(step, **figures)
        if not hasattr(self.trainer.judge, "line"):
            self._told(step, f"loss {figures['loss']:.4g}, {figures['steps_per_second']:.3g} steps a second")
        self.since, self.steps = now, 0

    def judged(self, step: int, figures: dict[str, float]) -> None:
        """After the averaged weights were judged."""
        self.judged_at.add(step)
        self.write(step, **figures)
        line = getattr(self.trainer.judge, "line", None)
        self._told(step, line(figures) if line else ", ".join(f"{key} {v:.4g}" for key, v in figures.items()))

    def _told(self, step: int, what: str) -> None:
        self.say(f"step {step}: {what}, {time.perf_counter() - self.start:.0f} s")

    def say(self, text: str) -> None:
        """A line on stdout, or in a terminal above the bar."""
        if not self.trainer.progress:
            return
        if self.console.is_terminal:
            self.bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, flush=True)

    def write(self, step: int, **figures: float) -> None:
        """A line of log.jsonl, and the tracker's."""
        line = json.dumps({"step": step, **{k: float(f"{v:.6g}") for k, v in figures.items()}})
        with self.path.open("a", encoding="utf8") as file:
            file.write(line + "\n")
        if self.trainer.settings.tracker:
            self.trainer.accelerator.log(figures, step=step)

    def _going_on(self) -> dict[str, Any]:
        """What makes a tracker go on with the same run, without what was after the checkpoint."""
        if self.trainer.settings.tracker == "tensorboard":
            return {"purge_step": self.trainer.step + 1}
        name = self.trainer.folder / "wandb-run.txt"
        if not name.exists():
            name.write_text(secrets.token_hex(4), encoding="utf8")
        return {"id": name.read_text(encoding="utf8"), "resume": "allow", "dir": str(self.trainer.folder)}

    def _forget_beyond(self, step: int) -> list[dict[str, Any]]:
        """The lines there are, less what a killed run wrote after the checkpoint that this one goes on from."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows: list[dict[str, Any]] = []
        for line in self.path.read_text(encoding="utf8").splitlines() if self.path.exists() else []:
            try:
                row = json.loads(line)
            except (json.JSONDecodeError, RecursionError):  # the line that was being written
                continue
            if isinstance(row, dict) and row.get("step", step + 1) <= step:
                rows.append(row)
        part = self.path.with_name("log.jsonl.part")
        part.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf8")
        part.replace(self.path)
        return rows
