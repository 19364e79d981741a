"""Names: what was meant by one that is unknown, how a user calls a part, and functions by name."""

import dataclasses
from pathlib import Path

import pytest
import torch

import steer
from steer import settings
from steer.methods import SMC, BestOfN


@pytest.mark.parametrize(
    ("value", "known", "meant"),
    [
        ("SMC", ["fk", "smc"], "smc"), ("tree_searh", ["tree", "tree_search"], "tree_search"),
        ("temp", ["steps", "temperature"], "temperature"), ("num_inference_steps", ["n", "steps"], "steps"),
        ("negative_prompt", ["prompt", "pipeline.negative"], "pipeline.negative"), ("particles", ["n", "paths"], "n"),
        ("learning_rate", ["temperature", "lr"], "lr"), ("method.stpes", ["method.k", "method.steps"], "method.steps"),
        ("method.zzz", ["method.steps", "method.chain"], None), ("verbose", ["prompts", "progress"], None),
        ("hello", ["shapes", "ssim"], None), ("image_reward", ["reward", "image-reward"], "image-reward"),
        ("x", [], None),
    ],
)  # fmt: skip
def test_what_was_meant(value: str, known: list[str], meant: str | None) -> None:
    """And no name that only shares some letters."""
    assert settings.nearest(value, known) == meant


def test_names_that_are_not_listed_are_suggested_too() -> None:
    error = str(settings.unknown("setting", "height", ["n", "out"], also=["pipeline.height"]))
    assert error == "setting='height' is unknown; known: n, out; did you mean 'pipeline.height'?"


@pytest.mark.parametrize("group", ["method", "tuning"])
def test_a_part_is_called_as_its_file_is(group: str) -> None:
    assert [settings.called(group, settings.build(group, name)) for name in settings.names(group)] == settings.names(
        group
    )


def test_a_part_with_other_settings_is_called_by_the_nearest_and_a_strange_one_by_its_class() -> None:
    assert settings.called("method", SMC(chain="sde", twist=1.0, ess_threshold=0.9, steps=3)) == "tds"

    @dataclasses.dataclass(frozen=True)
    class Own(BestOfN):
        """Somebody else's method."""

    assert settings.called("method", Own()) == "Own"


def test_a_function_by_name_is_that_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In Python as on the command line; a name that is none is told with both ways."""
    from colours import colour_model

    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text("def score(images):\n    return images[:, 1].mean((1, 2))\n")
    given = {"model": colour_model(), "n": 3, "seed": 0, "method": "best_of_n", "progress": False}
    out = steer.sample("a", reward="mine.py:score", held_out="mine.py:score", **given)
    torch.testing.assert_close(out.rewards, out.images[:, :, 1].mean((-2, -1)))
    assert out.report["reward"]["name"] == out.report["held_out"]["name"] == "score"
    assert steer.sample("a", reward="{redness: 2, brightness: 1}", **given).report["reward"]["name"].startswith("2 red")
    with pytest.raises(
        ValueError, match="reward='mine' is unknown; known: .*, or module:function, or file.py:function"
    ):
        steer.sample("a", reward="mine", **given)
    with pytest.raises(ValueError, match="there is no file 'none.py'"):
        steer.sample("a", reward="none.py:score", **given)
