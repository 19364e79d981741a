"""Files of weights and settings that anybody may have written: read with checks, before memory is taken for them."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

LONGEST = 1 << 24  # bytes of a file of settings; what JSON says may take twenty times as much memory
STACKS = ("depth", "blocks", "layers")  # in the names of settings that say how many parts stand behind each other
PICTURES = ("PNG", "JPEG", "WEBP", "BMP", "GIF")  # kinds of files; PIL reads others by programs of their own
FEW = 256  # parts are soon built, whatever the weights hold


def read_json(path: Path, cure: str) -> Any:  # noqa: ANN401 (whatever it holds)
    """What a JSON file holds.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no JSON, nested too deeply, or longer than 16 MB; the message ends with the cure.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; {cure}")
    if path.stat().st_size > LONGEST:
        raise ValueError(f"{path} is longer than {LONGEST} bytes; {cure}")
    try:
        return json.loads(path.read_text(encoding="utf8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}); {cure}") from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, as float32; errors name the file and the cure.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or holds NaN or infinity.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    _check_there(path)
    try:
        weights = {k: v.float() if v.is_floating_point() else v for k, v in load_file(path).items()}
    except (SafetensorError, KeyError, RuntimeError) as error:
        raise ValueError(f"the weights in {path} are damaged ({error}); install or download them again") from error
    bad = next((name for name, w in weights.items() if not bool(w.isfinite().all())), None)
    if bad is not None:
        raise ValueError(f"the weights in {path} hold NaN or infinity ({bad}); install or download them again")
    return weights


def check_size(make: Callable[[], nn.Module], settings: Any, *paths: Path) -> None:  # noqa: ANN401 (as JSON has them)
    """Hold a network to the size of its weights in safetensors files, before memory is taken for either.

    make: builds the network; here on the device "meta", which holds no numbers.
    settings: what it is built by.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a file is damaged, or settings ask for far more parts behind each other than there are tensors, or
            for over twice as many numbers.
        Exception: whatever `make` raises.
    """
    shapes, place = shapes_in(*paths), paths[0] if len(paths) == 1 else paths[0].parent
    deep = next((f"{key}={n}" for key, n in _stacks(settings) if n > max(FEW, len(shapes))), None)
    if deep:
        raise _unfit(place, f"{len(shapes)} tensors for {deep}")
    with torch.device("meta"):
        wanted = sum(w.numel() for w in make().state_dict().values())
    there = sum(map(math.prod, shapes))
    if wanted > 2 * there:
        raise _unfit(place, f"{there} numbers, and not {wanted}")


def check_pixels(image: Any, most: int) -> None:  # noqa: ANN401 (of PIL)
    """Refuse a picture that would take too much memory, before it is decoded; raises ValueError."""
    if image.width * image.height > most:
        raise ValueError(f"{image.width} x {image.height} pixels, more than {most}; make it smaller")


def shapes_in(*paths: Path) -> list[list[int]]:
    """The shapes of all tensors of safetensors files, read from their headers alone.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    shapes = []
    for path in paths:
        _check_there(path)
        try:
            with safe_open(path, "pt") as file:
                shapes += [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise _unfit(path, str(error)) from error
    return shapes


def _unfit(path: Path, why: str) -> ValueError:
    cure = "install or download them again"
    return ValueError(f"the weights in {path} are damaged or do not fit their settings ({why}); {cure}")


def _check_there(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}; install the package again, or name a folder that has them")


def _stacks(settings: Any) -> Iterator[tuple[str, float]]:  # noqa: ANN401
    """The numbers of parts that settings name, at any depth."""
    for key, value in settings.items() if isinstance(settings, dict) else ():
        if any(word in key for word in STACKS):
            yield from ((key, n) for n in _flat(value) if isinstance(n, int | float))
        yield from _stacks(value)


def _flat(value: Any) -> Iterator[Any]:  # noqa: ANN401
    for item in value if isinstance(value, list) else ():
        yield from _flat(item)
    if not isinstance(value, list):
        yield value
