"""Everything a user may hold becomes a reward; wrappers are rewards; bad scores are named."""

import ast
import functools
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

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


class Squeezing(torch.nn.Module):
    """As other libraries have them: a module whose `score` squeezes, and which has another `forward`, or none."""

    def score(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        return of_both(pixels, prompts)[:, None].squeeze()


class Features(Squeezing):
    def forward(self, features: Tensor) -> Tensor:
        raise AssertionError("never called: score takes the pictures")


class Called(torch.nn.Module):
    """Prompts come first, and the call itself is replaced."""

    def __call__(self, prompt: list[str], images: Tensor) -> Tensor:
        return of_both(images, prompt)


class Layer(torch.nn.Module):
    """`score` is a layer here, and no method."""

    def __init__(self) -> None:
        super().__init__()
        self.score = torch.nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        return self.score(images).mean((1, 2, 3))


def keywords(*, images: Tensor, prompts: list[str]) -> Tensor:
    return of_both(images, prompts)


def late(images: Tensor, scale: float = 1.0, prompts: list[str] | None = None) -> Tensor:
    return scale * of_both(images, prompts or [])


mean = IMAGES.mean((1, 2, 3))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (of_images, mean), (of_both, mean + 1), (with_info, mean), (Scorer(), mean + 1), (Net(), mean),
        (black_box, mean),
        (lambda images, scale=2.0: scale * images.mean((1, 2, 3)), 2 * mean),
        (lambda images, prompts=None: images.mean((1, 2, 3)) + len(prompts or ()), mean + 3),
        (lambda images: images.mean((1, 2, 3)).detach().numpy(), mean),
        (Squeezing(), mean + 1), (Features(), mean + 1), (Called(), mean + 1), (Layer(), mean),
        (SimpleNamespace(score=of_images), mean), (keywords, mean + 1), (late, mean + 1),
        (functools.partial(late, scale=2.0), 2 * mean + 2), (lambda *given: of_both(*given), mean + 1),
        (lambda prompts, pictures: of_both(pictures, prompts), mean + 1), (lambda a, b: of_both(a, b), mean + 1),
        (lambda image, image_captions: of_both(image, image_captions), mean + 1),
        (lambda x: [picture.mean() for picture in x], mean), (lambda x: tuple(x.mean((1, 2, 3)).tolist()), mean),
        (lambda x: (x.mean((1, 2, 3)).tolist(), None), mean),
        ([["brightness", 0], [of_images, 2]], 2 * mean),
        ([of_images, of_both], 2 * mean + 1), ([(of_images, 2.0), (of_both, -1.0)], mean - 1),
        ({of_images: 0.5, "brightness": 0.0}, mean / 2),
        (rewards.Pil(lambda pictures, prompts: [np.asarray(p).mean() / 255 for p in pictures]), mean),
        (rewards.Pil(lambda pictures: ([np.asarray(p).mean() / 255 for p in pictures], {})), mean),
        ({rewards.Clip(): 0.0, rewards.Counted(of_images): 1.0}, mean),
    ],
)  # fmt: skip
def test_to_reward_takes(given: object, expected: Tensor) -> None:
    assert torch.allclose(rewards.to_reward(given)(IMAGES, PROMPTS), expected, atol=3e-3)


@pytest.mark.parametrize("given", [Squeezing(), Features()], ids=["score only", "score and forward"])
def test_a_squeezed_batch_of_one_of_another_library_is_mended(given: object) -> None:
    assert rewards.to_reward(given)(IMAGES[:1], ["a"]).shape == (1,)


def test_two_numbers_are_two_scores_and_no_score_with_info() -> None:
    both = rewards.to_reward(lambda x: tuple(x.mean((1, 2, 3)).tolist()))(IMAGES[:2], PROMPTS[:2])
    torch.testing.assert_close(both, mean[:2])
    stacked = rewards.to_reward(lambda x: tuple(x.mean((1, 2, 3))))(IMAGES[:2], PROMPTS[:2])
    torch.testing.assert_close(stacked, mean[:2])


def test_lists_of_tensors_keep_their_gradients() -> None:
    images = IMAGES.clone().requires_grad_(True)
    r = rewards.to_reward(lambda x: [picture.mean() for picture in x])(images, PROMPTS)
    assert torch.autograd.grad(r.sum(), images)[0].allclose(torch.full_like(images, 1 / images[0].numel()))


def test_names_of_what_was_given() -> None:
    assert name_of(rewards.to_reward(of_images)) == "of_images"
    assert name_of(rewards.to_reward(Scorer())) == "scorer"
    assert name_of(rewards.to_reward({"redness": 2.0, "brightness": -1.0})) == "2 redness + -1 brightness"


def test_probing_tells_gradients_from_black_boxes() -> None:
    assert is_differentiable(rewards.to_reward(of_images)) is None
    assert probe_differentiable(rewards.to_reward(of_images), IMAGES, PROMPTS)
    assert not probe_differentiable(rewards.to_reward(black_box), IMAGES, PROMPTS)


def test_probing_a_function_that_cannot_bear_gradients() -> None:
    calls = []

    def numpy(images: Tensor) -> np.ndarray:
        calls.append(images.requires_grad)
        return images.numpy().mean((1, 2, 3))

    assert not probe_differentiable(rewards.to_reward(numpy), IMAGES, PROMPTS)
    assert calls == [True, False] and not IMAGES.requires_grad


def test_gradients_to_a_reward_s_own_weights_do_not_count() -> None:
    weight = torch.ones(1, requires_grad=True)
    assert not probe_differentiable(rewards.to_reward(lambda x: weight * x.detach().mean((1, 2, 3))), IMAGES, PROMPTS)
    assert probe_differentiable(rewards.to_reward(lambda x: weight * x.mean((1, 2, 3))), IMAGES, PROMPTS)


def test_probing_shows_the_fault_of_a_broken_reward() -> None:
    def broken(images: Tensor) -> Tensor:
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        probe_differentiable(rewards.to_reward(broken), IMAGES, PROMPTS)


def test_probing_works_where_gradients_are_off_and_leaves_the_pictures_alone() -> None:
    before = IMAGES.clone()
    with torch.no_grad():
        assert probe_differentiable(rewards.to_reward(of_images), IMAGES, PROMPTS)
        for in_place in (lambda x: x.mul_(2).mean((1, 2, 3)), lambda x: x.detach().mul_(2).mean((1, 2, 3))):
            assert not probe_differentiable(rewards.to_reward(in_place), IMAGES, PROMPTS)
    assert torch.equal(IMAGES, before)


def test_what_one_part_rejects_is_rejected() -> None:
    """0 * -inf is NaN, and -1 * -inf accepts what was rejected: neither may happen."""
    reject = Function(lambda x: [-torch.inf, 0.5, 0.5], "reject")
    for weight in (2.0, -2.0):
        r = rewards.to_reward([(reject, weight), (of_images, 1.0)])(IMAGES, PROMPTS)
        torch.testing.assert_close(r, torch.tensor([-torch.inf, weight / 2, weight / 2]) + mean)
    torch.testing.assert_close(rewards.to_reward([(reject, 0.0), (of_images, 1.0)])(IMAGES, PROMPTS), mean)
    assert rewards.Negated(reject)(IMAGES, PROMPTS).tolist() == [-torch.inf, -0.5, -0.5]


def test_gradients_of_a_sum_stay_finite_beside_a_rejection() -> None:
    images = IMAGES.clone().requires_grad_(True)
    rejecting = Function(lambda x: x.mean((1, 2, 3)).masked_fill(torch.tensor([True, False, False]), -torch.inf))
    (gradient,) = torch.autograd.grad(rewards.to_reward([rejecting, "redness"])(images, PROMPTS)[1:].sum(), images)
    assert gradient.isfinite().all() and gradient[0].abs().sum() == 0 and gradient[1].abs().sum() > 0


def test_wrappers_take_what_to_reward_takes() -> None:
    for wrapper in (rewards.Negated, rewards.Chunked, rewards.Counted):
        r = wrapper(of_images)(IMAGES, PROMPTS)
        torch.testing.assert_close(r, -mean if wrapper is rewards.Negated else mean)
    torch.testing.assert_close(rewards.WeightedSum((of_images, "brightness"), (1.0, 0.0))(IMAGES, PROMPTS), mean)


def test_parts_of_one_name_are_kept_apart() -> None:
    red, blue = rewards.ColourMatch("red"), rewards.ColourMatch("blue")
    parts = rewards.WeightedSum((red, blue), (1.0, 1.0)).parts(IMAGES, PROMPTS)
    assert list(parts) == ["colour-match", "colour-match 2"]
    torch.testing.assert_close(parts["colour-match 2"], blue(IMAGES, PROMPTS))


@pytest.mark.parametrize("weights", [(), (1.0, 2.0)])
def test_one_weight_a_reward(weights: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=f"{len(weights)} weights for 1 rewards"):
        rewards.WeightedSum((rewards.Redness(),), weights)


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
        Function(returned, "mine")(IMAGES, PROMPTS)  # type: ignore[arg-type]


def test_rejection_and_whole_numbers_are_legal() -> None:
    assert Function(lambda x: [0, 1, float("-inf")])(IMAGES, PROMPTS).tolist() == [0.0, 1.0, float("-inf")]
    assert Function(lambda x: torch.tensor([1, 2, 3]))(IMAGES, PROMPTS).dtype == IMAGES.dtype


def test_what_is_no_score_at_all() -> None:
    with pytest.raises(TypeError, match="'mine' returned dict; return a tensor"):
        Function(lambda x: {}, "mine")(IMAGES, PROMPTS)


def test_a_users_exception_is_the_users() -> None:
    def broken(images: Tensor) -> Tensor:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        rewards.to_reward(broken)(IMAGES, PROMPTS)


def extra(images: Tensor, *, strength: float) -> Tensor:
    return strength * of_images(images)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("clop", ValueError, "reward='clop' is unknown; known: .*clip.*; did you mean 'clip'"),
        ([], ValueError, "empty"), ({"redness": "two"}, ValueError, "weight of reward 'redness' is 'two'"),
        ({"redness": float("nan")}, ValueError, "finite"), (3, TypeError, "reward=3 is no reward"),
        (lambda a, b, c, d: a, TypeError, "needs 4 arguments"),
        (rewards.Redness, TypeError, r"is a class; .*Redness\(\)"),
        (extra, TypeError, "reward 'extra' needs 'strength'.*default"), ([object()], TypeError, "is no reward"),
    ],
)  # fmt: skip
def test_what_is_no_reward(given: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        rewards.to_reward(given)


def test_importing_rewards_needs_neither_steer_nor_open_clip() -> None:
    code = "import sys, rewards; print(*(m for m in ('steer', 'open_clip', 'torchvision', 'PIL') if m in sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == ""


def test_no_file_of_rewards_imports_steer_even_late() -> None:
    """The scorers can be used without the library that steers."""
    for file in Path(rewards.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf8"))):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(m.split(".")[0] == "steer" for m in modules), file


def test_names_and_files_of_settings_agree() -> None:
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    folder = Path(rewards.__file__).parent.parent / "configs" / "reward"
    assert sorted(rewards.names()) == sorted(file.stem for file in folder.glob("*.yaml"))
    for name in rewards.names():
        assert instantiate(OmegaConf.load(folder / f"{name}.yaml")) == rewards.get(name)
        assert name_of(rewards.get(name)) == name


def test_rewards_can_be_copied_to_another_process() -> None:
    clip = rewards.Clip()
    before = clip(IMAGES, PROMPTS)
    data = pickle.dumps(clip)
    assert len(data) < 1000  # the settings, and not the weights
    torch.testing.assert_close(pickle.loads(data)(IMAGES, PROMPTS), before)
