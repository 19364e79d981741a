"""What `steer doctor` finds, where all works and where something does not."""

import importlib.metadata
import json
from pathlib import Path

import pytest

import rewards
from steer import checkup, cli
from steer.checkup import Finding
from steer.settings import build, names


def found(look: str) -> list[Finding]:
    return list(getattr(checkup, look)())


def test_all_is_well_and_nothing_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["doctor", "--json"]) == 0
    rows = {row["about"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["torch"][""] == "ok" and rows["torch"]["found"] == importlib.metadata.version("torch")
    assert rows["model emoji"][""] == rows["model shapes"][""] == rows["a small run"][""] == "ok"
    assert list(tmp_path.iterdir()) == []


def test_rewards_are_those_that_say_they_lack_nothing() -> None:
    first, *others = found("scorers")
    lacks = {name: rewards.missing(build("reward", name)) for name in names("reward")}
    runs = [name for name, text in lacks.items() if text is None]
    assert first.found == "can run here: " + ", ".join(runs)
    said = {f"reward {n}": t.removeprefix(f"reward {n!r} ") for n, t in lacks.items() if t is not None}
    assert {one.about: one.found for one in others} == said
    assert all(one.good is None for one in others)  # optional, so no fault


def test_weights_of_open_clip_that_are_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    (none,) = found("clips")
    assert none.good is None and none.found.startswith("none is here; rewards.missing(rewards.Clip(")
    place = tmp_path / "models--laion--CLIP-ViT-B-32-laion2B-s34B-b79K"
    (place / "refs").mkdir(parents=True)
    (place / "refs/main").write_text("0" * 40)
    (place / "snapshots" / ("0" * 40)).mkdir(parents=True)
    (place / "snapshots" / ("0" * 40) / "open_clip_model.safetensors").write_bytes(b"")
    assert found("clips") == [Finding("weights of open_clip", True, "ViT-B-32 laion2b_s34b_b79k")]


def test_a_package_that_is_lacking_or_old_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["torch>=2000", "no-such-package>=1", "rich>=1", 'unused>=1; extra == "bench"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: asked)
    _, torch, missing, rich = found("packages")
    assert torch.good is False and "but >=2000 is needed; pip install 'torch>=2000'" in torch.found
    assert missing == Finding("no-such-package", False, "not installed; pip install 'no-such-package>=1'", "package")
    assert rich.good is True
    assert checkup.checkup()[-1] == rich  # nothing else is tried


def test_what_is_alike_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    found = [
        Finding("torch", True, "2", "package"), Finding("rich", True, "1", "package"),
        Finding("numpy", False, "not installed", "package"), Finding("threads", None, "x"), Finding("cuda", None, "x"),
        Finding("reward a", None, "lacks y", "reward"), Finding("reward b", None, "lacks y", "reward"),
        Finding("reward c", None, "lacks z", "reward"),
    ]  # fmt: skip
    assert [one[:3] for one in checkup.grouped(found)] == [
        ("packages", True, "torch 2, rich 1"), ("numpy", False, "not installed"), ("threads", None, "x"),
        ("cuda", None, "x"), ("rewards", None, "a, b: lacks y"), ("reward c", None, "lacks z"),
    ]  # fmt: skip
    assert cli.main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum("lacks a picture to compare with" in line for line in lines) == 1 and len(lines) < 30


def test_a_fault_ends_with_1_and_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ["no-such-package>=1"])
    assert cli.main(["doctor"]) == 1
    printed = capsys.readouterr()
    assert "FAULT" in printed.out and "1 faults: no-such-package" in printed.out and printed.err == ""


@pytest.mark.parametrize(
    ("used", "cores", "settings", "good", "cure"),
    [
        (2, 2, {}, None, "export OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=0"),
        (2, 2, {"OMP_WAIT_POLICY": "passive"}, True, ""),
        (2, 2, {"GOMP_SPINCOUNT": "0"}, True, ""),
        (1, 2, {}, True, ""),
        (16, 16, {}, True, ""),
        (8, 2, {"OMP_WAIT_POLICY": "PASSIVE"}, None, "more than there are; export OMP_NUM_THREADS=2"),
    ],
)
def test_threads_that_spin_on_few_cores(
    used: int, cores: int, settings: dict[str, str], good: bool | None, cure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("torch.get_num_threads", lambda: used)
    monkeypatch.setattr(checkup, "available", lambda: cores)
    (finding,) = found("threads")
    assert finding.good is good and cure in finding.found and f"{used} threads on {cores} cores" in finding.found


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "file"))
    _, torch = found("caches")
    assert torch.good is None and "file" in torch.about and "cannot be written; let TORCH_HOME" in torch.found


def test_a_run_that_fails_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*given: object, **more: object) -> None:
        raise RuntimeError("no operator")

    monkeypatch.setattr("steer.api.sample", fails)
    monkeypatch.setattr("steer.sample", fails)
    assert found("run") == [Finding("a small run", False, "RuntimeError: no operator")]
