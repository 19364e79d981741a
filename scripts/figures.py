"""Write the tables of README.md and docs/figures.md from what `steer bench all out=docs/results` wrote."""

from pathlib import Path

from steer.bench.page import fill, load
from steer.samples import write_bytes

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "docs/figures.md")


def main() -> None:
    results = load(ROOT / "docs" / "results")
    for page in PAGES:
        path = ROOT / page
        write_bytes(fill(path.read_text(encoding="utf8"), results).encode("utf8"), path)


if __name__ == "__main__":
    main()
