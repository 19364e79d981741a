"""Many prompts, each into a folder of its own, over any number of processes; a run that was ended goes on.

A batch of prompts is what is drawn at once, and goes to one process; batches know nothing of each other, nor of how
many processes there are. A prompt's report.json is written last: where it stands, the prompt is done. What is drawn
again after a kill is the batch that it fell into, in the same company, and so the same bit for bit.
"""

import dataclasses
import inspect
import json
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import rewards
from steer import checkpoints, settings
from steer.api import drawn_seed, ready, sample
from steer.arguments import (
    check_device,
    check_flags,
    check_held_out,
    check_method,
    check_numbers,
    check_prompts,
    check_reward,
    check_want,
)
from steer.many_page import index_page
from steer.models import Model
from steer.progress import bar
from steer.prompts import read
from steer.report import make_report
from steer.sameness import described, difference
from steer.samples import Samples, check_folder, slug, write_bytes, write_png, write_report
from steer.spreading import shares_here
from steer.stopping import Signals, Stopped

RECORDED = ("n", "steps", "temperature", "budget", "want")  # of what `sample` takes, what decides the pictures


def sample_many(
    prompts: str | Path | Sequence[str],
    *,
    out: str | Path,
    reward: Any,  # noqa: ANN401 (whatever rewards.to_reward takes)
    batch: int = 4,
    model: str | Model = "emoji",
    method: Any = None,  # noqa: ANN401 (a name or a method)
    seed: int | None = None,
    device: str | torch.device | None = None,
    compile: bool = False,
    progress: bool = True,
    **given: Any,  # noqa: ANN401
) -> list[dict[str, Any]]:
    """`steer.sample` for each of many prompts; under `accelerate launch` each process takes its share of the batches.

    The folder `out` then holds, for the prompt at each position (from 0), 00012-its-words/ with best.png,
    steered-*.png, report.html and report.json, those of this prompt alone; run.json, the prompts and settings; and,
    written by the last process to finish, index.html, which shows all prompts, and results.jsonl, a line a prompt. The
    same call goes on where an earlier one was ended, with any number of processes, and finds what is done done; the
    pictures are those of a run that nobody ended.

    Args:
        prompts: a text file with one a line (UTF-8; empty lines and those that begin with # are left out), or a list. A
            prompt that stands there twice is drawn twice, from the same noise, into folders of both positions.
        out: the folder.
        reward: as `steer.sample` takes it.
        batch: prompts drawn at once. It may change when a run goes on, as what bounds memory may (chunk, device,
            compile, checkpoint): pictures are then the same up to rounding.
        model: as `steer.sample` takes it; loaded once.
        method: as `steer.sample` takes it.
        seed: None draws one, which run.json keeps.
        device: None takes the process's own.
        compile: put the flow through torch.compile, once.
        progress: a progress bar of the first process's share.
        given: n, steps, temperature, budget, want, chunk, checkpoint, held_out, as `steer.sample` takes them.

    Returns:
        The lines of results.jsonl as dicts: those of all prompts from the process that finishes last, in the others of
        what is done by then.

    Raises:
        ValueError: an argument is out of range or unknown, or the folder holds a run of other prompts or settings; the
            message names the difference.
        Stopped: the process was told to (SIGTERM, SIGINT); the batch that it was at is done.
        Exception: what a reward raises, as it is, with a note that names the prompts. What was done stays done.
    """
    texts, folder = _texts(prompts), check_folder(out)
    _check(given, batch, method, seed)
    check_flags(progress=progress, compile=compile, checkpoint=given.get("checkpoint", False))
    score, given["held_out"] = check_reward(reward), check_held_out(given.get("held_out", "judge"))
    shares, device = shares_here(device)
    run = _facts(texts, model, score, method, given)
    folders, new = _folders(folder, texts), not folder.exists()
    seed, todo = shares.agree(lambda: _begin(run, seed, folder, folders, batch))
    mine = todo[shares.rank :: shares.world]
    told = {"reward": score, "method": method, "seed": seed, "device": device, "progress": False, **given}
    shown = progress and shares.rank == 0
    with (
        _leaving_nothing(folder, new, shares.world),
        Signals() as signals,
        bar(shown, "prompts", sum(map(len, mine)), "prompts") as tick,
    ):
        if mine:
            told["model"] = ready(model, check_device(device), compile)
        for rows in mine:
            if signals.asked:
                done = sum(_done(place) for place in folders)
                cure = f"the same command goes on in {folder}"
                raise Stopped(f"stopped as asked, with {done} of {len(texts)} prompts done; {cure}", signals.asked)
            _draw([texts[i] for i in rows], [folders[i] for i in rows], told)
            tick(len(rows))
    return _index(folder, folders, shares.rank)


@contextmanager
def _leaving_nothing(folder: Path, new: bool, world: int) -> Iterator[None]:
    """No trace of a run that fails before any prompt is done; of several processes another may still do one."""
    try:
        yield
    except Exception:
        if world == 1 and not any(folder.glob("*/report.json")):
            (folder / "run.json").unlink(missing_ok=True)
            if new and not any(folder.iterdir()):
                folder.rmdir()
        raise


def _texts(prompts: object) -> list[str]:
    if not isinstance(prompts, str | Path):
        return check_prompts(prompts)
    try:
        return read(prompts)
    except UnicodeDecodeError as error:
        raise ValueError(f"prompts={str(prompts)!r} is no UTF-8 text ({error}); save it as UTF-8") from error


def _check(given: dict[str, Any], batch: object, method: object, seed: object) -> None:
    """Everything that `sample` would find wrong, before anything is written."""
    known = inspect.signature(sample).parameters
    for key in given:
        if key == "spread" and given[key] is not None:
            raise ValueError(
                f"spread={given[key]!r} shares one prompt's pictures among the processes, where many prompts are "
                "themselves shared out; leave it out, or give `sample` one prompt"
            )
        if key not in known or key == "prompt":
            raise settings.unknown("setting", key, [name for name in known if name != "prompt"])
    asked = {key: given.get(key, known[key].default) for key in RECORDED}
    check_numbers(asked["n"], asked["steps"], asked["temperature"], asked["budget"], seed)
    check_want(asked["want"])
    check_method(method)
    if not isinstance(batch, int) or isinstance(batch, bool) or batch < 1:
        raise ValueError(f"batch={batch!r} must be a whole number, at least 1")


def _facts(texts: list[str], model: str | Model, score: rewards.Reward, method: Any, given: dict[str, Any]) -> Any:  # noqa: ANN401
    """What makes this run the one it is, as JSON holds it."""
    known = inspect.signature(sample).parameters
    method = settings.build("method", method) if isinstance(method, str) else method
    facts = {
        "model": model.name if isinstance(model, Model) else str(model),
        "reward": {"name": rewards.name_of(score), "settings": described(score)},
        "method": described(method),
        "held_out": given["held_out"] and rewards.name_of(given["held_out"]),
        **{key: given.get(key, known[key].default) for key in RECORDED},
    }
    return checkpoints.plain({"settings": facts, "prompts": texts})


def _begin(run: Any, seed: int | None, folder: Path, folders: list[Path], batch: int) -> tuple[int, list[list[int]]]:  # noqa: ANN401
    """The seed of the run, and the batches in which a prompt is still to be drawn.

    Raises:
        ValueError: the folder holds another run, in which something is done.
    """
    there = _recorded(folder)
    chosen = drawn_seed(there["seed"] if there and seed is None else seed)
    if there:
        _check_same(there, {**run, "seed": chosen}, folder)
    else:
        checkpoints.write_json(folder / "run.json", {**run, "seed": chosen})
    rows = [list(range(i, min(i + batch, len(folders)))) for i in range(0, len(folders), batch)]
    return chosen, [some for some in rows if not all(_done(folders[i]) for i in some)]


def _recorded(folder: Path) -> Any:  # noqa: ANN401
    """What run.json says; None where there is none, or nothing is done yet, and the run may begin anew."""
    path = folder / "run.json"
    if not path.exists():
        return None
    try:
        there = json.loads(path.read_text(encoding="utf8"))
        known = isinstance(there["settings"], dict) and all(isinstance(text, str) for text in there["prompts"])
        if not known or not isinstance(there["seed"], int):
            raise TypeError("settings, prompts or a seed that are none")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}); remove it to begin anew, or name another folder") from error
    return there if any(map(_done, _folders(folder, there["prompts"]))) else None


def _folders(folder: Path, texts: list[str]) -> list[Path]:
    return [folder / f"{i:05d}-{slug(text)}" for i, text in enumerate(texts)]


def _check_same(there: Any, now: Any, folder: Path) -> None:  # noqa: ANN401
    """Raises ValueError, naming the first difference, where they are not the same run."""
    cure = f"which the run in {folder} began with; give that, or another folder"
    for key in ("seed", *now["settings"]):
        old, new = (run["seed"] if key == "seed" else run["settings"].get(key) for run in (there, now))
        if old != new:
            raise ValueError(f"{difference(key, old, new)}, {cure}")
    old, new = there["prompts"], now["prompts"]
    if len(old) != len(new):
        raise ValueError(f"prompts holds {len(new)} prompts, not the {len(old)} {cure}")
    for i, (before, text) in enumerate(zip(old, new, strict=True)):
        if before != text:
            raise ValueError(f"prompts has {text!r} at position {i}, not {before!r}, {cure}")


def _draw(texts: list[str], folders: list[Path], told: dict[str, Any]) -> None:
    """A batch, and the folders of those of its prompts that are not done."""
    try:
        with warnings.catch_warnings():  # each prompt's own are in its report
            warnings.filterwarnings("ignore", category=UserWarning, module=r"steer\.many")
            drawn = sample(texts, **told)
    except Exception as error:
        first = folders[0].parent
        error.add_note(
            f"while drawing {', '.join(f'{f.name[:5]} {t!r}' for f, t in zip(folders, texts, strict=True))}; what is "
            f"done stays in {first}, and the same command goes on there"
        )
        raise
    for i, folder in enumerate(folders):
        if not _done(folder):
            rows = slice(i, i + 1)
            part = drawn.part(i, i + 1)
            _write(part, make_report(part, drawn.facts.part(rows)), folder)


def _write(one: Samples, report: dict[str, Any], folder: Path) -> None:
    from steer.report_page import report_page

    folder.mkdir(parents=True, exist_ok=True)
    write_png(one.best[0], folder / "best.png")
    for j, picture in enumerate(one.images[0]):
        write_png(picture, folder / f"steered-{j:03d}.png")
    told = dataclasses.replace(one, report=report)
    write_bytes(report_page(told, [told.sheet()]), folder / "report.html")
    write_report(report, folder)


def _done(folder: Path) -> bool:
    return (folder / "report.json").exists()


def _index(folder: Path, folders: list[Path], rank: int) -> list[dict[str, Any]]:
    """A line of each prompt that is done, written down where all are; each process has a temporary name of its own."""
    rows = [_line(i, place) for i, place in enumerate(folders) if _done(place)]
    if len(rows) == len(folders):
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf8", "backslashreplace")
        for name, content in {"index.html": index_page(rows), "results.jsonl": lines}.items():
            part = folder / f".{name}.{rank}.part"
            part.write_bytes(content)
            os.replace(part, folder / name)
    return rows


def _line(position: int, folder: Path) -> dict[str, Any]:
    report = json.loads((folder / "report.json").read_text(encoding="utf8"))
    scores = report["reward"]
    return {
        "position": position,
        "prompt": report["prompts"][0],
        "reward": scores["name"],
        "best": scores["best"],
        "mean": scores["steered"],
        "unsteered": scores["unsteered"],
        "held_out": report["held_out"] and report["held_out"]["best"],
        "log_z": report["log_z"][0],
        "calls": report["cost"]["steered"]["calls"],
        "warnings": len(report["warnings"]),
        "folder": folder.name,
    }
