"""What `steer.sample` returns: pictures, scores, what it cost; saves itself and shows itself in a notebook."""

import io
import json
import math
import os
import re
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steer.particles import Trace

PROMPTS_A_SHEET = 8


@dataclass(frozen=True)
class Samples:
    """Weighted pictures of p prompts, n each, and the unsteered ones from the same noise.

    prompts: the p prompts.
    images: [p n 3 h w] in [0,1].
    rewards: [p n], the raw reward of each picture.
    log_w: [p n], log-weights whose exponentials sum to one in each row; `images` with these weights stand for the law.
    best: [p 3 h w], the picture with the highest reward.
    trace: what the method did (times, ESS, log Z, calls); see steer.Trace.
    unsteered, unsteered_rewards: plain samples of the model from the same noise, and their rewards.
    report: costs, settings and held-out figures, as plain numbers and words (what report.json holds).
    facts: what the report was made of, see `steer.report.Facts`.
    """

    prompts: list[str]
    images: Tensor = field(repr=False)
    rewards: Tensor = field(repr=False)
    log_w: Tensor = field(repr=False)
    trace: Trace = field(repr=False)
    unsteered: Tensor = field(repr=False)
    unsteered_rewards: Tensor = field(repr=False)
    report: dict[str, Any] = field(repr=False, default_factory=dict)
    facts: Any = field(repr=False, default=None)

    @property
    def best_index(self) -> Tensor:
        """Which picture has the highest reward [p]; among equals the one of the highest weight."""
        alive = self.rewards + 1e-9 * self.log_w.clamp_min(-1e3)
        return alive.argmax(1)

    @property
    def best(self) -> Tensor:
        """The picture with the highest reward [p 3 h w]."""
        return self.images[torch.arange(len(self.prompts), device=self.images.device), self.best_index]

    def save(self, folder: str | Path) -> Path:
        """Write sheet.png, best-*.png, a folder of pictures a prompt, report.html and report.json; the path comes back.

        With many prompts the sheet goes on in sheet-2.png and so on. Pictures are the particles in their order, with
        their scores in report.json; report.html shows all of it on one page. Each file is written under a temporary
        name and renamed, report.json last: where it stands, all of it stands. Pictures of an earlier run in the same
        folder are replaced.

        Raises:
            ValueError: the folder cannot be written.
        """
        from steer.report_page import report_page

        folder = check_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        _clear(folder)
        best = self.best
        for i, prompt in enumerate(self.prompts):
            stem = f"{i:02d}-{slug(prompt)}"
            write_png(best[i], folder / f"best-{stem}.png")
            (folder / stem).mkdir(exist_ok=True)
            for name, batch in (("steered", self.images[i]), ("unsteered", self.unsteered[i])):
                for j, picture in enumerate(batch):
                    write_png(picture, folder / stem / f"{name}-{j:03d}.png")
        starts = range(0, len(self.prompts), PROMPTS_A_SHEET)
        sheets = [self.part(start, start + PROMPTS_A_SHEET).sheet() for start in starts]
        for page, sheet in enumerate(sheets, 1):
            write_bytes(sheet, folder / ("sheet.png" if page == 1 else f"sheet-{page}.png"))
        if self.report:
            write_bytes(report_page(self, sheets), folder / "report.html")
        write_report(self.report, folder)
        return folder

    def part(self, start: int, stop: int) -> "Samples":
        """The prompts from `start` to before `stop`; trace and report stay those of the whole."""
        rows = slice(start, stop)
        names = ("prompts", "images", "rewards", "log_w", "unsteered", "unsteered_rewards")
        return replace(self, **{name: getattr(self, name)[rows] for name in names})

    def sheet(self, shown: int = 16) -> bytes:
        """The contact sheet as PNG: for each prompt unsteered pictures beside steered ones, by falling reward."""
        from steer.sheets import contact_sheet

        return contact_sheet(self, shown)

    def _repr_png_(self) -> bytes:
        return self.part(0, PROMPTS_A_SHEET).sheet()

    def __repr__(self) -> str:
        p, n = self.rewards.shape
        mean = [f"{r.mean().item():.3g}" for r in (self.unsteered_rewards, self.rewards)]
        method = self.report.get("method", {}).get("name", "")
        return f"Samples({p} x {n} pictures by {method}; mean reward {mean[0]} unsteered, {mean[1]} steered)"


def check_folder(folder: str | Path) -> Path:
    """Prove that the folder can be made and written, without making it.

    Raises:
        ValueError: it cannot; the message names it, the cause and the cure.
    """
    if not (isinstance(folder, str | Path) and str(folder)) or "\0" in str(folder):
        raise ValueError(f"out={folder!r} must be the name of a folder, as text; '.' is this one")
    folder = Path(folder).expanduser()
    try:
        os.fsencode(folder)
        there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        with tempfile.TemporaryFile(dir=there):
            pass
    except (OSError, UnicodeEncodeError) as error:
        cause = getattr(error, "strerror", None) or error
        raise ValueError(f"out={str(folder)!r} cannot be written ({cause}); name another folder") from error
    return folder


def _clear(folder: Path) -> None:
    """Remove what an earlier run wrote here, as its report.json lists it, and nothing else; no empty folder stays."""
    try:
        prompts = json.loads((folder / "report.json").read_text(encoding="utf8"))["prompts"]
        stems = [f"{i:02d}-{slug(prompt)}" for i, prompt in enumerate(prompts)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return
    for name in ("report.json", "report.html"):
        (folder / name).unlink(missing_ok=True)
    for stem in stems:
        (folder / f"best-{stem}.png").unlink(missing_ok=True)
        for picture in (folder / stem).glob("*steered-*.png"):
            picture.unlink()
        if (folder / stem).is_dir() and not any((folder / stem).iterdir()):
            (folder / stem).rmdir()
    for sheet in folder.glob("sheet*.png"):
        sheet.unlink()


def slug(text: str) -> str:
    """A prompt as a file name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40] or "prompt"


def write_bytes(data: bytes, path: Path) -> None:
    """Write under a temporary name in the same folder, then rename; nothing half-written is left behind."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_report(report: dict[str, Any], folder: Path) -> None:
    """Write report.json, whole or not at all; half a character, which UTF-8 lacks, as JSON escapes it."""
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)
    write_bytes((text + "\n").encode("utf8", "backslashreplace"), folder / "report.json")


def to_pil(picture: Tensor) -> Any:  # noqa: ANN401 (PIL is imported where it is used)
    """A picture [3 h w] in [0,1] as PIL."""
    from PIL import Image

    return Image.fromarray((picture.detach().float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy())


def write_png(picture: Tensor, path: Path) -> None:
    """Write a picture [3 h w] in [0,1]."""
    buffer = io.BytesIO()
    to_pil(picture).save(buffer, format="PNG")
    write_bytes(buffer.getvalue(), path)


def finite(x: Any) -> Any:  # noqa: ANN401
    """The same, None for a number that JSON cannot hold."""
    return None if isinstance(x, float) and not math.isfinite(x) else x
