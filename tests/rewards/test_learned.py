"""Learned rewards of the literature: tiny random ones against the libraries' own forward passes."""

import pickle
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import rewards
from rewards.towers import import_open_clip
from steer.bench import reward_parity
from steer.bench.tiny_scorers import clip_folder, head_file, hps_folder, image_reward_folder

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
    return reward_parity.pictures(h, w)


@pytest.mark.parametrize(("shape", "atol"), [((32, 32), 1e-3), ((80, 64), 0.5)])
def test_pickscore_is_what_transformers_gives(
    place: Path, built: dict[str, Any], shape: tuple[int, int], atol: float
) -> None:
    """Also of pictures that are resized, by PIL there and in torch here."""
    theirs = reward_parity.clip_by_transformers(place / "clip", pictures(*shape), PROMPTS)
    assert theirs.std() > 1
    torch.testing.assert_close(built["pickscore"](pictures(*shape), PROMPTS), theirs, rtol=1e-4, atol=atol)


@pytest.mark.parametrize("text", ["A  Photo of TWO foxes, isn't it?", "caf\u00e9 \u2764", "", "fox " * 100])
def test_the_tokenizer_of_open_clip_is_that_of_transformers(place: Path, text: str) -> None:
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(place / "clip")
    theirs = tokenizer([text], truncation=True, max_length=77)["input_ids"][0]
    ours = import_open_clip().get_tokenizer("ViT-H-14")([text])[0].tolist()
    assert ours[: len(theirs)] == theirs and not any(ours[len(theirs) :])


@pytest.mark.parametrize(("shape", "atol"), [((32, 20), 1e-3), ((80, 64), 0.5)])
def test_hps_is_what_open_clip_gives(place: Path, built: dict[str, Any], shape: tuple[int, int], atol: float) -> None:
    theirs = reward_parity.hps_by_open_clip(place / "hps", pictures(*shape), PROMPTS)
    assert theirs.std() > 1
    torch.testing.assert_close(built["hps"](pictures(*shape), PROMPTS), theirs, rtol=1e-4, atol=atol)


def test_the_aesthetic_head_is_five_matrices_on_the_unit_embedding(place: Path, built: dict[str, Any]) -> None:
    images = pictures(32, 32)
    theirs = reward_parity.aesthetic_by_hand(place / "clip", images, PROMPTS)
    assert theirs.std() > 0.1
    scores = built["aesthetic"](images, PROMPTS)
    torch.testing.assert_close(scores, theirs, rtol=1e-4, atol=1e-4)
    assert torch.equal(scores, built["aesthetic"](images, ["x"] * 3))
    path = str(place / "clip" / "head.pth")
    assert torch.equal(scores, rewards.Aesthetic(str(place / "clip"), path)(images, PROMPTS))


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
