"""index.html of a run of many prompts: a line each, with its best picture, that leads to the prompt's own page."""

import statistics
from collections.abc import Sequence
from html import escape
from typing import Any
from urllib.parse import quote

from steer import pages

NEAR = 96  # pixels of a picture's height


def index_page(rows: Sequence[dict[str, Any]]) -> bytes:
    """The page of the lines of results.jsonl; pictures and pages are in the folders beside it."""
    best, plain = (_mean([row[key] for row in rows]) for key in ("best", "unsteered"))
    judged = any(row["held_out"] is not None for row in rows)
    told = f"{len(rows)} prompts by {rows[0]['reward']}: mean of the best pictures {best}, of plain ones {plain}."
    table = [
        {"": row["position"], "picture": _picture(row), "prompt": _link(row)}
        | {key: row[key] for key in ("best", "mean", "unsteered", *["held_out"] * judged, "warnings")}
        for row in rows
    ]
    return pages.page("Pictures of many prompts", pages.paragraph(told), pages.table(table, html=("picture", "prompt")))


def _picture(row: dict[str, Any]) -> str:
    return f'<img alt="" loading="lazy" height="{NEAR}" src="{quote(row["folder"])}/best.png">'


def _link(row: dict[str, Any]) -> str:
    return f'<a href="{quote(row["folder"])}/report.html">{escape(row["prompt"])}</a>'


def _mean(scores: list[float | None]) -> str:
    """Of those that were not rejected."""
    kept = [score for score in scores if score is not None]
    return f"{statistics.fmean(kept):.4g}" if kept else "none"
