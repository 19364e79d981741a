"""What rewards with networks share: how a network looks at pictures, where its files are, and what is kept of it."""

import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

T = TypeVar("T")


@dataclass(frozen=True)
class Look:
    """How a network wants its pictures: size x size, colours normalised. Torch operations only, so that gradients pass.

    mean, std: of the three colours, (x - mean) / std.
    resize: "shortest" scales the shortest side to `size` and cuts out the centre, "longest" scales the longest side and
        pads with `fill`, "squash" scales both sides, whatever the shape.
    interpolation: "bicubic" or "bilinear", with antialiasing, as PIL does it. PIL also rounds to bytes and clips what
        bicubic overshoots; both would flatten gradients and are left out.

    Raises:
        ValueError: another resize or interpolation, or a mean or standard deviation that is none.
    """

    size: int
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    resize: str = "shortest"
    interpolation: str = "bicubic"
    fill: float = 0.0

    def __post_init__(self) -> None:
        if self.resize not in ("shortest", "longest", "squash"):
            raise ValueError(f"resize={self.resize!r} is unknown; give 'shortest', 'longest' or 'squash'")
        if self.interpolation not in ("bicubic", "bilinear"):
            raise ValueError(f"interpolation={self.interpolation!r} is unknown; give 'bicubic' or 'bilinear'")
        if len(self.mean) != 3 or len(self.std) != 3 or not min(self.std) > 0:
            raise ValueError(f"mean={self.mean} and std={self.std} must be three numbers, and std above 0")

    def __call__(self, images: Tensor) -> Tensor:
        """float32 [b 3 size size] of pictures [b 3 h w] in [0,1]."""
        x, shape = images.float(), self._resized(*images.shape[-2:])
        if x.shape[-2:] != shape:
            x = F.interpolate(x, shape, mode=self.interpolation, antialias=True, align_corners=False)
        edges = (*self._edges(shape[1]), *self._edges(shape[0]))
        if any(edges):
            x = F.pad(x, edges, value=self.fill)
        mean, std = (torch.tensor(v, device=x.device).view(3, 1, 1) for v in (self.mean, self.std))
        return (x - mean) / std

    def _resized(self, h: int, w: int) -> tuple[int, int]:
        """Height and width before the edges are cut or padded, rounded as torchvision and open_clip do."""
        if self.resize == "squash":
            return self.size, self.size
        if self.resize == "shortest":
            return self.size * h // min(h, w), self.size * w // min(h, w)
        return max(1, round(self.size * h / max(h, w))), max(1, round(self.size * w / max(h, w)))

    def _edges(self, side: int) -> tuple[int, int]:
        """What to pad before and after a side; negative: what to cut off."""
        lacks = self.size - side
        before = lacks // 2 if lacks > 0 else -round(-lacks / 2)
        return before, lacks - before


@dataclass(frozen=True)
class Source:
    """Files that a reward needs, in a folder or in the hub's cache of a repository. Nothing is downloaded.

    argument: what the reward calls `place`.
    place: a folder, or the hub id of a repository.
    files: their names there.
    """

    argument: str
    place: str
    files: tuple[str, ...]

    def find(self, file: str) -> Path | None:
        """Where the file is; None where it is not."""
        folder = Path(self.place).expanduser()
        if folder.is_dir():
            return folder / file if (folder / file).is_file() else None
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            found = try_to_load_from_cache(self.place, file)
        except HFValidationError:  # a path, and no such folder
            return None
        return Path(found) if isinstance(found, str) else None

    def path(self, file: str) -> Path:
        """Where the file is.

        Raises:
            FileNotFoundError: it is not there.
        """
        found = self.find(file)
        if found is None:
            raise FileNotFoundError(self.lacking())
        return found

    def lacking(self) -> str | None:
        """What is not there, and the cure; None where all is."""
        files = [f for f in self.files if self.find(f) is None]
        if not files:
            return None
        what = f"{', '.join(files)} of {self.argument}={self.place!r}"
        if Path(self.place).expanduser().is_dir():
            return f"{what} (put what is missing in this folder)"
        return f"{what} (`hf download {self.place} {' '.join(files)}`, or let {self.argument} name a folder with them)"


def missing(reward: str, *sources: Source) -> str | None:
    """One sentence: which files of a reward are not on this machine, and how to get them; None where all are."""
    lacking = [what for source in sources if (what := source.lacking())]
    return f"reward {reward!r} lacks {' and '.join(lacking)}" if lacking else None


class Kept(Generic[T]):
    """What a reward has loaded, on the device of the pictures it saw last, and the texts that it has encoded there.

    A copy or a pickle is empty: settings travel, weights are loaded anew. Any number of threads may use one, on one
    device.
    """

    TEXTS = 4096  # vectors kept; of CLIP's width some 16 MB

    def __init__(self) -> None:
        self._device: torch.device | None = None
        self._loaded: T | None = None
        self._texts: dict[str, Tensor] = {}
        self._turn = threading.RLock()  # one that `encode` takes again, to load

    def on(self, device: torch.device, load: Callable[[torch.device], T]) -> T:
        """What `load` gives for the device, loaded once as long as the device stays the same."""
        with self._turn:
            if self._loaded is None or device != self._device:
                self._loaded = load(device)
                self._device = device
                self._texts.clear()
            return self._loaded

    def texts(self, prompts: list[str], encode: Callable[[list[str]], Tensor]) -> Tensor:
        """Rows [b e] of `encode`, each distinct prompt encoded once; of more than `TEXTS` the oldest are dropped."""
        with self._turn:
            new = [p for p in dict.fromkeys(prompts) if p not in self._texts]
            if new:
                with torch.no_grad():
                    self._texts.update(zip(new, encode(new), strict=True))
            rows = torch.stack([self._texts[p] for p in prompts])
            for old in list(self._texts)[: -self.TEXTS]:
                del self._texts[old]
            return rows

    def __reduce__(self) -> tuple[type["Kept[T]"], tuple[()]]:
        return type(self), ()


def damages() -> tuple[type[Exception], ...]:
    """What libraries raise where a file of weights is cut off, damaged, or of another model."""
    from safetensors import SafetensorError

    return (
        RuntimeError, OSError, EOFError, KeyError, TypeError, ValueError, AttributeError, ArithmeticError, IndexError,
        pickle.UnpicklingError, SafetensorError,
    )  # fmt: skip


def first_line(error: Exception) -> str:
    """The first line of its message, at most 200 letters."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


@contextmanager
def loading(reward: str, place: object) -> Iterator[None]:
    """Name the reward and the files where they cannot be loaded.

    Raises:
        ValueError: they are damaged or of another model.
    """
    try:
        yield
    except (torch.OutOfMemoryError, FileNotFoundError):
        raise
    except damages() as error:
        raise ValueError(
            f"reward {reward!r}: the files in {str(place)!r} are damaged or of another model ({first_line(error)}); "
            "download them again"
        ) from error


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of one by torch.save, as float32; no code in the file is run."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        weights = load_file(path)
    else:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(weights, dict):
        raise TypeError(f"it holds a {type(weights).__name__} and no weights by name")
    return {k: v.float() if v.is_floating_point() else v for k, v in weights.items()}


def linear_head(width: int) -> nn.Sequential:
    """width-1024-128-64-16-1 without non-linearities, as LAION's aesthetic predictor and ImageReward have it.

    Dropout, which does nothing here, keeps the places 1, 3 and 5: the published keys are 0, 2, 4, 6 and 7.
    """
    return nn.Sequential(
        nn.Linear(width, 1024), nn.Identity(), nn.Linear(1024, 128), nn.Identity(), nn.Linear(128, 64), nn.Identity(),
        nn.Linear(64, 16), nn.Linear(16, 1),
    )  # fmt: skip
