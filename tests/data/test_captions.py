"""Which captions a folder of pictures has: metadata, texts beside the pictures, or classes; and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from steer.data.folder import Folder

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def paint(path: Path, colour: tuple[int, ...] = RED, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)
    return path


def metadata(folder: Path, *rows: object) -> None:
    (folder / "metadata.jsonl").write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))


def row(name: str, text: str = "a picture") -> dict:
    return {"file_name": name, "text": text}


def three(folder: Path) -> Folder:
    """Red, green and blue, in that order."""
    for name, colour in {"a": RED, "b": GREEN, "c": BLUE}.items():
        paint(folder / f"{name}.png", colour)
        (folder / f"{name}.txt").write_text(f"picture {name}")
    return Folder(folder, 4)


def test_metadata_gives_captions_in_the_order_of_its_lines(tmp_path: Path) -> None:
    paint(tmp_path / "b.png", BLUE)
    paint(tmp_path / "in/a.jpg", RED)
    (tmp_path / "b.txt").write_text("not taken")
    metadata(
        tmp_path, row("b.png", "a  blue\nsquare "), "", row("in/a.jpg", "ein rotes Quadrat ä"), row("b.png", "again")
    )
    data = Folder(tmp_path, 4)
    assert data.captions == ["a blue square", "ein rotes Quadrat ä", "again"]
    assert data.files == [tmp_path / "b.png", tmp_path / "in/a.jpg", tmp_path / "b.png"]
    images, texts = data.rows([2, 1])
    assert texts == ["again", "ein rotes Quadrat ä"]
    assert (images[0] == BLUE).all() and np.abs(images[1].astype(int) - RED).max() <= 3


def test_metadata_may_be_csv(tmp_path: Path) -> None:
    paint(tmp_path / "a.png"), paint(tmp_path / "b.png")
    (tmp_path / "metadata.csv").write_text('\ufefffile_name,caption\nb.png,"red, and\nsquare"\na.png,other\n')
    assert Folder(tmp_path).captions == ["red, and square", "other"]


@pytest.mark.parametrize("key", ["text", "caption", "prompt"])
def test_usual_keys_are_found_and_text_comes_first(tmp_path: Path, key: str) -> None:
    paint(tmp_path / "a.png")
    metadata(tmp_path, {"file_name": "a.png", "prompt": "prompt", key: key})
    assert Folder(tmp_path).captions == [key]


def test_caption_key_selects_and_its_error_lists_the_keys(tmp_path: Path) -> None:
    paint(tmp_path / "a.png")
    metadata(tmp_path, {"file_name": "a.png", "text": "short", "long_one": "longer"})
    assert Folder(tmp_path, caption_key="long_one").captions == ["longer"]
    with pytest.raises(ValueError, match="caption_key='other'.*'file_name', 'long_one', 'text'"):
        Folder(tmp_path, caption_key="other")
    metadata(tmp_path, {"file_name": "a.png", "label": "x"})
    with pytest.raises(ValueError, match="text, caption, prompt.*got 'file_name', 'label'"):
        Folder(tmp_path)
    (tmp_path / "metadata.jsonl").unlink()
    with pytest.raises(ValueError, match="caption_key='other' needs metadata.jsonl"):
        Folder(tmp_path, caption_key="other")


@pytest.mark.parametrize("name", ["../a.png", "in/../../a.png", "/etc/a.png", "C:\\a.png", "..\\a.png", "\\a.png"])
def test_metadata_never_leads_outside_the_folder(tmp_path: Path, name: str) -> None:
    paint(tmp_path / "a.png"), paint(tmp_path / "in/a.png")
    metadata(tmp_path / "in", row("a.png"), row(name))
    with pytest.raises(ValueError, match="line 2: file_name must be a path within the folder"):
        Folder(tmp_path / "in")


@pytest.mark.parametrize(
    ("second", "says"),
    [
        ("{not json", r"metadata.jsonl, line 2 is not JSON .*got '\{not json'"),
        ("[1]", "line 2 must be"),
        ({"text": "a"}, "line 2 needs a text under 'file_name', got 'text'"),
        ({"file_name": "b.png", "text": 3}, "line 2: the caption 'text' must be a text, got 3"),
        ({"file_name": "b.png", "text": " "}, r"1 pictures have no caption \(no 'text' .*b.png \(line 2\)"),
        ({"file_name": "b.png", "caption": "a"}, r"1 pictures have no caption .*b.png \(line 2\)"),
        ("", r"1 pictures have no caption .*: b.png;"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, second: object, says: str) -> None:
    paint(tmp_path / "a.png"), paint(tmp_path / "b.png")
    metadata(tmp_path, row("a.png"), second)
    with pytest.raises(ValueError, match=says):
        Folder(tmp_path)


def test_files_that_do_not_exist_are_counted(tmp_path: Path) -> None:
    paint(tmp_path / "a.png")
    metadata(tmp_path, row("a.png"), *(row(f"lost{i}.png") for i in range(5)), row("zero\0.png"))
    with pytest.raises(ValueError, match=r"6 of 7 files.*: lost0.png \(line 2\).*lost2.png \(line 4\) and 3 more"):
        Folder(tmp_path)


def test_texts_beside_the_pictures(tmp_path: Path) -> None:
    assert three(tmp_path).captions == ["picture a", "picture b", "picture c"]
    for name in ("a", "c"):
        (tmp_path / f"{name}.txt").unlink()
    with pytest.raises(ValueError, match=r"2 pictures have no caption \(no .txt.*: a.png, c.png;"):
        Folder(tmp_path)


def test_class_folders(tmp_path: Path) -> None:
    for name in ("fox/2.png", "cat/1.PNG", "fox/1.webp", ".hidden/1.png", "fox/._1.png"):
        paint(tmp_path / name)
    (tmp_path / "fox/notes.md").write_text("no picture")
    data = Folder(tmp_path)
    assert data.captions == ["cat", "fox", "fox"]
    assert data.files == [tmp_path / name for name in ("cat/1.PNG", "fox/1.webp", "fox/2.png")]
    paint(tmp_path / "loose.png")
    with pytest.raises(ValueError, match="1 pictures have no caption .*class folder.*: loose.png"):
        Folder(tmp_path)


def test_no_captions_says_how_to_give_them(tmp_path: Path) -> None:
    paint(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"metadata.jsonl.*metadata.csv.*a.txt.*subfolder"):
        Folder(tmp_path)


def test_metadata_of_a_split_is_not_taken_for_a_class(tmp_path: Path) -> None:
    paint(tmp_path / "train/a.png")
    metadata(tmp_path / "train", row("a.png"))
    with pytest.raises(ValueError, match="metadata in train/metadata.jsonl: give path="):
        Folder(tmp_path)
