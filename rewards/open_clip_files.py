"""Whether the files of an open_clip model, by name and tag or by hub id, are on this machine, and what fetches them.

open_clip itself fetches what is not there, unasked, be it gigabytes, and where there is no network waits half a minute.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from rewards.files import read_json
from rewards.towers import EMBEDDED, import_open_clip
from rewards.vision import Source

SAFE, PICKLED = "open_clip_model.safetensors", "open_clip_pytorch_model.bin"  # open_clip takes the first that is there
CONFIG = "open_clip_config.json"
HUB = "hf-hub:"
TOKENIZER = "--include '*token*' '*.json' '*.model' '*.txt'"


def lacking(model: str, pretrained: str | None) -> str | None:
    """What is not here, with the size of weights where it is known, and the commands that fetch it.

    None where all is here, or nothing would be fetched: embedded models, folders, files, and names that are unknown.
    """
    if model in EMBEDDED or Path(model).is_dir():
        return None
    if model.startswith(HUB):
        place = model.removeprefix(HUB)
        config, found = _config_of(place), [_of_hub(place, CONFIG), _of_hub(place, SAFE, PICKLED)]
    else:
        open_clip = import_open_clip()
        tag = open_clip.get_pretrained_cfg(model, pretrained) if pretrained else None
        if not tag:
            return None
        config, found = open_clip.get_model_config(model), [_of_tag(tag)]
    if found[-1]:
        found[-1] = f"{_size(config)}{found[-1]}"
    texts = config.get("text_cfg", {})
    found.append(_of_hub(texts.get("hf_tokenizer_name"), "tokenizer_config.json", fetch=TOKENIZER))
    found.append(_of_hub(texts.get("hf_model_name"), "config.json"))
    return " and ".join(filter(None, found)) or None


def here() -> list[str]:
    """The names and tags of which open_clip's own weights are here."""
    open_clip = import_open_clip()
    tags = ((name, tag, open_clip.get_pretrained_cfg(name, tag)) for name, tag in open_clip.list_pretrained())
    return [f"{name} {tag}" for name, tag, where in tags if not _of_tag(where)]


def _of_tag(tag: dict[str, Any]) -> str:
    """The weights of a tag, which open_clip has in the hub or at an address; "" where they are here."""
    if tag.get("hf_hub"):
        place, _, file = tag["hf_hub"].rpartition("/")
        return _of_hub(place, *([file] if file else [SAFE, PICKLED]))
    path = Path.home() / ".cache/clip" / tag["url"].rpartition("/")[2]
    return "" if path.is_file() else f"{path} (`curl --create-dirs -Lo {path} {tag['url']}`)"


def _of_hub(place: str | None, file: str, other: str = "", fetch: str = "") -> str:
    """A file of the hub, and how to get it; "" where it is here, or the other that would serve, or none is needed."""
    beside = f"{file[:-4]}.safetensors" if file.endswith((".bin", ".pth")) else ""  # which open_clip takes before it
    if not place or any(Source("", place, ()).find(name) for name in (file, other, beside) if name):
        return ""
    more = f", or {other} where there is none" if other else ""
    return f"{file} of {place} (`hf download {place} {fetch or file}`{more})"


def _config_of(place: str) -> dict[str, Any]:
    """The "model_cfg" of a repository whose config is here."""
    path = Source("", place, ()).find(CONFIG)
    return read_json(path, f"download it again: hf download {place} {CONFIG}").get("model_cfg", {}) if path else {}


def _size(config: dict[str, Any]) -> str:
    """How much its numbers take, for the beginning of a sentence; "" where that is not known."""
    with torch.device("meta"):
        numbers = sum(w.numel() for w in bare(config).parameters()) if config else 0
    return f"{4e-9 * numbers:.2g} GB of weights (in float32), " if numbers else ""


def bare(config: dict[str, Any]) -> torch.nn.Module:
    """The untrained model of a "model_cfg"; of one whose text tower is another library's, nothing."""
    open_clip, text = import_open_clip(), config["text_cfg"]
    if "hf_model_name" in text:
        return torch.nn.Module()
    kind = open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP
    return kind(config["embed_dim"], {**config["vision_cfg"], "timm_model_pretrained": False}, text)


@contextmanager
def offline() -> Iterator[None]:
    """No look at the network for files of the hub: its client asks there even for those that are here."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
