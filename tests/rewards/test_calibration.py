"""Scales of rewards: what ships is what is measured, normalised scores are so, and unlike scales are told of."""

import importlib.util
import math
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import rewards
import steer
from rewards import calibration
from rewards.calibration import Calibration, shipped, warn_of_scales

IMAGES = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
PROMPTS = ["a"] * 6
ELSEWHERE = {"pickscore", "hps", "image-reward", "aesthetic", "lpips", "vlm", "remote"}  # need a download or a server
HERE = [n for n in rewards.names() if n not in ELSEWHERE and rewards.missing(rewards.get(n)) is None]
SLOW = {"ocr": 12, "imagenet": 24}  # so many pictures, where one takes long


def red(images: Tensor) -> Tensor:
    return images[:, 0].mean((1, 2))


def reference(name: str) -> tuple[Tensor, list[str], str]:
    """The pictures that the script measures on."""
    file = Path(__file__).parents[2] / "scripts" / "calibrate.py"
    spec = importlib.util.spec_from_file_location("calibrate", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.reference(name)


@pytest.fixture(autouse=True)
def unsaid() -> Iterator[None]:
    """Each test hears its warnings anew."""
    calibration._warn.cache_clear()
    yield


def test_every_reward_that_runs_here_has_its_scale() -> None:
    lacking = sorted(set(HERE) - set(shipped()))
    assert not lacking, f"no scale of {', '.join(lacking)}: python scripts/calibrate.py {' '.join(lacking)} measures it"
    assert set(shipped()) <= set(rewards.names())
    assert all(row.count >= 512 and str(row.count) in row.pictures for row in shipped().values())


@pytest.mark.parametrize("name", [n for n in HERE if n in shipped() and n not in SLOW])
def test_what_ships_is_what_is_measured(name: str) -> None:
    images, prompts, said = reference(name)
    row, now = shipped()[name], rewards.calibrate(name, images, prompts, said)
    assert (row.pictures, row.count) == (now.pictures, now.count)
    assert now.std == pytest.approx(row.std, rel=1e-3) and now.mean == pytest.approx(row.mean, abs=1e-3 * row.std)


@pytest.mark.parametrize("name", [n for n in HERE if n in SLOW])
def test_what_ships_is_what_a_sample_shows(name: str) -> None:
    """Mean and standard deviation are within four standard errors of what ships."""
    images, prompts, said = reference(name)
    some = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[: SLOW[name]]
    row, r = shipped()[name], rewards.get(name)(images[some], [prompts[i] for i in some])
    z = (r.detach().double() - row.mean) / row.std
    assert row.pictures == said
    assert abs(z.mean()) < 4 / len(z) ** 0.5
    assert abs(z.square().mean() - 1) < 4 * z.square().std() / len(z) ** 0.5


@pytest.mark.parametrize("name", ["clip", "redness", "png-size"])
def test_normalised_scores_have_mean_0_and_standard_deviation_1_on_the_reference_pictures(name: str) -> None:
    images, prompts, _ = reference(name)
    with torch.no_grad():
        z = rewards.Chunked(rewards.Normalised(name), 64)(images, prompts)  # type: ignore[arg-type]
    assert z.mean().item() == pytest.approx(0, abs=1e-3) and z.std().item() == pytest.approx(1, abs=1e-3)


def test_a_measured_scale_is_that_of_the_scores() -> None:
    some = rewards.calibrate(red, IMAGES, PROMPTS, "noise")
    r = red(IMAGES).double()
    assert some == Calibration(r.mean().item(), r.std().item(), "noise", 6)
    normalised = rewards.Normalised(red, some)  # type: ignore[arg-type]
    torch.testing.assert_close(normalised(IMAGES, PROMPTS), ((r - r.mean()) / r.std()).float())
    assert rewards.name_of(normalised) == "red (normalised)"
    assert pickle.loads(pickle.dumps(rewards.Normalised(rewards.Redness()))).calibration == shipped()["redness"]


def test_what_is_rejected_is_left_out_and_stays_rejected() -> None:
    rejecting = rewards.Function(lambda x: red(x).masked_fill(torch.arange(len(x)) == 2, -torch.inf), "rejecting")
    some = rewards.calibrate(rejecting, IMAGES, PROMPTS)
    kept = red(IMAGES)[[0, 1, 3, 4, 5]].double()
    assert (some.count, some.mean, some.std) == (5, pytest.approx(kept.mean().item()), pytest.approx(kept.std().item()))
    z = rewards.Normalised(rejecting, some)(IMAGES, PROMPTS)
    assert z[2] == -torch.inf and z[[0, 1, 3, 4, 5]].isfinite().all()


def test_gradients_are_over_the_standard_deviation() -> None:
    leaf = IMAGES.clone().requires_grad_(True)
    z = rewards.Normalised(rewards.Redness())
    (gradient,) = torch.autograd.grad(z(leaf, PROMPTS).sum(), leaf)
    assert z.differentiable is True
    torch.testing.assert_close(gradient[:, 0], torch.full_like(gradient[:, 0], 1 / 64 / shipped()["redness"].std))


@pytest.mark.parametrize("given", [red, rewards.JpegSize(50), rewards.Function(red, "clip"), rewards.Clip("x")])
def test_no_scale_is_made_up(given: Any) -> None:  # noqa: ANN401
    """Neither that of a user's function, nor, by its name, that of other settings."""
    with pytest.raises(ValueError, match=r"no calibration that ships; measure it .*rewards.calibrate\("):
        rewards.Normalised(given)


def test_rewards_whose_weights_are_not_here_have_none() -> None:
    absent = [name for name in rewards.names() if rewards.missing(rewards.get(name))]
    assert not set(absent) & set(shipped())
    for name in absent:
        with pytest.raises(ValueError, match=f"{name!r} has no calibration that ships"):
            rewards.Normalised(rewards.get(name))


@pytest.mark.parametrize(
    ("scored", "message"),
    [
        (lambda x: torch.zeros(len(x)), "std=0.0 must be above 0: a reward that does not vary"),
        (lambda x: [-torch.inf] * 5 + [1.0], "leaves 1 of 6 pictures"),
    ],
)
def test_what_cannot_be_calibrated(scored: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rewards.calibrate(scored, IMAGES, PROMPTS)
    with pytest.raises(ValueError, match="mean=nan must be finite"):
        Calibration(math.nan, 1.0)


@pytest.mark.parametrize(
    "given",
    [{"redness": 1, "clip": 1}, {"clip": 10, "jpeg-size": 1}, [rewards.Negated(rewards.Redness()), rewards.Clip()]],
)
def test_unlike_scales_are_told_of_once(given: Any) -> None:  # noqa: ANN401
    with pytest.warns(UserWarning, match=r"unlike scales: weight times spread .*rewards.Normalised\(reward\)"):
        rewards.to_reward(given)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rewards.to_reward(given)


@pytest.mark.parametrize(
    "given",
    [
        {"clip": 1, "jpeg-size": 2}, {"clip": 1, "redness": 50}, {"clip": 1, red: 1000.0}, {"clip": 1, "redness": 0},
        {rewards.Normalised("clip"): 1, rewards.Normalised("redness"): 1}, {red: 1, rewards.Pil(lambda p: [0]): 99},  # type: ignore[arg-type]
    ],
)  # fmt: skip
def test_like_scales_and_unknown_ones_are_not(given: Any) -> None:  # noqa: ANN401
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rewards.to_reward(given)


def test_the_warning_names_the_sizes() -> None:
    with pytest.warns(UserWarning) as heard:
        warn_of_scales(rewards.WeightedSum((rewards.Redness(), rewards.Clip()), (2.0, -1.0)))
    sizes = f"redness {2 * shipped()['redness'].std:.2g}, clip {shipped()['clip'].std:.2g}"
    assert sizes in str(heard[0].message)


def test_sampling_tells_of_unlike_scales() -> None:
    given: dict[str, Any] = {"n": 4, "seed": 0, "method": "best_of_n", "progress": False, "temperature": 10.0}
    with pytest.warns(UserWarning, match="unlike scales"):
        steer.sample("a red heart", reward={"redness": 1, "clip": 1}, **given)


def test_fine_tuning_tells_of_unlike_scales_unless_it_normalises(tmp_path: Path) -> None:
    def refused(normalise: bool) -> None:
        with pytest.raises(ValueError, match="temperature=-1"):
            steer.finetune("emoji", {"redness": 1, "clip": 1}, normalise=normalise, temperature=-1, out=tmp_path)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        refused(normalise=True)
    with pytest.warns(UserWarning, match="unlike scales"):
        refused(normalise=False)


class Absent:
    name = "absent"

    def missing(self) -> str | None:
        return "put weights.pt in a folder"

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        raise FileNotFoundError(self.missing())


def test_wrappers_and_sums_pass_on_what_is_missing() -> None:
    absent = rewards.Chunked(rewards.Negated(Absent()))  # type: ignore[arg-type]
    assert rewards.missing(absent) == "put weights.pt in a folder"
    assert rewards.missing(rewards.WeightedSum((rewards.Redness(), absent), (1.0, 1.0))) == rewards.missing(absent)
    assert rewards.missing(rewards.WeightedSum((rewards.Redness(), rewards.Clip()), (1.0, 1.0))) is None
    assert rewards.missing(red) is None
