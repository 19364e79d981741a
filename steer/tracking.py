"""What a training says while it runs: a bar with the time left, lines of log.jsonl, and a tracker."""

import json
import time
from statistics import mean
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steer.training import Trainer


class Log:
    """One process's view: used as a context, told of each step."""

    def __init__(self, trainer: "Trainer") -> None:
        from rich.console import Console

        self.trainer, self.path = trainer, trainer.folder / "log.jsonl"
        self.console = Console(stderr=True)
        self.rows: list[dict[str, float]] = []
        self.since = time.perf_counter()
        self._forget_beyond(trainer.step)

    def __enter__(self) -> "Log":
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        settings, trainer = self.trainer.settings, self.trainer
        if settings.tracker:
            trainer.accelerator.init_trackers("steer", {k: str(v) for k, v in vars(settings).items()})
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
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def step(self, step: int, row: dict[str, float]) -> None:
        """After a step: every `log_every` of them the means since the last line."""
        self.rows.append(row)
        self.bar.update(self.task, completed=step, told=f"loss {row['loss']:.4g}")
        settings = self.trainer.settings
        if step % settings.log_every == 0 or step == settings.steps:
            now = time.perf_counter()
            rate = len(self.rows) / (now - self.since)
            keys = dict.fromkeys(key for r in self.rows for key in r)
            means = {key: mean(r[key] for r in self.rows if key in r) for key in keys}
            self.write(step, **means, steps_per_second=rate)
            self.rows, self.since = [], now

    def judged(self, step: int, figures: dict[str, float]) -> None:
        """After the averaged weights were judged."""
        self.write(step, **figures)

    def write(self, step: int, **figures: float) -> None:
        """A line of log.jsonl, and the tracker's."""
        line = {"step": step, **{k: float(f"{v:.6g}") for k, v in figures.items()}}
        with self.path.open("a", encoding="utf8") as file:
            file.write(json.dumps(line) + "\n")
        if not self.console.is_terminal and self.trainer.progress:
            print(json.dumps(line), flush=True)
        if self.trainer.settings.tracker:
            self.trainer.accelerator.log(figures, step=step)

    def _forget_beyond(self, step: int) -> None:
        """Drop what a killed run wrote after the checkpoint that this one goes on from."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self.path.exists():
            return
        kept: list[Any] = []
        for line in self.path.read_text(encoding="utf8").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:  # the line that was being written
                continue
            if row["step"] <= step:
                kept.append(line)
        part = self.path.with_name("log.jsonl.part")
        part.write_text("".join(f"{line}\n" for line in kept), encoding="utf8")
        part.replace(self.path)
