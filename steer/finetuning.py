"""`finetune`: where a model, a reward, prompts and the loop meet."""

import json
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import rewards
from steer import checkpoints
from steer.adapters import Reference, fill_lora
from steer.api import SHARE_OF_SPREAD
from steer.arguments import MOST, check_device, check_flags, check_held_out, check_reward, is_number, is_whole
from steer.checkpoints import write_json
from steer.chunks import Chunks
from steer.experience import Experience, Rounds
from steer.guards import Guard, Rule, spread
from steer.models import Model, load_model
from steer.models.diffusers import PipelineModel, one_call, read_lora
from steer.models.drawing import Words
from steer.models.picture import Spell
from steer.objectives import DirectGradient, NoiseNetwork, Preference, Student, Tuning
from steer.problem import Scores
from steer.prompts import Prompts, Source
from steer.report import judge_for
from steer.samples import check_folder
from steer.settings import build, called, names, unknown
from steer.training import Settings, Trainer
from steer.tuned import finished, prepared, raw, save, save_best, tuned_part
from steer.value_targets import Adjoints

DEFAULTS: dict[str, Any] = {
    "lr": 1e-4, "batch": 256, "warm_up": 0.0, "schedule": "constant", "ema": (0.5,), "average_every": 4, "drop": 0.0,
    "save_every": 50, "log_every": 10,
}  # fmt: skip


def finetune(
    model: str | Path | Model,
    reward: Any,  # noqa: ANN401 (whatever rewards.to_reward takes)
    prompts: Source | None = None,
    *,
    objective: str | Tuning = "nft",
    steps: int = 200,
    temperature: float | None = None,
    held_out: Any = "judge",  # noqa: ANN401 (a reward, or None)
    held_out_prompts: str | Path | Sequence[str] | None = None,
    rank: int = 32,
    alpha: float | None = None,
    normalise: bool = False,
    rounds: Rounds | Mapping[str, int] | None = None,
    guard: Rule | Mapping[str, Any] | None = None,
    guard_every: int = 20,
    guard_pictures: int = 8,
    calls: int = 4,
    pairs: Any = None,  # noqa: ANN401 (a folder, or what `steer.preferences.PairRows` takes)
    out: str | Path = "runs/finetune",
    device: str | torch.device | None = None,
    progress: bool = True,
    **settings: Any,  # noqa: ANN401 (fields of steer.training.Settings)
) -> Model:
    """Tune a model so that its plain few-step samples score high; the best weights by a stated rule, also in `out`.

    What happened is told in words: a warning where the reward was over-optimised, and in out/report.json. A run that
    was killed goes on with the same call, and ends with the weights that it would have had.

    Args:
        model: a name, a folder or a `steer.Model`; it is left as it is.
        reward: as for `steer.sample`: a name, any function of pictures, or several with weights.
        prompts: texts, a file with one a line, or a function draw(count, seed) -> texts; None takes the captions of an
            embedded model's data.
        objective: a name (`steer list`: tuning) or an object of steer.objectives with a `collector`.
        steps: updates of the weights; the loop's other settings are those of `steer.training.Settings`.
        temperature: of the target p exp(reward / temperature), for the objectives that have one; None measures it, a
            quarter of the reward's standard deviation over a prompt's plain pictures.
        held_out: a reward that is measured and not optimised; "judge" takes the model's own, if there is one.
        held_out_prompts: texts or a file that the guard measures on; None takes some of `prompts` away for it.
        rank: of the adapters (LoRA); 0 tunes all weights.
        alpha: the adapters' scale times their rank, 2 rank by default.
        normalise: divide each of several rewards by its standard deviation over a prompt's plain pictures, so that
            weights compare like with like.
        rounds: how much is gathered and how long it serves, see `steer.experience.Rounds`.
        guard: the rule for the best weights and for stopping, see `steer.guards.Rule`.
        guard_every: updates between its measurements.
        guard_pictures: pictures of each held-out prompt.
        calls: network calls of each.
        pairs: for objective="dpo" the preference pairs, see `steer.preferences.PairRows`; a folder of them.
        out: the folder of the model, the best weights, checkpoints, logs and the report.
        device: None takes CUDA where there is one.
        progress: whether to show a bar.
        **settings: of the loop, see `steer.training.Settings`; `DEFAULTS` says which differ from its own.

    Raises:
        ValueError: an argument is out of range, unknown or does not fit the others; before any long work.
        FloatingPointError: the loss or its gradient is not finite.
    """
    from accelerate import PartialState

    loop = Settings(steps=steps, sample_every=guard_every, **DEFAULTS | settings)
    goal, kept = _objective(objective), check_held_out(held_out)
    score, place, folder = check_reward(reward, compare=not normalise), check_device(device), check_folder(out)
    check_flags(normalise=normalise, progress=progress)
    _check_numbers({"temperature": temperature, "alpha": alpha}, rank, guard_pictures, calls)
    if pairs is not None and not isinstance(goal, Preference):
        raise ValueError(f"pairs= is for objective=dpo, got {called('tuning', goal)}, which makes its own rows")
    if pairs is None and goal.collector is None:
        raise ValueError("objective=dpo learns from pairs that are given: pairs=FOLDER; without any, take online_dpo")
    rule = guard if isinstance(guard, Rule) else Rule(**_mapping("guard", guard))
    gathering = rounds if isinstance(rounds, Rounds) else Rounds(**_mapping("rounds", rounds))
    _check_gradient(goal, score, rewards.is_differentiable(score))
    if goal.collector is not None:
        goal.collector.rows(gathering.group)
    PartialState(cpu=place.type == "cpu")  # processes meet before the first file is written
    start = one_call(model if isinstance(model, Model) else load_model(model, place))
    source = Prompts(_prompts(start) if prompts is None else prompts, held_out_prompts, loop.seed)
    if needs_gradient(goal) and rewards.is_differentiable(score) is None:
        _check_gradient(goal, score, _probed(start, score, source.held_out[:1], place))
    tuned = prepared(start, goal, rank, alpha, loop.seed)
    judge = judge_for(start, score, place, kept)

    def done(flow: nn.Module) -> Model:
        return finished(start, flow, goal)

    watch = Guard(done, start, source.held_out, score, judge, rule, folder, n=guard_pictures, calls=calls,
                  save=lambda best, step: save_best(best, step, folder))  # fmt: skip
    _check_spread(watch, score)
    settled = _settled(folder, _measured(score, watch, normalise))
    measured: dict[str, Any] = settled | ({} if temperature is None else {"temperature": temperature})
    watch.temperature = measured["temperature"]
    if measured["weights"] is not None:
        assert isinstance(score, rewards.WeightedSum)
        watch.score = score = rewards.WeightedSum(score.rewards, tuple(measured["weights"]))
        watch.before = watch.measure(watch.reference)
    facts = {"model": start.name, "rank": rank, "alpha": alpha, **measured}
    facts |= {"reward": rewards.name_of(score), "prompts": source.digest}
    facts |= {"rounds": {k: v for k, v in vars(gathering).items() if k != "chunk"}}
    data = _rows(pairs, tuned, goal, source, score, gathering, watch.temperature, loop.seed)
    trainer = _trainer(tuned, goal, data, loop, folder, watch, facts, done, progress)
    if trainer.main:  # the first file: what is refused leaves none
        write_json(folder / "measured.json", settled)
    trainer.run()
    if trainer.main:
        _conclude(watch, folder, facts | {"assumed": rewards.assumed(score)})
    trainer.accelerator.wait_for_everyone()
    return _result(start, watch, folder, done, trainer)


def needs_gradient(goal: Tuning) -> bool:
    """Whether an objective differentiates the reward, itself or to make its rows."""
    direct = isinstance(goal, DirectGradient | NoiseNetwork) or isinstance(goal.collector, Adjoints)
    return direct or getattr(goal.collector, "gradient", False)


def _check_gradient(goal: Tuning, score: rewards.Reward, differentiable: bool | None) -> None:
    """Raises ValueError for an objective that follows the gradient of a reward that has none."""
    if needs_gradient(goal) and differentiable is False:
        built = {name: build("tuning", name) for name in names("tuning")}
        others = [name for name, one in built.items() if one.collector is not None and not needs_gradient(one)]
        raise ValueError(
            f"objective={called('tuning', goal)!r} follows the reward's gradient, and reward "
            f"{rewards.name_of(score)!r} has none; take one that needs none: {', '.join(others)}"
        )


@torch.no_grad()
def _probed(model: Model, score: rewards.Reward, prompts: list[str], place: torch.device) -> bool:
    """Whether a reward that says nothing of it has a gradient, on a picture of noise."""
    noise = torch.randn(1, *model.shape, generator=torch.Generator().manual_seed(0)).to(place)
    return rewards.probe_differentiable(score, model.decode(noise).float(), prompts)


def _mapping(name: str, given: object) -> dict[str, Any]:
    """Settings by name; raises ValueError where they are none."""
    if given is not None and not isinstance(given, Mapping):
        raise ValueError(f"{name}={given!r} must be a dict of settings, by their names")
    return dict(given or {})


def _check_numbers(above: dict[str, float | None], rank: int, guard_pictures: int, calls: int) -> None:
    for name, value in above.items():
        if value is not None and not (is_number(value) and value > 0):
            raise ValueError(f"{name}={value!r} must be above 0, or None to take what suits")
    least = {"guard_pictures": 2, "calls": 1}  # that of rank is told where adapters are made
    for name, value in {"rank": rank, "guard_pictures": guard_pictures, "calls": calls}.items():
        if not is_whole(value) or value > MOST:
            raise ValueError(f"{name} must be a whole number of at most {MOST}, got {value!r}")
        if value < least.get(name, value):
            raise ValueError(f"{name} must be at least {least[name]}, got {value}")


def _objective(objective: str | Tuning) -> Tuning:
    if isinstance(objective, str):
        if objective not in names("tuning"):
            if objective in names("objective"):
                raise ValueError(f"objective={objective!r} trains from data (`steer train`); to tune, take "
                                 f"one of {', '.join(names('tuning'))}")  # fmt: skip
            raise unknown("objective", objective, names("tuning"))
        objective = build("tuning", objective)
    if not hasattr(objective, "collector"):
        raise ValueError(f"objective={objective!r} has no collector: it trains from data; take steer.train, or one of "
                         f"{', '.join(names('tuning'))}")  # fmt: skip
    collector = getattr(objective, "collector", None)
    if collector is not None and not hasattr(collector, "rows"):
        raise ValueError(f"objective.collector={collector!r} must be one of steer.collecting; leave it out to take "
                         "the objective's own")  # fmt: skip
    return objective  # type: ignore[return-value]


def _prompts(model: Model) -> list[str]:
    """The captions that an embedded model learned from."""
    if isinstance(model.encode, Words):
        from steer.data import emoji

        return sorted(set(emoji.load().captions))
    if model.name == "shapes":
        from steer.data.shapes import prompts

        return prompts("seen", 512)
    raise ValueError(f"prompts=None, and model={model.name!r} has no captions of its own; give prompts=")


def _check_spread(watch: Guard, score: rewards.Reward) -> None:
    """Says at once what no tuning can mend."""
    r, name = watch.rewards, rewards.name_of(score)
    if not bool(r.isfinite().any()):
        raise ValueError(f"reward {name!r} rejects (-inf) all pictures of the model; nothing can be learned from it")
    if spread(r) <= 1e-6 * float(r[r.isfinite()].abs().max()):
        warnings.warn(
            f"reward {name!r} gives all plain pictures of each held-out prompt the same score: there may be nothing to "
            "learn; check the reward, or take prompts where it differs", stacklevel=3,
        )  # fmt: skip


def _measured(score: rewards.Reward, watch: Guard, normalise: bool) -> dict[str, Any]:
    """What is measured before the tuning: weights over the spreads of their rewards, and the temperature."""
    weights, r = None, watch.rewards
    if normalise and isinstance(score, rewards.WeightedSum):
        weights, total = [], torch.zeros_like(r)
        for part, weight in zip(score.rewards, score.weights, strict=True):
            watch.score = part
            watch.measure(watch.reference)
            width = spread(watch.rewards)
            if not width > 0:
                raise ValueError(
                    f"normalise=True: reward {rewards.name_of(part)!r} gives all plain pictures of a prompt the same "
                    "score; weigh it yourself, with normalise=False"
                )
            weights.append(weight / width)
            total = total + weights[-1] * watch.rewards
        watch.score, r = score, total
    return {"temperature": SHARE_OF_SPREAD * spread(r) or 1.0, "weights": weights}


def _settled(folder: Path, found: dict[str, Any]) -> dict[str, Any]:
    """What the first process measured, in every process; where a run is taken up again, what it measured then."""
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    state, path, told = PartialState(), folder / "measured.json", [found]
    if state.is_main_process:
        if path.exists() and checkpoints.found(folder):
            told = [json.loads(path.read_text(encoding="utf8"))]
    return broadcast_object_list(told)[0] if state.num_processes > 1 else told[0]


def _rows(
    pairs: Any,  # noqa: ANN401
    tuned: Model,
    goal: Tuning,
    source: Prompts,
    score: rewards.Reward,
    gathering: Rounds,
    temperature: float,
    seed: int,
) -> Any:  # noqa: ANN401 (steer.training.Renewed)
    """What is learned from: pairs that are given, or what the model makes."""
    if pairs is not None:
        from steer.preferences import PairRows

        return PairRows.of(pairs, tuned, lambda texts: raw(tuned, texts))
    assert isinstance(tuned.flow, nn.Module) and goal.collector is not None
    return Experience(
        source, lambda texts: raw(tuned, texts), goal.collector, lambda texts: Scores(tuned, texts, score, Chunks()),
        tuned.shape, Reference(tuned.flow), rounds=gathering, temperature=temperature, path=tuned.path, seed=seed,
    )  # fmt: skip


def _trainer(
    tuned: Model,
    goal: Tuning,
    data: Any,  # noqa: ANN401
    loop: Settings,
    folder: Path,
    watch: Guard,
    facts: dict[str, Any],
    done: Callable[[nn.Module], Model],
    progress: bool,
) -> Trainer:
    assert isinstance(tuned.flow, nn.Module)
    student = Student(tuned.flow, tuned.path, reference=getattr(data, "reference", None) or Reference(tuned.flow))
    return Trainer(
        tuned.flow, goal, data, loop, folder, student=student, progress=progress, judge=watch, facts=facts,
        save=lambda flow, to: save(done(flow), to),
    )  # fmt: skip


def _conclude(watch: Guard, folder: Path, facts: dict[str, Any]) -> None:
    """The report, the best weights in their place, and a warning where the reward was cheated."""
    best = watch.best()
    report = {**facts, "words": watch.words(), "before": watch.before, "best": best, "history": watch.history,
              "rule": vars(watch.rule), "held_out_prompts": watch.prompts}  # fmt: skip
    if best is not None:
        for file in sorted(
            (folder / "best" / f"step-{best['step']:08.0f}").iterdir(), key=lambda f: f.suffix == ".json"
        ):
            part = folder / f".{file.name}.part"
            shutil.copyfile(file, part)
            part.replace(folder / file.name)
    else:
        save(watch.reference, folder)
    write_json(folder / "report.json", report)
    if watch.broken_since is not None:
        warnings.warn(watch.words(), stacklevel=3)


def _result(start: Model, watch: Guard, folder: Path, done: Callable[[nn.Module], Model], trainer: Trainer) -> Model:
    if isinstance(start.encode, Spell | Words):
        return load_model(folder, next(iter(trainer.plain.parameters())).device)
    if json.loads((folder / "report.json").read_text(encoding="utf8"))["best"] is None:  # in every process
        return start
    from rewards.towers import read_weights

    model = done(trainer.averages.first)
    if isinstance(model, PipelineModel):
        assert isinstance(model.flow, nn.Module)
        fill_lora(model.flow, read_lora(folder))
        return model
    net, name = tuned_part(model)
    net.load_state_dict(read_weights(folder / f"{name}.safetensors"))
    return model
