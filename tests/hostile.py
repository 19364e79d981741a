"""What tests of hostile files share: a budget of memory and time, files that run code when they are read as pickles."""

import json
import os
import pickle
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

GIGABYTE, SECONDS = 1 << 30, 10
NESTED = "[" * 300_000  # JSON that would recurse


class TooLong(BaseException):
    """A refusal must not take long; no handler of Exception hides this."""


@contextmanager
def frugal() -> Iterator[None]:
    """At most a gigabyte more of memory, and seconds of time."""

    def over(number: int, frame: FrameType | None) -> None:
        raise TooLong

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit, before = resource.getrlimit(resource.RLIMIT_AS), signal.signal(signal.SIGALRM, over)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + GIGABYTE, limit[1]))
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, limit)


class Trap:
    """A folder beside the one that is read: module `evil` writes a file there when it is imported or unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.sprung = folder, folder / "sprung"
        (folder / "evil.py").write_text(f"open({str(self.sprung)!r}, 'w')\nclass Evil: pass\ndef f(*_, **__): pass\n")
        (folder / "secret.txt").write_text("the secret")

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.sprung), "w")

    def pickled(self) -> bytes:
        """What writes the file when it is unpickled."""
        return pickle.dumps({"weight": self})


def listing(folder: Path) -> list[str]:
    """All that is in a folder."""
    return sorted(os.path.join(root, name) for root, _, names in os.walk(folder) for name in names)


def refused(call: Callable[[], object], trap: Trap, folder: Path, *words: str) -> None:
    """One of our errors, that names what words say; in time, in memory, with nothing run, read or written."""
    before = listing(folder)
    with frugal(), pytest.raises((ValueError, OSError)) as caught:
        call()
    said = str(caught.value)
    assert all(word in said for word in words), said
    assert "allocate" not in said and "the secret" not in said, said
    assert not trap.sprung.exists() and listing(folder) == before


def edit(file: Path, /, **changes: object) -> None:
    """Other values for some keys of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def headed(header: bytes, size: int | None = None) -> bytes:
    """A safetensors file of that header, or one that says it is of another size."""
    return (len(header) if size is None else size).to_bytes(8, "little") + header


def of_shape(*shape: int) -> bytes:
    """One with a tensor whose header says that shape, and no data."""
    return headed(json.dumps({"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4]}}).encode()) + bytes(4)


BROKEN: dict[str, bytes] = {
    "empty": b"", "eight bytes": bytes(8), "huge header": headed(b"{}", 2**62), "long header": headed(b"{}", 2**27),
    "nested header": headed(NESTED.encode()), "huge shape": of_shape(2**40, 2**40), "negative": of_shape(-1),
    "no JSON": headed(b"\xff" * 20), "an array": headed(b"[]"),
}  # fmt: skip
