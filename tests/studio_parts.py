"""A studio of the model whose law is known, and what is asked of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from colours import CountingFlow, colour_model, redness

from steer.commands.studio import _offered
from steer.studio import Offer, Shelf
from steer.studio.offers import Asked

ASKED = {"prompt": "a red heart", "model": "emoji", "reward": "redness", "mix": None, "method": "smc", "budget": 24,
         "n": 4, "temperature": "", "seed": "7"}  # fmt: skip
TABLE = [["clip", 1], ["redness", "20"], ["", None]]


def colours(flow: CountingFlow | None = None, reward: Callable[..., Any] = redness) -> Shelf:
    """A studio of the model whose law is known, with one reward."""
    here = Offer(None, (), "")
    return Shelf({"colours": here}, {"mine": Offer(reward, (), "")}, _loaded={"colours": colour_model(flow)})


def asked(offered: Shelf, **changed: object) -> Asked:
    return Asked.of(offered, **ASKED | changed)


def own_reward(tmp_path: Path) -> tuple[str, Offer]:
    (tmp_path / "mine.py").write_text("def score(images):\n    return images[:, 1].mean((1, 2))\n")
    return _offered(None, [], {"reward": "mine.py:score"})
