"""Contact sheets: pictures side by side, with their scores."""

import io
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from steer.samples import Samples

TILE, GAP, LINE, HEAD = 128, 8, 18, 60
MARGIN = 24
INK, FAINT, FRAME, ACCENT = (30, 30, 34), (120, 120, 128), (226, 226, 230), (0, 114, 178)


def contact_sheet(samples: "Samples", shown: int = 16) -> bytes:
    """PNG with two blocks a prompt: at most `shown` unsteered pictures and as many steered, best first, with scores."""
    from PIL import Image, ImageDraw

    count = min(shown, samples.images.shape[1])
    columns = max(2, min(4, side_of(count)))
    block = columns * (TILE + GAP) - GAP
    high = HEAD + -(-count // columns) * (TILE + LINE + GAP) + MARGIN
    size = (2 * block + 3 * MARGIN, len(samples.prompts) * high + MARGIN // 2)
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for i, prompt in enumerate(samples.prompts):
        top = MARGIN // 2 + i * high
        _text(pen, (MARGIN, top), prompt, INK, 20, size[0] - 2 * MARGIN)
        blocks = (
            ("unsteered", samples.unsteered[i], samples.unsteered_rewards[i], FAINT),
            (_title(samples), samples.images[i], samples.rewards[i], ACCENT),
        )
        for k, (name, images, rewards, colour) in enumerate(blocks):
            left = MARGIN + k * (block + MARGIN)
            _text(pen, (left, top + 32), f"{name}: mean {_number(rewards.mean())}", colour, 14, block)
            _block(sheet, pen, images, rewards, (left, top + HEAD), count, columns)
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    return buffer.getvalue()


def side_of(count: int) -> int:
    """The side of the smallest square with so many places."""
    return int(count**0.5) + (int(count**0.5) ** 2 < count)


def _title(samples: "Samples") -> str:
    report = samples.report
    if "method" not in report:
        return "steered"
    return f"steered by {report['reward']['name']}, {report['method']['name']}"


def _number(x: Tensor) -> str:
    return f"{x.item():.3g}"


def _font(size: int) -> Any:  # noqa: ANN401 (PIL is imported where it is used)
    from PIL import ImageFont

    return ImageFont.load_default(size=size)


def _text(pen: Any, corner: tuple[int, int], text: str, colour: tuple[int, int, int], size: int, width: int) -> None:  # noqa: ANN401
    """Write a line, cut to the width."""
    font, line = _font(size), text
    while len(line) > 1 and font.getlength(line) > width:
        text = text[:-1]
        line = text + "..."
    pen.text(corner, line, fill=colour, font=font)


def _block(
    sheet: Any,  # noqa: ANN401
    pen: Any,  # noqa: ANN401
    images: Tensor,
    rewards: Tensor,
    corner: tuple[int, int],
    shown: int,
    columns: int,
) -> None:
    for place, j in enumerate(rewards.argsort(descending=True)[:shown].tolist()):
        x = corner[0] + place % columns * (TILE + GAP)
        y = corner[1] + place // columns * (TILE + LINE + GAP)
        tile = fit(images[j], TILE)
        sheet.paste(tile, (x + (TILE - tile.width) // 2, y + (TILE - tile.height) // 2))
        pen.rectangle((x - 1, y - 1, x + TILE, y + TILE), outline=FRAME)
        _text(pen, (x, y + TILE + 2), _number(rewards[j]), INK if place == 0 else FAINT, 13, TILE)


def fit(picture: Tensor, side: int) -> Any:  # noqa: ANN401
    """A picture [3 h w] in [0,1] as PIL, its longer side `side` pixels: whole pixels enlarged, larger ones reduced."""
    from PIL import Image

    from steer.samples import to_pil

    image = to_pil(picture)
    scale = side / max(image.size)
    how = Image.Resampling.NEAREST if scale >= 8 else Image.Resampling.LANCZOS
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), how)
