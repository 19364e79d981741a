"""Pictures, pairs, checkpoints and answers from anywhere: one clear error, at once, and little memory taken."""

# ruff: noqa: ANN401 (settings of any kind)

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile import BROKEN, NESTED, Trap, edit, refused
from safetensors.torch import load_file, save_file
from tiny import trainer

import rewards
import steer
from rewards import calibration
from rewards.cache import Cache, key_of
from steer import checkpoints
from steer.data.folder import Folder
from steer.preferences import read


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trap:
    (tmp_path / "trap").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path / "trap"))
    return Trap(tmp_path / "trap")


# pictures


def png(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG whose header says that size, whatever its data."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def whole() -> bytes:
    """A picture of 64 x 64 pixels that can be read."""
    return png(64, 64, zlib.compress((b"\0" + bytes(64 * 3)) * 64))


PICTURES: dict[str, bytes] = {
    "billions of pixels": png(60_000, 60_000, zlib.compress(bytes(1000))),
    "the most that PNG can say": png(2**31 - 1, 2**31 - 1),
    "a little over": png(40_000_000, 2),
    "no pixels": png(0, 0),
    "cut off": whole()[:60],
    "data of another size": png(64, 64, zlib.compress(b"\0")),
    "a bomb": png(64, 64, zlib.compress(bytes(200 << 20))),
    "no picture": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    "a program": b"%!PS\n(evil) run",
    "empty": b"",
    "a huge GIF": b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b";",
    "a huge BMP": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 2**30, 2**30, 1, 24, 0, 0, 0, 0, 0, 0),
}
BAD = sorted(set(PICTURES) - {"a bomb"})  # decoders read no more of that one than its 64 x 64 pixels


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_to_train_from(name: str, trap: Trap, tmp_path: Path) -> None:
    home = tmp_path / "data" / "cat"
    home.mkdir(parents=True)
    (home / "a.png").write_bytes(PICTURES[name])
    if name == "a bomb":
        assert Folder(tmp_path / "data", 8).rows([0])[0].shape == (1, 8, 8, 3)
    else:
        refused(lambda: Folder(tmp_path / "data", 8, strict=True).rows([0]), trap, home, "a.png", "mend or remove")


@pytest.mark.parametrize("name", BAD)
def test_pictures_of_pairs(name: str, trap: Trap, tmp_path: Path) -> None:
    home = tmp_path / "pairs"
    home.mkdir()
    (home / "a.png").write_bytes(PICTURES[name])
    (home / "b.png").write_bytes(whole())
    (home / "pairs.jsonl").write_text(json.dumps({"prompt": "x", "winner": "b.png", "loser": "a.png"}))
    refused(lambda: read(home), trap, home, "pairs.jsonl, line 1", "a.png")


@pytest.mark.parametrize("name", BAD)
def test_a_picture_to_compare_with(name: str, trap: Trap, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(PICTURES[name])
    reward = rewards.Piq(reference=str(path))
    refused(lambda: reward(torch.rand(1, 3, 64, 64), ["x"]), trap, tmp_path, "a.png")


# lines of files


LINES: dict[str, str | bytes] = {
    "no JSON": "{", "nested": NESTED, "an array": "[]", "a number": "1", "binary": b"\xff\xfe\0",
    "outside": '{"prompt": "x", "winner": "../../secret.txt", "loser": "a.png"}',
    "absolute": '{"prompt": "x", "winner": "/etc/passwd", "loser": "a.png"}',
    "a link outside": '{"prompt": "x", "winner": "link.png", "loser": "a.png"}',
    "a zero byte": '{"prompt": "x", "winner": "a\\u0000.png", "loser": "a.png"}',
    "a long name": json.dumps({"prompt": "x", "winner": "a" * 5000, "loser": "a.png"}),
    "an object": '{"prompt": "x", "winner": {"_target_": "evil.Evil"}, "loser": "a.png"}',
}  # fmt: skip


@pytest.mark.parametrize("name", LINES)
def test_lines_of_pairs(name: str, trap: Trap, tmp_path: Path) -> None:
    home, line = tmp_path / "pairs", LINES[name]
    home.mkdir()
    (home / "a.png").write_bytes(whole())
    (home / "link.png").symlink_to(trap.folder / "secret.txt")
    (home / "pairs.jsonl").write_bytes(line if isinstance(line, bytes) else line.encode())
    refused(lambda: read(home), trap, home, "pairs.jsonl")


# checkpoints of a training


def header(data: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / "state.safetensors").write_bytes(data)


def facts(text: str | bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / "state.json").write_bytes(text if isinstance(text, bytes) else text.encode())


def tensors(change: Callable[[dict[str, torch.Tensor], str], Any]) -> Callable[[Path], object]:
    def changed(folder: Path) -> None:
        state = load_file(folder / "state.safetensors")
        change(state, next(name for name in sorted(state) if state[name].ndim > 1))
        save_file(state, folder / "state.safetensors")

    return changed


STATES: dict[str, Callable[[Path], object]] = {
    **{name: header(data) for name, data in BROKEN.items()},
    "NaN": tensors(lambda state, name: state.update({name: state[name] * torch.nan})),
    "another shape": tensors(lambda state, name: state.update({name: torch.zeros(3, 5)})),
    "one too few": tensors(lambda state, name: state.pop(name)),
    "nested": facts(NESTED), "binary": facts(b"\xff\xfe\0"), "no object": facts("[]"), "no step": facts("{}"),
    "a step of words": facts('{"step": "../../x"}'), "step alone": facts('{"step": 4}'),
    "a class": lambda folder: edit(folder / "state.json", objective={"_target_": "evil.Evil"}),
    "no optimiser": lambda folder: edit(folder / "state.json", optimiser="evil.Evil"),
    "a long optimiser": lambda folder: edit(folder / "state.json", optimiser=[{}] * 1000),
}  # fmt: skip


@pytest.mark.parametrize("name", STATES)
def test_checkpoints(name: str, trap: Trap, tmp_path: Path) -> None:
    run = trainer(tmp_path / "run", steps=4)
    run.run()
    STATES[name](tmp_path / "run" / "checkpoints" / "step-00000004")
    again = trainer(tmp_path / "run", steps=8)
    refused(again.resume, trap, tmp_path / "run", str(tmp_path / "run"))


def test_a_pickle_is_no_checkpoint(trap: Trap, tmp_path: Path) -> None:
    checkpoints.write(tmp_path, 4, {"w": torch.zeros(3)}, {}, 1)
    (folder,) = checkpoints.found(tmp_path)
    (folder / "state.safetensors").write_bytes(trap.pickled())
    refused(lambda: checkpoints.newest(tmp_path), trap, tmp_path, str(folder), "remove this folder")


# what is kept and shipped


@pytest.mark.parametrize("text", [NESTED, "{", "[]", "3", b"\xff", "9" * 100_000, '{"score": "x"}'])
def test_kept_answers_that_are_damaged_count_as_none(text: str | bytes, tmp_path: Path) -> None:
    cache, key = Cache(tmp_path), key_of("a")
    cache.write(key, {"score": 0.5})
    (file,) = tmp_path.rglob("*.json")
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert cache.read(key) in (None, {"score": "x"})  # the judge asks anew for a score that is no number
    cache.write(key, {"score": 0.25})
    assert cache.read(key) == {"score": 0.25}


@pytest.mark.parametrize(
    "text", [NESTED, "{", "[]", '{"clip": 3}', '{"clip": {"mean": 0, "std": -1}}', '{"clip": {"a": 1}}']
)
def test_a_calibration_that_is_damaged(text: str, trap: Trap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "calibration.json").write_text(text)
    monkeypatch.setattr(calibration, "ASSETS", tmp_path)
    refused(calibration.shipped.__wrapped__, trap, tmp_path, "calibration.json", "install the package again")


@pytest.mark.parametrize("text", [NESTED, "{", "[]", '{"prompts": 3}', '{"prompts": ["../../trap/evil.py"]}'])
def test_a_report_of_an_earlier_run_removes_nothing_else(text: str, trap: Trap, tmp_path: Path) -> None:
    """Samples are saved over those of an earlier run, whose report says which files are its own."""
    from colours import colour_model, redness

    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.json").write_text(text)
    (tmp_path / "out" / "mine.txt").write_text("mine")
    steer.sample("a", reward=redness, model=colour_model(), n=2, method="smc", temperature=1.0, progress=False).save(
        tmp_path / "out"
    )
    assert (tmp_path / "out" / "mine.txt").exists() and (trap.folder / "evil.py").exists()
    assert json.loads((tmp_path / "out" / "report.json").read_text())["prompts"] == ["a"]
