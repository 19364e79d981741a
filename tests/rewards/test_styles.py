"""Scorers as other libraries write them: each is called as it wants to be, and says how; no wrong guess hides."""

import functools
import io
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import rewards
import steer
from rewards.styles import Loss
from rewards.vision import CLIP_MEAN, CLIP_STD

IMAGES = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
PROMPTS = ["a", "bb", "ccc"]
MEANS = IMAGES.mean((1, 2, 3))
LENGTHS = torch.tensor([1.0, 2.0, 3.0])


def pil_mean(picture: Image.Image) -> float:
    assert isinstance(picture, Image.Image) and picture.mode == "RGB"
    return float(np.asarray(picture).mean()) / 255


def fk(images, prompts):  # noqa: ANN001, ANN201 (as that repository writes it)
    return [pil_mean(image.convert("RGB")) + len(prompts[i]) for i, image in enumerate(images)]


def fk_annotated(*, images: list[Image.Image], prompts: list[str]) -> list[float]:
    return [pil_mean(image) + len(prompt) for image, prompt in zip(images, prompts, strict=True)]


def one_pil(prompt: str, image: Image.Image) -> float:
    return pil_mean(image) + len(prompt)


class BaseRewardLoss(ABC):
    """As in ReNO."""

    def __init__(self, name: str, weighting: float) -> None:
        self.name, self.weighting = name, weighting

    @abstractmethod
    def get_image_features(self, image: Tensor) -> Tensor: ...

    def __call__(self, image: Tensor, prompt: str) -> Tensor:
        assert isinstance(prompt, str) and image.shape == (1, 3, 224, 224)
        return 2 - (self.get_image_features(image).mean() + len(prompt))


class Reno(BaseRewardLoss):
    def get_image_features(self, image: Tensor) -> Tensor:
        return image


class Diamond(BaseRewardLoss):
    """As in the repository of Diamond maps: some of its losses are better where they are higher."""

    def get_image_features(self, image: Tensor) -> Tensor:
        return image

    def __call__(self, image: Tensor, prompt: str | list[str], raw_image: Tensor | None = None) -> Tensor:
        assert raw_image is not None and 0 <= float(raw_image.min()) and float(raw_image.max()) <= 1
        return raw_image.mean()


class RedRewardLoss:
    def __call__(self, image: Tensor, prompt: str, raw_image: Tensor) -> Tensor:
        return -raw_image[:, 0].mean()


class Imscore(torch.nn.Module):
    def score(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        return (pixels.mean((1, 2, 3)) + torch.tensor([float(len(p)) for p in prompts]))[:, None].squeeze()


def twist(x_hat: Tensor, sigma: Tensor) -> Tensor:
    """azula's: a log-density of every pixel, wider by the noise that is left."""
    return torch.distributions.Normal(0.5, (0.1**2 + sigma**2) ** 0.5).log_prob(x_hat)


class Tfg:
    def get_guidance(
        self,
        x_need_grad: Tensor,
        func: Callable = lambda x: x,
        post_process: Callable = lambda x: x,
        return_logp: bool = False,
        check_grad: bool = True,
        **kwargs: Any,  # noqa: ANN401
    ) -> Tensor:
        assert not check_grad or x_need_grad.requires_grad
        log_p = post_process(func(x_need_grad)).mean((1, 2, 3))
        return log_p if return_logp else torch.autograd.grad(log_p.sum(), x_need_grad)[0]


def grpo(images: Any, prompts: list[str], metadata: list[dict]) -> tuple[np.ndarray, dict]:  # noqa: ANN401
    """flow_grpo's compressibility: floats [0,1] of torch, or bytes of numpy."""
    if isinstance(images, torch.Tensor):
        images = (images * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy().transpose(0, 2, 3, 1)
    sizes = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format="JPEG", quality=95)
        sizes.append(buffer.tell() / 1000)
    return -np.array(sizes), {}


def trl(images: Tensor, prompts: tuple[str, ...], metadata: tuple) -> tuple[Tensor, dict]:
    return images.mean((1, 2, 3)), {"seen": len(metadata)}


def uint8_scorer(images: Tensor) -> Tensor:
    assert images.dtype == torch.uint8 and images.shape[1] == 3
    return images.float().mean((1, 2, 3)) / 255


@dataclass
class RewardModelOutput:
    rewards: Any
    extra_info: dict | None = None


class BaseRewardModel:
    """As in Flow-Factory."""

    use_tensor_inputs = False


class PointwiseRewardModel(BaseRewardModel):
    def __call__(
        self,
        prompt: list[str],
        image: list | None = None,
        video: list | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> RewardModelOutput:
        assert isinstance(image, list) and video is None
        return RewardModelOutput([pil_mean(i) + len(p) for i, p in zip(image, prompt, strict=True)])


class TensorRewardModel(BaseRewardModel):
    use_tensor_inputs = True

    def __call__(self, prompt: list[str], image: list[Tensor] | None = None, **kwargs: Any) -> RewardModelOutput:  # noqa: ANN401
        assert isinstance(image, list)
        return RewardModelOutput(torch.stack([i.mean() for i in image]))


class GroupwiseRewardModel(BaseRewardModel):
    def __call__(self, prompt: list[str], image: list | None = None) -> RewardModelOutput:
        raise AssertionError("never called")


class UniRL:
    """A backend that is asked by a request; `fail` makes it answer with an error, as it does, and a score of 0."""

    def __init__(self, fail: bool = False, kind: str = "image") -> None:
        self.fail, self.input_kind = fail, kind

    def prompts(self, request: Any) -> list[str]:  # noqa: ANN401
        return list(request.original_prompt.texts)

    def compute_rewards(self, request: Any) -> RewardModelOutput:  # noqa: ANN401
        scores = [pil_mean(i) + len(p) for i, p in zip(request.images, self.prompts(request), strict=True)]
        response = RewardModelOutput(scores)
        response.errors = [None, "out of memory", None] if self.fail else [None] * 3  # type: ignore[attr-defined]
        return response


class UniRLDifferentiable(UniRL):
    def compute_rewards_differentiable(self, images_tensor: Tensor, prompts: list[str], records: Any = None) -> Tensor:  # noqa: ANN401
        return images_tensor.mean((1, 2, 3)) + torch.tensor([float(len(p)) for p in prompts])


def prompt_first(prompt: list[str], image: Tensor | None = None) -> Tensor:
    assert image is not None
    return image.mean((1, 2, 3)) + torch.tensor([float(len(p)) for p in prompt])


def per_prompt(image: Tensor, prompt: str) -> Tensor:
    assert image.shape == (1, 3, 16, 16)
    return image.mean() + len(prompt)


@pytest.mark.parametrize(
    ("given", "expected", "said"),
    [
        (rewards.Pil(fk), MEANS + LENGTHS, "called as fk(images, prompts), a list of PIL pictures; higher is better"),
        (fk_annotated, MEANS + LENGTHS, "fk_annotated(images=images, prompts=prompts), a list of PIL pictures"),
        (one_pil, MEANS + LENGTHS, "one_pil(prompts, images), a PIL picture and one prompt at a time"),
        (Imscore(), MEANS + LENGTHS, "score(images, prompts), pictures as floats [b 3 h w] in [0, 1]"),
        (Tfg(), MEANS, "get_guidance(images), pictures as floats"), (trl, MEANS, "trl(images, prompts, metadata)"),
        (grpo, rewards.JpegSize()(IMAGES, PROMPTS), "grpo(images, prompts, metadata), pictures as floats"),
        (rewards.Bytes(grpo), rewards.JpegSize()(IMAGES, PROMPTS), "pictures as uint8 arrays [b h w 3]"),
        (rewards.Bytes(uint8_scorer, "nchw"), MEANS, "pictures as uint8 tensors [b 3 h w]"),
        (PointwiseRewardModel(), MEANS + LENGTHS, "a list of PIL pictures"), (TensorRewardModel(), MEANS, "floats"),
        (UniRL(), MEANS + LENGTHS, "compute_rewards(images, prompts), a list of PIL pictures"),
        (UniRLDifferentiable(), MEANS + LENGTHS, "compute_rewards_differentiable(images, prompts), pictures as floats"),
        (lambda raw_images: raw_images.mean((1, 2, 3)), MEANS, "(images), pictures as floats"),
        (prompt_first, MEANS + LENGTHS, "prompt_first(prompts, image=images)"),
        (per_prompt, MEANS + LENGTHS, "per_prompt(images, prompts), a picture of floats [1 3 h w] in [0, 1] and one"),
        (rewards.PerPrompt(lambda i, q: [float(i.mean()) + len(q)]), MEANS + LENGTHS, "one prompt at a time"),
        (rewards.PerPrompt(lambda q, pil: (pil_mean(pil), {}), "pil"), MEANS, "a PIL picture and one prompt at a time"),
    ],
)  # fmt: skip
def test_each_style_is_called_as_it_wants_to_be(given: object, expected: Tensor, said: str) -> None:
    reward = rewards.to_reward(given)
    torch.testing.assert_close(reward(IMAGES, PROMPTS), expected, atol=3e-3, rtol=1e-4)
    torch.testing.assert_close(reward(IMAGES[:1], PROMPTS[:1]), expected[:1], atol=3e-3, rtol=1e-4)
    assert said in (rewards.assumed(reward) or "")


def test_a_twist_is_its_density_without_noise() -> None:
    reward = rewards.to_reward(twist)
    z = (IMAGES - 0.5) / 0.1
    density = (-z.square() / 2 - np.log(0.1 * (2 * np.pi) ** 0.5)).sum((1, 2, 3))
    torch.testing.assert_close(reward(IMAGES, PROMPTS), density)
    assert "twist(images, noise)" in (rewards.assumed(reward) or "")


def test_a_loss_of_reno_is_turned_round_and_sees_pictures_made_for_clip() -> None:
    reward = rewards.to_reward(Reno("reno", 5.0))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
    large = F.interpolate(IMAGES, (224, 224), mode="bicubic", antialias=True, align_corners=False)
    expected = ((large - mean) / std).mean((1, 2, 3)) + LENGTHS - 2
    torch.testing.assert_close(reward(IMAGES, PROMPTS), expected)
    said = rewards.assumed(reward) or ""
    assert "lower is better" in said and "Look(size=224" in said and rewards.name_of(reward) == "reno"
    leaf = IMAGES.clone().requires_grad_(True)
    assert torch.autograd.grad(reward(leaf, PROMPTS).sum(), leaf)[0].mean() > 0


@pytest.mark.parametrize("given", [Diamond("clip", 1.0), RedRewardLoss()])
def test_a_loss_whose_sign_nothing_tells_must_be_said(given: Any) -> None:  # noqa: ANN401
    with pytest.raises(TypeError, match=r"which way is better: say rewards.Loss\(it\) where lower .*PerPrompt\(it\)"):
        rewards.to_reward(given)
    loss = torch.stack([given(i, q, i) for i, q in zip(IMAGES.split(1), PROMPTS, strict=True)])
    torch.testing.assert_close(rewards.Loss(given)(IMAGES, PROMPTS), -loss)
    torch.testing.assert_close(rewards.PerPrompt(given)(IMAGES, PROMPTS), loss)


def test_a_function_called_loss_is_doubted_until_it_says_so() -> None:
    def loss_fn(images: Tensor) -> Tensor:
        """As DAS has it: a reward, whatever it is called."""
        return images.mean((1, 2, 3))

    with pytest.warns(UserWarning, match="'loss_fn' is taken as it is, higher better.*rewards.Negated"):
        reward = rewards.to_reward(loss_fn)
    torch.testing.assert_close(reward(IMAGES, PROMPTS), MEANS)
    for said, sign in ((rewards.Function(loss_fn), 1), (rewards.Negated(rewards.Function(loss_fn)), -1)):
        torch.testing.assert_close(rewards.to_reward(said)(IMAGES, PROMPTS), sign * MEANS)


def test_what_a_loss_rejects_stays_rejected() -> None:
    losses = iter([0.5, torch.inf, 0.25])
    with pytest.raises(ValueError, match=r"NaN or \+inf"):
        Loss(lambda image, prompt: next(losses), name="mine")(IMAGES, PROMPTS)
    rejecting = Loss(lambda image, prompt: -torch.inf if len(prompt) == 2 else 1.0)
    assert rejecting(IMAGES, PROMPTS).tolist() == [-1.0, -torch.inf, -1.0]


def test_losses_beside_rewards_are_not_taken_for_scores() -> None:
    def fn(im_pix_un: Tensor) -> tuple[Tensor, Tensor]:
        """As in AlignProp."""
        r = im_pix_un.mean((1, 2, 3))
        return -r, r

    with pytest.raises(TypeError, match=r"two sets of scores, such as losses.*function\(images\)\[1\]"):
        rewards.to_reward(fn)(IMAGES, PROMPTS)
    torch.testing.assert_close(rewards.to_reward(lambda images: fn(images)[1])(IMAGES, PROMPTS), MEANS)


def byte_arrays(images: Any) -> list[float]:  # noqa: ANN401
    return [pil_mean(Image.fromarray(image)) for image in images.cpu().permute(0, 2, 3, 1).numpy()]


def needs_bytes(images: Tensor) -> list[float]:
    if images.dtype != torch.uint8:
        raise TypeError(f"expected uint8 pictures, got {images.dtype}")
    return [0.0] * len(images)


def to_tensor(images: Any) -> list[float]:  # noqa: ANN401
    raise TypeError(f"pic should be PIL Image or ndarray. Got {type(images)}")  # torchvision's words


@pytest.mark.parametrize(
    ("given", "error", "cure"),
    [
        (fk, AttributeError, r"rewards.Pil\(function\)"), (to_tensor, TypeError, r"rewards.Pil\(function\)"),
        (byte_arrays, TypeError, r"rewards.Bytes\(function\)"), (needs_bytes, TypeError, r"rewards.Bytes\(function\)"),
        (lambda x: [float(i.astype("float32").mean()) for i in x], AttributeError, r"rewards.Bytes\(function\)"),
        (lambda x, prompt: x.mean() + len(prompt.split()), AttributeError, r"rewards.PerPrompt\(function\)"),
        (lambda x, prompt: x.mean() + len("a " + prompt), TypeError, r"rewards.PerPrompt\(function\)"),
        (rewards.Pil(lambda pictures: [p.mean() for p in pictures]), AttributeError, "rewards.Function"),
        (rewards.Pil(lambda picture: picture.resize((8, 8))), AttributeError, r"rewards.PerPrompt\(function, 'pil'\)"),
    ],
)  # fmt: skip
def test_a_wrong_style_fails_as_it_is_with_a_note_that_names_the_cure(
    given: object, error: type[Exception], cure: str
) -> None:
    reward = rewards.to_reward(given)
    with pytest.raises(error) as caught:
        reward(IMAGES, PROMPTS)
    (note,) = caught.value.__notes__
    assert "was called as" in note and re.search(cure, note)


def test_a_fault_of_another_kind_is_told_how_it_was_called_and_nothing_more() -> None:
    with pytest.raises(KeyError) as caught:
        rewards.to_reward(lambda images: {}["mine"])(IMAGES, PROMPTS)
    (note,) = caught.value.__notes__
    assert note == (
        "reward '<lambda>' was called as <lambda>(images), pictures as floats [b 3 h w] in [0, 1]; higher is better"
    )


def no_pictures(prompts: list[str]) -> list[int]:
    return [len(p) for p in prompts]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda x_hat, t: x_hat.mean((1, 2, 3)), "needs 't', a time, and libraries disagree"),
        (no_pictures, "'no_pictures' takes no pictures"),
        (GroupwiseRewardModel(), "compares the pictures of a group"),
        (UniRL(kind="video"), "scores video, not pictures"),
    ],
)
def test_what_cannot_be_right_is_refused_before_any_call(given: object, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        rewards.to_reward(given)


def test_a_score_that_a_backend_gives_beside_an_error_is_not_believed() -> None:
    with pytest.raises(RuntimeError, match="failed for 1 pictures: out of memory"):
        rewards.to_reward(UniRL(fail=True))(IMAGES, PROMPTS)


def test_one_number_a_picture() -> None:
    with pytest.raises(ValueError, match=r"returned shape \[1, 3\] for one picture"):
        rewards.PerPrompt(lambda image, prompt: image.mean((2, 3)), name="mine")(IMAGES, PROMPTS)


@pytest.mark.parametrize("make", [lambda: rewards.Bytes(fk, "chw"), lambda: rewards.PerPrompt(fk, "png")])
def test_unknown_forms_of_pictures(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match="unknown; give"):
        make()


def test_wrappers_and_sums_pass_on_what_is_assumed() -> None:
    both = rewards.to_reward({rewards.Counted(trl): 1.0, "redness": 1.0, rewards.Pil(fk): 0.1}, compare=False)
    assert rewards.assumed(both) == (
        "trl: called as trl(images, prompts, metadata), pictures as floats [b 3 h w] in [0, 1]; higher is better; "
        "fk: called as fk(images, prompts), a list of PIL pictures; higher is better"
    )
    assert rewards.assumed(rewards.Redness()) is None


def test_the_log_tells_what_was_assumed(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "rewards"):
        rewards.to_reward(functools.partial(trl, metadata=()))
    assert "called as trl(images, prompts), pictures as floats [b 3 h w] in [0, 1]; higher" in caplog.text


def test_the_report_tells_what_was_assumed() -> None:
    given: dict[str, Any] = {"n": 4, "seed": 0, "method": "best_of_n", "progress": False}
    out = steer.sample("a red heart", reward=rewards.Pil(fk), **given)
    assert out.report["reward"]["assumed"] == rewards.assumed(rewards.Pil(fk))


@pytest.mark.parametrize(
    "made",
    [
        rewards.PerPrompt(lambda image, prompt: image.mean() * len(prompt)), rewards.PerPrompt(pil_mean, "pil"),
        rewards.Function(lambda images: images.mean((1, 2, 3))), rewards.Bytes(lambda images: images.mean((1, 2, 3))),
    ],
)  # fmt: skip
def test_a_loss_in_an_adapter_is_called_as_that_says(made: Any) -> None:  # noqa: ANN401
    loss = Loss(made)
    assert torch.equal(loss(IMAGES, PROMPTS), -made(IMAGES, PROMPTS)) and "lower is better" in loss.assumed
    assert rewards.is_differentiable(loss) == rewards.is_differentiable(made)
    with pytest.raises(TypeError, match=r"prepare=\.\.\.\): .* leave one of them out"):
        Loss(made, prepare=lambda image: image)
