"""Install a trained model among the embedded ones, in half precision: `python scripts/ship.py runs/shapes shapes`."""

import sys
from pathlib import Path

from safetensors.torch import load_file

from common import half, write_tensors
from steer.models import ASSETS
from steer.models.files import read_card, write_card


def main(run: Path, name: str) -> None:
    """Copy run's files to the folder of that name beside the other assets; the card comes last."""
    card, folder = read_card(run), ASSETS / name
    for path in sorted(run.glob("*.safetensors")):
        if path.name != "rows.safetensors":
            write_tensors(folder / path.name, half(load_file(path)))
    write_card(folder, card)
    size = sum(p.stat().st_size for p in folder.iterdir())
    print(f"{folder}: {size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
