"""A folder of pictures: how it reads one, what it keeps in memory, and what it does with broken files."""

import pickle
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from steer.data import folder as module
from steer.data.folder import Folder, read

ROOT = Path(__file__).parents[2]
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def paint(path: Path, colour: tuple[int, ...] = RED, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)
    return path


def three(folder: Path) -> Folder:
    """Red, green and blue, in that order."""
    for name, colour in {"a": RED, "b": GREEN, "c": BLUE}.items():
        paint(folder / f"{name}.png", colour)
        (folder / f"{name}.txt").write_text(f"picture {name}")
    return Folder(folder, 4)


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be a folder of pictures, got nothing there"):
        Folder(tmp_path / "lost")
    with pytest.raises(ValueError, match="must be a folder of pictures, got a file"):
        Folder(paint(tmp_path / "x/a.png"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no pictures"):
        Folder(tmp_path / "empty")
    data = three(tmp_path / "three")
    for kwargs, says in (({"size": 0}, "size must be"), ({"size": 2.5}, "got 2.5"), ({"cache_mb": -1}, "got -1")):
        with pytest.raises(ValueError, match=says):
            Folder(tmp_path / "three", **kwargs)
    for outside in (3, -1):
        with pytest.raises(ValueError, match=f"rows from 0 to 2, got {outside}"):
            data.rows([0, outside])


# reading


@pytest.mark.parametrize("suffix", ["png", "bmp", "gif", "webp", "jpg", "jpeg"])
def test_every_format_keeps_a_picture_of_the_size(tmp_path: Path, suffix: str) -> None:
    """Pixel by pixel where the format does, and within its loss where not."""
    y, x = np.mgrid[:16, :16]
    pixels = np.stack([y * 16, x * 16, np.full_like(x, 128)], -1).astype(np.uint8)
    image = Image.fromarray(pixels)
    image.save(tmp_path / f"a.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
    error = np.abs(read(tmp_path / f"a.{suffix}", 16).astype(int) - pixels).max()
    assert error <= {"jpg": 24, "jpeg": 24, "gif": 24}.get(suffix, 0)


@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_orientation_is_undone(tmp_path: Path, turn: int) -> None:
    """Of the eight stored turns of one picture, each with the tag that says so, all read alike."""
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4, :4], pixels[:4, 4:], pixels[4:, :4] = RED, GREEN, BLUE
    store = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a),  # shown after a quarter turn clockwise
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1),
    }[turn]
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.fromarray(np.ascontiguousarray(store(pixels))).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read(tmp_path / "a.png", 8), pixels)


def test_transparency_is_laid_over_white(tmp_path: Path) -> None:
    paint(tmp_path / "clear.png", (255, 0, 0, 0), mode="RGBA")
    paint(tmp_path / "half.png", (0, 0, 255, 51), mode="RGBA")
    paint(tmp_path / "grey.png", (0, 102), mode="LA")
    assert (read(tmp_path / "clear.png", 4) == 255).all()
    assert (read(tmp_path / "half.png", 4) == (204, 204, 255)).all()
    assert (read(tmp_path / "grey.png", 4) == 153).all()
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.save(tmp_path / "solid.png")
    palette.save(tmp_path / "palette.gif", transparency=1)
    assert (read(tmp_path / "solid.png", 4) == (40, 50, 60)).all()
    assert (read(tmp_path / "palette.gif", 4) == 255).all()


def test_any_mode_is_made_rgb(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 257 * 100 - 128, np.uint16)).save(tmp_path / "deep.png")
    paint(tmp_path / "grey.png", (77,), mode="L")
    Image.new("1", (8, 8), 1).save(tmp_path / "bit.png")
    paint(tmp_path / "print.jpg", (0, 255, 255, 0), mode="CMYK")
    assert (read(tmp_path / "deep.png", 4) == 100).all()
    assert (read(tmp_path / "grey.png", 4) == 77).all()
    assert (read(tmp_path / "bit.png", 4) == 255).all()
    assert np.abs(read(tmp_path / "print.jpg", 4).astype(int) - RED).max() <= 3


@pytest.mark.parametrize("wide", [True, False])
def test_the_shorter_side_is_resized_and_the_middle_cut(tmp_path: Path, wide: bool) -> None:
    """What resizing all of the picture and then cutting gives, to a rounding; the very pixels at their own size."""
    y, x = np.mgrid[:8, :24]
    pixels = np.stack([40 + 7 * x, 200 - 14 * y, 50 + 5 * x + 5 * y], -1).astype(np.uint8)
    pixels = pixels if wide else pixels.swapaxes(0, 1).copy()
    image = Image.fromarray(pixels)
    image.save(tmp_path / "a.png")
    middle = (slice(None), slice(8, 16)) if wide else (slice(8, 16), slice(None))
    np.testing.assert_array_equal(read(tmp_path / "a.png", 8), pixels[middle])
    for size in (4, 20):
        whole = image.resize((3 * size, size) if wide else (size, 3 * size), Image.Resampling.BICUBIC)
        middle = (slice(None), slice(size, 2 * size)) if wide else (slice(size, 2 * size), slice(None))
        expected = np.asarray(whole)[middle].astype(int)
        assert np.abs(read(tmp_path / "a.png", size) - expected).max() <= 1


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_smaller_pictures_are_antialiased(tmp_path: Path, suffix: str) -> None:
    """A checkerboard of single pixels becomes its mean, not black or white."""
    y, x = np.mgrid[:256, :256]
    Image.fromarray(((x + y) % 2 * 255).astype(np.uint8)).save(tmp_path / f"a.{suffix}", quality=95)
    assert np.abs(read(tmp_path / f"a.{suffix}", 16).astype(int) - 127.5).max() < 4


def test_an_animation_shows_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (GREEN, BLUE)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert (read(tmp_path / "a.gif", 4) == GREEN).all()


def test_mirrored_rows_follow_the_others(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:, :4] = RED
    (tmp_path / "left").mkdir()
    Image.fromarray(pixels).save(tmp_path / "left/a.png")
    paint(tmp_path / "left/b.png", BLUE)
    data = Folder(tmp_path, 8, flip=True)
    images, texts = data.rows([0, 2, 3])
    assert len(data) == len(data.captions) == len(data.files) == 4 and texts == ["left"] * 3
    np.testing.assert_array_equal(images[1], pixels[:, ::-1])
    np.testing.assert_array_equal(images[0], pixels)
    assert (images[2] == BLUE).all()


# memory


def test_the_second_epoch_decodes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, bare = three(tmp_path), Folder(tmp_path, 4, cache_mb=1e-4)
    first = kept.rows([2, 0, 1])[0]
    first_bare = bare.rows([2, 0, 1])[0]
    calls = []
    monkeypatch.setattr(module, "read", lambda path, size: calls.append(path) or np.zeros((size, size, 3), np.uint8))
    np.testing.assert_array_equal(kept.rows([2, 0, 1])[0], first)
    np.testing.assert_array_equal(first, first_bare)
    assert not calls
    bare.rows([2, 0, 1])
    assert len(calls) == 3


def test_what_is_given_out_may_be_changed(tmp_path: Path) -> None:
    data = three(tmp_path)
    data.rows([0])[0][:] = 0
    assert (data.rows([0])[0] == RED).all()


def test_a_copy_sent_to_a_process_is_small_and_equal(tmp_path: Path) -> None:
    data = three(tmp_path)
    data.rows([0, 1, 2])
    big = Folder(tmp_path, 512)
    big.rows([0])
    sent = pickle.dumps(big)
    assert len(sent) < 4096
    np.testing.assert_array_equal(pickle.loads(sent).rows([1])[0], big.rows([1])[0])


def test_threads_read_the_same(tmp_path: Path) -> None:
    data = three(tmp_path)
    (tmp_path / "b.png").write_bytes(b"broken")
    order = np.random.default_rng(0).integers(0, 3, (8, 50))
    found: dict[int, np.ndarray] = {}

    def work(k: int) -> None:
        found[k] = data.rows(order[k].tolist())[0]

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
        [t.start() for t in threads], [t.join() for t in threads]
    colours = np.array([RED, BLUE, BLUE], np.uint8)
    for k in range(8):
        np.testing.assert_array_equal(found[k], np.broadcast_to(colours[order[k]][:, None, None], (50, 4, 4, 3)))
    assert seen and all("b.png" in str(w.message) for w in seen)


# broken files


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:50])


def test_a_broken_file_is_reported_once_and_replaced_by_the_next(tmp_path: Path) -> None:
    data = three(tmp_path)
    truncate(tmp_path / "b.png"), (tmp_path / "c.png").write_text("no picture")
    with pytest.warns(UserWarning) as seen:
        images, texts = data.rows([1, 0, 1, 2])
    assert texts == ["picture a"] * 4 and (images == RED).all()
    assert [str(w.message).split(" cannot")[0] for w in seen] == [str(tmp_path / "b.png"), str(tmp_path / "c.png")]
    assert "UnidentifiedImageError" in str(seen[1].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert data.rows([2, 1])[1] == ["picture a", "picture a"]


def test_what_stands_in_does_not_depend_on_the_order_of_reading(tmp_path: Path) -> None:
    three(tmp_path), truncate(tmp_path / "a.png")
    for order in ([0, 1, 2], [2, 1, 0]):
        data = Folder(tmp_path, 4)
        with pytest.warns(UserWarning, match="a.png"):
            texts = dict(zip(order, data.rows(order)[1], strict=True))
        assert texts == {0: "picture b", 1: "picture b", 2: "picture c"}


def test_strict_raises_and_names_the_file(tmp_path: Path) -> None:
    three(tmp_path), truncate(tmp_path / "b.png")
    data = Folder(tmp_path, 4, strict=True)
    assert data.rows([0, 2])[1] == ["picture a", "picture c"]
    for _ in range(2):
        with pytest.raises(ValueError, match=r"b.png cannot be read \(.*strict=False"):
            data.rows([0, 1])


@pytest.mark.filterwarnings("ignore:.*cannot be read")
def test_nothing_readable_raises(tmp_path: Path) -> None:
    data = three(tmp_path)
    for name in "abc":
        truncate(tmp_path / f"{name}.png")
    for _ in range(2):
        with pytest.raises(ValueError, match="none of the 3 pictures .* can be read.*b.png"):
            data.rows([1])


def test_check_lists_what_fails(tmp_path: Path) -> None:
    data = three(tmp_path)
    assert Folder(tmp_path).check() == []
    truncate(tmp_path / "c.png"), (tmp_path / "a.png").unlink()
    (first, gone), (second, cut) = data.check()
    assert (first, second) == (tmp_path / "a.png", tmp_path / "c.png")
    assert gone.startswith("FileNotFoundError") and "Error" in cut


def test_the_config_builds_it(tmp_path: Path) -> None:
    from hydra.utils import instantiate

    config = OmegaConf.load(ROOT / "configs/data/folder.yaml")
    assert OmegaConf.is_missing(config, "path")
    three(tmp_path)
    data = instantiate(config, path=str(tmp_path))
    assert isinstance(data, Folder) and (data.size, data.strict, len(data)) == (64, False, 3)
