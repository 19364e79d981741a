"""Build the emoji data set that ships in steer/data/assets from four npm packages.

    npm install @iconify-json/noto@1.2.9 @iconify-json/fluent-emoji-flat@1.2.6 \
                @iconify-json/twemoji@1.2.5 emojibase-data@17.0.0
    pip install resvg-py==0.5.0
    python scripts/build_emoji.py node_modules steer/data/assets

Each icon is drawn by resvg at 256 x 256, laid over white and reduced to 64 x 64 by the mean of its 4 x 4 boxes, and its
coverage (alpha) likewise: bit for bit the same on every machine. Skin tones and icons marked hidden are left out.
Label, tags, group and subgroup come from emojibase, joined on the code points without the variation selector FE0F; an
icon unknown there is captioned by its name. The pictures and coverages are stored in lossless WebP sheets, the texts
in captions.json.
"""

import io
import json
import sys
from collections.abc import Iterator
from multiprocessing import Pool
from pathlib import Path

import numpy as np
from PIL import Image

STYLES = {"noto": "noto", "fluent": "fluent-emoji-flat", "twemoji": "twemoji"}
SKIN_TONES = {"1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF"}
SIZE, OVERSAMPLE, COLUMNS = 64, 4, 40


def render(body: str, icon: dict, defaults: dict) -> np.ndarray:
    """One icon as uint8 [64 64 4]: the colours over white, and the coverage."""
    import resvg_py

    left, top = icon.get("left", 0), icon.get("top", 0)
    width, height = (icon.get(k, defaults.get(k, 16)) for k in ("width", "height"))
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{left} {top} {width} {height}">{body}</svg>'
    side = SIZE * OVERSAMPLE
    png = resvg_py.svg_to_bytes(svg_string=svg, width=side, height=side)
    picture = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    square = Image.new("RGBA", (side, side))
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    white = Image.new("RGBA", square.size, "white")
    rgb = Image.alpha_composite(white, square).convert("RGB").reduce(OVERSAMPLE)
    return np.dstack([rgb, square.getchannel("A").reduce(OVERSAMPLE)])


def code(hexcode: str) -> str:
    return "-".join(part for part in hexcode.upper().split("-") if part != "FE0F")


def read_labels(modules: Path) -> dict[str, dict]:
    folder = modules / "emojibase-data" / "en"
    names = json.loads((folder / "messages.json").read_text())
    groups, subgroups = ([g["message"] for g in names[k]] for k in ("groups", "subgroups"))
    return {
        code(e["hexcode"]): {
            "caption": e["label"],
            "tags": e.get("tags", []),
            "group": groups[e["group"]] if "group" in e else "",
            "subgroup": subgroups[e["subgroup"]] if "subgroup" in e else "",
        }
        for e in json.loads((folder / "data.json").read_text())
    }


def icons(modules: Path, style: str) -> Iterator[tuple[str, list[str], dict, dict]]:
    """Yield (name, code points, icon, defaults) of every icon kept of a style, in the package's order."""
    folder = modules / "@iconify-json" / STYLES[style]
    data = json.loads((folder / "icons.json").read_text())
    codes: dict[str, list[str]] = {}
    for hexcode, name in json.loads((folder / "chars.json").read_text()).items():
        codes.setdefault(name, []).append(code(hexcode))
    for name, icon in data["icons"].items():
        of = codes.get(name, [])
        if not icon.get("hidden") and not any(set(c.split("-")) & SKIN_TONES for c in of):
            yield name, of, icon, {k: data[k] for k in ("width", "height") if k in data}


def write_sheet(pictures: list[np.ndarray], path: Path) -> None:
    """Pictures [h w c] side by side, 40 in a row, as one lossless WebP."""
    sheet = np.full((-(-len(pictures) // COLUMNS) * SIZE, COLUMNS * SIZE, 3), 255, np.uint8)
    for i, picture in enumerate(pictures):
        y, x = i // COLUMNS * SIZE, i % COLUMNS * SIZE
        sheet[y : y + SIZE, x : x + SIZE] = picture
    Image.fromarray(sheet).save(path, lossless=True, quality=100, method=6)


def draw(job: tuple) -> np.ndarray:
    return render(*job)


def build(modules: Path, out: Path) -> None:
    labels = read_labels(modules)
    rows = []
    for style in STYLES:
        kept = list(icons(modules, style))
        for name, codes, _, _ in kept:
            known = next((labels[c] for c in codes if c in labels), None)
            row = known or {"caption": name.replace("-", " "), "tags": [], "group": "", "subgroup": ""}
            rows.append({"style": style, "icon": name, **row})
        with Pool() as pool:
            pictures = pool.map(draw, [(icon["body"], icon, sizes) for _, _, icon, sizes in kept], chunksize=32)
        write_sheet([p[..., :3] for p in pictures], out / f"{style}.webp")
        write_sheet([p[..., 3:].repeat(3, 2) for p in pictures], out / f"{style}-coverage.webp")
        print(style, len(pictures))
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (out / "captions.json").write_text(f"[\n{lines}\n]\n", encoding="utf8")


if __name__ == "__main__":
    build(Path(sys.argv[1]), Path(sys.argv[2]))
