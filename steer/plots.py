"""Pictures of results."""

import io
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from steer.samples import Samples

TILE, GAP, COLUMNS, LINE = 128, 6, 4, 15
INK, FAINT, ACCENT = (30, 30, 34), (120, 120, 128), (0, 114, 178)


def contact_sheet(samples: "Samples", shown: int = 16) -> bytes:
    """PNG with a row of two blocks a prompt: `shown` unsteered pictures, and as many steered, best first, scores below."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size=13)
    title = ImageFont.load_default(size=18)
    rows = -(-min(shown, samples.images.shape[1]) // COLUMNS)
    block = COLUMNS * (TILE + GAP)
    high = 52 + rows * (TILE + LINE + GAP)
    sheet = Image.new("RGB", (2 * block + 3 * 3 * GAP, len(samples.prompts) * high + 2 * GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for i, prompt in enumerate(samples.prompts):
        top = GAP + i * high
        pen.text((3 * GAP, top), f"\u201c{prompt}\u201d", fill=INK, font=title)
        blocks = (("unsteered", samples.unsteered[i], samples.unsteered_rewards[i], FAINT),
                  ("steered", samples.images[i], samples.rewards[i], ACCENT))  # fmt: skip
        for k, (name, images, rewards, colour) in enumerate(blocks):
            left = 3 * GAP + k * (block + 3 * GAP)
            label = f"{name}, mean reward {rewards.mean().item():.3g}"
            pen.text((left, top + 26), label, fill=colour, font=font)
            _block(sheet, pen, images, rewards, (left, top + 48), shown, font)
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    return buffer.getvalue()


def _block(
    sheet: Any, pen: Any, images: Tensor, rewards: Tensor, corner: tuple[int, int], shown: int, font: Any  # noqa: ANN401
) -> None:
    from PIL import Image

    from steer.samples import to_pil

    for place, j in enumerate(rewards.argsort(descending=True)[:shown].tolist()):
        x = corner[0] + place % COLUMNS * (TILE + GAP)
        y = corner[1] + place // COLUMNS * (TILE + LINE + GAP)
        picture = to_pil(images[j])
        scale = max(1, TILE // picture.width)
        small = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.BICUBIC)
        sheet.paste(small.resize((TILE, TILE)) if small.width > TILE else small, (x, y))
        pen.rectangle((x - 1, y - 1, x + TILE, y + TILE), outline=(226, 226, 230))
        pen.text((x, y + TILE + 1), f"{rewards[j].item():.3g}", fill=FAINT, font=font)
