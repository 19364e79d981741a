"""Everything a user may hold becomes a reward; wrappers are rewards; bad scores are named."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

import rewards
from rewards.base import Function, is_differentiable, name_of, probe_differentiable

IMAGES = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
PROMPTS = ["a", "b", "c"]


def of_images(images: Tensor) -> Tensor:
    return images.mean((1, 2, 3))


def of_both(images: Tensor, prompts: list[str]) -> Tensor:
    return images.mean((1, 2, 3)) + torch.tensor([len(p) for p in prompts]).to(images)


def with_info(images: Tensor, prompts: list[str], metadata: list[dict]) -> tuple[Tensor, dict]:
    assert metadata == [{}] * len(images)
    return images.mean((1, 2, 3)), {"seen": len(images)}


class Scorer:
    name = "scorer"

    def score(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        return of_both(pixels, prompts)


class Net(torch.nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.mean((1, 2, 3))


def black_box(images: Tensor) -> list[float]:
    return [float(x) for x in images.detach().numpy().mean((1, 2, 3))]


mean = IMAGES.mean((1, 2, 3))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (of_images, mean), (of_both, mean + 1), (with_info, mean), (Scorer(), mean + 1), (Net(), mean),
        (black_box, mean),
        (lambda images, scale=2.0: scale * images.mean((1, 2, 3)), 2 * mean),
        (lambda images, prompts=None: images.mean((1, 2, 3)) + len(prompts or ()), mean + 3),
        (lambda images: images.mean((1, 2, 3)).detach().numpy(), mean),
        ([of_images, of_both], 2 * mean + 1), ([(of_images, 2.0), (of_both, -1.0)], mean - 1),
        ({of_images: 0.5, "brightness": 0.0}, mean / 2),
        (rewards.Pil(lambda pictures, prompts: [np.asarray(p).mean() / 255 for p in pictures]), mean),
    ],
)  # fmt: skip
def test_to_reward_takes(given: object, expected: Tensor) -> None:
    assert torch.allclose(rewards.to_reward(given)(IMAGES, PROMPTS), expected, atol=3e-3)


def test_names_of_what_was_given() -> None:
    assert name_of(rewards.to_reward(of_images)) == "of_images"
    assert name_of(rewards.to_reward(Scorer())) == "scorer"
    assert name_of(rewards.to_reward({"redness": 2.0, "brightness": -1.0})) == "2 redness + -1 brightness"


def test_probing_tells_gradients_from_black_boxes() -> None:
    assert is_differentiable(rewards.to_reward(of_images)) is None
    assert probe_differentiable(rewards.to_reward(of_images), IMAGES, PROMPTS)
    assert not probe_differentiable(rewards.to_reward(black_box), IMAGES, PROMPTS)


def test_sums_are_differentiable_only_if_all_parts_are() -> None:
    assert rewards.to_reward(["redness", "brightness"]).differentiable is True  # type: ignore[attr-defined]
    assert rewards.to_reward(["redness", "jpeg-size"]).differentiable is False  # type: ignore[attr-defined]
    assert rewards.to_reward(["redness", of_images]).differentiable is None  # type: ignore[attr-defined]


def test_wrappers() -> None:
    plain = rewards.Redness()
    counted = rewards.Counted(plain)
    chunked = rewards.Chunked(counted, 2)
    assert torch.equal(chunked(IMAGES, PROMPTS), plain(IMAGES, PROMPTS))
    assert (counted.calls, counted.pictures) == (2, 3)
    assert torch.equal(rewards.Negated(plain)(IMAGES, PROMPTS), -plain(IMAGES, PROMPTS))
    total = rewards.WeightedSum((plain, rewards.Brightness()), (2.0, 1.0))
    parts = total.parts(IMAGES, PROMPTS)
    assert torch.allclose(total(IMAGES, PROMPTS), 2 * parts["redness"] + parts["brightness"])
    with pytest.raises(ValueError, match="size=0"):
        rewards.Chunked(plain, 0)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda x: x.mean(), r"shape \[\] for 3 pictures; return \[3\]"),
        (lambda x: x.mean((1, 2, 3))[:, None], r"shape \[3, 1\]"),
        (lambda x: x.mean((1, 2, 3)) * float("nan"), r"NaN or \+inf for pictures \[0, 1, 2\]"),
        (lambda x: torch.tensor([0.0, float("inf"), 0.0]), r"pictures \[1\]"),
        (lambda x: x.mean((1, 2, 3)).to(torch.complex64), "real numbers"),
    ],
)
def test_bad_scores_are_named(returned: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Function(returned, "mine", arguments=1)(IMAGES, PROMPTS)  # type: ignore[arg-type]


def test_rejection_and_whole_numbers_are_legal() -> None:
    assert Function(lambda x: [0, 1, float("-inf")], arguments=1)(IMAGES, PROMPTS).tolist() == [0.0, 1.0, float("-inf")]
    assert Function(lambda x: torch.tensor([1, 2, 3]), arguments=1)(IMAGES, PROMPTS).dtype == IMAGES.dtype


def test_what_is_no_score_at_all() -> None:
    with pytest.raises(TypeError, match="'mine' returned dict; return a tensor"):
        Function(lambda x: {}, "mine", arguments=1)(IMAGES, PROMPTS)


def test_a_users_exception_is_the_users() -> None:
    def broken(images: Tensor) -> Tensor:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        rewards.to_reward(broken)(IMAGES, PROMPTS)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("clop", ValueError, "reward='clop' is unknown; known: .*clip.*; did you mean 'clip'"),
        ([], ValueError, "empty"), ({"redness": "two"}, ValueError, "weight of reward 'redness' is 'two'"),
        ({"redness": float("nan")}, ValueError, "finite"), (3, TypeError, "reward=3 is no reward"),
        (lambda a, b, c, d: a, TypeError, "needs 4 arguments"),
    ],
)  # fmt: skip
def test_what_is_no_reward(given: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        rewards.to_reward(given)


def test_importing_rewards_needs_neither_steer_nor_open_clip() -> None:
    code = "import sys, rewards; print(*(m for m in ('steer', 'open_clip', 'torchvision', 'PIL') if m in sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == ""
