"""Which pictures a folder holds and what they show: metadata.jsonl, metadata.csv, NAME.txt files, or class folders."""

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
METADATA = ("metadata.jsonl", "metadata.csv")
KEYS = ("text", "caption", "prompt")
WAYS = (
    'lines {"file_name": "a.png", "text": "a red fox"} in metadata.jsonl (or columns file_name and text in '
    "metadata.csv), a.txt beside each a.png, or a subfolder named after each class"
)
NAMED = 3  # files an error spells out; the others are counted


@dataclass(frozen=True)
class Line:
    """One entry of a metadata file: its line number and its columns."""

    number: int
    columns: dict[str, Any]


def find(folder: Path, caption_key: str | None = None) -> tuple[list[str], list[str]]:
    """Relative paths (with "/") and captions of the pictures of a folder, one a row, in an order of its own.

    The first of these that is there gives the captions: metadata.jsonl, else metadata.csv, in the order of its lines
    (a picture in two lines makes two rows); NAME.txt beside NAME.png; the name of the folder that a picture lies in.
    The last two are in the order of the relative paths. Names that start with a dot are passed over.

    Raises:
        ValueError: no folder; no picture in it; a picture without a caption; or a metadata file that is not what
            `datasets` users write: see `read_metadata`.
    """
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing there"
        raise ValueError(f"path={str(folder)!r} must be a folder of pictures, got {found}")
    names = sorted(_walk(folder))
    pictures = [name for name in names if name.lower().endswith(SUFFIXES)]
    if not pictures:
        raise ValueError(
            f"path={str(folder)!r} holds no pictures ({', '.join(SUFFIXES)}), got {len(names)} other files"
        )
    metadata = next((name for name in METADATA if (folder / name).is_file()), None)
    if metadata:
        return read_metadata(folder, metadata, pictures, caption_key)
    if caption_key is not None:
        raise ValueError(f"caption_key={caption_key!r} needs {' or '.join(METADATA)} in {str(folder)!r}, got neither")
    if nested := [name for name in names if PurePosixPath(name).name in METADATA]:
        inner = folder / PurePosixPath(nested[0]).parent
        raise ValueError(
            f"path={str(folder)!r} has its metadata in {nested[0]}: give path={str(inner)!r}, or move it up"
        )
    return pictures, _from_texts(folder, pictures, set(names)) or _from_classes(folder, pictures)


def read_metadata(folder: Path, name: str, pictures: list[str], key: str | None) -> tuple[list[str], list[str]]:
    """Relative paths and captions in the order of the lines of metadata.jsonl or metadata.csv.

    Links within the folder may lead out of it; the paths in the metadata may not.

    Raises:
        ValueError: a line is no JSON object, names no file, one outside the folder or one that does not exist; no
            caption under `key` ("text", "caption" or "prompt" if None); a picture of the folder is in no line.
    """
    lines = list(_json_lines(folder / name) if name.endswith("jsonl") else _csv_lines(folder / name))
    if not lines:
        raise ValueError(f"{folder / name} is empty; give captions as {WAYS}")
    files = [_inside(line, name) for line in lines]
    lost = [
        f"{file} (line {line.number})" for file, line in zip(files, lines, strict=True) if not _is_file(folder, file)
    ]
    if lost:
        raise ValueError(f"{folder / name} names {len(lost)} of {len(lines)} files that do not exist: {_some(lost)}")
    key = _caption_key(lines, key, folder / name)
    captions = [_caption(line, key, name) for line in lines]
    bare = [f"{file} (line {li.number})" for file, li, text in zip(files, lines, captions, strict=True) if not text]
    bare += sorted(set(pictures) - set(files))
    _refuse_missing(bare, f"no {key!r} in {folder / name}")
    return files, captions


def _walk(folder: Path) -> Iterator[str]:
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX"))]
        for name in files:
            if not name.startswith("."):
                yield (Path(root) / name).relative_to(folder).as_posix()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from error


def _json_lines(path: Path) -> Iterator[Line]:
    for number, line in enumerate(_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            columns = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number} is not JSON ({error}), got {line.strip()[:80]!r}") from error
        if not isinstance(columns, dict):
            raise ValueError(
                f'{path}, line {number} must be {{"file_name": ..., "text": ...}}, got {line.strip()[:80]}'
            )
        yield Line(number, columns)


def _csv_lines(path: Path) -> Iterator[Line]:
    reader = csv.DictReader(io.StringIO(_text(path)))
    try:
        for columns in reader:
            yield Line(reader.line_num, {k: v for k, v in columns.items() if k is not None})
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num} is not CSV ({error}); quote texts with commas") from error


def _inside(line: Line, name: str) -> str:
    """The file that a line names, relative to the folder and within it."""
    file = line.columns.get("file_name")
    if not isinstance(file, str) or not file.strip():
        raise ValueError(f"{name}, line {line.number} needs a text under 'file_name', got {_keys([line])}")
    windows = PureWindowsPath(file)
    if file.startswith("/") or windows.anchor or ".." in windows.parts:
        raise ValueError(f"{name}, line {line.number}: file_name must be a path within the folder, got {file!r}")
    return PurePosixPath(file).as_posix()


def _is_file(folder: Path, file: str) -> bool:
    try:
        return (folder / file).is_file()
    except (ValueError, OSError):  # a zero byte in the name, or too many letters
        return False


def _caption_key(lines: list[Line], key: str | None, path: Path) -> str:
    found = next((k for k in ((key,) if key is not None else KEYS) if any(k in line.columns for line in lines)), None)
    if found is None:
        wanted = f"caption_key={key!r} is in no line" if key is not None else f"no caption under {', '.join(KEYS)}"
        raise ValueError(f"{path}: {wanted}; give caption_key= one of the keys that are there, got {_keys(lines)}")
    return found


def _caption(line: Line, key: str, name: str) -> str:
    value = line.columns.get(key)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{name}, line {line.number}: the caption {key!r} must be a text, got {value!r}")
    return " ".join((value or "").split())


def _from_texts(folder: Path, pictures: list[str], names: set[str]) -> list[str]:
    """What NAME.txt says for each picture; empty where there is none for any."""
    texts = [PurePosixPath(name).with_suffix(".txt").as_posix() for name in pictures]
    if not names & set(texts):
        return []
    captions = [" ".join(_text(folder / text).split()) if text in names else "" for text in texts]
    _refuse_missing([p for p, c in zip(pictures, captions, strict=True) if not c], "no .txt beside it, or an empty one")
    return captions


def _from_classes(folder: Path, pictures: list[str]) -> list[str]:
    classes = [PurePosixPath(name).parent.name for name in pictures]
    if not any(classes):
        raise ValueError(f"path={str(folder)!r} has {len(pictures)} pictures and no captions; give them as {WAYS}")
    _refuse_missing([p for p, c in zip(pictures, classes, strict=True) if not c], "it is in no class folder")
    return classes


def _refuse_missing(files: list[str], reason: str) -> None:
    if files:
        raise ValueError(f"{len(files)} pictures have no caption ({reason}): {_some(files)}; add it or take them away")


def _some(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _keys(lines: Iterable[Line]) -> str:
    return ", ".join(sorted({repr(key) for line in lines for key in line.columns})) or "none"
