"""CLIP rewards: parity with open_clip itself, any local folder, the two small ones that ship, and damage."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import rewards
import steer
from rewards import towers
from rewards.function import to_pil
from rewards.towers import ASSETS, EMBEDDED, WordPieces, import_open_clip, load_clip
from steer.bench.tiny_scorers import open_clip_folder, siglip_folder
from steer.data import emoji


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return open_clip_folder(tmp_path_factory.mktemp("clip"))


def test_any_folder_scores_as_open_clip_does(folder: Path) -> None:
    open_clip = import_open_clip()
    model = open_clip.create_model(f"local-dir:{folder}").eval()
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    prompts = ["a red heart", "a fox", "x"]
    normal = (images - torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)) / torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    with torch.no_grad():
        a = F.normalize(model.encode_image(normal), dim=-1)
        b = F.normalize(model.encode_text(open_clip.get_tokenizer("ViT-B-32")(prompts)), dim=-1)
    torch.testing.assert_close(rewards.Clip(str(folder))(images, prompts), 100 * (a * b).sum(1), rtol=1e-4, atol=1e-3)


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return siglip_folder(tmp_path_factory.mktemp("siglip"))


@pytest.mark.parametrize(("shape", "atol"), [((160, 160), 1e-3), ((300, 200), 0.5)])
def test_siglip_scores_as_open_clip_does(siglip: Path, shape: tuple[int, int], atol: float) -> None:
    """Its own colours, squashed pictures, tokenizer, scale and bias: 100 cos, or with logits=True what it learnt.

    Resizing in torch and not in PIL moves the score by less than half a point of 100.
    """
    open_clip = import_open_clip()
    model, _, see = open_clip.create_model_and_transforms(f"local-dir:{siglip}")
    prompts = ["a red fox", "Heart!", "fox"]
    ids = open_clip.get_tokenizer(f"local-dir:{siglip}")(prompts)
    assert ids.shape == (3, 64) and ids[0, :5].tolist() == [3, 4, 5, 1, 0] and ids[1, :3].tolist() == [6, 1, 0]
    smooth = torch.rand(3, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    images = (F.interpolate(smooth, shape, mode="bilinear") * 255).round() / 255
    pixels = torch.stack([see(p) for p in to_pil(images)])
    with torch.no_grad():
        logits = model.eval().get_logits(pixels, ids)[0].diagonal()
        cosine = F.cosine_similarity(model.encode_image(pixels), model.encode_text(ids))
    assert cosine.std() > 0.001
    torch.testing.assert_close(rewards.Clip(str(siglip))(images, prompts), 100 * cosine, rtol=0, atol=atol)
    torch.testing.assert_close(rewards.Clip(str(siglip), logits=True)(images, prompts), logits, rtol=0, atol=1.1 * atol)


def test_logits_of_a_clip_have_its_scale_and_no_bias(folder: Path) -> None:
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    scale = rewards.Clip(str(folder)).towers(torch.device("cpu")).model.logit_scale.exp().item()
    score, logits = (rewards.Clip(str(folder), logits=flag)(images, ["a", "b"]) for flag in (False, True))
    torch.testing.assert_close(logits, score * scale / 100)


def test_oblong_pictures_are_cut_as_their_model_says(folder: Path) -> None:
    """CLIP sees the middle only; the two small ones see all of it."""
    wide = torch.rand(1, 3, 32, 64, generator=torch.Generator().manual_seed(1))
    edged = wide.clone()
    edged[..., :12] = 0
    clip = rewards.Clip(str(folder))
    torch.testing.assert_close(clip(edged, ["a"]), clip(wide[..., 16:48], ["a"]))
    assert rewards.Clip()(edged, ["a"]) != rewards.Clip()(wide, ["a"])


def test_larger_pictures_are_resized_with_gradients(folder: Path) -> None:
    small = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    large = small.repeat_interleave(4, 2).repeat_interleave(4, 3).requires_grad_(True)
    r = rewards.Clip(str(folder))(large, ["a", "b"])
    torch.testing.assert_close(r, rewards.Clip(str(folder))(small, ["a", "b"]), rtol=0.05, atol=2.0)
    assert torch.autograd.grad(r.sum(), large)[0].abs().sum() > 0


@pytest.mark.parametrize(("name", "least"), [("emoji-clip", 0.85), ("emoji-clip-judge", 0.75)])
def test_the_small_ones_know_their_pictures(name: str, least: float) -> None:
    """Share of shipped pictures whose caption is among the five best of all 1,954."""
    data, clip = emoji.load(), rewards.Clip(name)
    rows = list(range(0, len(data), 20))
    captions = sorted(set(data.captions))
    images = torch.from_numpy(data.images[rows]).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        scores = clip.embed_images(images) @ clip.embed_texts(captions, images.device).T
    top = scores.topk(5, 1).indices.tolist()
    assert (
        sum(data.captions[i] in {captions[j] for j in row} for i, row in zip(rows, top, strict=True)) / len(rows)
        > least
    )


def test_open_clip_knows_the_small_configuration() -> None:
    load_clip("emoji-clip")
    assert "emoji-clip" in import_open_clip().list_models()


def test_words_outside_the_vocabulary_are_spelt() -> None:
    pieces = WordPieces.from_words(["heart", "red", "##s", "back", "##ground"], 8)
    ids = pieces(["The Red hearts, \u2764 background!", "", "a b c d e f g h i j k"])
    assert ids.shape == (3, 8) and ids[1].tolist()[:3] == [1, pieces.vocab_size - 1, 0]
    words = [pieces.pieces[i - 2] for i in ids[0].tolist() if 1 < i < pieces.vocab_size - 1]
    assert words == ["red", "heart", "##s", "back", "##ground"]
    assert ids[2].tolist()[-1] == pieces.vocab_size - 1
    assert pieces.encode("zebra") == [pieces.index[c] for c in ("z", "##e", "##b", "##r", "##a")]


@pytest.mark.parametrize("name", EMBEDDED)
def test_article_and_case_do_not_matter(name: str) -> None:
    tokenize = load_clip(name).tokenize
    assert torch.equal(tokenize(["A red Heart"]), tokenize(["red heart"]))


def copy(name: str, into: Path) -> Path:
    into.mkdir()
    for file in (ASSETS / name).iterdir():
        (into / file.name).write_bytes(file.read_bytes())
    return into


def test_damaged_and_missing_weights_are_named(tmp_path: Path) -> None:
    folder = copy("emoji-clip", tmp_path / "mine")
    weights = folder / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"weights in .*mine.* are damaged .*again"):
        load_clip(str(folder))
    weights.unlink()
    with pytest.raises(FileNotFoundError, match="no weights at .*mine"):
        load_clip(str(folder))


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    folder = copy("emoji-clip", tmp_path / "mine")
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["embed_dim"] = 64
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="do not fit"):
        towers.load_embedded(folder)


def test_a_folder_without_weights_is_refused_rather_than_scored_at_random(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="open_clip_config.json is missing"):
        load(tmp_path)
    config = tmp_path / "open_clip_config.json"
    config.write_bytes((folder / config.name).read_bytes())
    with pytest.raises(FileNotFoundError, match="no weights in .*put open_clip_model.safetensors"):
        load(tmp_path)
    (tmp_path / "open_clip_model.safetensors").write_bytes(bytes(100))
    with pytest.raises(ValueError, match="damaged or do not fit.*again"):
        load(tmp_path)
    config.write_text("{")
    with pytest.raises(ValueError, match="damaged or do not fit.*again"):
        load(tmp_path)


def load(folder: Path) -> None:
    rewards.Clip(str(folder)).towers(torch.device("cpu"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache of the hub, and no sockets."""
    import huggingface_hub.constants

    def refused(*given: object, **more: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("socket.socket.connect", refused)
    monkeypatch.setattr("socket.getaddrinfo", refused)
    return tmp_path


def put(hub: Path, repository: str, *files: Path) -> None:
    """Files as `hf download` leaves them."""
    place = hub / f"models--{repository.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs/main").write_text("0" * 40)
    (place / "snapshots" / ("0" * 40)).mkdir(parents=True)
    for file in files:
        (place / "snapshots" / ("0" * 40) / file.name).write_bytes(file.read_bytes())


@pytest.mark.parametrize(
    ("model", "tag", "said"),
    [
        ("ViT-B-32", "laion2b_s34b_b79k",  # of 151,277,313 numbers, as its paper's authors count them
         r"lacks 0\.61 GB of weights \(in float32\), .*`hf download laion/CLIP-ViT-B-32-laion2B-s34B-b79K open_clip"),
        ("ViT-B-16-SigLIP", "webli", r"SigLIP.*and tokenizer_config.json of timm/ViT-B-16-SigLIP \(`hf download"),
        ("hf-hub:nobody/nothing", None, "lacks open_clip_config.json of nobody/nothing .*'emoji-clip'"),
    ],
)  # fmt: skip
def test_weights_that_are_not_here_are_named_and_not_fetched(hub: Path, model: str, tag: str | None, said: str) -> None:
    reward = rewards.Clip(model, tag)
    assert re.search(said, str(rewards.missing(reward)))
    with pytest.raises(FileNotFoundError, match=said):
        reward(torch.rand(1, 3, 32, 32), ["a"])
    with pytest.raises(FileNotFoundError, match=said):
        steer.sample("a fox", reward={reward: 1.0, "redness": 1.0}, progress=False)


def test_a_model_of_the_hub_that_is_here_needs_no_network(hub: Path, folder: Path) -> None:
    """By the files of open_clip's own names, whichever of the two formats."""
    put(hub, "me/tiny", *folder.iterdir())
    reward, images = rewards.Clip("hf-hub:me/tiny"), torch.rand(2, 3, 32, 32)
    assert rewards.missing(reward) is None
    assert torch.equal(reward(images, ["a", "b"]), rewards.Clip(str(folder))(images, ["a", "b"]))
    put(hub, "laion/CLIP-ViT-B-32-laion2B-s34B-b79K", Path(__file__).with_name("test_clip.py"))
    assert rewards.missing(rewards.Clip("ViT-B-32", "laion2b_s34b_b79k"))  # some other file
    (hub / "open_clip_pytorch_model.bin").write_bytes(b"")
    put(hub, "laion/CLIP-ViT-L-14-laion2B-s32B-b82K", hub / "open_clip_pytorch_model.bin")
    assert rewards.missing(rewards.Clip("ViT-L-14", "laion2b_s32b_b82k")) is None


def test_fine_stripes_are_averaged_and_not_sampled(folder: Path) -> None:
    """At four times the tower's size, a picture of which every fourth column is white is a quarter as bright."""
    stripes = torch.zeros(1, 3, 128, 128)
    stripes[..., ::4] = 1
    clip = rewards.Clip(str(folder))
    seen, plain = clip.embed_images(stripes)[0], clip.embed_images(torch.full((1, 3, 32, 32), 0.25))[0]
    assert seen @ plain > 0.999


def test_texts_are_encoded_once(folder: Path) -> None:
    clip, cpu = rewards.Clip(str(folder)), torch.device("cpu")
    first = clip.embed_texts(["a", "b", "a"], cpu)
    seen: list[list[str]] = []
    kept = clip.towers(cpu)
    clip._kept._loaded = dataclasses.replace(kept, tokenize=lambda texts: seen.append(texts) or kept.tokenize(texts))
    assert torch.equal(clip.embed_texts(["b", "c", "a", "c"], cpu)[[0, 2]], first[[1, 0]]) and seen == [["c"]]
    assert torch.equal(first[0], first[2]) and not first.requires_grad


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.rand(1, 32, 32, 3), r"shape \[1, 32, 32, 3\]; give \[b, 3, h, w\]; images.permute"),
        (torch.rand(3, 32, 32), r"shape \[3, 32, 32\]"), (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "uint8.*/ 255"),
        (torch.rand(2, 3, 8, 8), "1 prompts for 2 images"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", rewards.names())
def test_pictures_of_another_form(name: str, images: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rewards.get(name)(images, ["a"])


def test_names_of_models() -> None:
    assert [rewards.Clip(m).name for m in EMBEDDED] == ["clip", "clip-judge"]
    assert [rewards.Clip(m).name for m in ("ViT-B-32", "my/own")] == ["ViT-B-32", "own"]
    assert rewards.Clip(name="mine").name == "mine"


def test_unknown_names_and_tags() -> None:
    with pytest.raises(ValueError, match="model='ViT-B-23' is no open_clip model .*ViT-B-32"):
        load_clip("ViT-B-23")
    with pytest.raises(ValueError, match="pretrained='nope' is no tag of 'ViT-B-32'.*openai"):
        load_clip("ViT-B-32", "nope")
