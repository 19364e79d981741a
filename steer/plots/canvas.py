"""What all figures share: colours, an empty figure, and how one is written."""

import io
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from steer.samples import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, VERMILION, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#cc79a7"
ORANGE, SKY, BLACK = "#e69f00", "#56b4e9", "#000000"
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)
MARKERS, STYLES = "os^DvPX", ("-", "--", ":")
FAINT, GREY = "0.8", "0.5"
WIDTH, DPI = 7.5, 120  # inches: a README shows some 850 pixels


def save(figure: "Figure", path: str | Path) -> Path:
    """Write a figure as PNG or SVG, by the suffix, under a temporary name that is then renamed; the path comes back.

    Raises:
        ValueError: another suffix, or the folder is not there.
    """
    path = Path(path).expanduser()
    if path.suffix not in (".png", ".svg"):
        raise ValueError(f"path={str(path)!r} must end in .png or .svg")
    if not path.parent.is_dir():
        raise ValueError(f"path={str(path)!r}: there is no folder {str(path.parent)!r}; make it first")
    write_bytes(_drawn(figure, path.suffix[1:]), path)
    return path


def png(figure: "Figure") -> bytes:
    """The figure as PNG, in its own resolution."""
    return _drawn(figure, "png")


def _drawn(figure: "Figure", form: str) -> bytes:
    figure.savefig(buffer := io.BytesIO(), format=form)
    return buffer.getvalue()


def blank(width: float, height: float, dpi: float = DPI) -> "Figure":
    """An empty figure of so many inches, that a notebook shows; its parts find their own places.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    return _figure_class()(figsize=(width, height), dpi=dpi, layout="constrained")


@cache
def _figure_class() -> type["Figure"]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("plots need matplotlib: pip install 'steer[bench]'", name=error.name) from error

    class Plot(Figure):
        """A figure that draws itself without pyplot, also where a notebook asks for it."""

        def __init__(self, **settings: Any) -> None:  # noqa: ANN401
            super().__init__(**settings)
            FigureCanvasAgg(self)

        def _repr_png_(self) -> bytes:
            return png(self)

    return Plot


def check(x: Tensor, name: str, shape: str, fits: bool) -> None:
    """Raises ValueError, naming the argument and the shape it must have, unless it fits."""
    if not fits:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(x.shape)}")


def legend(axes: "Axes") -> None:
    """A line of entries above a panel, at its right end."""
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), frameon=False, ncols=3, borderaxespad=0.1, fontsize=9)


def numpy_of(x: Tensor) -> Any:  # noqa: ANN401
    """The same numbers as matplotlib takes them."""
    return x.detach().cpu().float().numpy()
