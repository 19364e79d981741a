"""What is shipped, and what importing it costs."""

import importlib.metadata
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import steer
from steer.settings import CONFIGS, names

ROOT = Path(__file__).resolve().parent.parent


def python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, cwd="/"
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", steer.__all__)
def test_every_public_name_loads(name: str) -> None:
    assert getattr(steer, name) is not None
    assert name in dir(steer)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'sampel'"):
        steer.sampel  # type: ignore[attr-defined]  # noqa: B018


def test_import_loads_nothing_heavy() -> None:
    heavy = "torch open_clip hydra diffusers transformers matplotlib rich PIL"
    code = f"import sys, steer; print(*[m for m in {heavy.split()!r} if m in sys.modules])"
    assert python(code).split() == []


def test_sampling_modules_import_no_open_clip_and_no_hydra() -> None:
    heavy = "open_clip hydra diffusers transformers matplotlib"
    code = f"import sys, steer.api; print(*[m for m in {heavy.split()!r} if m in sys.modules])"
    assert python(code).split() == []


def test_the_version_is_stated_once_and_the_same() -> None:
    assert importlib.metadata.version("steer") == steer.__version__
    assert f"## [{steer.__version__}]" in (ROOT / "CHANGELOG.md").read_text() or "## [Unreleased]" in (
        ROOT / "CHANGELOG.md"
    ).read_text(encoding="utf8")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built as `make wheel` does, without the network."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_code_configs_weights_pictures_and_licences(wheel: Path) -> None:
    inside = {info.filename: info.file_size for info in zipfile.ZipFile(wheel).infolist()}
    here = [*ROOT.glob("steer/**/*"), *ROOT.glob("rewards/**/*")]
    shipped = [f for f in here if f.is_file() and "__pycache__" not in f.parts and not f.name.endswith(".part")]
    for file in shipped:
        assert inside[str(file.relative_to(ROOT))] == file.stat().st_size
    for config in (ROOT / "configs").rglob("*.yaml"):
        assert f"steer/configs/{config.relative_to(ROOT / 'configs')}" in inside
    for asset in (
        "steer/models/assets/emoji/flow.safetensors",
        "rewards/assets/emoji-clip/open_clip_model.safetensors",
    ):
        assert inside[asset] > 1_000_000
    assert any(name.endswith("licenses/LICENSE") for name in inside)
    assert "steer/data/assets/LICENSES.md" in inside
    folders = {name.split("/")[0] for name in inside}
    assert folders == {"steer", "rewards", f"steer-{steer.__version__}.dist-info"}


def test_the_wheel_works_where_there_is_no_checkout(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = (
        "import steer, steer.settings as s; assert str(s.CONFIGS).startswith(steer.__path__[0]), s.CONFIGS; "
        "from steer.composing import compose; n = compose('sample', ['reward=redness']).n; "
        "print(steer.__file__, *s.names('method'), n); "
        "print(len(steer.data.emoji.load()), steer.load_model('emoji', 'cpu').name)"
    )
    first, second = python(code, PYTHONPATH=str(tmp_path)).splitlines()
    assert first.split() == [str(tmp_path / "steer" / "__init__.py"), *names("method"), "16"]
    assert second.split() == ["5226", "emoji"]


def test_all_embedded_weights_stay_small() -> None:
    """45 MB for the emoji, their CLIPs and the ring, 12 MB for the shapes."""
    weights = [*ROOT.glob("steer/**/*.safetensors"), *ROOT.glob("rewards/**/*.safetensors")]
    shapes = [f for f in weights if f.parent.name == "shapes"]
    sizes = [f.stat().st_size for f in weights if f not in shapes]
    assert len(sizes) >= 5 and sum(sizes) < 45_000_000
    assert len(shapes) == 2 and sum(f.stat().st_size for f in shapes) < 12_000_000


def test_configs_are_found_in_the_checkout() -> None:
    assert CONFIGS == ROOT / "configs"
