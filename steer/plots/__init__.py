"""Figures of a path, a run, a fine-tuning, a comparison; a notebook shows what comes back.

    from steer import plots
    plots.weights(steer.sample("a red heart", reward="clip", method="smc"))
    plots.save(plots.overoptimisation("runs/tuned/report.json"), "tuned.png")

Colours are those of Okabe and Ito, "Color Universal Design" (2008), which all eyes tell apart; markers and line styles
say the same. Nothing here touches pyplot or any other global state. What draws needs matplotlib:
``pip install 'steer[bench]'``.
"""

from steer.plots.canvas import (
    BLACK,
    BLUE,
    COLOURS,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    blank,
    png,
    save,
)
from steer.plots.law import errors, trajectories
from steer.plots.run import contact_sheet, genealogy, weights
from steer.plots.tuning import overoptimisation

__all__ = [
    "BLACK", "BLUE", "COLOURS", "GREEN", "ORANGE", "PURPLE", "SKY", "VERMILION", "blank", "contact_sheet", "errors",
    "genealogy", "overoptimisation", "png", "save", "trajectories", "weights",
]  # fmt: skip
