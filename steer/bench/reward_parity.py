"""Learned rewards against other code on the same weights: open_clip's, transformers', or the papers written out.

The weights are tiny and random, the files and their names those of the published ones. Pictures have the size that a
tower sees, so that nothing is resized: by how much resizing in torch differs from PIL's is another matter.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import rewards
from rewards.function import to_pil
from rewards.towers import import_open_clip, mend_torchvision
from rewards.vision import Source
from steer.bench import tiny_scorers
from steer.bench.blip import score_blip

Row = dict[str, Any]
PROMPTS = ["a red fox", "two hearts", "a fox, a red heart and a fox"]
WEIGHTS = "open_clip_model.safetensors"


@dataclass(frozen=True)
class Scorer:
    """A reward and the other code.

    make: the reward, of files that it writes into an empty folder. theirs: of that folder, pictures [b 3 h w] and
    prompts the scores [b]. against: what that code is. size: of the pictures. published: where weights are looked
    for, if the reward of this name does not say so itself.
    """

    make: Callable[[Path], rewards.Reward]
    theirs: Callable[[Path, Tensor, list[str]], Tensor]
    against: str
    size: int = 32
    published: Source | None = None


@torch.no_grad()
def by_open_clip(folder: Path, images: Tensor, prompts: list[str]) -> Tensor:
    """100 cos of the two towers in a folder, all by open_clip: weights, pictures of PIL, words."""
    open_clip = import_open_clip()
    model, _, see = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    ids = open_clip.get_tokenizer(f"local-dir:{folder}")(prompts)
    seen = model.eval().encode_image(torch.stack([see(p) for p in to_pil(images)]))
    return 100 * F.cosine_similarity(seen, model.encode_text(ids))


@torch.no_grad()
def hps_by_open_clip(folder: Path, images: Tensor, prompts: list[str]) -> Tensor:
    """100 cos in the published way: weights of "state_dict", longest side resized and padded, the model's vectors."""
    open_clip = import_open_clip()
    from open_clip.transform import image_transform

    model = open_clip.create_model("tiny-hps").eval()
    model.load_state_dict(torch.load(folder / "HPS_v2.1_compressed.pt", weights_only=True)["state_dict"])
    see: Any = image_transform(32, False, resize_mode="longest")
    pixels = torch.stack([see(p) for p in to_pil(images)])
    seen, read, _ = model(pixels, open_clip.get_tokenizer("tiny-hps")(prompts))
    return 100 * (seen * read).sum(1)


@torch.no_grad()
def clip_by_transformers(folder: Path, images: Tensor, prompts: list[str]) -> Tensor:
    """CLIPModel's logits of a picture and its prompt, with its own tokenizer and processor of PIL pictures."""
    mend_torchvision()
    from transformers import CLIPModel, CLIPTokenizer

    model: Any = CLIPModel.from_pretrained(folder).eval()
    tokenize: Any = CLIPTokenizer.from_pretrained(folder)
    words = tokenize(prompts, padding=True, truncation=True, max_length=77, return_tensors="pt")
    return model(**words, **pixels_of_clip(images)).logits_per_image.diagonal()


@torch.no_grad()
def aesthetic_by_hand(folder: Path, images: Tensor, prompts: list[str]) -> Tensor:
    """Five matrices on the unit embedding by CLIPModel."""
    mend_torchvision()
    from transformers import CLIPModel

    model: Any = CLIPModel.from_pretrained(folder).eval()
    weights = torch.load(folder / "head.pth", weights_only=True)
    x = model.visual_projection(model.vision_model(**pixels_of_clip(images)).pooler_output)
    x = x / x.norm(dim=1, keepdim=True)
    for i in (0, 2, 4, 6, 7):
        x = x @ weights[f"layers.{i}.weight"].T + weights[f"layers.{i}.bias"]
    return x[:, 0]


@torch.no_grad()
def image_reward_by_hand(folder: Path, images: Tensor, prompts: list[str]) -> Tensor:
    """The networks written out, with transformers' tokenizer."""
    mend_torchvision()
    from transformers import BertTokenizer

    weights = torch.load(folder / "ImageReward.pt", weights_only=True)
    ids: Any = BertTokenizer.from_pretrained(folder)(prompts)["input_ids"]
    return torch.stack([score_blip(weights, image, row) for image, row in zip(images, ids, strict=True)])


def pixels_of_clip(images: Tensor) -> Any:  # noqa: ANN401 (a mapping of transformers)
    """What a CLIP of 32 x 32 is shown of pictures, by the processor of transformers."""
    from transformers import CLIPImageProcessor

    see = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return see(images=to_pil(images), return_tensors="pt")


def make_aesthetic(folder: Path) -> rewards.Aesthetic:
    """The reward of a tiny CLIP and a head of random weights."""
    tiny_scorers.clip_folder(folder)
    tiny_scorers.head_file(folder / "head.pth")
    return rewards.Aesthetic(str(folder), str(folder), "head.pth")


SCORERS = {
    "clip": Scorer(
        lambda folder: rewards.Clip(str(tiny_scorers.open_clip_folder(folder))), by_open_clip, "open_clip",
        published=Source("model", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K", (WEIGHTS,)),
    ),
    "siglip": Scorer(
        lambda folder: rewards.Clip(str(tiny_scorers.siglip_folder(folder))), by_open_clip, "open_clip", size=160,
        published=Source("model", "timm/ViT-B-16-SigLIP2", (WEIGHTS,)),
    ),
    "pickscore": Scorer(
        lambda folder: rewards.PickScore(str(tiny_scorers.clip_folder(folder))), clip_by_transformers, "transformers"
    ),
    "hps": Scorer(
        lambda folder: rewards.Hps(str(tiny_scorers.hps_folder(folder)), architecture="tiny-hps"), hps_by_open_clip,
        "open_clip",
    ),
    "image-reward": Scorer(
        lambda folder: rewards.ImageReward(str(tiny_scorers.image_reward_folder(folder)), str(folder)),
        image_reward_by_hand, "the networks written out",
    ),
    "aesthetic": Scorer(make_aesthetic, aesthetic_by_hand, "transformers, head written out"),
}  # fmt: skip


def rows() -> list[Row]:
    """One row a reward: the greatest difference of scores and of them over their spread; are published weights here?"""
    with tempfile.TemporaryDirectory() as folder:
        return [row(name, Path(folder) / name) for name in SCORERS]


def row(name: str, folder: Path) -> Row:
    """One reward, its files in a new folder."""
    scorer = SCORERS[name]
    folder.mkdir()
    ours, images = scorer.make(folder), pictures(scorer.size, scorer.size)
    with torch.no_grad():
        scores = ours(images, PROMPTS)
    theirs = scorer.theirs(folder, images, PROMPTS)
    apart, spread = float((scores - theirs).abs().max()), float(theirs.std())
    lacking = scorer.published.lacking() if scorer.published else rewards.missing(rewards.get(name))
    return {
        "reward": name, "against": scorer.against, "difference": apart, "of the spread": apart / spread,
        "spread": spread, "published weights here": "no" if lacking else "yes",
    }  # fmt: skip


def pictures(h: int, w: int) -> Tensor:
    """Three smooth pictures in whole bytes."""
    x = torch.rand(3, 3, 6, 6, generator=torch.Generator().manual_seed(3))
    return (F.interpolate(x, (h, w), mode="bilinear") * 255).round() / 255
