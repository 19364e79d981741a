"""Files of weights and settings that anybody may have written: read with checks, before memory is taken for them."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

LONGEST = 1 << 24  # bytes of a file of settings; what JSON says may take twenty times as much memory
STACKS = ("depth", "blocks", "layers")  # settings that say how many parts stand behind each other


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


def check_size(make: Callable[[], nn.Module], settings: Any, path: Path) -> None:  # noqa: ANN401 (as JSON has them)
    """Hold a network to the size of its weights in a safetensors file, before memory is taken for either.

    make: builds the network; here on the device "meta", which holds no numbers.
    settings: what it is built by.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is damaged, or settings ask for more parts behind each other than it has tensors, or for
            over twice as many numbers.
        Exception: whatever `make` raises.
    """
    from safetensors import SafetensorError, safe_open

    _check_there(path)
    try:
        with safe_open(path, "pt") as file:
            shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise _unfit(path, str(error)) from error
    deep = next((f"{key}={n}" for key, n in _stacks(settings) if n > len(shapes)), None)
    if deep:
        raise _unfit(path, f"{len(shapes)} tensors for {deep}")
    with torch.device("meta"):
        wanted = sum(w.numel() for w in make().state_dict().values())
    there = sum(map(math.prod, shapes))
    if wanted > 2 * there:
        raise _unfit(path, f"{there} numbers, and not {wanted}")


def _unfit(path: Path, why: str) -> ValueError:
    cure = "install or download them again"
    return ValueError(f"the weights in {path} are damaged or do not fit their settings ({why}); {cure}")


def _check_there(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}; install the package again, or name a folder that has them")


def _stacks(settings: Any) -> Iterator[tuple[str, float]]:  # noqa: ANN401
    """The numbers of parts that settings name, at any depth."""
    for key, value in settings.items() if isinstance(settings, dict) else ():
        if key in STACKS:
            yield from ((key, n) for n in (value if isinstance(value, list) else [value]) if isinstance(n, int | float))
        yield from _stacks(value)
