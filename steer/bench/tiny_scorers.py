"""Scorers of the literature, tiny and random, saved as the published ones are. Made here and read offline.

The tests and `steer bench models` hold `rewards` to what other code makes of these weights.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rewards import vision
from rewards.towers import import_open_clip, mend_torchvision, register

LOGIT_SCALE, LOGIT_BIAS = 4.7, -12.9  # near those that SigLIP learns
CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "fox", "heart", "##s", "two"]
MED: dict[str, Any] = {
    "architectures": ["BertModel"], "vocab_size": 40, "hidden_size": 48, "intermediate_size": 64,
    "num_hidden_layers": 2, "num_attention_heads": 3, "max_position_embeddings": 40, "hidden_act": "gelu",
    "layer_norm_eps": 1e-12, "pad_token_id": 0, "add_cross_attention": True, "type_vocab_size": 2,
}  # fmt: skip


def shake(model: nn.Module, std: float = 0.2, seed: int = 0) -> nn.Module:
    """Every weight drawn anew, large enough that all of them matter to the score."""
    rng = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        with torch.no_grad():
            weight.copy_(torch.randn(weight.shape, generator=rng) * std)
    return model.eval()


def clip_folder(folder: Path) -> Path:
    """A CLIPModel of transformers with the tokenizer of CLIP, whose vocabulary ships in open_clip."""
    mend_torchvision()
    from transformers import CLIPConfig, CLIPModel

    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    see = {**text, "image_size": 32, "patch_size": 8}
    words = {**text, "vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407}
    config = CLIPConfig(text_config=words, vision_config=see, projection_dim=16)
    model: Any = shake(CLIPModel(config))
    with torch.no_grad():
        model.logit_scale.fill_(4.6)
    model.save_pretrained(folder)
    simple = import_open_clip().get_tokenizer("ViT-H-14")
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    (folder / "vocab.json").write_text(json.dumps({names.get(k, k): i for k, i in simple.encoder.items()}))
    merges = sorted(simple.bpe_ranks, key=simple.bpe_ranks.__getitem__)
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, merges)]))
    return folder


def open_clip_folder(folder: Path) -> Path:
    """A CLIP of open_clip in the form of its own local-dir schema."""
    model = shake(import_open_clip().CLIP(**CLIP), 0.1)
    look = {"size": 32, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}
    return _write(folder, model, CLIP, look)


def siglip_folder(folder: Path) -> Path:
    """A SigLIP: open_clip's own two towers, mean pooling by attention, a bias, a tokenizer of transformers in the
    folder, 64 words, pictures squashed and scaled to [-1, 1].
    """
    open_clip = import_open_clip()
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "</s>", "<unk>", "a", "red", "fox", "heart"]
    tokens = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    tokens.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokens, **special).save_pretrained(folder)
    see = {"image_size": 160, "timm_model_name": "test_vit", "timm_model_pretrained": False, "timm_proj": "none"}
    read = {
        "context_length": 64, "vocab_size": 8, "hf_tokenizer_name": "none/here", "width": 64, "heads": 2, "layers": 2,
        "tokenizer_kwargs": {"clean": "canonicalize"}, "no_causal_mask": True, "proj_bias": True, "pool_type": "last",
    }  # fmt: skip
    config = {"embed_dim": 64, "init_logit_bias": -10, "vision_cfg": {**see, "timm_pool": "map"}, "text_cfg": read}
    model: Any = shake(open_clip.CustomTextCLIP(**config), 0.1)
    nn.init.constant_(model.logit_scale, LOGIT_SCALE)
    nn.init.constant_(model.logit_bias, LOGIT_BIAS)
    look = {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash", "interpolation": "bicubic"}
    return _write(folder, model, {**config, "custom_text": True}, look)


def _write(folder: Path, model: nn.Module, config: dict[str, Any], look: dict[str, Any]) -> Path:
    """A model as open_clip's local-dir schema wants it."""
    from safetensors.torch import save_file

    described = {"model_cfg": config, "preprocess_cfg": look}
    (folder / "open_clip_config.json").write_text(json.dumps(described), encoding="utf8")
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    return folder


def hps_folder(folder: Path) -> Path:
    """A checkpoint as HPS has it, {"state_dict": half-precision weights}, of the open_clip model "tiny-hps"."""
    register("tiny-hps", CLIP)
    weights = shake(import_open_clip().CLIP(**CLIP)).state_dict()
    torch.save({"epoch": 1, "state_dict": {k: v.half() for k, v in weights.items()}}, folder / "HPS_v2.1_compressed.pt")
    return folder


def head_file(path: Path) -> Path:
    """The head of the aesthetic predictor for vectors of 16, with its published keys."""
    sizes = {0: (1024, 16), 2: (128, 1024), 4: (64, 128), 6: (16, 64), 7: (1, 16)}
    rng = torch.Generator().manual_seed(1)
    weights = {f"layers.{i}.weight": 0.2 * torch.randn(shape, generator=rng) for i, shape in sizes.items()}
    biases = {f"layers.{i}.bias": torch.randn(shape[0], generator=rng) for i, shape in sizes.items()}
    torch.save({**weights, **biases}, path)
    return path


def published_shapes() -> dict[str, tuple[int, ...]]:
    """The weights of ImageReward.pt by name, for a ViT of width 128 on 32 x 32 pictures in patches of 8, and `MED`."""
    w, d, f = 128, MED["hidden_size"], MED["intermediate_size"]
    eye = {"cls_token": (1, 1, w), "pos_embed": (1, 17, w), "patch_embed.proj.weight": (w, 3, 8, 8)}
    eye |= {"patch_embed.proj.bias": (w,), "norm.weight": (w,), "norm.bias": (w,)}
    sizes = {"attn.qkv": (3 * w, w), "attn.proj": (w, w), "mlp.fc1": (4 * w, w), "mlp.fc2": (w, 4 * w)}
    for i in range(2):
        eye |= {f"blocks.{i}.{n}.weight": s for n, s in sizes.items()}
        eye |= {f"blocks.{i}.{n}.bias": s[:1] for n, s in sizes.items()}
        eye |= {f"blocks.{i}.{n}.{k}": (w,) for n in ("norm1", "norm2") for k in ("weight", "bias")}
    text = {"embeddings.word_embeddings.weight": (40, d), "embeddings.position_embeddings.weight": (40, d)}
    text |= {"embeddings.LayerNorm.weight": (d,), "embeddings.LayerNorm.bias": (d,)}
    for i in range(2):
        sizes = {"attention.output.dense": (d, d), "crossattention.output.dense": (d, d)}
        sizes |= {f"attention.self.{n}": (d, d) for n in ("query", "key", "value")}
        sizes |= {f"crossattention.self.{n}": (d, d if n == "query" else w) for n in ("query", "key", "value")}
        sizes |= {"intermediate.dense": (f, d), "output.dense": (d, f)}
        text |= {f"encoder.layer.{i}.{n}.weight": s for n, s in sizes.items()}
        text |= {f"encoder.layer.{i}.{n}.bias": s[:1] for n, s in sizes.items()}
        norms = ("attention.output.LayerNorm", "crossattention.output.LayerNorm", "output.LayerNorm")
        text |= {f"encoder.layer.{i}.{n}.{k}": (d,) for n in norms for k in ("weight", "bias")}
    head = {key: tuple(value.shape) for key, value in vision.linear_head(d).state_dict().items()}
    rest = {"blip.vision_proj.weight": (256, w), "blip.text_proj.weight": (256, d)}
    named = {"blip.visual_encoder.": eye, "blip.text_encoder.": text, "mlp.layers.": head, "": rest}
    return {prefix + key: shape for prefix, part in named.items() for key, shape in part.items()}


def image_reward_folder(folder: Path) -> Path:
    """ImageReward.pt with its published names, med_config.json, and a vocabulary of BERT's form."""
    rng = torch.Generator().manual_seed(2)
    weights = {key: 0.2 * torch.randn(shape, generator=rng) for key, shape in published_shapes().items()}
    weights["blip.text_encoder.embeddings.position_ids"] = torch.arange(40)[None]
    torch.save(weights, folder / "ImageReward.pt")
    (folder / "med_config.json").write_text(json.dumps(MED))
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    return folder
