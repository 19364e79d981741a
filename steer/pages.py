"""Pages that stand alone: one HTML file without scripts or anything from elsewhere. Texts are escaped here."""

import base64
from collections.abc import Collection, Mapping, Sequence
from html import escape
from math import isfinite
from typing import Any

from steer import plots
from steer.printing import cell, columns_of

STYLE = """\
body { font: 15px/1.5 system-ui, sans-serif; color: #1e1e22; max-width: 1100px; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse; margin: 1em 0 } td, th { padding: .25em .8em; text-align: left }
th { border-bottom: 2px solid #e2e2e6 } td { border-bottom: 1px solid #e2e2e6 }
td.number, th.number { text-align: right }
tr.marked td { background: #eef6fb } pre { background: #f5f5f7; padding: .8em; white-space: pre-wrap }
img { max-width: 100%; vertical-align: middle } .warning { border-left: 4px solid #d55e00; padding-left: .8em }
svg text { font: 11px system-ui, sans-serif; fill: #78787f }
"""
COLOURS = (*plots.COLOURS[:6], "#1e1e22", "#a0a000")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 280, 56, 150, 28, 40  # of a chart, in pixels

Points = Sequence[tuple[float, float]]


def page(title: str, *parts: str) -> bytes:
    """A whole page of parts that are HTML already."""
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    body = "\n".join(parts)
    whole = f"<!doctype html>\n<html><head>{head}</head>\n<body>\n<h1>{escape(title)}</h1>\n{body}\n</body></html>\n"
    return whole.encode("utf8", "xmlcharrefreplace")


def heading(text: str) -> str:
    """Of a section."""
    return f"<h2>{escape(text)}</h2>"


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph; kind "warning" is set off."""
    return f'<p class="{escape(kind)}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def code(text: str) -> str:
    """A command, or what else is to be copied."""
    return f"<pre>{escape(text)}</pre>"


def picture(png: bytes, about: str, height: int | None = None) -> str:
    """A PNG, in the page itself; height in pixels."""
    size = f' height="{height}"' if height else ""
    data = base64.b64encode(png).decode("ascii")
    return f'<img alt="{escape(about)}"{size} src="data:image/png;base64,{data}">'


def table(rows: Sequence[Mapping[str, Any]], marked: Collection[int] = (), html: Collection[str] = ()) -> str:
    """A table, a column a key, numbers to the right.

    marked: rows to stand out, by their places. html: columns whose values are HTML already.
    """
    columns = columns_of([dict(row) for row in rows])
    numeric = {c for c in columns if all(isinstance(row.get(c), int | float | None) for row in rows)}
    kind = {c: ' class="number"' if c in numeric else "" for c in columns}
    lines = ["<tr>" + "".join(f"<th{kind[c]}>{escape(c)}</th>" for c in columns) + "</tr>"]
    for i, row in enumerate(rows):
        cells = (str(row.get(c, "")) if c in html else escape(cell(row.get(c))) for c in columns)
        start = '<tr class="marked">' if i in marked else "<tr>"
        lines.append(
            start + "".join(f"<td{kind[c]}>{text}</td>" for c, text in zip(columns, cells, strict=True)) + "</tr>"
        )
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def chart(lines: Mapping[str, Points], x: str, y: str, least: float | None = None) -> str:
    """Lines through points, each with its name, as SVG; what is not finite is left out.

    x, y: what the axes say. least: where y begins, if not at the lowest point.
    """
    kept = {name: [(a, b) for a, b in points if isfinite(a) and isfinite(b)] for name, points in lines.items()}
    every = [point for points in kept.values() for point in points]
    if not every:
        return ""
    low, high = min(a for a, _ in every), max(a for a, _ in every)
    bottom, top = min(b for _, b in every) if least is None else least, max(b for _, b in every)
    right, base = WIDTH - RIGHT, HEIGHT - BOTTOM

    def place(a: float, b: float) -> tuple[float, float]:
        across, up = (a - low) / (high - low or 1), (b - bottom) / (top - bottom or 1)
        return round(LEFT + across * (right - LEFT), 1), round(base - up * (base - TOP), 1)

    parts = [f'<path d="M{LEFT},{TOP}V{base}H{right}" fill="none" stroke="#a0a0a8"/>']
    parts += [_text(LEFT + 4, HEIGHT - 6, x, "start"), _text(LEFT, TOP - 14, y, "start")]
    parts += [_text(place(a, bottom)[0], base + 16, cell(a), "middle") for a in sorted({low, high})]
    parts += [_text(LEFT - 6, place(low, b)[1] + 4, cell(b), "end") for b in sorted({bottom, top})]
    for i, (name, points) in enumerate(kept.items()):
        colour, spots = COLOURS[i % len(COLOURS)], [place(a, b) for a, b in sorted(points)]
        shape = " ".join(f"{a},{b}" for a, b in spots)
        parts.append(f'<polyline points="{shape}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        parts += [f'<circle cx="{a}" cy="{b}" r="3" fill="{colour}"/>' for a, b in spots]
        parts.append(f'<rect x="{right + 12}" y="{TOP + 16 * i}" width="10" height="10" fill="{colour}"/>')
        parts.append(_text(right + 28, TOP + 16 * i + 9, name if len(name) < 20 else f"{name[:17]}...", "start"))
    high_enough = max(HEIGHT, TOP + 16 * len(kept) + 8)
    return f'<svg width="{WIDTH}" height="{high_enough}" role="img">' + "".join(parts) + "</svg>"


def dots(values: Mapping[str, float], x: str, mark: tuple[str, float]) -> str:
    """A dot a name on a line of its own, the highest above, and a dashed line at what they are compared with, as SVG.

    x: what the axis says. mark: the name and the place of the dashed line.
    """
    kept = sorted(((b, name) for name, b in values.items() if isfinite(b)), reverse=True)
    if not kept:
        return ""
    every = [b for b, _ in kept] + [mark[1]] * isfinite(mark[1])
    low, high, left, right = min(every), max(every), RIGHT, WIDTH - LEFT
    base = TOP + 20 * len(kept)

    def place(b: float) -> float:
        return round(left + (b - low) / (high - low or 1) * (right - left), 1)

    parts = [f'<path d="M{left},{base}H{right}" fill="none" stroke="#a0a0a8"/>', _text(left, base + 34, x, "start")]
    parts += [_text(place(b), base + 16, cell(b), "middle") for b in sorted({low, high})]
    if isfinite(mark[1]):
        across = place(mark[1])
        parts.append(f'<path d="M{across},{TOP - 6}V{base}" stroke="#a0a0a8" stroke-dasharray="4 3"/>')
        parts.append(_text(across, TOP - 12, f"{mark[0]} {cell(mark[1])}", "middle"))
    for i, (b, name) in enumerate(kept):
        y = TOP + 20 * i + 8
        parts += [_text(left - 12, y + 4, name if len(name) < 20 else f"{name[:17]}...", "end")]
        parts += [f'<circle cx="{place(b)}" cy="{y}" r="4" fill="{COLOURS[0]}"/>']
        parts += [_text(place(b) + 9, y + 4, cell(b), "start")]
    return f'<svg width="{WIDTH}" height="{base + 42}" role="img">' + "".join(parts) + "</svg>"


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'
