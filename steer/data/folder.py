"""A folder of pictures with captions as training data; see `steer.data.captions` for how captions are given."""

import warnings
from collections.abc import Sequence
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rewards.files import PICTURES, check_pixels
from steer.data import captions

if TYPE_CHECKING:
    from PIL import Image

CACHE_MB = 1000
MOST = 40_000_000  # pixels of a picture: reading it takes up to 24 bytes of each


class Folder:
    """Pictures of a folder, square and of one size, with captions.

    A picture is turned as its EXIF orientation says, laid over white where it is transparent, made RGB, resized with
    antialiasing (bicubic) until its shorter side has `size` pixels, and cropped to the middle; of an animation the
    first frame. Row i is the same on every machine. Any number of threads may read one instance; a process forked from
    this one, or sent a copy, fills a memory of its own.

    Args:
        path: the folder.
        size: side of the squares, in pixels.
        strict: whether a file that cannot be read stops the run. If not, it is reported once as a warning and the
            next row that can be read, with its caption, stands in for it.
        flip: whether to add the mirror image of row i as row i + (number of pictures). Leave it out where captions
            say left and right, or pictures show letters.
        caption_key: the key in metadata.jsonl or metadata.csv that holds the caption; None takes "text", "caption" or
            "prompt", whichever comes first.
        cache_mb: decoded pictures are kept in memory when all of them take no more than this many megabytes.

    Attributes:
        files: of each row.
        captions: of each row, as the files give them.

    Raises:
        ValueError: `size` or `cache_mb` out of range; no folder, no pictures, no captions or broken metadata.
    """

    def __init__(
        self,
        path: str | Path,
        size: int = 64,
        *,
        strict: bool = False,
        flip: bool = False,
        caption_key: str | None = None,
        cache_mb: float = CACHE_MB,
    ) -> None:
        if not isinstance(size, Integral) or isinstance(size, bool) or size < 1:
            raise ValueError(f"size must be a whole number of pixels, at least 1, got {size!r}")
        if not cache_mb >= 0:
            raise ValueError(f"cache_mb must be at least 0 (0 keeps nothing in memory), got {cache_mb!r}")
        self.path, self.size, self.strict, self.flip = Path(path).expanduser(), int(size), strict, flip
        self._cache_mb = cache_mb
        names, texts = captions.find(self.path, caption_key)
        self.files = [self.path / name for name in names] * (2 if flip else 1)
        self.captions = texts * (2 if flip else 1)
        self._count = len(names)
        self._forget()

    def __len__(self) -> int:
        return len(self.files)

    def __repr__(self) -> str:
        return f"Folder({str(self.path)!r}, size={self.size}, rows={len(self)})"

    def __getstate__(self) -> dict[str, Any]:
        """Without the decoded pictures, which another process reads itself."""
        return {k: v for k, v in self.__dict__.items() if k not in ("_cache", "_kept")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def rows(self, index: Sequence[int]) -> tuple[np.ndarray, list[str]]:
        """Pictures uint8 [b size size 3] and captions of some rows.

        Raises:
            ValueError: a row that is not there; a file that cannot be read and `strict`; no file that can be read.
        """
        wanted = [int(i) for i in index]
        if outside := [i for i in wanted if not 0 <= i < len(self)]:
            raise ValueError(f"index must hold rows from 0 to {len(self) - 1}, got {outside[0]}")
        images = np.empty((len(wanted), self.size, self.size, 3), np.uint8)
        texts = []
        for place, i in enumerate(wanted):
            j, picture = self._readable(i % self._count)
            images[place] = picture if i < self._count else picture[:, ::-1]
            texts.append(self.captions[j])
        return images, texts

    def check(self) -> list[tuple[Path, str]]:
        """Decode every file once: those that fail, each with the reason."""
        for i in range(self._count):
            self._decoded(i)
        return [(self.files[i], self._broken[i]) for i in sorted(self._broken)]

    def _forget(self) -> None:
        """An empty memory; pages of it that are never written take no room."""
        shape = (self._count, self.size, self.size, 3)
        fits = np.prod(shape, dtype=float) <= self._cache_mb * 1e6
        self._cache = np.zeros(shape, np.uint8) if fits else None
        self._kept = np.zeros(self._count, bool)
        self._broken: dict[int, str] = {}
        self._reported: set[int] = set()

    def _readable(self, i: int) -> tuple[int, np.ndarray]:
        """Row i, or the next one that can be read."""
        for j in ((i + step) % self._count for step in range(self._count)):
            picture = self._decoded(j)
            if picture is not None:
                return j, picture
            self._report(j)
        raise ValueError(f"none of the {self._count} pictures in {self.path} can be read; {self._said(i)}")

    def _decoded(self, i: int) -> np.ndarray | None:
        """The picture [size size 3], None if it is broken. Two threads at once do the work twice, to the same end."""
        if self._kept[i] and self._cache is not None:
            return self._cache[i]
        if i in self._broken:
            return None
        try:
            picture = read(self.files[i], self.size)
        except MemoryError:
            raise
        except Exception as error:  # decoders raise whatever a broken file leads them to
            self._broken[i] = f"{type(error).__name__}: {error}"
            return None
        if self._cache is not None:
            self._cache[i] = picture
            self._kept[i] = True  # last: another thread may look at any time
        return picture

    def _report(self, i: int) -> None:
        if self.strict:
            raise ValueError(f"{self._said(i)}; mend or remove it, or give strict=False to pass over such files")
        if i not in self._reported:
            self._reported.add(i)
            warnings.warn(f"{self._said(i)}; the next picture stands in for it", stacklevel=4)

    def _said(self, i: int) -> str:
        return f"{self.files[i]} cannot be read ({self._broken[i]})"


def read(path: Path, size: int) -> np.ndarray:
    """A picture file as uint8 [size size 3]: see `Folder`. Raises what Pillow raises."""
    from PIL import Image, ImageOps

    with Image.open(path, formats=PICTURES) as file:
        file.draft(None, (2 * size, 2 * size))  # JPEG alone: decodes a large one at a half, a quarter or an eighth
        check_pixels(file, MOST)
        image = _to_rgb(ImageOps.exif_transpose(file))
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = (left, top, left + side, top + side)
    # a box in place of a crop: pixels beyond it still count at its edges, as if all of the picture were resized
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=square))


def _to_rgb(image: "Image.Image") -> "Image.Image":
    """Any mode as RGB: 16 bits scaled to 8, transparency laid over white."""
    from PIL import Image

    if image.mode.startswith("I"):
        return Image.fromarray(((np.asarray(image).astype(np.int64) + 128) // 257).astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
