"""Print the figures that are claimed, and write them.

    steer bench exact                                        every method against laws that are known
    steer bench embedded fast=true                           a smaller run, to see that it works
    steer bench training out=figures                         figures/training.json, .csv and .png
    steer bench all out=figures                              all of them, one after the other, and figures/README.md

`all` goes on where it was stopped: what is there already, of this version and as fast, is kept. A plot needs
matplotlib: pip install "steer[bench]".
"""

import json
import subprocess
import sys
from pathlib import Path

from steer import __version__
from steer.bench import TABLES
from steer.composing import compose
from steer.printing import as_json, print_table
from steer.settings import unknown

CONFIG = "bench"


def words() -> list[str]:
    """The names of the benchmarks."""
    return [*TABLES, "all"]


def run(overrides: list[str]) -> None:
    """Prints tables, writes NAME.json, NAME.csv and, where there is a plot, NAME.png."""
    from steer.samples import check_folder

    name, *rest = overrides or [""]
    if name not in words():
        raise unknown("bench", name, words())
    config = compose(CONFIG, rest)
    folder = check_folder(config.out)
    if name == "all":
        run_all(folder, config.fast)
    else:
        run_one(name, folder, config.fast)


def run_one(name: str, folder: Path, fast: bool) -> None:
    """One benchmark, in this process."""
    from steer.bench.measuring import about, as_csv, measure, plot
    from steer.bench.page import LONG
    from steer.samples import write_bytes

    folder.mkdir(parents=True, exist_ok=True)
    tables, seconds = measure(name, folder, fast)
    for title, rows in tables.items():
        if len(rows) <= LONG:
            print_table(title, rows)
        else:
            print(f"{title}: {len(rows)} rows, in {name}.csv")
    content = as_json({"about": about(name, fast, seconds), "tables": tables})
    files = {"png": plot(name, tables), "csv": as_csv(tables), "json": content}
    for kind, data in files.items():
        if data is not None:
            write_bytes(data, folder / f"{name}.{kind}")
    print(f"wrote {folder / name}." + ", .".join(kind for kind, data in files.items() if data is not None))


def run_all(folder: Path, fast: bool) -> None:
    """Each benchmark in a process of its own, unless its file is there; then one page of all tables and plots."""
    from steer.bench.page import page
    from steer.samples import write_bytes

    for name in TABLES:
        if is_there(folder / f"{name}.json", fast):
            print(f"{folder / name}.json is there: kept; remove it to measure anew")
            continue
        command = [sys.executable, "-m", "steer", "bench", name, f"fast={str(fast).lower()}", f"out={folder}"]
        subprocess.run(command, check=True)
    write_bytes(page(folder).encode("utf8"), folder / "README.md")
    print(f"wrote {folder / 'README.md'}")


def is_there(path: Path, fast: bool) -> bool:
    """Whether the file holds what this version measured, as fast."""
    try:
        told = json.loads(path.read_text(encoding="utf8"))["about"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return told["versions"]["steer"] == __version__ and told["command"].endswith("fast=true") == fast
