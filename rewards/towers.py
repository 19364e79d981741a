"""open_clip models as pairs of towers: the small ones that ship with this package, any other by name, tag or folder."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from rewards.files import check_size, read_json, read_weights
from rewards.vision import CLIP_MEAN, CLIP_STD, Look

ASSETS = Path(__file__).parent / "assets"
EMBEDDED = ("emoji-clip", "emoji-clip-judge")
AGAIN = "install or save the model again"
FOREIGN = ("hf_", "timm_")  # settings by which open_clip takes a tower from another library, and may download it


@lru_cache(maxsize=1)
def mend_torchvision() -> object:
    """Make torchvision importable where its compiled operators do not match this torch.

    A CUDA build of torchvision on a CPU build of torch fails at import with "operator torchvision::nms does not exist",
    although open_clip, transformers and peft call none of its operators. Declaring the two schemas lets the import
    pass; they live as long as what is returned, which is kept here.
    """
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        library = torch.library.Library("torchvision", "FRAGMENT")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return library
    return None


def import_open_clip() -> Any:  # noqa: ANN401 (a module)
    """Import open_clip, also beside a torchvision that needs `mend_torchvision`."""
    mend_torchvision()
    import open_clip

    return open_clip


@contextmanager
def without_bars(*logs: Any) -> Iterator[None]:  # noqa: ANN401 (modules)
    """No bars of libraries while they load weights; those of downloads stay.

    logs: their modules `utils.logging`, of transformers and diffusers.
    """
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars

    shown, downloads = [log for log in logs if log.is_progress_bar_enabled()], not are_progress_bars_disabled()
    for log in shown:
        log.disable_progress_bar()
    if downloads:
        enable_progress_bars()  # transformers puts out these too
    try:
        yield
    finally:
        for log in shown:
            log.enable_progress_bar()


@dataclass(frozen=True)
class WordPieces:
    """A small vocabulary: whole words, and for a word outside it the longest pieces that spell it.

    Ids: 0 pads, 1 starts; the pieces follow; the last id ends the text (open_clip reads the text's state there). Case,
    punctuation and articles are dropped; words beyond the context's length are cut off.
    """

    pieces: tuple[str, ...]
    context: int

    @classmethod
    def from_words(cls, words: list[str], context: int) -> "WordPieces":
        """A vocabulary of the words, and every letter and digit so that nothing is unknown."""
        letters = "abcdefghijklmnopqrstuvwxyz0123456789"
        return cls((*letters, *(f"##{c}" for c in letters), *sorted({w for w in words if len(w) > 1})), context)

    @property
    def vocab_size(self) -> int:
        """The pieces, and the ids that pad, start and end."""
        return len(self.pieces) + 3

    @property
    def index(self) -> dict[str, int]:
        """The id of each piece."""
        return _index(self.pieces)

    def encode(self, text: str) -> list[int]:
        """Ids of one text, without start and end."""
        index = self.index
        longest = max(map(len, index), default=0)
        return [i for word in split_words(text) for i in _spell(word, index, longest)]

    def __call__(self, texts: list[str]) -> Tensor:
        """Ids [b context] of texts."""
        out = torch.zeros(len(texts), self.context, dtype=torch.long)
        for row, text in zip(out, texts, strict=True):
            ids = [1, *self.encode(text)[: self.context - 2], self.vocab_size - 1]
            row[: len(ids)] = torch.tensor(ids)
        return out


@lru_cache(maxsize=8)
def _index(pieces: tuple[str, ...]) -> dict[str, int]:
    return {piece: i + 2 for i, piece in enumerate(pieces)}


def _spell(word: str, index: dict[str, int], longest: int) -> list[int]:
    """The longest pieces that spell a word, none of more than `longest` letters."""
    ids, place, mark = [], 0, ""
    while place < len(word):
        sizes = range(min(len(word) - place, longest), 0, -1)
        size = next((n for n in sizes if mark + word[place : place + n] in index), 0)
        if size:  # otherwise a letter of another script: skip it
            ids.append(index[mark + word[place : place + size]])
            mark = "##"
        place += size or 1
    return ids


def split_words(text: str) -> list[str]:
    """Lower-case words of letters and digits, articles dropped."""
    words = re.findall(r"[^\W_]+", text.lower().replace("'", "").replace("\u2019", ""))
    return [w for w in words if w not in {"a", "an", "the"}] or words


@dataclass(frozen=True)
class Towers:
    """An open_clip model with what is needed to feed it.

    model: has encode_image, encode_text, logit_scale.
    tokenize: list of b texts -> ids [b context].
    look: pictures [b 3 h w] in [0,1] -> what the image tower takes.
    """

    model: Any
    tokenize: Callable[[list[str]], Tensor]
    look: Look


def look_of(config: dict[str, Any]) -> Look:
    """The look that an open_clip "preprocess_cfg" states; what it leaves open is as in open_clip.

    Raises:
        ValueError: the pictures are not square.
    """
    h, w = config["size"] if isinstance(config["size"], (tuple, list)) else (config["size"], config["size"])
    if h != w:
        raise ValueError(f"size={config['size']} of the preprocess_cfg is not square; only square towers are supported")
    mean, std = tuple(config.get("mean", CLIP_MEAN)), tuple(config.get("std", CLIP_STD))
    mode = "bilinear" if config.get("interpolation") == "bilinear" else "bicubic"
    return Look(h, mean, std, config.get("resize_mode", "shortest"), mode, config.get("fill_color", 0) / 255)


def build(config: dict[str, Any]) -> torch.nn.Module:
    """An untrained model of an open_clip config (the "model_cfg" of open_clip_config.json)."""
    open_clip = import_open_clip()
    return open_clip.CLIP(**config)


def load_embedded(folder: Path) -> Towers:
    """Towers of one of the package's own folders: open_clip_config.json, vocabulary.json,
    open_clip_model.safetensors.
    """
    if not (folder / "open_clip_config.json").exists():
        raise FileNotFoundError(f"no model in {folder}: open_clip_config.json is missing; install the package again")
    config = read_json(folder / "open_clip_config.json", AGAIN)
    path = folder / "open_clip_model.safetensors"
    weights = read_weights(path)
    try:
        settings, text = config["model_cfg"], config["model_cfg"]["text_cfg"]
        if foreign := [key for part in (text, settings["vision_cfg"]) for key in part if key.startswith(FOREIGN)]:
            raise ValueError(f"{', '.join(foreign)} would fetch another model")
        check_size(lambda: build(settings), settings, path)
        model = build(settings)
        look = look_of({**config["preprocess_cfg"], "size": settings["vision_cfg"]["image_size"]})
        size, context = int(text["vocab_size"]), int(text["context_length"])
    except (KeyError, TypeError, AttributeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise ValueError(f"{folder / 'open_clip_config.json'} makes no model: {error!r}; {AGAIN}") from error
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"the weights in {folder} do not fit its open_clip_config.json: {error}; {AGAIN}") from error
    register(folder.name, settings)
    pieces = read_json(folder / "vocabulary.json", AGAIN)
    if not (isinstance(pieces, list) and all(isinstance(p, str) for p in pieces) and len(pieces) + 3 == size):
        raise ValueError(f"{folder / 'vocabulary.json'} holds no {size - 3} pieces of words; {AGAIN}")
    return Towers(model.eval().requires_grad_(False), WordPieces(tuple(pieces), context), look)


def register(name: str, config: dict[str, Any]) -> None:
    """Make open_clip know a configuration by name, as `open_clip.create_model(name)` needs."""
    import tempfile

    open_clip = import_open_clip()
    if name in open_clip.list_models():
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.json"
        path.write_text(json.dumps(config), encoding="utf8")
        open_clip.add_model_config(path)


def load_clip(name: str = "emoji-clip", pretrained: str | None = None, device: str | torch.device = "cpu") -> Towers:
    """Towers by name.

    name: "emoji-clip" or "emoji-clip-judge" (embedded), an open_clip model name such as "ViT-B-32" with its pretrained
        tag, an open_clip name with a schema ("hf-hub:..."), or a local folder with open_clip_config.json.

    Raises:
        FileNotFoundError: the embedded or local weights are missing.
        ValueError: they are damaged, or the name or the tag is unknown to open_clip.
    """
    folder = ASSETS / name if name in EMBEDDED else Path(name)
    if (folder / "vocabulary.json").exists() or name in EMBEDDED:
        towers = load_embedded(folder)
        return Towers(towers.model.to(device), towers.tokenize, towers.look)
    open_clip = import_open_clip()
    local = folder.is_dir()
    known = f"local-dir:{folder}" if local else name
    if not local and ":" not in name and name not in open_clip.list_models():
        import difflib

        near = difflib.get_close_matches(name, [*EMBEDDED, *open_clip.list_models()], 3, 0.4)
        raise ValueError(f"model={name!r} is no open_clip model and no folder; near: {', '.join(near) or 'none'}")
    if not local and ":" not in name and pretrained not in open_clip.list_pretrained_tags_by_model(name):
        tags = open_clip.list_pretrained_tags_by_model(name)
        if pretrained is None or not Path(pretrained).exists():
            raise ValueError(f"pretrained={pretrained!r} is no tag of {name!r} and no file; known: {', '.join(tags)}")
    model = open_clip.create_model(known, pretrained=pretrained, device=device, require_pretrained=True)
    look = look_of(open_clip.get_model_preprocess_cfg(model))
    return Towers(model.eval().requires_grad_(False), open_clip.get_tokenizer(known), look)


@dataclass(frozen=True)
class TransformersClip:
    """A CLIPModel of transformers, called as open_clip's models are."""

    clip: Any

    @classmethod
    def from_folder(cls, folder: Path) -> "TransformersClip":
        """Of config.json and model.safetensors, in float32, on the CPU.

        Raises:
            KeyError: weights are missing, which transformers would draw at random.
        """
        mend_torchvision()
        from transformers import CLIPModel
        from transformers.utils import logging

        settings = {"local_files_only": True, "use_safetensors": True, "output_loading_info": True}
        with without_bars(logging):
            clip, found = cast(Any, CLIPModel).from_pretrained(folder, **settings)
        if found["missing_keys"]:
            raise KeyError(f"no weights for {', '.join(sorted(found['missing_keys'])[:3])}")
        return cls(clip.float().eval().requires_grad_(False))

    @property
    def look(self) -> Look:
        """Of CLIP, at the size of the model."""
        return Look(self.clip.config.vision_config.image_size)

    def encode_image(self, pixels: Tensor, normalize: bool = False) -> Tensor:
        """Vectors [b e] of what `look` gives."""
        x = self.clip.visual_projection(self.clip.vision_model(pixel_values=pixels).pooler_output)
        return F.normalize(x, dim=-1) if normalize else x

    def encode_text(self, ids: Tensor, normalize: bool = False) -> Tensor:
        """Vectors [b e] of ids [b context], by CLIP's own tokenizer."""
        x = self.clip.text_projection(self.clip.text_model(input_ids=ids).pooler_output)
        return F.normalize(x, dim=-1) if normalize else x
