"""ImageReward against its networks written out from the papers, and the names of its published weights."""

from pathlib import Path

import pytest
import torch

import rewards
from rewards import image_reward
from steer.bench.blip import score_blip
from steer.bench.tiny_scorers import MED, WORDS, image_reward_folder, published_shapes

PROMPTS = ["A red FOX", "two hearts", "a zebra"]
PIECES = [["a", "red", "fox"], ["two", "heart", "##s"], ["a", "[UNK]"]]
BLOCK = ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_reward_folder(tmp_path_factory.mktemp("image-reward"))


def test_scores_are_those_of_the_networks_written_out(folder: Path) -> None:
    w = torch.load(folder / "ImageReward.pt", weights_only=True)
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    tokens = [[WORDS.index(word) for word in ("[CLS]", *words, "[SEP]")] for words in PIECES]
    expected = torch.stack([score_blip(w, image, ids) for image, ids in zip(images, tokens, strict=True)])
    ours = rewards.ImageReward(str(folder), str(folder))(images, PROMPTS)
    assert expected.std() > 0.1
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-3)


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
