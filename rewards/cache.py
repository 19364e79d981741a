"""Answers kept on disk, so that what was paid for once is not paid for again."""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def key_of(*parts: object) -> str:
    """sha256 of the parts as JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode("utf8")).hexdigest()


@dataclass(frozen=True)
class Cache:
    """A folder of small JSON files, one an answer, by key; any number of processes may use it at once.

    A file is written under another name and then renamed, so that none is ever read by half; one that is damaged all
    the same counts as absent.
    """

    folder: Path

    def read(self, key: str) -> dict[str, Any] | None:
        """What was written under the key."""
        try:
            found = json.loads(self._path(key).read_text(encoding="utf8"))
        except (OSError, ValueError, RecursionError):
            return None
        return found if isinstance(found, dict) else None

    def write(self, key: str, entry: Mapping[str, object]) -> None:
        """Keep it, in place of what was there."""
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
        try:
            with os.fdopen(handle, "w", encoding="utf8") as file:
                json.dump(entry, file)
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise

    def check(self) -> None:
        """Make the folder.

        Raises:
            OSError: it cannot be written to.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            reason = error.strerror or error
            raise OSError(
                f"cache={str(self.folder)!r} cannot be written to ({reason}); name another folder, or None"
            ) from error

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"
