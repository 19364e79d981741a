"""Fine-tuning against laws that are known: learned maps of rings and of a mixture in 16 dimensions, tilted by a reward.

Each objective starts from the same learned map, which is taught here from exact trajectories. Those that claim
p exp(r / T) must meet it; the others are shown with the setting that stands for a temperature.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from steer.adapters import Reference
from steer.experience import Experience, Rounds
from steer.objectives import Student, Tuning
from steer.prompts import Prompts
from steer.training import Settings, Trainer

Row = dict[str, Any]
CALLS = 4  # of a sample


def tune(
    flow: nn.Module,
    objective: Tuning,
    reward: Callable[[Tensor], Tensor],
    dimension: int,
    settings: Settings,
    rounds: Rounds,
    temperature: float = 1.0,
    folder: Path | None = None,
) -> nn.Module:
    """A map of R^d after fine-tuning, with averaged weights; its files are thrown away unless a folder is given."""
    reference = Reference(flow)
    data = Experience(
        Prompts(["points"]), lambda texts: None, objective.collector, lambda texts: lambda x: reward(x), (dimension,),
        reference, rounds=rounds, temperature=temperature, seed=settings.seed,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as place:
        student = Student(flow, reference=reference)
        return (
            Trainer(flow, objective, data, settings, folder or Path(place), student=student, progress=False)
            .run()
            .eval()
        )
