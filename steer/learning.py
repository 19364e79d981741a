"""`train`: where data, a network, an objective and the loop meet."""

import copy
import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from steer import data as datasets
from steer.data.emoji import Emoji
from steer.data.stage import STAGE
from steer.flow_map import FlowMap
from steer.judging import Judging
from steer.models import ASSETS, Model, load_model, picture, save_model
from steer.models.drawing import Words, load_untrained
from steer.models.growing import base, grow
from steer.objectives import Objective, Student, Teacher
from steer.rows import EmojiRows, LatentRows, PixelRows, vocabulary
from steer.samples import check_folder
from steer.settings import build
from steer.training import ENDLESS, Own, Settings, Trainer, TrainingData

STAGE_WEIGHT = 6.0  # what an error of a stage's number counts, of which there are few


def train(
    *,
    data: Any = "shapes",  # noqa: ANN401 (a name, or rows of pictures with captions)
    objective: Any = "lsd",  # noqa: ANN401 (a name or an objective)
    model: str | Path | Model | None = None,
    network: dict[str, Any] | None = None,
    teacher: str | Path | Model | None = None,
    weak: str | Path | Model | None = None,
    autoguidance: float = 1.0,
    out: str | Path = "runs/train",
    posterior: int | None = None,
    rows: int = 200_000,
    judge: str | None = None,
    progress: bool = True,
    **settings: Any,  # noqa: ANN401 (fields of Settings)
) -> Model:
    """Train a flow map, or distil one; the model of the averaged weights, also in `out` for `steer.load_model`.

    A run that was stopped or killed goes on from its newest checkpoint in `out`, and ends with the weights that it
    would have had without.

    Args:
        data: "emoji", "shapes", or an object with `rows(index) -> (pictures uint8 [b h w 3], captions)`, `captions` and
            a length, such as `steer.data.folder.Folder(path)`.
        objective: a name (`steer list`) or an object of steer.objectives. One that distils is built by the teacher's
            flow: a callable that takes it by keyword.
        model: the weights to start from, less a posterior map; None starts from the teacher's, or from random ones.
        network: {"architecture": "perceptron" or "patches", ...} of a model that starts from random weights.
        teacher: whose velocity a distillation learns.
        weak: a weaker teacher of the same prompts, to be guided away from, see `steer.objectives.Teacher`.
        autoguidance: the scale of that; 1 is none.
        posterior: the rank of a posterior map that grows beside the model's flow, which stays as it is; for the
            objectives "posterior" and "posterior_glass".
        out: the folder of the model, its checkpoints and logs.
        rows: how many rows of endless data, or variations of the emoji, are encoded once.
        judge: a reward by name; its mean over samples of held captions is written down with pictures of them.
        progress: whether to show a bar.
        **settings: of the loop, see `steer.training.Settings`.

    Raises:
        ValueError: a name, setting or combination that is not known or does not fit.
        FloatingPointError: the loss or its gradient is not finite.
    """
    from accelerate import PartialState

    loop = Settings(**settings)
    folder = check_folder(out)
    source = build("data", data) if isinstance(data, str) else data
    master, weaker = (load_model(m) if isinstance(m, str | Path) else m for m in (teacher, weak))
    goal = _objective(objective, master, weaker, autoguidance)
    start = _start(source, model if model is not None else teacher, network or {}, loop.seed)
    assert isinstance(start.flow, nn.Module)
    start = _grown(start, posterior) if posterior else _bare(start)
    assert isinstance(start.flow, nn.Module)
    student = Student(start.flow, start.path, metric=_metric(start))
    judging = Judging(start, _captions(source), judge, folder / "samples")
    with PartialState().main_process_first():
        table = _rows(source, start, rows, folder)
    trainer = Trainer(
        start.flow, goal, table, loop, folder, student=student, progress=progress,
        save=lambda flow, to: save_model(with_flow(start, flow), to),
        judge=lambda flow, _, step: judging(with_flow(start, flow), step),
        facts={"teacher": _name(teacher), "weak": _name(weak), "autoguidance": autoguidance},
    )  # fmt: skip
    trainer.run()
    return load_model(folder)


def with_flow(model: Model, flow: nn.Module) -> Model:
    """The model with another network of the same kind, which also reads the words where the model's own does."""
    if not hasattr(model.encode, "net"):
        return replace(model, flow=flow)
    return replace(model, flow=flow, encode=replace(model.encode, net=flow))  # type: ignore[type-var]


def _objective(objective: Any, teacher: Model | None, weak: Model | None, autoguidance: float) -> Objective:  # noqa: ANN401
    goal = build("objective", objective) if isinstance(objective, str) else objective
    if not isinstance(goal, functools.partial):
        if weak is not None:
            raise ValueError(f"weak={weak.name!r} guides a teacher, but objective={objective!r} distils none")
        return goal
    if teacher is None:
        raise ValueError(f"objective={objective!r} distils a teacher; give teacher=, a model's name or folder")
    if weak is None and autoguidance == 1:
        return goal(teacher=_frozen(teacher))
    return goal(teacher=Teacher(_frozen(teacher), weak and _frozen(weak), autoguidance))


def _grown(model: Model, rank: int) -> Model:
    """The model with a posterior map, its own or a fresh one, of which that alone is trained."""
    model = grow(model, rank)
    assert isinstance(model.flow, nn.Module)
    for name, weight in model.flow.named_parameters():
        weight.requires_grad_(not name.startswith("base."))
    return model


def _bare(model: Model) -> Model:
    """The model, ready to be trained, without a posterior map or tuned noise: they would no longer fit."""
    return replace(with_flow(model, base(model.flow).train().requires_grad_(True)), posterior=False, noise=None)


def _frozen(model: Model) -> FlowMap:
    """A model's flow, that reads the words by itself and is not trained."""
    assert isinstance(model.flow, nn.Module)
    return Own(model.flow.eval().requires_grad_(False))


def _name(model: str | Path | Model | None) -> str | None:
    return None if model is None else str(getattr(model, "name", model))


def _start(source: Any, model: str | Path | Model | None, network: dict[str, Any], seed: int) -> Model:  # noqa: ANN401
    """The model that training begins with."""
    if isinstance(model, Model):
        assert isinstance(model.flow, nn.Module)
        return with_flow(model, copy.deepcopy(model.flow))  # the caller's stays as it is
    if model is not None:
        return load_model(model)
    kind = network.get("architecture", "perceptron")
    if kind not in picture.NETWORKS:
        raise ValueError(f"network.architecture={kind!r} is unknown; known: {', '.join(picture.NETWORKS)}")
    sizes = {key: value for key, value in network.items() if key != "architecture"}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if isinstance(source, Emoji):
            return load_untrained(ASSETS / "emoji", sizes)
        pieces = vocabulary(_captions(source, 4000))
        if kind == "patches":
            side = source.rows([0])[0].shape[1]
            return picture.build(pieces, sizes, kind, picture.Pixels(), (3, side, side), "pixels")
        decode = picture.load_decoder(ASSETS / "shapes")
        return picture.build(pieces, sizes, kind, decode, (decode.size,), "latents")


def _rows(source: Any, model: Model, count: int, folder: Path) -> TrainingData:  # noqa: ANN401
    if isinstance(source, Emoji):
        return EmojiRows(model, count)
    if isinstance(model.decode, picture.Pixels):
        return PixelRows(source, model, len(source) if hasattr(source, "__len__") else ENDLESS)
    return LatentRows(source, model, len(source) if hasattr(source, "__len__") else count, folder / "rows.safetensors")


def _captions(source: Any, count: int = 64) -> list[str]:  # noqa: ANN401
    """Captions to judge by: spread over those there are."""
    if isinstance(source, datasets.shapes.Shapes):
        return source.rows(range(count))[1] if count > 64 else datasets.shapes.prompts("seen", count)
    captions = list(source.captions)
    step = max(1, len(captions) // count)
    return captions[::step][:count] if count <= 64 else captions


def _metric(model: Model) -> Tensor | None:
    """Of drawings on a stage: the stage's few numbers count more."""
    if not isinstance(model.encode, Words):
        return None
    metric = torch.ones(model.shape)
    metric[-STAGE:] = STAGE_WEIGHT
    return metric
