"""Files that are whole or not there: everything is written beside its place and then moved to it."""

import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any


def check_folder(folder: str | Path, argument: str) -> Path:
    """Make the folder if need be and try that it can be written.

    Raises:
        ValueError: it cannot; the message names the argument, the folder, the cause and the cure.
    """
    path = Path(folder).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        cause = error.strerror or str(error)
        raise ValueError(f"{argument}={str(folder)!r} cannot be written ({cause}); name a folder that can") from error
    return path


def write_file(path: Path, content: bytes) -> Path:
    """Write a file so that an interruption leaves the old one or none, never half of one."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def write_json(path: Path, content: object) -> Path:
    """Write strict JSON; numbers that JSON lacks become null."""
    text = json.dumps(plain(content), indent=2, ensure_ascii=False, allow_nan=False)
    return write_file(path, (text + "\n").encode("utf8"))


def plain(content: Any) -> Any:  # noqa: ANN401 (any nesting of JSON's types)
    """The same with tuples as lists and NaN and infinities as None."""
    if isinstance(content, dict):
        return {str(key): plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [plain(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content
