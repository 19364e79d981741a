"""Every notebook runs from top to bottom; what it stores is whole, small, and tells nothing of the machine."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).resolve().parent.parent / "notebooks").glob("*.ipynb"))
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
MOST = 1_500_000  # bytes of a file


@each
def test_a_notebook_runs(path: Path, tmp_path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    stored = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    assert any("image/png" in output.get("data", {}) for outputs in shown for output in outputs)
    assert all(stored[i] for i, outputs in enumerate(shown) if outputs), "store the outputs: make notebooks"


@each
def test_what_is_stored_is_of_one_run_and_of_no_machine(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    told = "\n".join(output.get("text", "") for output in outputs)
    assert not re.findall(r"/(?:tmp|home|root|usr|var|mnt)/\S*|ipykernel_\d+", told)
    assert path.stat().st_size < MOST
    assert notebook.metadata.kernelspec.name == "python3"


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS
