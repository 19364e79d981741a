"""`steer bench models` in its fast form: adapters and rewards are what their libraries make of the same weights."""

import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from steer.bench import measuring, models, reward_parity
from steer.bench.tiny_pipelines import build_model

Tables = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    return measuring.measure("models", tmp_path_factory.mktemp("bench"), fast=True)[0]


def test_adapters_are_their_pipelines(tables: Tables) -> None:
    rows = {row["case"]: row for row in tables["adapters"]}
    assert {case: row["kind"] for case, row in rows.items()} == {
        "sd-tcd": "jump", "flux-schnell": "jump", "sana": "velocity",
    }  # fmt: skip
    assert [row["calls"] for row in rows.values()] == [4, 2, 4]
    for row in rows.values():
        assert row["plain - pipeline"] <= 1e-4 and row["jump(s, s) - x"] == 0
        assert row["gradient"] < 1e-2
        assert row["moved"] > 1e-3 and row["tuned"] > row["brightness"]


def test_chunks_lower_what_is_held_and_checkpoints_more(tables: Tables) -> None:
    """Of a quarter of the rows a quarter, and a little that all rows share."""
    for row in tables["adapters"]:
        whole, part, again = (row[title] for title in ("MB, 16 rows", "MB, 4", "MB, 4, again"))
        assert whole / 4 < 1.01 * part < whole / 3 and again < part


def test_both_samplers_do_the_same_work(tables: Tables) -> None:
    """Their times are for people to read."""
    assert len(tables["overhead"]) == 3
    for row in tables["overhead"]:
        assert row["latents apart"] < 1e-3 and 0 < row["ratio"] < math.inf and row["seconds"] > 0.02


def test_rewards_are_their_libraries(tables: Tables) -> None:
    assert [row["reward"] for row in tables["rewards"]] == list(reward_parity.SCORERS)
    for row in tables["rewards"]:
        assert row["difference"] <= 1e-4 and row["of the spread"] < 1e-3 and row["spread"] > 0.05
        assert row["published weights here"] in ("yes", "no")


def test_an_adapter_that_is_wrong_is_seen() -> None:
    """One that reads a later time than it is asked for."""
    model = build_model("sd-tcd")
    ends = model.family.flow.ends
    model.family.flow.ends = lambda x, s, t, cond: ends(x, s + 0.05 * (1 - s), t, cond)
    assert models.sampled(model, "sd-tcd")["plain - pipeline"] > 1e-3


def test_a_gradient_that_lacks_a_part_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of a network which sees x detached."""

    def hidden(name: str) -> object:
        model = build_model(name)
        predict = model.family.flow.predict

        def cut(x: Tensor, step: Tensor, cond: Any) -> Tensor:  # noqa: ANN401
            return predict(x.detach(), step, cond)

        model.family.flow.predict = cut
        return model

    monkeypatch.setattr(models, "build_model", hidden)
    assert models.slope_error("sd-tcd") > 0.05


def test_a_scorer_that_is_wrong_is_seen(tmp_path: Any) -> None:  # noqa: ANN401
    """Words in another order: the tower's own positions tell."""
    scorer = reward_parity.SCORERS["clip"]
    ours, images = scorer.make(tmp_path), reward_parity.pictures(32, 32)
    with torch.no_grad():
        r = ours(images, [" ".join(p.split()[::-1]) for p in reward_parity.PROMPTS])
    assert (r - scorer.theirs(tmp_path, images, reward_parity.PROMPTS)).abs().max() > 1e-2


def test_the_bench_is_light_until_it_runs() -> None:
    heavy = {"diffusers", "transformers", "open_clip", "steer.bench.tiny_pipelines", "steer.bench.tiny_scorers"}
    code = f"import sys, steer, steer.bench, steer.models.diffusers; print(*sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "\n"
