"""Learned rewards of the literature: tiny random ones against the libraries' own forward passes."""

import pickle
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_scorers import clip_folder, head_file, hps_folder, image_reward_folder
from torch import Tensor

import rewards
from rewards.function import to_pil
from rewards.towers import import_open_clip
from rewards.vision import Look

PROMPTS = ["a red fox", "two hearts", "a fox, a red heart and a fox"]
NAMES = ["pickscore", "hps", "aesthetic", "image-reward"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one folder a scorer."""
    path = tmp_path_factory.mktemp("weights")
    for name in ("clip", "hps", "image-reward"):
        (path / name).mkdir()
    clip_folder(path / "clip")
    hps_folder(path / "hps")
    image_reward_folder(path / "image-reward")
    head_file(path / "clip" / "head.pth")
    return path


@pytest.fixture(scope="module")
def built(place: Path) -> dict[str, Any]:
    clip, image_reward = str(place / "clip"), str(place / "image-reward")
    return {
        "pickscore": rewards.PickScore(clip),
        "hps": rewards.Hps(str(place / "hps"), architecture="tiny-hps"),
        "aesthetic": rewards.Aesthetic(clip, clip, "head.pth"),
        "image-reward": rewards.ImageReward(image_reward, image_reward),
    }


@pytest.fixture(params=NAMES)
def reward(request: pytest.FixtureRequest, built: dict[str, Any]) -> Any:  # noqa: ANN401
    return built[request.param]


def pictures(h: int = 48, w: int = 32) -> Tensor:
    """Three smooth pictures in whole bytes."""
    x = torch.rand(3, 3, 6, 6, generator=torch.Generator().manual_seed(3))
    return (F.interpolate(x, (h, w), mode="bilinear") * 255).round() / 255


def test_pickscore_is_what_transformers_gives(place: Path, built: dict[str, Any]) -> None:
    """CLIPModel's logits with its own tokenizer and processor of PIL pictures; ours resizes in torch."""
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

    model = CLIPModel.from_pretrained(place / "clip").eval()
    tokenizer = CLIPTokenizer.from_pretrained(place / "clip")
    words = tokenizer(PROMPTS, padding=True, truncation=True, max_length=77, return_tensors="pt")
    see = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    with torch.no_grad():
        exact = model(**words, pixel_values=Look(32)(pictures())).logits_per_image.diagonal()
        pil = model(**words, **see(images=to_pil(pictures(80, 64)), return_tensors="pt")).logits_per_image.diagonal()
    assert exact.std() > 1
    torch.testing.assert_close(built["pickscore"](pictures(), PROMPTS), exact, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(built["pickscore"](pictures(80, 64), PROMPTS), pil, rtol=0, atol=0.5)


@pytest.mark.parametrize("text", ["A  Photo of TWO foxes, isn't it?", "caf\u00e9 \u2764", "", "fox " * 100])
def test_the_tokenizer_of_open_clip_is_that_of_transformers(place: Path, text: str) -> None:
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(place / "clip")
    theirs = tokenizer([text], truncation=True, max_length=77)["input_ids"][0]
    ours = import_open_clip().get_tokenizer("ViT-H-14")([text])[0].tolist()
    assert ours[: len(theirs)] == theirs and not any(ours[len(theirs) :])


def test_hps_is_what_open_clip_gives(place: Path, built: dict[str, Any]) -> None:
    """The published way: weights of "state_dict", longest side resized and padded, cosine of what the model returns."""
    open_clip = import_open_clip()
    from open_clip.transform import image_transform

    model = open_clip.create_model("tiny-hps").eval()
    model.load_state_dict(torch.load(place / "hps" / "HPS_v2.1_compressed.pt", weights_only=True)["state_dict"])
    see = image_transform(32, False, resize_mode="longest")
    for shape, atol in (((32, 20), 1e-3), ((80, 64), 0.5)):
        images = torch.stack([see(p) for p in to_pil(pictures(*shape))])
        with torch.no_grad():
            seen, read, _ = model(images, open_clip.get_tokenizer("tiny-hps")(PROMPTS))
        cosine = (seen * read).sum(1)
        assert cosine.std() > 0.01
        torch.testing.assert_close(built["hps"](pictures(*shape), PROMPTS), 100 * cosine, rtol=1e-4, atol=atol)


def test_the_aesthetic_head_is_five_matrices_on_the_unit_embedding(place: Path, built: dict[str, Any]) -> None:
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(place / "clip").eval()
    weights = torch.load(place / "clip" / "head.pth", weights_only=True)
    with torch.no_grad():
        x = model.visual_projection(model.vision_model(Look(32)(pictures())).pooler_output)
    x = x / x.norm(dim=1, keepdim=True)
    for i in (0, 2, 4, 6, 7):
        x = x @ weights[f"layers.{i}.weight"].T + weights[f"layers.{i}.bias"]
    assert x.std() > 0.1
    scores = built["aesthetic"](pictures(), PROMPTS)
    torch.testing.assert_close(scores, x[:, 0], rtol=1e-4, atol=1e-4)
    assert torch.equal(scores, built["aesthetic"](pictures(), ["x"] * 3))
    path = str(place / "clip" / "head.pth")
    assert torch.equal(scores, rewards.Aesthetic(str(place / "clip"), path)(pictures(), PROMPTS))


def test_scores_differ_and_rows_do_not_meet(reward: rewards.Reward) -> None:
    r = reward(pictures(), PROMPTS)
    assert r.shape == (3,) and r.isfinite().all() and r.unique().numel() == 3
    torch.testing.assert_close(reward(pictures().flip(0), PROMPTS[::-1]), r.flip(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(reward(pictures()[1:2], PROMPTS[1:2]), r[1:2], rtol=1e-4, atol=1e-4)


def test_a_gradient_to_its_own_picture_that_matches_differences(reward: rewards.Reward) -> None:
    images = pictures().requires_grad_(True)
    (gradient,) = torch.autograd.grad(reward(images, PROMPTS)[0], images)
    assert gradient[0].abs().sum() > 0 and gradient[1:].abs().sum() == 0
    step = 2e-3 * gradient / gradient.square().mean().sqrt()
    with torch.no_grad():
        change = (reward(images + step, PROMPTS) - reward(images - step, PROMPTS))[0] / 2
    torch.testing.assert_close((gradient * step).sum(), change, rtol=0.05, atol=1e-4)


def test_scores_have_the_pictures_precision(reward: rewards.Reward) -> None:
    r = reward(pictures(), PROMPTS)
    wide, half = reward(pictures().double(), PROMPTS), reward(pictures().bfloat16(), PROMPTS)
    assert wide.dtype == torch.float64 and half.dtype == torch.bfloat16 and half.isfinite().all()
    torch.testing.assert_close(wide.float(), r, rtol=1e-4, atol=1e-4)


def test_copies_carry_settings_and_load_for_themselves(reward: rewards.Reward) -> None:
    r = reward(pictures(), PROMPTS)
    assert len(pickle.dumps(reward)) < 1000
    for copied in (deepcopy(reward), pickle.loads(pickle.dumps(reward))):
        assert copied == reward and copied._kept._loaded is None  # type: ignore[attr-defined]
    assert torch.equal(copied(pictures(), PROMPTS), r)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pickscore", "config.json, model.safetensors of model='yuvalkirstain/PickScore_v1'"),
        ("hps", "HPS_v2.1_compressed.pt of model='xswu/HPSv2'"),
        ("aesthetic", "and aesthetic-model.pth of head='trl-lib/ddpo-aesthetic-predictor'"),
        ("image-reward", "ImageReward.pt, med_config.json of model='THUDM/ImageReward'"),
    ],
)
def test_what_is_missing_is_said_and_never_fetched(
    name: str, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    reward: Any = rewards.get(name)
    sentence = reward.missing()
    assert sentence.startswith(f"reward {name!r} lacks ") and words in sentence and "`hf download " in sentence
    with pytest.raises(FileNotFoundError) as error:
        reward(pictures(), PROMPTS)
    assert str(error.value) == sentence and not list(tmp_path.iterdir())


def test_nothing_is_missing_where_the_files_are(reward: Any) -> None:  # noqa: ANN401
    assert reward.missing() is None


@pytest.mark.parametrize(
    ("name", "file", "damage"),
    [
        ("pickscore", "clip/model.safetensors", 1000), ("pickscore", "clip/config.json", 10),
        ("hps", "hps/HPS_v2.1_compressed.pt", 1000), ("aesthetic", "clip/head.pth", 1000),
        ("image-reward", "image-reward/ImageReward.pt", 1000), ("image-reward", "image-reward/med_config.json", 10),
    ],
)  # fmt: skip
def test_damaged_files_are_named(name: str, file: str, damage: int, place: Path, built: dict[str, Any]) -> None:
    path = place / file
    whole = path.read_bytes()
    path.write_bytes(whole[:damage])
    try:
        with pytest.raises(
            ValueError, match=rf"reward {name!r}: the files in .*{path.parent.name}.* are damaged.*again"
        ):
            replace(built[name])(pictures(), PROMPTS)
    finally:
        path.write_bytes(whole)


def test_weights_that_lack_a_layer_are_refused_rather_than_drawn_at_random(place: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(place / "clip" / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_bytes((place / "clip" / "config.json").read_bytes())
    with pytest.raises(ValueError, match="of another model .*no weights for visual_projection.weight"):
        rewards.PickScore(str(tmp_path))(pictures(), PROMPTS)
