"""`steer.finetune`: from a model, a reward and prompts to a model that loads; runs in parts; mistakes named early."""

# ruff: noqa: ANN401 (settings of any kind)

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from colours import colour_model
from torch import Tensor, nn

import steer
from rewards import Function, WeightedSum, to_reward
from rewards.towers import WordPieces
from steer.finetuning import _prompts
from steer.flow_map import Cond, jump
from steer.interpolants import Linear, Time
from steer.models import Model
from steer.models.picture import Pixels, build
from steer.objectives import DirectGradient, FlowMatching, NegativeAware, ShiftMatching
from steer.posterior import Learned
from steer.tuned import finished, prepared
from steer.value_targets import PosteriorDraws

PIECES = WordPieces.from_words(["red", "circle", "star"], 8)
NETWORK = {"patch": 8, "width": 16, "depth": 1, "heads": 2, "condition": 16, "queries": 2}
PROMPTS = ["a red circle", "a star"]
QUICK = {
    "rounds": {"prompts": 2, "group": 8}, "batch": 16, "guard_every": 6, "guard_pictures": 4, "save_every": 4,
    "log_every": 4, "rank": 4, "lr": 3e-3, "steps": 12, "tracker": None, "progress": False,
    "guard": {"patience": 0, "diversity_fall": 1.0},
}  # fmt: skip


def red(images: Tensor) -> Tensor:
    return (images[:, 0] - images[:, 1]).mean((1, 2))


def toy(seed: int = 0) -> Model:
    """Pictures of 16 pixels by a small network with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build(PIECES, NETWORK, "patches", Pixels(), (3, 16, 16), "toy")
        assert isinstance(model.flow, nn.Module)
        for p in model.flow.parameters():
            nn.init.normal_(p, std=0.15)
    model.flow.eval().requires_grad_(False)
    return model


def tune(out: Path, **more: Any) -> Model:
    given = {"model": toy(), "reward": red, "prompts": PROMPTS, "out": out} | QUICK | more
    return steer.finetune(**given)


def weights(model: Model) -> dict[str, Tensor]:
    assert isinstance(model.flow, nn.Module)
    return {key: value.clone() for key, value in model.flow.state_dict().items()}


def equal(a: Model, b: Model) -> bool:
    """Bit for bit."""
    one, other = weights(a), weights(b)
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text())


def mean_reward(model: Model, n: int = 64) -> float:
    """Of plain pictures in four jumps, from noise that no run has seen."""
    x = torch.randn(n, *model.shape, generator=torch.Generator().manual_seed(9))
    cond = model.encode(PROMPTS * (n // 2))
    with torch.no_grad():
        for k in range(4):
            x = jump(model.flow, x, k / 4, (k + 1) / 4, cond)
        return float(red(model.decode(x)).mean())


@pytest.fixture(scope="module")
def drafted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Model]:
    """A run by the reward's gradient, which is the surest to rise."""
    folder = tmp_path_factory.mktemp("drafted")
    return folder, tune(
        folder, objective="draft", held_out="brightness", guard={"held_out_fall": 99, "diversity_fall": 1}
    )


def test_its_files_load_and_sample(drafted: tuple[Path, Model]) -> None:
    folder, model = drafted
    assert {"model.json", "flow.safetensors", "report.json", "log.jsonl", "best"} <= {f.name for f in folder.iterdir()}
    assert equal(steer.load_model(folder), model)
    out = steer.sample("a star", reward="redness", model=folder, method="best_of_n", n=4, steps=1, progress=False)
    assert out.images.shape == (1, 4, 3, 16, 16)
    assert not [name for name in weights(model) if "lora" in name]


def test_plain_pictures_score_higher(drafted: tuple[Path, Model]) -> None:
    folder, model = drafted
    told = report(folder)
    gain = told["best"]["reward"] - told["before"]["reward"]
    assert gain > 10 * told["temperature"] > 0
    assert mean_reward(model) - mean_reward(toy()) > gain / 2
    assert told["words"].startswith(f"reward {gain:+.3g} ± ") and "held-out reward" in told["words"]
    assert (told["model"], told["reward"], told["rank"], told["held_out_prompts"]) == ("toy", "red", 4, PROMPTS)


def test_the_log_holds_losses_and_measurements(drafted: tuple[Path, Model]) -> None:
    folder, _ = drafted
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [4, 8, 12]
    judged = [row for row in rows if "guard/reward" in row]
    assert [row["step"] for row in judged] == [6, 12]
    assert judged[-1]["guard/kl"] == pytest.approx(report(folder)["history"][-1]["kl"], rel=1e-5)


@pytest.mark.parametrize("objective", ["nft", "weighted", "tilt", "grpo", "online_dpo", "noise"])
def test_the_model_that_is_given_stays(objective: str, tmp_path: Path) -> None:
    model = toy()
    assert isinstance(model.flow, nn.Module)
    tune(tmp_path, model=model, objective=objective, steps=4, guard_every=0, held_out=None)
    assert equal(model, toy())
    assert not model.flow.training and not any(p.requires_grad for p in model.flow.parameters())


def test_learning_without_the_rewards_gradient(tmp_path: Path) -> None:
    more = {"rounds": {"prompts": 2, "group": 32, "updates": 4}, "batch": 64, "steps": 40, "guard_every": 40}
    model = tune(tmp_path, objective=NegativeAware(), held_out=None, reward=lambda images: red(images).detach(), **more)
    told = report(tmp_path)
    assert told["best"]["reward"] - told["before"]["reward"] > told["temperature"]
    assert mean_reward(model) - mean_reward(toy()) > told["temperature"]


def test_a_seed_decides_the_weights(tmp_path: Path) -> None:
    given: dict[str, Any] = {"steps": 8, "held_out": None, "objective": "draft"}
    first, again, other = (tune(tmp_path / n, **given, seed=s) for n, s in (("a", 3), ("b", 3), ("c", 4)))
    assert equal(first, again) and not equal(first, other)


class Crash(Exception):
    """The machine is gone, as it were."""


class Fragile:
    """Redness, until a call that crashes."""

    name = "red"

    def __init__(self, crash: int | None = None) -> None:
        self.calls, self.crash = 0, crash

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        self.calls += 1
        if self.calls == self.crash:
            raise Crash
        return red(images)


@pytest.mark.parametrize("objective", ["nft", "tilt"])
def test_a_run_that_was_killed_ends_with_the_same_weights(objective: str, tmp_path: Path) -> None:
    """Killed between checkpoints, where a round is scored or weights are measured, and in the last measurement."""
    more = {"objective": objective, "held_out": None, "rounds": {"prompts": 2, "group": 8, "updates": 3, "replay": 2}}
    whole = Fragile()
    undisturbed = tune(tmp_path / "whole", reward=whole, **more)
    for k, share in enumerate((0.7, 0.9, 1.0)):
        folder = tmp_path / str(k)
        with pytest.raises(Crash):
            tune(folder, reward=Fragile(int(share * whole.calls)), **more)
        assert list((folder / "checkpoints").iterdir()) and not (folder / "report.json").exists()
        again = Fragile()
        assert equal(tune(folder, reward=again, **more), undisturbed)
        assert again.calls < whole.calls
        assert measured(folder) == measured(tmp_path / "whole")


def measured(folder: Path) -> list[dict[str, float]]:
    """The guard's rows, to the digits that a log holds."""
    rows = report(folder)["history"]
    return [{key: float(f"{value:.6g}") for key, value in row.items()} for row in rows]


def test_another_call_does_not_go_on_with_it(tmp_path: Path) -> None:
    tune(tmp_path, held_out=None)
    changes = [({"rank": 2}, "rank=2 was 4"), ({"temperature": 7.0}, "temperature=7.0 was"), ({"seed": 1}, "seed=1")]
    for change, said in [*changes, ({"objective": "draft"}, "objective=.*draft.* was .*NegativeAware")]:
        with pytest.raises(ValueError, match=f"{said}.*another folder"):
            tune(tmp_path, held_out=None, **change)


def test_the_guard_ends_the_run_and_the_reference_is_kept(tmp_path: Path) -> None:
    rule = {"kl_most": 1e-6, "patience": 1}
    with pytest.warns(UserWarning, match="over-optimised since step 6 .*left as it was"):
        model = tune(tmp_path, objective="draft", guard=rule, steps=100, held_out=None)
    assert equal(model, toy()) and equal(steer.load_model(tmp_path), toy())
    told = report(tmp_path)
    assert told["best"] is None and [row["step"] for row in told["history"]] == [6]
    assert told["history"][0]["kl"] > 1e-6 and told["rule"]["patience"] == 1
    assert max(path.name for path in (tmp_path / "checkpoints").iterdir()) == "step-00000006"
    with pytest.warns(UserWarning, match="over-optimised since step 6"):  # and it stays ended
        tune(tmp_path, objective="draft", guard=rule, steps=100, held_out=None)
    assert report(tmp_path)["history"][-1]["step"] == 6


def test_without_patience_it_only_warns_and_keeps_the_best(tmp_path: Path) -> None:
    """The bound lies between the first measurement and the last."""
    free = tune(tmp_path / "free", objective="draft", held_out=None, guard_every=4)
    first, *_, last = report(tmp_path / "free")["history"]
    assert first["kl"] < last["kl"]
    bound = (first["kl"] * last["kl"]) ** 0.5
    with pytest.warns(UserWarning, match="over-optimised since step .*KL is above .*kept step"):
        kept = tune(tmp_path / "bound", objective="draft", held_out=None, guard_every=4, guard={"kl_most": bound})
    told = report(tmp_path / "bound")
    assert len(told["history"]) == 3 and told["best"]["kl"] <= bound < told["history"][-1]["kl"]
    assert not equal(kept, free) and not equal(kept, toy())
    assert mean_reward(toy()) < mean_reward(kept) < mean_reward(free)


def test_rank_0_tunes_all_weights(tmp_path: Path) -> None:
    """Those without an adapter too, such as norms and places; with a rank these stay as they are."""
    before = weights(toy())
    after = weights(tune(tmp_path / "all", rank=0, objective="draft", steps=4, held_out=None))
    low = weights(tune(tmp_path / "low", rank=2, objective="draft", steps=4, held_out=None))
    assert not torch.equal(before["place"], after["place"]) and torch.equal(before["place"], low["place"])
    assert torch.linalg.matrix_rank(after["enter.weight"] - before["enter.weight"], rtol=1e-4) > 4
    assert torch.linalg.matrix_rank(low["enter.weight"] - before["enter.weight"], rtol=1e-4) <= 2


def test_tuned_noise(tmp_path: Path) -> None:
    """The map stays; it is saved, loaded and sampled with its noise, which the guard tells from none."""
    model = tune(tmp_path, objective="noise", held_out=None)
    back = steer.load_model(tmp_path)
    assert model.noise is not None and back.noise is not None and equal(back, toy())
    x, cond = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)), back.encode(PROMPTS)
    assert torch.equal(model.noise(x, cond), back.noise(x, cond)) and not torch.allclose(back.noise(x, cond), x)
    told = report(tmp_path)
    assert told["best"]["reward"] > told["before"]["reward"] and told["best"]["kl"] > 0
    given = {"reward": red, "method": "best_of_n", "n": 8, "steps": 1, "seed": 0, "temperature": 1.0, "progress": False}
    noised, plain = (steer.sample("a star", model=m, **given) for m in (tmp_path, toy()))
    assert not torch.equal(noised.unsteered, plain.unsteered)
    assert red(noised.unsteered[0]).mean() > red(plain.unsteered[0]).mean()
    with pytest.raises(ValueError, match="has tuned noise, which suits its flow as it is; tune the model without"):
        tune(tmp_path / "twice", model=back)


@pytest.mark.parametrize("objective", ["draft", "refl", "noise", "adjoint", "tilt_gradient"])
@pytest.mark.parametrize("said", [False, None])
def test_a_reward_without_a_gradient(objective: str, said: bool | None, tmp_path: Path) -> None:
    """Whether the reward says so or a picture of noise shows it: both are named, and what takes such a reward."""
    black_box = Function(lambda images: red(images).detach(), "black_box", said)
    others = "best_of_n, grpo, grpo_restart, mean_flow_nft, nft, online_dpo, search, tilt, weighted"
    message = f"objective='{objective}' follows .* reward 'black_box' has none; take one that needs none: {others}$"
    with pytest.raises(ValueError, match=message):
        tune(tmp_path / "out", objective=objective, reward=black_box, held_out=None)
    assert not (tmp_path / "out").exists()


def test_what_is_refused_at_the_last_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="batch must be a multiple of 1 processes times accumulate=3, got 16; take 18"):
        tune(tmp_path / "out", accumulate=3, held_out=None)
    assert not (tmp_path / "out").exists()


def test_what_is_said_while_it_runs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A line a measurement, with its figures in the log, and where a run goes on from."""
    tune(tmp_path, progress=True, held_out="brightness")
    printed = capfd.readouterr().out.splitlines()
    log = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    rows = [row for row in log if "guard/reward" in row]
    assert [line.split(":")[0] for line in printed] == ["step 6", "step 12"]
    for line, row in zip(printed, rows, strict=True):
        figures = {key.removeprefix("guard/"): value for key, value in row.items()}
        said = "reward {reward:.4g} \u00b1 {reward_error:.2g}, held-out {held_out:.4g} \u00b1 {held_out_error:.2g}, "
        said += "diversity {diversity:.3g}, KL {kl:.3g} nats, "
        assert said.format(**figures) in line and line.endswith(" s")
    assert " \u00b1 " in report(tmp_path)["words"].split(" (from")[0]
    tune(tmp_path, progress=True, held_out="brightness")
    assert capfd.readouterr().out.splitlines() == ["goes on from step 12"]


def test_a_reward_that_says_nothing(tmp_path: Path) -> None:
    with pytest.warns(UserWarning) as seen:
        model = tune(tmp_path, reward=lambda images: images.new_ones(len(images)), steps=2, held_out=None)
    texts = [str(warning.message) for warning in seen]
    assert any("gives all plain pictures of each held-out prompt the same score" in text for text in texts)
    assert any("all advantages of a round are zero" in text for text in texts)
    assert equal(model, toy()) and report(tmp_path)["temperature"] == 1


def test_a_reward_that_rejects_everything(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"rejects \(-inf\) all pictures of the model; nothing can be learned"):
        tune(tmp_path / "out", reward=lambda images: images.new_full((len(images),), -math.inf))


def test_given_pairs_need_no_reward_of_samples(tmp_path: Path) -> None:
    """Red pictures preferred to green ones: pictures become redder; the reward is only measured."""
    better, worse = torch.zeros(3, 16, 16), torch.zeros(3, 16, 16)
    better[0], worse[1] = 0.8, 0.8
    whole = Fragile()
    model = tune(
        tmp_path, objective="dpo", pairs=[(q, better, worse) for q in PROMPTS], reward=whole, held_out=None,
        steps=30, guard_every=30, batch=8,
    )  # fmt: skip
    assert whole.calls == 2  # the guard's: before, and after
    assert mean_reward(model) > mean_reward(toy())
    with pytest.raises(ValueError, match="pairs= is for objective=dpo, got nft"):
        tune(tmp_path / "nft", pairs=[("a star", better, worse)])


def test_weights_over_spreads(tmp_path: Path) -> None:
    """A reward counts by its weight, whatever its unit."""
    total = WeightedSum((to_reward(red), to_reward(lambda images: 1000 * red(images))), (1.0, 3.0))
    tune(tmp_path / "alone", steps=1, held_out=None)
    spread = 4 * report(tmp_path / "alone")["temperature"]  # a quarter of it is the temperature
    tune(tmp_path / "sum", reward=total, normalise=True, steps=1, held_out=None)
    told = report(tmp_path / "sum")
    first, second = (float(part.split()[0]) for part in told["reward"].split(" + "))
    assert first == pytest.approx(1 / spread, rel=1e-4) and second == pytest.approx(3 / (1000 * spread), rel=1e-4)
    assert told["temperature"] == pytest.approx(0.25 * (1 + 3), rel=1e-3)


class Moved(nn.Module):
    """A model's map that is no native network: x is moved along a learned line."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(1, 3)
        nn.init.zeros_(self.line.weight)
        nn.init.zeros_(self.line.bias)

    def forward(self, x: Tensor, s: Time, t: Time, cond: Cond = None) -> Tensor:
        return self.line(x.new_ones(len(x), 1))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_model_of_ones_own(rank: int, tmp_path: Path) -> None:
    """The best weights come back, not the last, and are in a file; a gain is exact, since every picture moves alike."""
    own = Model(Moved(), Linear(), lambda prompts: None, colour_model().decode, (3,), "own")
    more = {"model": own, "objective": DirectGradient(steps=1), "rank": rank, "held_out": None, "guard_every": 4}
    tune(tmp_path / "free", **more)
    bound = sum(row["kl"] for row in report(tmp_path / "free")["history"][1:]) / 2
    with pytest.warns(UserWarning, match="over-optimised since step 12 .*kept step 8"):
        model = tune(tmp_path / "held", guard={"kl_most": bound}, **more)
    told, moved = report(tmp_path / "held"), model.flow(torch.zeros(1, 3), 0.0, 1.0)
    gain = float(0.05 * (moved[0, 0] - moved[0, 1]))
    assert told["best"]["reward"] - told["before"]["reward"] == pytest.approx(gain, abs=1e-6) and gain > 1e-3
    assert equal(own, Model(Moved(), *list(vars(own).values())[1:])) and (tmp_path / "held/flow.safetensors").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objective": "nftt"}, "objective='nftt' is unknown; known: adjoint, .*did you mean 'nft'"),
        ({"objective": "lsd"}, "objective='lsd' trains from data .*to tune, take one of adjoint"),
        ({"objective": FlowMatching()}, "has no collector: it trains from data"),
        ({"prompts": None}, "prompts=None, and model='toy' has no captions of its own; give prompts="),
        ({"prompts": []}, r"prompts=\[\] must be a list of texts"),
        ({"prompts": "none.txt"}, "prompts='none.txt' is no file"),
        ({"held_out_prompts": PROMPTS}, "all prompts are among held_out_prompts"),
        ({"temperature": -1.0}, "temperature=-1.0 must be above 0"),
        ({"temperature": 0.0}, "temperature=0.0 must be above 0"),
        ({"guard_pictures": 1}, "guard_pictures must be at least 2, got 1"),
        ({"calls": 0}, "calls must be at least 1, got 0"),
        ({"guard": {"kl_most": -1}}, "guard.kl_most must be at least 0, got -1"),
        ({"rounds": {"group": 0}}, "rounds.group must be a whole number, at least 1, got 0"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"rank": -1}, "rank must be at least 1, got -1"),
        ({"rank": 0, "objective": "noise"}, "rank=0: a noise network is made of adapters"),
        ({"reward": "clop"}, "reward='clop' is unknown.*did you mean 'clip'"),
        ({"held_out": "clop"}, "held_out='clop' is unknown.*did you mean 'clip'"),
        ({"model": "emojis"}, "model='emojis' is no embedded model"),
        ({"model": colour_model()}, "has a flow of type CountingFlow; tuning needs a torch module"),
    ],
)
def test_mistakes_are_named_before_any_work(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        tune(tmp_path / "out", **change)
    assert not (tmp_path / "out").exists()


def test_learned_draws_need_a_posterior_map(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs a posterior map, which model='toy' lacks; take Glass"):
        tune(tmp_path, objective=ShiftMatching(PosteriorDraws(lookahead=Learned())))


@pytest.mark.parametrize("objective", ["draft", "noise"])
def test_the_embedded_model_with_its_own_judge(objective: str, tmp_path: Path) -> None:
    """What comes back has no posterior map, which would fit no longer."""
    more = {"rounds": {"prompts": 2, "group": 2}, "batch": 4, "guard_every": 0, "average_every": 1, "guard_pictures": 2}
    captions = ["a red heart", "a fox", "a house"]
    model = tune(tmp_path, model="emoji", reward="redness", prompts=captions, objective=objective, steps=1, **more)
    told, back, plain = report(tmp_path), steer.load_model(tmp_path), steer.load_model("emoji")
    assert "held_out" in told["before"] and told["held_out_prompts"] == captions and told["best"]["step"] == 1
    assert plain.posterior and not back.posterior
    assert (back.noise is not None) == (objective == "noise") and equal(model, back)
    x, cond = torch.randn(3, *back.shape, generator=torch.Generator().manual_seed(0)), back.encode(captions)
    moved = back.noise(x, cond) - x if back.noise else back.flow(x, 0.0, 1.0, cond) - plain.flow(x, 0.0, 1.0, cond)
    assert 1e-6 < float(moved.abs().max()) < 2


def test_a_posterior_map_draws_while_its_base_is_tuned() -> None:
    start = steer.load_model("emoji")
    drawing, other = ShiftMatching(PosteriorDraws(lookahead=Learned())), ShiftMatching()
    tuned = prepared(start, drawing, 2, None, 0)
    assert tuned.posterior and isinstance(tuned.flow, nn.Module) and isinstance(start.flow, nn.Module)
    trained = [name for name, p in tuned.flow.named_parameters() if p.requires_grad]
    assert trained and all(name.startswith("base.") and "lora" in name for name in trained)
    assert not prepared(start, other, 2, None, 0).posterior
    done = finished(start, tuned.flow, drawing)
    base = {k.removeprefix("base."): v for k, v in start.flow.state_dict().items() if k.startswith("base.")}
    assert not done.posterior and weights(done).keys() == base.keys()
    assert all(torch.equal(value, base[key]) for key, value in weights(done).items())  # nothing was learned yet


def test_prompts_of_an_embedded_model_are_its_captions() -> None:
    from steer.data import emoji

    assert set(_prompts(steer.load_model("emoji"))) == set(emoji.load().captions)
    assert len(set(_prompts(steer.load_model("shapes")))) > 100
