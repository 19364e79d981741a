"""Running a benchmark: its tables, what they were made by, and the files they go to."""

import csv
import importlib.metadata
import io
import json
import platform
import shlex
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from steer import __version__
from steer.checkup import available
from steer.printing import as_json
from steer.samples import write_bytes

Row = dict[str, object]
Tables = dict[str, list[Row]]
TOLD = ("torch", "numpy", "scipy", "diffusers", "transformers", "open_clip_torch", "peft", "particles")  # versions


def measure(name: str, folder: Path, fast: bool = False) -> tuple[Tables, float]:
    """The tables of one benchmark, by title, and the seconds they took; fast is a smaller run of the same."""
    module = import_module(f"steer.bench.{name}")
    if not hasattr(module, "parts"):
        start = time.perf_counter()
        tables = module.run(fast=fast)
        return tables if isinstance(tables, dict) else {name: tables}, time.perf_counter() - start
    work: dict[str, Callable[[], list[Row]]] = module.parts(fast, folder)
    done = {title: _kept(part(folder, name, i, fast), make) for i, (title, make) in enumerate(work.items())}
    for i in range(len(done)):
        part(folder, name, i, fast).unlink()
    return {title: each["rows"] for title, each in done.items()}, sum(each["seconds"] for each in done.values())


def part(folder: Path, name: str, i: int, fast: bool) -> Path:
    """Where the i-th table is kept until all are there."""
    return folder / f"{name}{'.fast' if fast else ''}.{i}.json"


def _kept(path: Path, make: Callable[[], list[Row]]) -> dict[str, Any]:
    if not path.exists():
        start = time.perf_counter()
        rows = make()
        write_bytes(as_json({"rows": rows, "seconds": time.perf_counter() - start}), path)
    return json.loads(path.read_text(encoding="utf8"))


def plot(name: str, tables: Tables) -> bytes | None:
    """PNG of what `run` gave; None for a benchmark that draws nothing, and without matplotlib (`steer[bench]`)."""
    draw = getattr(import_module(f"steer.bench.{name}"), "plot", None)
    if draw is None or find_spec("matplotlib") is None:
        return None
    return draw(tables)


def as_csv(tables: Tables) -> bytes:
    """All rows of all tables under one heading; the first column is the table's title. What a row lacks is empty."""
    columns = ["table", *dict.fromkeys(key for rows in tables.values() for row in rows for key in row)]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({"table": title} | row for title, rows in tables.items() for row in rows)
    return text.getvalue().encode("utf8")


def about(name: str, fast: bool, seconds: float) -> dict[str, Any]:
    """The command, when it ran and for how long, and on what: the machine, threads, versions."""
    import torch

    cuda = torch.cuda.is_available()
    return {
        "command": shlex.join(["steer", "bench", name, *(["fast=true"] if fast else [])]),
        "date": datetime.now(UTC).date().isoformat(),
        "seconds": round(seconds, 1),
        "machine": {
            "system": f"{platform.system()} {platform.machine()}", "processor": processor(), "cores": available(),
            "gpu": torch.cuda.get_device_name() if cuda else None,
        },
        "threads": torch.get_num_threads(),
        "versions": {"steer": __version__, "python": platform.python_version()} | versions(),
    }  # fmt: skip


def processor() -> str:
    """The processor's own name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or "unknown")


def versions() -> dict[str, str]:
    """Versions of the packages that figures depend on."""
    found = {}
    for name in TOLD:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
