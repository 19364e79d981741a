"""ImageReward: how experts rank pictures of a prompt, by a BLIP that reads the prompt with an eye on the picture."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rewards import vision
from rewards.contract import check_images
from rewards.towers import mend_torchvision
from rewards.vision import Kept, Look, Source

MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of the head's output over the authors' validation pictures
WORDS = 35  # the longest prompt in tokens; the rest is cut off

EYE = (  # the published names of the image tower's weights, and what transformers calls them
    (r"^cls_token$", "embeddings.class_embedding"),
    (r"^pos_embed$", "embeddings.position_embedding"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"^blocks\.(\d+)\.norm([12])\.", r"encoder.layers.\1.layer_norm\2."),
    (r"^blocks\.(\d+)\.attn\.qkv\.", r"encoder.layers.\1.self_attn.qkv."),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"encoder.layers.\1.self_attn.projection."),
    (r"^blocks\.(\d+)\.mlp\.", r"encoder.layers.\1.mlp."),
    (r"^norm\.", "post_layernorm."),
)


@dataclass(frozen=True)
class ImageReward:
    """(head(CLS state of the prompt, read with cross attention to the picture) - mean) / std: some -2.5 to 2.

    model: a folder with ImageReward.pt and med_config.json, or the hub id of their repository.
    tokenizer: a folder with the vocab.txt of BERT (uncased), or the hub id of its repository.

    Files are taken from folders or from the hub's cache, and never downloaded by themselves (see `missing`). The
    checkpoint is read by torch.load(weights_only=True): no code in it is run. The networks are BLIP's of transformers:
    a ViT-L/16 on pictures whose shortest side is scaled to 224 and whose centre is cut out (bicubic with antialiasing,
    by torch), BERT with cross attention, and a linear head 768-1024-128-64-16-1. Prompts are cut off after 35 tokens;
    as a prompt is read with its picture, nothing of it can be kept from call to call.

    Ref: ImageReward: Learning and Evaluating Human Preferences for Text-to-Image Generation (arXiv:2304.05977).

    Raises:
        FileNotFoundError: at the first call, when files are missing.
        ValueError: they are damaged; at a call, when the pictures are not [b 3 h w] of floats, or the prompts not b.
    """

    model: str = "THUDM/ImageReward"
    tokenizer: str = "google-bert/bert-base-uncased"
    name: str = "image-reward"
    differentiable: bool = True
    cost: float = 1.0
    _kept: "Kept[Blip]" = field(default_factory=Kept, init=False, repr=False, compare=False)

    @property
    def _sources(self) -> tuple[Source, Source]:
        weights = Source("model", self.model, ("ImageReward.pt", "med_config.json"))
        return weights, Source("tokenizer", self.tokenizer, ("vocab.txt",))

    def missing(self) -> str | None:
        """What is not on this machine, and how to get it; None where the reward can run."""
        return vision.missing(self.name, *self._sources)

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Scores [b] of pictures [b 3 h w] in [0,1]."""
        check_images(images, prompts)
        return self._kept.on(images.device, self._load).score(images, prompts).to(images.dtype)

    def _load(self, device: torch.device) -> "Blip":
        if lacking := self.missing():
            raise FileNotFoundError(lacking)
        mend_torchvision()
        from transformers import BertTokenizer

        model, words = self._sources
        path, config = model.path("ImageReward.pt"), model.path("med_config.json")
        with vision.loading(self.name, path.parent):
            weights = vision.read_checkpoint(path)
            eye = _eye(_part(weights, "blip.visual_encoder."))
            text = _text(_part(weights, "blip.text_encoder."), config, eye.config.hidden_size)
            head = vision.linear_head(text.config.hidden_size)
            head.load_state_dict(_part(weights, "mlp.layers."))
        folder = words.path("vocab.txt").parent
        with vision.loading(self.name, folder):
            tokenize = BertTokenizer.from_pretrained(folder, local_files_only=True)
        nets = [net.to(device).eval().requires_grad_(False) for net in (eye, text, head)]
        return Blip(nets[0], nets[1], nets[2], tokenize, Look(eye.config.image_size))


@dataclass(frozen=True)
class Blip:
    """The networks of ImageReward: an eye, a reader with cross attention to what is seen, and a head."""

    eye: Any
    text: Any
    head: nn.Module
    tokenize: Any
    look: Look

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Scores [b], in float32."""
        words = self.tokenize(prompts, padding=True, truncation=True, max_length=WORDS, return_tensors="pt")
        seen = self.eye(pixel_values=self.look(images)).last_hidden_state
        states = self.text(
            input_ids=words["input_ids"].to(images.device),
            attention_mask=words["attention_mask"].to(images.device),
            encoder_hidden_states=seen,
            is_decoder=False,
        ).last_hidden_state
        return (self.head(states[:, 0])[:, 0] - MEAN) / STD


def _part(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The weights whose names start so, without that start; buffers of positions, which are counted anew, left out."""
    rest = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    return {key: value for key, value in rest.items() if not key.endswith("position_ids")}


def rename(key: str) -> str:
    """What transformers' BlipVisionModel calls a weight of the published image tower."""
    for published, ours in EYE:
        if re.match(published, key):
            return re.sub(published, ours, key)
    raise KeyError(f"{key} is no weight of the image tower")


def _eye(weights: dict[str, Tensor]) -> Any:  # noqa: ANN401 (a module of transformers)
    """The image tower; its sizes are read off its weights, with heads of 64 channels as in every ViT of BLIP."""
    from transformers import BlipVisionConfig, BlipVisionModel

    width, patch = weights["patch_embed.proj.weight"].shape[0], weights["patch_embed.proj.weight"].shape[-1]
    config = BlipVisionConfig(
        hidden_size=width,
        intermediate_size=weights["blocks.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=1 + max(int(key.split(".")[1]) for key in weights if key.startswith("blocks.")),
        num_attention_heads=width // 64,
        image_size=patch * round((weights["pos_embed"].shape[1] - 1) ** 0.5),
        patch_size=patch,
        layer_norm_eps=1e-6,
    )
    eye = BlipVisionModel(config)
    eye.load_state_dict({rename(key): value for key, value in weights.items()})
    return eye


def _text(weights: dict[str, Tensor], path: Path, seen: int) -> Any:  # noqa: ANN401
    """The reader, of the sizes in med_config.json, for pictures' states of `seen` channels."""
    from transformers import BlipTextConfig, BlipTextModel

    med = json.loads(path.read_text(encoding="utf8"))
    same = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "max_position_embeddings", "hidden_act", "layer_norm_eps", "pad_token_id",
    )  # fmt: skip
    config = BlipTextConfig(**{key: med[key] for key in same}, encoder_hidden_size=seen)
    text = BlipTextModel(config, add_pooling_layer=False)
    text.load_state_dict(weights)
    return text
