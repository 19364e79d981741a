"""Models from anywhere: whatever their files hold, one clear error, at once; no code is run and little memory taken."""

# ruff: noqa: ANN401 (settings of any kind)

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile import BROKEN, NESTED, Trap, edit, refused
from safetensors.torch import load_file, save_file

import steer
from rewards.towers import ASSETS as CLIPS
from rewards.towers import WordPieces, load_clip
from steer.bench.tiny_pipelines import build as build_pipeline
from steer.models import ASSETS, save_model
from steer.models.picture import Pixels, build, load_decoder

AGAIN = "again"  # install, save or download it again: the cure of a file that is damaged
Change = Callable[[Path, Trap], Any]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder of each kind, all of which load."""
    home = tmp_path_factory.mktemp("whole")
    pieces = WordPieces.from_words(["red", "circle"], 8)
    small = {"width": 8, "depth": 1, "condition": 16, "queries": 2}
    save_model(build(pieces, small, "grid", load_decoder(ASSETS / "shapes"), (384,), "grid"), home / "grid")
    patches = {"patch": 4, "width": 8, "depth": 1, "heads": 2, "condition": 16, "queries": 2}
    save_model(build(pieces, patches, "patches", Pixels(), (3, 16, 16), "patches"), home / "patches")
    shutil.copytree(ASSETS / "emoji", home / "emoji")
    build_pipeline("sd-tcd").save_pretrained(home / "pipeline")
    for folder in home.iterdir():
        steer.load_model(folder, "cpu")
    shutil.copytree(CLIPS / "emoji-clip-judge", home / "clip")
    return home


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trap:
    (tmp_path / "trap").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path / "trap"))
    monkeypatch.chdir(tmp_path / "trap")
    return Trap(tmp_path / "trap")


def check(kind: str, change: Change, whole: Path, trap: Trap, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(whole / kind, folder)
    change(folder, trap)
    load = load_clip if kind == "clip" else steer.load_model
    refused(lambda: load(str(folder), device="cpu"), trap, folder, str(folder), AGAIN)


# weights

WEIGHTS = {
    "grid": "flow.safetensors", "patches": "flow.safetensors", "emoji": "autoencoder.safetensors",
    "clip": "open_clip_model.safetensors", "pipeline": "unet/diffusion_pytorch_model.safetensors",
}  # fmt: skip


def changed(path: Path, change: Callable[[dict[str, torch.Tensor], str], Any]) -> None:
    """Another first tensor of floats."""
    weights = load_file(path)
    change(weights, next(name for name in sorted(weights) if weights[name].is_floating_point() and weights[name].ndim))
    save_file(weights, path)


HURT: dict[str, Callable[[Path, Trap], Any]] = {
    **{name: lambda path, _, data=data: path.write_bytes(data) for name, data in BROKEN.items()},
    "cut off": lambda path, _: path.write_bytes(path.read_bytes()[:-9]),
    "cut short": lambda path, _: path.write_bytes(path.read_bytes()[:900]),
    "a pickle": lambda path, trap: path.write_bytes(trap.pickled()),
    "a zip by torch.save": lambda path, trap: torch.save({"w": trap}, path),
    "missing": lambda path, _: path.unlink(),
    "a folder": lambda path, _: (path.unlink(), path.mkdir()),
    "a link to a secret": lambda path, trap: (path.unlink(), path.symlink_to(trap.folder / "secret.txt")),
    "a link to no end": lambda path, _: (path.unlink(), path.symlink_to("/dev/zero")),
    "a link to itself": lambda path, _: (path.unlink(), path.symlink_to(path)),
    "NaN": lambda path, _: changed(path, lambda w, name: w.update({name: w[name] * torch.nan})),
    "infinity": lambda path, _: changed(path, lambda w, name: w.update({name: w[name] + torch.inf})),
    "of another shape": lambda path, _: changed(path, lambda w, name: w.update({name: torch.zeros(3, 5, 7)})),
    "one too few": lambda path, _: changed(path, lambda w, name: w.pop(name)),
    "of another network": lambda path, _: save_file({"w": torch.zeros(4)}, path),
}


@pytest.mark.parametrize("hurt", HURT)
@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights(kind: str, hurt: str, whole: Path, trap: Trap, tmp_path: Path) -> None:
    hurt_it = HURT[hurt]
    check(kind, lambda folder, trap: hurt_it(folder / WEIGHTS[kind], trap), whole, trap, tmp_path)


# settings


def card(**changes: Any) -> Change:
    return lambda folder, _: edit(folder / "model.json", **changes)


def network(**changes: Any) -> Change:
    """Of a native model."""

    def change(folder: Path, trap: Trap) -> None:
        told = json.loads((folder / "model.json").read_text())["network"]
        edit(folder / "model.json", network=told | changes)

    return change


def text(file: str, content: str | bytes) -> Change:
    raw = content if isinstance(content, bytes) else content.encode()
    return lambda folder, _: (folder / file).write_bytes(raw)


def link(file: str, to: str) -> Change:
    return lambda folder, trap: ((folder / file).unlink(), (folder / file).symlink_to(trap.folder / to))


def part(file: str, **changes: Any) -> Change:
    """Of a pipeline, or of a CLIP model."""
    return lambda folder, _: edit(folder / file, **changes)


def with_code(folder: Path, trap: Trap) -> None:
    """As diffusers' folders carry code of their own."""
    shutil.copy(trap.folder / "evil.py", folder / "unet" / "mine.py")
    edit(folder / "model_index.json", unet=["mine", "Evil"])


TEXTS = {
    "nested": NESTED, "nested objects": '{"a":' * 100_000, "long": "[" + "[]," * (6 << 20) + "[]]",
    "binary": b"\xff\xfe\0", "empty": "", "an array": "[]", "a number": "3",
    "a long number": '{"kind": ' + "9" * 100_000 + "}",
}  # fmt: skip
CARDS: list[tuple[str, str, Change]] = [
    *[("grid", f"is {name}", text("model.json", words)) for name, words in TEXTS.items()],
    ("grid", "is missing", lambda folder, _: (folder / "model.json").unlink()),
    ("grid", "leads to a secret", link("model.json", "secret.txt")),
    *[
        ("grid", f"kind {kind!r}", card(kind=kind))
        for kind in ("evil", "../evil", "/etc/passwd", ["grid"], {"a": 1}, None)
    ],
    *[
        ("grid", f"architecture {name!r}", card(architecture=name))
        for name in ("evil.Evil", "../../evil", ["grid"], {})
    ],
    *[("emoji", f"text {name!r}", card(text=name)) for name in ("../../evil", "/etc/passwd", "hf-hub:evil/evil", 3)],
    *[("grid", f"path {name!r}", card(path=name)) for name in ("evil.Evil", "../x", None)],
    *[
        ("grid", f"network {value!r:.20}", card(network=value))
        for value in ("../x", [], 3, json.loads("[" * 300 + "]" * 300))
    ],
    *[
        (kind, f"{key}={value!r}", network(**{key: value}))
        for kind in ("grid", "patches")
        for key in ("width", "depth", "condition", "queries")
        for value in (10**9, 2**62, -1, 1e300, "../x", None, [1])
    ],
    *[
        ("grid", f"{key}={value}", network(**{key: value}))
        for key in ("size", "vocabulary", "length", "token_size")
        for value in (10**10, -1)
    ],
    *[
        ("patches", f"{key}={value}", network(**{key: value}))
        for key in ("side", "patch", "heads")
        for value in (10**9, 0)
    ],
    ("grid", "a class", network(_target_="evil.Evil")),
    *[("grid", f"shape {value!r}", card(shape=value)) for value in (None, [3, 10**9, 10**9], "../x")],
    *[("grid", f"words {value!r:.40}", card(words=value)) for value in ("../x", {"pieces": ["a"], "context": 10**12})],
    *[
        ("grid", f"autoencoder {value!r}", card(autoencoder=value))
        for value in ({"channels": 10**9}, "../x", {"layers": [10**9]})
    ],
    *[
        ("emoji", f"posterior {value!r}", card(posterior=value))
        for value in ({"rank": 10**12}, {"rank": -1}, "../x", {})
    ],
    ("grid", "posterior of a grid", card(posterior={"rank": 8})),
    ("grid", "noise without weights", card(noise="../../x")),
    *[("pipeline", f"is {name}", text("model_index.json", words)) for name, words in TEXTS.items()],
    *[
        ("pipeline", f"unet is {name}", text("unet/config.json", words))
        for name, words in TEXTS.items()
        if name != "a long number"
    ],
    *[
        ("pipeline", f"unet {value!r}", part("model_index.json", unet=value))
        for value in (["evil", "Evil"], ["os", "system"], ["../evil", "Evil"], 3, [])
    ],
    ("pipeline", "code in its folder", with_code),
    *[
        ("pipeline", f"unet {key}", part("unet/config.json", **{key: value}))
        for key, value in {
            "block_out_channels": [2**20] * 2,
            "layers_per_block": 10**7,
            "cross_attention_dim": 10**9,
            "in_channels": -1,
        }.items()
    ],
    ("pipeline", "vae wide", part("vae/config.json", block_out_channels=[2**20] * 2)),
    *[
        ("pipeline", f"text {key}", part("text_encoder/config.json", **{key: value}))
        for key, value in {
            "vocab_size": 10**12,
            "hidden_size": 10**6,
            "num_hidden_layers": 10**7,
            "intermediate_size": 2**40,
        }.items()
    ],
    ("pipeline", "layers without weights", part("text_encoder/config.json", num_hidden_layers=12)),
    ("pipeline", "times", part("scheduler/scheduler_config.json", num_train_timesteps=10**12)),
    ("pipeline", "no weights", lambda folder, _: (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()),
    (
        "pipeline",
        "weights by pickle",
        lambda folder, trap: (
            (folder / WEIGHTS["pipeline"]).unlink(),
            (folder / "unet/diffusion_pytorch_model.bin").write_bytes(trap.pickled()),
        ),
    ),
    (
        "pipeline",
        "shards elsewhere",
        lambda folder, _: (
            (folder / WEIGHTS["pipeline"]).unlink(),
            (folder / f"{WEIGHTS['pipeline']}.index.json").write_text(
                '{"metadata": {}, "weight_map": {"a": "../../x.safetensors"}}'
            ),
        ),
    ),
    *[("clip", f"is {name}", text("open_clip_config.json", words)) for name, words in TEXTS.items()],
    *[("clip", f"words {name}", text("vocabulary.json", words)) for name, words in TEXTS.items()],
    *[
        ("clip", f"{key}={value!r}", part("open_clip_config.json", model_cfg={key: value}))
        for key, value in {
            "embed_dim": 10**9,
            "vision_cfg": "../x",
            "text_cfg": {"hf_model_name": "evil/evil"},
            "_target_": "evil.Evil",
        }.items()
    ],
]


@pytest.mark.parametrize(("kind", "name", "change"), CARDS, ids=[f"{kind}: {name}" for kind, name, _ in CARDS])
def test_settings(kind: str, name: str, change: Change, whole: Path, trap: Trap, tmp_path: Path) -> None:
    check(kind, change, whole, trap, tmp_path)


@pytest.mark.parametrize(
    "source",
    ["../../x", "/nowhere/x", "evil", "a/b/c", "", "file:///etc/passwd", "https://127.0.0.1:1/x", "x\0y", "a" * 5000],
)
def test_sources_of_adapters(source: str, trap: Trap, tmp_path: Path) -> None:
    """What a tuned pipeline says it was made of."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.json").write_text(json.dumps({"kind": "diffusers", "source": source, "choices": {}}))
    refused(lambda: steer.load_model(tmp_path / "model", "cpu"), trap, tmp_path / "model")


@pytest.mark.parametrize(
    "choices", [{"evil": 1}, {"height": 10**12}, {"negative": 3}, {"kind": "evil.Evil"}, {"ode_steps": -1}, [], "../x"]
)
def test_choices_of_adapters(choices: Any, whole: Path, trap: Trap, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    told = {"kind": "diffusers", "source": str(whole / "pipeline"), "choices": choices}
    (tmp_path / "model" / "model.json").write_text(json.dumps(told))
    refused(lambda: steer.load_model(tmp_path / "model", "cpu"), trap, tmp_path / "model")
