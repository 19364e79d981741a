"""A run goes on only as what it was: other settings, rows or objectives are refused."""

# ruff: noqa: ANN401 (settings of any kind)

from pathlib import Path

import pytest
from tiny import Network, Rows, losses, objective, trainer

from steer.objectives import SelfDistillation

OTHERS = {
    "batch": ({"batch": 8}, "batch=8, but the run in .* began with 16; give the old one, or another folder"),
    "seed": ({"seed": 5}, "seed=5, but .* began with 0"),
    "decays": ({"ema": (0.9,)}, r"ema=\[0.9\], but .* began with \[0.999\]"),
    "network": ({"flow": Network(width=8)}, "the checkpoint is .* network"),
    "more rows": ({"data": Rows(81)}, "rows=81 was 80"),
    "other rows": ({"data": Rows(seed=1)}, "rows of data are others"),
    "objective": ({"goal": objective("fm")}, "objective=.*FlowMatching"),
    "a setting of it": ({"goal": SelfDistillation("midpoint")}, "objective.identity=midpoint was lagrangian"),
    "facts": ({"facts": {"teacher": "b"}}, "teacher=b was a"),
    "fewer steps": ({"steps": 2}, "steps must be at least 4"),
}


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("left")
    losses(trainer(folder, facts={"teacher": "a"}), 5)
    return folder


@pytest.mark.parametrize("other", OTHERS)
def test_another_run_in_the_same_folder_is_refused(left: Path, other: str) -> None:
    changed, message = OTHERS[other]
    with pytest.raises(ValueError, match=message):
        trainer(left, **{"facts": {"teacher": "a"}} | changed).run()


def test_a_run_may_go_on_for_longer_and_in_parts(tmp_path: Path) -> None:
    losses(trainer(tmp_path), 5)
    run = trainer(tmp_path, steps=16, accumulate=2, keep=5, log_every=3)
    with pytest.warns(UserWarning, match="steps was 12 and is 16 from step 4 on"):
        assert len(losses(run)) == 12
