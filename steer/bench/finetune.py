"""Fine-tuning: exact targets, shapes by their verifier, emoji by a CLIP, and what an update costs."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from steer.bench import finetune_cost, finetune_exact, finetune_pictures

Row = dict[str, Any]


def parts(fast: bool, folder: Path) -> dict[str, Callable[[], list[Row]]]:
    """What makes each table, by title; two also write pictures into the folder."""
    some = ("nft",) if fast else ("nft", "grpo", "weighted", "draft")
    return {
        "laws that are known": partial(finetune_exact.rows, fast),
        "adjoint matching, linear-quadratic": partial(finetune_exact.linear_quadratic, 20_000 if fast else 200_000),
        "shapes": partial(finetune_pictures.shapes_rows, fast, folder / "finetune_shapes.png"),
        "emoji": partial(finetune_pictures.emoji_rows, fast, folder / "finetune_emoji.png"),
        "cost": partial(finetune_cost.ratios, some, 1 if fast else 7),
        "memory": finetune_cost.memory,
    }
