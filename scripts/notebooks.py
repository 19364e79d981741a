"""Run the notebooks, all or those that are named, and store what they show: without times, versions and folders."""

import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from steer.samples import write_bytes

ROOT = Path(__file__).resolve().parents[1]
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def main() -> None:
    for path in map(Path, sys.argv[1:] or sorted((ROOT / "notebooks").glob("*.ipynb"))):
        notebook = nbformat.read(path, as_version=4)
        with tempfile.TemporaryDirectory() as folder:
            given = {"metadata": {"path": folder}}
            NotebookClient(notebook, timeout=600, record_timing=False, resources=given).execute()
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)
        notebook.metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
        write_bytes((nbformat.writes(notebook) + "\n").encode("utf8"), path)


if __name__ == "__main__":
    main()
