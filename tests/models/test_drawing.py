"""The embedded model: saved and loaded alike, honest about damage, and its pictures are of what they are called."""

import json
from pathlib import Path

import pytest
import torch

import rewards
from rewards.towers import load_clip
from steer.data import emoji
from steer.flow_map import jump
from steer.models import Model, load_model, save_model
from steer.models.text import encode_prompts, token_states


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model("emoji", device="cpu")


def noise(b: int, model: Model) -> torch.Tensor:
    return torch.randn(b, *model.shape, generator=torch.Generator().manual_seed(0))


def test_saved_and_loaded_it_is_the_same(model: Model, tmp_path: Path) -> None:
    save_model(model, tmp_path / "mine")
    again, cond = load_model(tmp_path / "mine", device="cpu"), model.encode(["a fox", "a red heart"])
    x1 = jump(model.flow, noise(2, model), 0.0, 1.0, cond)
    assert torch.equal(x1, jump(again.flow, noise(2, model), 0.0, 1.0, again.encode(["a fox", "a red heart"])))
    assert torch.equal(model.decode(x1), again.decode(x1))
    assert again.name == "mine" and not list(tmp_path.rglob("*.part"))


def test_pictures_are_in_range(model: Model) -> None:
    pictures = model.decode(10 * noise(3, model))
    assert pictures.shape == (3, 3, 64, 64) and 0 <= pictures.min() and pictures.max() <= 1


def test_prompts_do_not_depend_on_their_neighbours(model: Model) -> None:
    both, one = model.encode(["a fox", "a very small blue bird"]), model.encode(["a fox"])
    assert both is not None and one is not None
    assert torch.allclose(both["words"][:1], one["words"], atol=1e-5)


def test_word_states_are_those_of_the_text_tower() -> None:
    towers = load_clip("emoji-clip")
    prompts = ["a red heart", "fox", "small dog on a yellow background"]
    states, ids = token_states(towers, prompts)["tokens"], towers.tokenize(prompts)
    pooled = states[torch.arange(3), ids.argmax(1)] @ towers.model.text_projection
    assert torch.allclose(pooled, towers.model.encode_text(ids), atol=1e-5)
    assert torch.equal(encode_prompts(towers, prompts, chunk=1)["mask"], ids != 0)


def test_the_judge_knows_samples_of_a_caption(model: Model) -> None:
    """At 1 and at 4 calls the judge has the caption among its five best of 1,954, for well known ones."""
    data, judge = emoji.load(), rewards.get("clip-judge")
    captions = [
        "red heart",
        "fox",
        "pizza",
        "rainbow",
        "sunflower",
        "snowman",
        "rocket",
        "penguin",
        "strawberry",
        "key",
    ]
    every, asked = sorted(set(data.captions)), captions * 4
    for calls in (1, 4):
        x, cond = noise(len(asked), model), model.encode(asked)
        for k in range(calls):
            x = jump(model.flow, x, k / calls, (k + 1) / calls, cond)
        with torch.no_grad():
            scores = judge.embed_images(model.decode(x)) @ judge.embed_texts(every, x.device).T  # type: ignore[attr-defined]
        top = scores.topk(5, 1).indices.tolist()
        share = sum(c in {every[j] for j in row} for c, row in zip(asked, top, strict=True)) / len(asked)
        assert share > 0.7  # chance is .003


def test_unknown_names_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="emojis.*embedded: emoji, shapes; did you mean 'emoji'"):
        load_model("emojis")
    with pytest.raises(FileNotFoundError, match="model.json"):
        load_model(tmp_path)


@pytest.mark.parametrize("key", ["kind", "path", "text"])
def test_a_card_of_something_else_is_refused(key: str, model: Model, tmp_path: Path) -> None:
    save_model(model, tmp_path)
    card = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps({**card, key: "os.system"}))
    with pytest.raises(ValueError, match=f"{key}='os.system' is not known"):
        load_model(tmp_path)


def test_damage_is_named(model: Model, tmp_path: Path) -> None:
    save_model(model, tmp_path)
    flow = tmp_path / "flow.safetensors"
    flow.write_bytes(flow.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"flow.safetensors are damaged"):
        load_model(tmp_path)
    flow.unlink()
    with pytest.raises(FileNotFoundError, match=r"flow.safetensors"):
        load_model(tmp_path)


def test_only_native_models_are_saved(model: Model, tmp_path: Path) -> None:
    other = Model(lambda x, s, t, cond: x, model.path, model.encode, model.decode, model.shape, "mine")
    with pytest.raises(ValueError, match="model='mine' has a flow of type function"):
        save_model(other, tmp_path / "out")
    assert not (tmp_path / "out").exists()
