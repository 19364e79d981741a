"""The layout is a promise: what may import what, how long a file may be, how long an import may take."""

import ast
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = [
    "draws", "interpolants", "flow_map", "lookahead", "posterior", "moves", "particles", "resampling", "run",
    "population", "chains", "analytic",
]  # fmt: skip
WRAPS = {"warm_start": {"steer.methods.smc"}}  # what a method that stands in front of another takes by default
PLAIN = {"torch", "steer", "math", "dataclasses", "collections", "typing"}
SOURCES = sorted([*(ROOT / "steer").rglob("*.py"), *(ROOT / "rewards").rglob("*.py")])


def imports(file: Path) -> set[str]:
    """Full names of the modules a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file} imports relatively"
            names.add(node.module or "")
    return names


def roots(file: Path) -> set[str]:
    """First parts of those names."""
    return {name.split(".")[0] for name in imports(file)}


@pytest.mark.parametrize("file", sorted((ROOT / "steer/methods").glob("*.py")), ids=lambda f: f.stem)
def test_methods_know_no_framework(file: Path) -> None:
    assert roots(file) <= PLAIN


@pytest.mark.parametrize("file", sorted((ROOT / "steer/methods").glob("[!_]*.py")), ids=lambda f: f.stem)
def test_methods_know_the_core_alone_and_not_each_other(file: Path) -> None:
    ours = {name for name in imports(file) if name.startswith("steer")}
    assert ours <= {f"steer.{name}" for name in CORE} | WRAPS.get(file.stem, set())


@pytest.mark.parametrize("name", CORE)
def test_the_core_imports_down_the_list_only(name: str) -> None:
    file = ROOT / f"steer/{name}.py"
    above = {f"steer.{other}" for other in CORE[: CORE.index(name)]}
    assert {module for module in imports(file) if module.startswith("steer")} <= above
    assert roots(file) <= PLAIN | {"functools", "numpy"}


def test_rewards_never_import_steer() -> None:
    assert not [file for file in (ROOT / "rewards").rglob("*.py") if "steer" in roots(file)]


@pytest.mark.parametrize("file", SOURCES, ids=lambda f: str(f.relative_to(ROOT)))
def test_files_and_functions_stay_short(file: Path) -> None:
    text = file.read_text()
    assert len(text.splitlines()) < 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            doc = ast.get_docstring(node, clean=False) or ""
            length = (node.end_lineno or node.lineno) - node.body[0].lineno + 1 - len(doc.splitlines())
            assert length <= 60, f"{file}:{node.lineno} {node.name} has {length} lines"


def seconds(statement: str) -> float:
    """Wall time of one statement in a fresh interpreter, without the interpreter's own start."""
    code = f"import time; t = time.perf_counter(); {statement}; print(time.perf_counter() - t)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    return float(done.stdout)


def test_import_is_nearly_free() -> None:
    """`import steer` takes under 1.5 times the time of `import torch`; in turns, so that a busy machine hits both."""
    seconds("import torch")  # fills the file cache
    pairs = [(seconds("import steer"), seconds("import torch")) for _ in range(3)]
    steer, torch = (statistics.median(column) for column in zip(*pairs, strict=True))
    assert min(steer / torch, min(ours / theirs for ours, theirs in pairs)) < 1.5


def test_import_leaves_heavy_packages_alone() -> None:
    heavy = {"open_clip", "diffusers", "hydra", "transformers", "torchvision", "matplotlib"}
    code = f"import sys, steer, steer.methods, steer.analytic; print(*sorted({heavy} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert loaded.split() == []
