"""What `steer list GROUP` tells, against tables written by hand and against what the objects do."""

import math
import re
from pathlib import Path

import pytest
import torch

import rewards
import steer
from steer import catalogue as told
from steer.catalogue import catalogue
from steer.commands.listing import GROUPS
from steer.lookahead import Jump
from steer.settings import build, names

ROOT = Path(__file__).parents[1]
DOCUMENTS = "\n".join(file.read_text(encoding="utf8") for file in [ROOT / "README.md", *ROOT.glob("docs/*.md")])
WRITTEN = re.findall(r"^\| `([a-z_]+)` \| (no|yes) \| (.*?) \| (\d+) \|", DOCUMENTS, re.MULTILINE)


def test_every_name_has_a_row_with_words() -> None:
    for group in set(GROUPS) - {"model"}:
        rows = catalogue(group)
        assert [next(iter(row.values())) for row in rows] == names(group)
        assert all(row["what"] if "what" in row else row["settings"] for row in rows)
        assert len({tuple(row) for row in rows}) == 1


def test_methods_are_as_the_documents_say() -> None:
    """Gradient, calls a particle, and which ones meet the target: the hand table against a run of each."""
    by_hand = {name: (gradient, int(calls)) for name, gradient, _, calls in WRITTEN}
    rows = {row["method"]: row for row in catalogue("method")}
    assert {name: (row["needs a gradient"], row["calls a particle"]) for name, row in rows.items()} == by_hand
    exact, before = set(), ""
    for name, _, what, _ in WRITTEN:
        before = before if what.startswith("the same") else what  # as the row above
        exact |= {name} if before.startswith("the target") else set()
    assert {name for name, row in rows.items() if row["what comes back"] == "the target"} == exact


@pytest.mark.parametrize(
    ("group", "name", "number"),
    [
        ("method", "tds", "2306.17775"),
        ("method", "das", "2501.05803"),
        ("method", "fk", "2501.06848"),
        ("method", "diamond", "2602.05993"),
        ("method", "freedom", "2303.09833"),
        ("method", "guidance", "2604.27147"),
        ("method", "reno", "2406.04312"),
        ("method", "psi", "2506.01320"),
        ("lookahead", "glass", "2509.25170"),
        ("objective", "mean_flow", "2505.13447"),
        ("objective", "improved_mean_flow", "2512.02012"),
        ("tuning", "mean_flow_nft", "2607.15273"),
        ("tuning", "grpo", "2505.05470"),
        ("tuning", "best_of_n", "2304.06767"),
    ],
)
def test_the_paper_of_several_is_the_one_that_is_named(group: str, name: str, number: str) -> None:
    kind = type(build(group, name)) if group != "objective" else told._found(f"steer.objectives.{_class(name)}")
    assert told.paper(kind, name) == number  # type: ignore[arg-type]


def _class(name: str) -> str:
    return type(build("objective", name)).__name__


def test_objectives_that_take_derivatives_in_time_are_noticed() -> None:
    """Progressive self-distillation and regression on trajectories need none, by their formulas."""
    rows = {row["objective"]: row for row in catalogue("objective")}
    without = {name for name, row in rows.items() if row["needs derivatives"] == "no"}
    assert without == {"flow_matching", "psd_m", "psd_u", "distil_trajectory", "posterior_trajectory"}
    taught = {name for name, row in rows.items() if row["needs a teacher"] == "yes"}
    assert taught == {n for n in names("objective") if n.startswith("distil")} | {
        "posterior_glass",
        "posterior_trajectory",
    }


def test_a_reward_runs_here_exactly_where_the_catalogue_says_so() -> None:
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    needs_words = {"ocr", "imagenet", "shapes"}  # of the prompt, which these pictures have not
    for row in catalogue("reward"):
        reward = build("reward", str(row["reward"]))
        if row["runs here"] == "no":
            assert row["lacks"] == rewards.missing(reward)
        elif row["reward"] not in needs_words:
            scores = reward(images.requires_grad_(), ["a fox", "a cat"])
            assert scores.shape == (2,) and scores.requires_grad == (row["gradient"] == "yes")


def test_scales_are_those_that_ship() -> None:
    scale = next(row["shipped scale"] for row in catalogue("reward") if row["reward"] == "clip")
    known = rewards.calibration.shipped()["clip"]
    assert scale == f"{known.mean:.3g} +- {known.std:.2g}"


def test_tuning_that_is_exact_or_needs_a_gradient() -> None:
    rows = {row["objective"]: row for row in catalogue("tuning")}
    assert {n for n, r in rows.items() if r["exact"] == "yes"} == {"weighted", "tilt", "tilt_gradient", "adjoint"}
    needs = {"draft", "draft_lv", "refl", "noise", "adjoint", "tilt_gradient"}
    assert {n for n, r in rows.items() if r["needs a gradient"] == "yes"} == needs


def test_models_and_pipelines() -> None:
    rows = {row["model"]: row for row in catalogue("model")}
    emoji = steer.load_model("emoji", "cpu")
    assert rows["emoji"]["latents"] == str(math.prod(emoji.shape)) and rows["emoji"]["pictures"] == "3 x 64 x 64"
    assert (rows["emoji"]["posterior map"], rows["shapes"]["posterior map"]) == ("yes", "no")
    assert "FluxPipeline" in rows and "FLUX" in str(rows["FluxPipeline"]["what"])


def test_settings_are_what_differs_from_the_class() -> None:
    assert told._settings("method", "smc_sde") == "SMC chain=sde"
    assert told._settings("method", "diamond") == "SMC steps=4 chain=early_stop lookahead=Glass"
    assert told._settings("lookahead", "jump") == Jump.__name__
