"""How pictures, prompts and scores travel to a reward on another machine and back. Nothing is ever unpickled.

POST /score takes one of two forms:

application/x-safetensors   the tensors `images` [b 3 h w], floats as they are, and `prompts`, the bytes of a JSON list
                            of b texts as uint8. Lossless.
application/json            {"images": [base64 of a PNG, ...], "prompts": [...]}, the fields that HTTP scorers of
                            verl-omni and flow_grpo have (theirs are pickled); 8 bits a colour.

Its answer is {"scores": [...]}, null for a picture that is rejected (-inf). POST /score?gradient=1 is for the first
form alone and answers in it: the tensors `scores` [b] and `gradient` [b 3 h w], of each score to its own picture.
GET /health answers {"name", "differentiable", "cost", "version", "most_bytes"}, the last the longest body it takes.
Errors are {"error": words}, with a status of 4xx or 5xx. With a token, every request has the header
"Authorization: Bearer TOKEN".
"""

import base64
import binascii
import io
import json
import math
from typing import Any

import torch
from torch import Tensor

from rewards.contract import check_images
from rewards.function import to_pil

VERSION = 1
TENSORS = "application/x-safetensors"
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
KINDS = ("PNG", "JPEG", "WEBP")


def pack(images: Tensor, prompts: list[str]) -> bytes:
    """Pictures and prompts, bit for bit."""
    from safetensors.torch import save

    texts = torch.tensor(list(json.dumps(prompts).encode("utf8")), dtype=torch.uint8)
    return save({"images": images.detach().cpu().contiguous(), "prompts": texts})


def unpack(body: bytes) -> tuple[Tensor, list[str]]:
    """The inverse of `pack`.

    Raises:
        ValueError: anything else, or pictures that are not finite.
    """
    found = tensors(body)
    if set(found) != {"images", "prompts"} or found["prompts"].dtype != torch.uint8:
        raise ValueError(f"the body holds {sorted(found)[:5]}; give the tensors images and prompts, the latter uint8")
    try:
        prompts = load_json(bytes(found["prompts"].flatten().tolist()))
    except ValueError as error:
        raise ValueError(f"prompts are no JSON ({error})") from None
    return _checked(found["images"], prompts)


def tensors(body: bytes) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        ValueError: it is none.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(body)
    except (SafetensorError, KeyError, RuntimeError) as error:
        raise ValueError(f"the body is no safetensors file ({error})") from None


def pack_json(images: Tensor, prompts: list[str]) -> bytes:
    """Pictures as base64 of PNG, with prompts."""
    pictures = []
    for picture in to_pil(images):
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG", compress_level=1)
        pictures.append(base64.b64encode(buffer.getvalue()).decode())
    return json.dumps({"images": pictures, "prompts": prompts}).encode("utf8")


def unpack_json(body: bytes, most_bytes: int) -> tuple[Tensor, list[str]]:
    """The inverse of `pack_json`; pictures may also be JPEG or WebP, or data URLs, all of one size.

    Raises:
        ValueError: anything else, or pictures that would take more than most_bytes of memory.
    """
    given = load_json(body)
    if not isinstance(given, dict) or not isinstance(given.get("images"), list) or "prompts" not in given:
        raise ValueError('the body is no {"images": [...], "prompts": [...]}')
    left, pictures = most_bytes, []
    for i, text in enumerate(given["images"]):
        picture, left = _decoded(i, text, left)
        pictures.append(picture)
    if len({p.shape for p in pictures}) > 1:
        raise ValueError(f"images have sizes {sorted({tuple(p.shape[1:]) for p in pictures})}; send one size at a time")
    return _checked(torch.stack(pictures) if pictures else torch.zeros(0, 3, 1, 1), given["prompts"])


def _decoded(i: int, text: object, left: int) -> tuple[Tensor, int]:
    """Picture [3 h w] and what is left of the memory; its size is looked at before it is decoded."""
    from PIL import Image

    if not isinstance(text, str):
        raise ValueError(f"images[{i}] is {type(text).__name__}, not a text in base64")
    try:
        raw = base64.b64decode(text.rpartition(",")[2], validate=True)
        with Image.open(io.BytesIO(raw), formats=KINDS) as picture:
            left -= 12 * picture.width * picture.height
            if left < 0:
                raise ValueError("it is too large; send fewer or smaller pictures at once")
            rgb = picture.convert("RGB")
    except (OSError, ValueError, SyntaxError, binascii.Error, Image.DecompressionBombError) as error:
        raise ValueError(f"images[{i}] is no picture in base64 ({error})") from None
    pixels = torch.frombuffer(bytearray(rgb.tobytes()), dtype=torch.uint8).view(rgb.height, rgb.width, 3)
    return pixels.permute(2, 0, 1).float() / 255, left


def _checked(images: Tensor, prompts: Any) -> tuple[Tensor, list[str]]:  # noqa: ANN401 (decoded JSON)
    if not isinstance(prompts, list) or not all(isinstance(p, str) for p in prompts):
        raise ValueError("prompts are no list of texts")
    check_images(images, prompts)
    if images.dtype not in DTYPES:
        raise ValueError(f"images are {images.dtype}; give one of {', '.join(map(str, DTYPES))}")
    if not bool(images.isfinite().all()):
        raise ValueError("images hold NaN or infinity; give finite floats in [0, 1]")
    return images, prompts


def load_json(body: bytes) -> Any:  # noqa: ANN401
    """Strict JSON: NaN and infinities, which Python reads, are none.

    Raises:
        ValueError: it is none.
    """

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is no JSON")

    try:
        return json.loads(body, parse_constant=refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def pack_scores(scores: Tensor) -> bytes:
    """{"scores": [...]}: exact, since a float is written with all digits that it needs."""
    return json.dumps({"scores": [None if s == -math.inf else s for s in scores.tolist()]}).encode("utf8")


def unpack_scores(body: bytes, b: int) -> list[float]:
    """The inverse of `pack_scores`; "-inf" is read as null is.

    Raises:
        ValueError: anything else, or another number of scores than b.
    """
    given = load_json(body)
    if isinstance(given, dict) and "error" in given:
        raise ValueError(f"an error: {given['error']}")
    scores = given.get("scores") if isinstance(given, dict) else None
    if not isinstance(scores, list) or len(scores) != b:
        raise ValueError(f'no {{"scores": [...]}} of {b} numbers')
    scores = [-math.inf if s in (None, "-inf") else s for s in scores]
    if not all(isinstance(s, (int, float)) and not isinstance(s, bool) for s in scores):
        raise ValueError("scores that are no numbers")
    return [float(s) for s in scores]
