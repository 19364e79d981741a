"""Fine-tuning: exact targets, shapes by their verifier, emoji by a CLIP, and what an update costs."""

from typing import Any

from steer.bench import finetune_cost, finetune_exact, finetune_pictures

Row = dict[str, Any]


def run(fast: bool = False) -> dict[str, list[Row]]:
    """All tables by title."""
    return {
        "laws that are known": finetune_exact.rows(fast),
        "adjoint matching, linear-quadratic": [finetune_exact.linear_quadratic(20, 20_000 if fast else 200_000)],
        "shapes": finetune_pictures.shapes_rows(fast),
        "emoji": finetune_pictures.emoji_rows(fast),
        "cost": finetune_cost.ratios(("nft",) if fast else ("nft", "grpo", "weighted", "draft"), 1 if fast else 7),
        "memory": finetune_cost.memory(),
    }
