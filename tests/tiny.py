"""A training that takes milliseconds: a small network, rows in the plane with labels, and a run of both."""

# ruff: noqa: ANN401 (settings of any kind)

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from steer.flow_map import Cond
from steer.interpolants import Time, like
from steer.objectives import FlowMatching, Objective, SelfDistillation
from steer.training import Settings, Trainer


class Network(nn.Module):
    """v(x, s, t, cond) of points in the plane with three labels."""

    def __init__(self, seed: int = 0, width: int = 16, dropout: float = 0.0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            layers = [nn.Linear(7, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Dropout(dropout)]
            self.net = nn.Sequential(*layers, nn.Linear(width, 2))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor, s: Time, t: Time, cond: Cond = None) -> Tensor:
        times = [like(u, x).expand(len(x), 1) for u in (s, t)]
        told = x.new_zeros(len(x), 3) if cond is None else cond["label"].to(x.dtype)
        return self.net(torch.cat([x, *times, told], 1))


class Rows:
    """Points around three centres; `bad` rows hold a NaN."""

    def __init__(self, n: int = 80, bad: Sequence[int] = (), seed: int = 0, dtype: torch.dtype = torch.float32) -> None:
        rng = torch.Generator().manual_seed(seed)
        self.label = torch.eye(3)[torch.arange(n) % 3]
        centres = torch.tensor([[-1.0, 0.0], [1.0, 0.5], [0.0, -1.0]])
        self.x1 = (self.label @ centres + 0.2 * torch.randn(n, 2, generator=rng)).to(dtype)
        self.x1[list(bad), 0] = float("nan")
        self.null: Cond = {"label": torch.zeros(1, 3)}
        self.asked: list[int] = []

    def __len__(self) -> int:
        return len(self.x1)

    def __call__(self, index: Sequence[int]) -> tuple[Tensor, Cond]:
        self.asked += index
        rows = torch.as_tensor(index)
        return self.x1[rows], {"label": self.label[rows]}


def objective(name: str = "lsd") -> Objective:
    return FlowMatching() if name == "fm" else SelfDistillation()


def trainer(folder: Path, *, flow: nn.Module | None = None, data: Any = None, goal: Any = None, **more: Any) -> Trainer:
    """A trainer of the small network: `more` are its settings, and what else a trainer takes."""
    parts = {key: more.pop(key) for key in ("student", "save", "judge", "facts", "progress") if key in more}
    settings = Settings(**{"steps": 12, "batch": 16, "save_every": 4, "lr": 0.01, "tracker": None} | more)
    flow, data, goal = flow or Network(), Rows() if data is None else data, goal or objective()
    return Trainer(flow, goal, data, settings, folder, **{"progress": False} | parts)


class Killed(Exception):
    """The process is gone, as it were."""


def losses(run: Trainer, kill: int | None = None) -> list[float]:
    """The loss of each step of `run`; with `kill` it ends so after that step, before anything is written."""
    seen: list[float] = []
    update = run.update

    def told() -> dict[str, Any]:
        row = update()
        seen.append(row["loss"])
        if run.step == kill:
            raise Killed
        return row

    run.update = told  # type: ignore[method-assign]
    try:
        run.run()
    except Killed:
        pass
    return seen


def everything(run: Trainer) -> dict[str, Tensor]:
    """All that a run has learned: weights, averages, the optimiser's moments."""
    from steer.distributed import full_state

    return full_state(run.learner, run.optimiser)[0] | run.averages.state()


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
