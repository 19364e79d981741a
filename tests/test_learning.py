"""`steer.train`: data, a network and an objective make a model that loads and steers; mistakes are named early."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import steer
from steer.data.folder import Folder
from steer.data.shapes import Shapes
from steer.settings import CONFIGS, names

TINY = {"architecture": "patches", "patch": 8, "width": 24, "heads": 2, "depth": 1, "condition": 32, "queries": 2}
LOOP = {"batch": 8, "log_every": 2, "save_every": 2, "tracker": None, "progress": False}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 12 pictures of 16 pixels with a metadata.jsonl."""
    folder = tmp_path_factory.mktemp("pictures")
    images, captions = Shapes().rows(range(12))
    for i, image in enumerate(images):
        Image.fromarray(image).resize((16, 16)).save(folder / f"{i}.png")
    lines = [json.dumps({"file_name": f"{i}.png", "text": caption}) for i, caption in enumerate(captions)]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Of the model in a folder."""
    flow = steer.load_model(folder).flow
    assert isinstance(flow, torch.nn.Module)
    return flow.state_dict()


def test_a_folder_of_pictures_becomes_a_model_that_steers_at_once(pictures: Path, tmp_path: Path) -> None:
    data = Folder(pictures, 16)
    model = steer.train(data=data, network=TINY, out=tmp_path / "out", steps=4, judge="redness", **LOOP)
    out = steer.sample("a red circle", reward="redness", model=model, method="best_of_n", n=4, steps=1, seed=0)
    assert out.images.shape == (1, 4, 3, 16, 16)
    rows = [json.loads(line) for line in (tmp_path / "out/log.jsonl").read_text().splitlines()]
    assert "loss" in rows[0] and "redness_4" in rows[-1]
    assert (tmp_path / "out/samples/step-00000004.png").exists()


def test_a_run_in_two_parts_ends_with_the_same_weights(pictures: Path, tmp_path: Path) -> None:
    data = Folder(pictures, 16)
    whole = steer.train(data=data, network=TINY, out=tmp_path / "whole", steps=6, schedule="constant", **LOOP)
    for steps in (4, 6):
        steer.train(
            data=data, network=TINY, out=tmp_path / "parts", steps=steps, schedule="constant", warm_up=0, **LOOP
        )
    again = steer.train(
        data=data, network=TINY, out=tmp_path / "again", steps=6, schedule="constant", warm_up=0, **LOOP
    )
    assert isinstance(again.flow, torch.nn.Module) and isinstance(whole.flow, torch.nn.Module)
    parts = weights(tmp_path / "parts")
    assert all(torch.equal(v, parts[k]) for k, v in again.flow.state_dict().items())
    assert any(not torch.equal(v, parts[k]) for k, v in whole.flow.state_dict().items())  # another warm-up


def test_training_goes_on_from_a_model(pictures: Path, tmp_path: Path) -> None:
    data = Folder(pictures, 16)
    first = steer.train(data=data, network=TINY, out=tmp_path / "first", steps=2, **LOOP)
    second = steer.train(data=data, model=first, out=tmp_path / "second", steps=2, lr=1e-9, **LOOP)
    assert isinstance(first.flow, torch.nn.Module) and isinstance(second.flow, torch.nn.Module)
    after = second.flow.state_dict()
    assert all(torch.allclose(v, after[k], atol=1e-6) for k, v in first.flow.state_dict().items())


def test_a_teacher_is_guided_away_from_a_weaker_one(pictures: Path, tmp_path: Path) -> None:
    """The weaker one, at another scale, gives other weights; the teacher's own file stays as it is."""
    data, loop = Folder(pictures, 16), {**LOOP, "steps": 2}
    teacher = steer.train(data=data, network=TINY, out=tmp_path / "teacher", **loop)
    weak = steer.train(data=data, network=TINY, out=tmp_path / "weak", **{**loop, "seed": 1, "steps": 1})
    before = (tmp_path / "teacher/flow.safetensors").read_bytes()
    given = {"data": data, "objective": "distil", "teacher": teacher}
    plain = steer.train(**given, out=tmp_path / "plain", **loop)
    guided = steer.train(**given, weak=weak, autoguidance=3.0, out=tmp_path / "guided", **loop)
    one, other = (m.flow.state_dict() for m in (plain, guided))  # type: ignore[attr-defined]
    assert any(not torch.equal(v, other[k]) for k, v in one.items())
    assert (tmp_path / "teacher/flow.safetensors").read_bytes() == before


def test_a_posterior_map_grows_and_the_model_stays(tmp_path: Path) -> None:
    if "posterior" not in names("objective"):
        pytest.skip("no such objective")
    model = steer.load_model("emoji")
    before = {k: v.clone() for k, v in model.flow.state_dict().items()}  # type: ignore[attr-defined]
    out = steer.train(
        data="emoji", rows=40, model=model, posterior=2, objective="posterior", out=tmp_path, steps=2, **LOOP
    )
    after = out.flow.state_dict()  # type: ignore[attr-defined]
    shared = {k: v for k, v in before.items() if k.startswith("base.")} or {f"base.{k}": v for k, v in before.items()}
    assert all(torch.allclose(v, after[k], atol=1e-6) for k, v in shared.items())


def test_a_model_that_is_trained_loses_its_posterior_map(tmp_path: Path) -> None:
    """Which was made for its flow as it was."""
    out = steer.train(data="emoji", rows=20, model="emoji", objective="flow_matching", out=tmp_path, steps=1, **LOOP)
    assert steer.load_model("emoji").posterior and not out.posterior
    assert not (tmp_path / "posterior.safetensors").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": "shape"}, "data='shape' is unknown.*did you mean 'shapes'"),
        ({"objective": "lds"}, "objective='lds' is unknown.*did you mean 'lsd'"),
        ({"model": "emojis"}, "model='emojis' is no embedded model"),
        ({"network": {"architecture": "unet"}}, "network.architecture='unet' is unknown"),
        ({"weak": "shapes"}, "weak='shapes' guides a teacher, but objective='lsd' distils none"),
        ({"objective": "distil"}, "objective='distil' distils a teacher; give teacher="),
        ({"objective": "distil", "teacher": "shapes", "autoguidance": 2.0}, "autoguidance=2.0 with no weak="),
        ({"objective": "distil", "teacher": "shapes", "weak": "shapes"}, "autoguidance=1.0 with weak="),
        (
            {"objective": "posterior_glass", "teacher": "shapes", "weak": "shapes", "autoguidance": 2.0},
            "leave weak= and autoguidance= out",
        ),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"judge": "clop"}, "reward='clop' is unknown.*did you mean 'clip'"),
    ],
)
def test_mistakes_are_named_before_any_work(change: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        steer.train(**{"data": "shapes", "out": tmp_path / "out", "rows": 10, **LOOP, **change})
    assert not (tmp_path / "out").exists()


def test_the_command_trains_and_goes_on(pictures: Path, tmp_path: Path) -> None:
    network = [f"network.{key}={value}" for key, value in TINY.items() if key != "architecture"]
    command = [
        sys.executable, "-m", "steer", "train", "data=folder", f"data.path={pictures}", "data.size=16",
        "network=patches",
        *network, f"out={tmp_path / 'out'}", "batch=8", "save_every=2", "tracker=null", "objective=flow_matching",
    ]  # fmt: skip
    for steps in (2, 4):
        done = subprocess.run([*command, f"steps={steps}"], capture_output=True, text=True, cwd=CONFIGS.parent)
        assert done.returncode == 0, done.stderr
    assert "steer.load_model" in done.stdout
    assert sorted(p.name for p in (tmp_path / "out/checkpoints").iterdir()) == ["step-00000002", "step-00000004"]
    misspelt = subprocess.run([*command, "batchs=4"], capture_output=True, text=True, cwd=CONFIGS.parent)
    assert misspelt.returncode == 2 and "did you mean 'batch'" in misspelt.stderr


@pytest.mark.parametrize("name", names("experiment"))
def test_every_experiment_composes_and_builds(name: str) -> None:
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate

    from steer.training import Settings

    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("train", [f"experiment={name}"])
    assert callable(instantiate(config.objective))
    known = {key: config[key] for key in vars(Settings()) if key in config}
    assert Settings(**{**known, "betas": tuple(config.betas), "ema": tuple(config.ema)}).steps == config.steps
