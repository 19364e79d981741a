"""Print the figures that are claimed, and write them.

    steer bench exact                                        every method against laws that are known
    steer bench embedded fast=true                           a smaller run, to see that it works
    steer bench training out=figures                         figures/training.json, .csv and .png

A plot needs matplotlib: pip install "steer[bench]".
"""

from steer.bench import TABLES
from steer.composing import compose
from steer.printing import as_json, print_table
from steer.settings import unknown

CONFIG = "bench"
LONG = 200  # rows of a table that is written, but not printed


def words() -> list[str]:
    """The names of the benchmarks."""
    return list(TABLES)


def run(overrides: list[str]) -> None:
    """Prints tables, writes NAME.json, NAME.csv and, where there is a plot, NAME.png."""
    from steer.bench import as_csv, plot
    from steer.bench import run as measure
    from steer.samples import check_folder, write_bytes

    name, *rest = overrides or [""]
    if name not in TABLES:
        raise unknown("bench", name, TABLES)
    config = compose(CONFIG, rest)
    folder = check_folder(config.out)
    tables = measure(name, fast=config.fast)
    for title, rows in tables.items():
        if len(rows) <= LONG:
            print_table(title, rows)
        else:
            print(f"{title}: {len(rows)} rows, in {name}.csv")
    folder.mkdir(parents=True, exist_ok=True)
    files = {"json": as_json(tables), "csv": as_csv(tables), "png": plot(name, tables)}
    for kind, content in files.items():
        if content is not None:
            write_bytes(content, folder / f"{name}.{kind}")
    print(f"wrote {folder / name}." + ", .".join(kind for kind, content in files.items() if content is not None))
