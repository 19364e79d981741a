"""ImageReward against its networks written out from the papers, and the names of its published weights."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny_scorers import MED, WORDS, image_reward_folder, published_shapes
from torch import Tensor

import rewards
from rewards import image_reward
from rewards.vision import Look

PROMPTS = ["A red FOX", "two hearts", "a zebra"]
PIECES = [["a", "red", "fox"], ["two", "heart", "##s"], ["a", "[UNK]"]]
BLOCK = ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_reward_folder(tmp_path_factory.mktemp("image-reward"))


def linear(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def norm(w: dict[str, Tensor], name: str, x: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Softmax attention of [l d] with [m d], a head at a time."""
    parts = zip(*(x.chunk(heads, -1) for x in (q, k, v)), strict=True)
    return torch.cat([(a @ b.T / math.sqrt(a.shape[-1])).softmax(-1) @ c for a, b, c in parts], -1)


def see(w: dict[str, Tensor], image: Tensor) -> Tensor:
    """A pre-norm ViT with two heads: states [17 128] of a picture [3 32 32]."""
    eye = {k.removeprefix("blip.visual_encoder."): v for k, v in w.items()}
    patches = F.unfold(image[None], 8, stride=8)[0].T @ eye["patch_embed.proj.weight"].flatten(1).T
    x = torch.cat([eye["cls_token"][0], patches + eye["patch_embed.proj.bias"]]) + eye["pos_embed"][0]
    for i in range(2):
        qkv = linear(eye, f"blocks.{i}.attn.qkv", norm(eye, f"blocks.{i}.norm1", x, 1e-6)).chunk(3, -1)
        x = x + linear(eye, f"blocks.{i}.attn.proj", attend(*qkv, heads=2))
        hidden = F.gelu(linear(eye, f"blocks.{i}.mlp.fc1", norm(eye, f"blocks.{i}.norm2", x, 1e-6)))
        x = x + linear(eye, f"blocks.{i}.mlp.fc2", hidden)
    return norm(eye, "norm", x, 1e-6)


def read(w: dict[str, Tensor], ids: list[int], seen: Tensor) -> Tensor:
    """A post-norm BERT with cross attention, three heads: the state [48] of the first token."""
    text = {k.removeprefix("blip.text_encoder."): v for k, v in w.items()}
    x = text["embeddings.word_embeddings.weight"][ids] + text["embeddings.position_embeddings.weight"][: len(ids)]
    x = norm(text, "embeddings.LayerNorm", x, 1e-12)
    for i in range(2):
        layer = f"encoder.layer.{i}."
        for part, other in (("attention", None), ("crossattention", seen)):
            source = x if other is None else other
            q = linear(text, f"{layer}{part}.self.query", x)
            k, v = (linear(text, f"{layer}{part}.self.{n}", source) for n in ("key", "value"))
            out = linear(text, f"{layer}{part}.output.dense", attend(q, k, v, 3))
            x = norm(text, f"{layer}{part}.output.LayerNorm", x + out, 1e-12)
        hidden = linear(text, f"{layer}output.dense", F.gelu(linear(text, f"{layer}intermediate.dense", x)))
        x = norm(text, f"{layer}output.LayerNorm", x + hidden, 1e-12)
    return x[0]


def test_scores_are_those_of_the_networks_written_out(folder: Path) -> None:
    w = torch.load(folder / "ImageReward.pt", weights_only=True)
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = []
    for image, words in zip(Look(32)(images), PIECES, strict=True):
        x = read(w, [WORDS.index(word) for word in ("[CLS]", *words, "[SEP]")], see(w, image))
        for i in (0, 2, 4, 6, 7):
            x = linear(w, f"mlp.layers.{i}", x)
        expected.append((x.item() - 0.16717362830052426) / 1.0333394966054072)
    ours = rewards.ImageReward(str(folder), str(folder))(images, PROMPTS)
    assert torch.tensor(expected).std() > 0.1
    torch.testing.assert_close(ours, torch.tensor(expected), rtol=1e-3, atol=1e-3)


def test_prompts_are_cut_off_after_35_tokens(folder: Path) -> None:
    reward, image = rewards.ImageReward(str(folder), str(folder)), torch.full((1, 3, 32, 32), 0.4)
    assert reward(image, ["fox " * 32]) != reward(image, ["fox " * 33])
    assert reward(image, ["fox " * 33]) == reward(image, ["fox " * 33 + "heart"])


def test_every_published_weight_of_the_tower_has_its_own_place() -> None:
    """Of the real ViT-L/16 too: 24 blocks of twelve weights, and six more."""
    blocks = [f"blocks.{i}.{n}.{k}" for i in range(24) for n in BLOCK for k in ("weight", "bias")]
    keys = ["cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias", "norm.weight", "norm.bias"]
    from transformers import BlipVisionConfig, BlipVisionModel

    with torch.device("meta"):
        sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
        model = BlipVisionModel(BlipVisionConfig(**sizes, image_size=224))
    assert len(blocks) == 24 * 12
    assert sorted(map(image_reward.rename, keys + blocks)) == sorted(model.state_dict())
    with pytest.raises(KeyError, match=r"blocks\.0\.attn\.gate\.weight is no weight of the image tower"):
        image_reward.rename("blocks.0.attn.gate.weight")


def test_a_checkpoint_that_lacks_a_weight_is_refused(folder: Path, tmp_path: Path) -> None:
    image_reward_folder(tmp_path)
    weights = torch.load(tmp_path / "ImageReward.pt", weights_only=True)
    lost = next(key for key in published_shapes() if "crossattention" in key)
    torch.save({k: v for k, v in weights.items() if k != lost}, tmp_path / "ImageReward.pt")
    with pytest.raises(ValueError, match="reward 'image-reward'.*damaged or of another model"):
        rewards.ImageReward(str(tmp_path), str(folder))(torch.rand(1, 3, 32, 32), ["a"])
    assert MED["hidden_size"] == weights["mlp.layers.0.weight"].shape[1]
