"""Guards: distances of Gaussian laws against their closed forms, the rule bound by bound, and what is kept of a run."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rewards import to_reward
from steer.analytic import GaussianMixture
from steer.flow_map import Cond
from steer.guards import LARGEST, LEVELS, SMALLEST, Guard, Rule
from steer.interpolants import Interpolant, Linear
from steer.models import Model

M = torch.tensor([0.6, -0.5, 0.3])
SIZE = float(M.square().sum())
BEFORE = {"reward": 1.0, "diversity": 0.4, "kl": 0.0, "ess": 1.0}
BEFORE |= {"held_out": 2.0, "held_out_std": 0.5, "held_out_error": 0.1}
FINE = {"reward": 2.0, "diversity": 0.3, "kl": 5.0, "ess": 0.5, "held_out": 1.9}


def decode(x: Tensor) -> Tensor:
    """Numbers [b 3] as pictures of one colour."""
    return (0.5 + x / 20)[:, :, None, None].expand(-1, -1, 16, 16)


def law(mean: Tensor, path: Interpolant | None = None) -> Model:
    """The exact map of N(mean, I)."""
    path = path or Linear()
    return Model(
        GaussianMixture(torch.ones(1), mean[None], torch.eye(3)[None]).flow(path), path, no_words, decode, (3,)
    )


def no_words(prompts: list[str]) -> Cond:
    return {"row": torch.zeros(len(prompts), 1)}


def along(images: Tensor) -> Tensor:
    """m.x of pictures of x."""
    return (images.mean((2, 3)) - 0.5) @ (20 * M)


def guard(folder: Path, reference: Model | None = None, rule: Rule | None = None, **more: Any) -> Guard:  # noqa: ANN401
    of = more.pop("of", lambda flow: law(M))
    given = (of, reference or law(torch.zeros(3)), ["a", "b"], to_reward(along), more.pop("held_out", None))
    return Guard(*given, rule or Rule(), folder, **{"n": 4} | more)


def distance(folder: Path, model: Model, n: int = 3000) -> dict[str, float]:
    """Of many samples of a model from N(0, I), less what is seen in pictures alone."""
    watch = guard(folder, law(torch.zeros(3), model.path), n=n, held_out=None)
    watch.temperature = 1.0
    cond = model.encode(watch.prompts)
    x0 = watch.noise.flatten(0, 1)
    x1 = x0 + model.flow(x0, 0.0, 1.0)
    watch.rewards = to_reward(along)(model.decode(x1), ["a"] * len(x1)).view(2, n)
    return watch._distance(model, x1, cond)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Thousands of pictures are not looked at, except where it is asked for."""
    if "clip" not in request.fixturenames:
        monkeypatch.setattr("steer.guards._diversity", lambda pictures, n: torch.ones(2))


def share() -> float:
    """``int dSNR / (1 + SNR)^2`` over the SNRs that are compared."""
    return 1 / (1 + SMALLEST) - 1 / (1 + LARGEST)


def blur() -> float:
    """Variance, over |m|^2, that the noise of the levels brings into the log of p / p_ref."""
    step = math.log(LARGEST / SMALLEST) / LEVELS
    levels = [SMALLEST * math.exp((k + 0.5) * step) for k in range(LEVELS)]
    return sum((step * snr**1.5 / (1 + snr) ** 2) ** 2 for snr in levels)


def test_kl_of_a_shifted_gaussian(path: Interpolant, tmp_path: Path) -> None:
    """D - D_ref = m / (1 + SNR) on any path, whatever x: KL = |m|^2 / 2 int dSNR / (1 + SNR)^2."""
    assert distance(tmp_path, law(M, path), 5)["kl"] == pytest.approx(SIZE / 2 * share(), rel=0.02)
    assert distance(tmp_path, law(2 * M, path), 5)["kl"] == pytest.approx(4 * SIZE / 2 * share(), rel=0.02)


def test_the_reference_is_not_away_from_itself(tmp_path: Path) -> None:
    watch = guard(tmp_path)
    assert (watch.before["kl"], watch.before["ess"]) == (0, 1)
    again = watch.measure(replace(watch.reference))  # as any other model
    assert again["kl"] == 0 and again["ess"] == pytest.approx(1, abs=1e-12)
    assert again["reward"] == watch.before["reward"] and "ess_target" not in again


def test_effective_size_of_a_shifted_gaussian(tmp_path: Path) -> None:
    """Log weights are normal: a share exp(-variance) stays effective."""
    for scale in (0.0, 0.5, 1.0):
        variance = scale**2 * SIZE * (share() ** 2 + blur())
        assert distance(tmp_path, law(scale * M))["ess"] == pytest.approx(math.exp(-variance), abs=0.04)


def test_effective_size_under_the_target(tmp_path: Path) -> None:
    """N(0, I) tilted by m.x is N(m, I): there only the noise of the levels is left, and all is off without tuning."""
    there, plain = distance(tmp_path, law(M)), distance(tmp_path, law(torch.zeros(3)))
    left = SIZE * ((1 - share()) ** 2 + blur())
    assert there["ess_target"] == pytest.approx(math.exp(-left), abs=0.04) and there["ess_target"] > 0.75
    assert plain["ess_target"] == pytest.approx(math.exp(-SIZE), abs=0.04)
    assert distance(tmp_path, law(2 * M))["ess_target"] < there["ess_target"] - 0.2


def test_reward_and_held_out_reward_of_the_same_noise(tmp_path: Path) -> None:
    """A jump of N(m, I) is x0 + m: what is gained is |m|^2, with no error of sampling; so for rewards held out."""
    watch = guard(tmp_path, held_out=to_reward(lambda images: 3 * along(images)))
    now, before = watch.measure(law(M)), watch.before
    assert now["reward"] - before["reward"] == pytest.approx(SIZE, rel=1e-4)
    assert now["held_out"] - before["held_out"] == pytest.approx(3 * SIZE, rel=1e-4)
    assert before["held_out_std"] == pytest.approx(float(3 * watch_std(watch)), rel=1e-4)
    assert before["held_out_error"] == pytest.approx(before["held_out_std"] / 8**0.5)
    assert "held_out_std" not in now
    assert max(now["reward_gain_error"], now["held_out_gain_error"]) < 1e-4 < before["reward_error"]
    narrow = GaussianMixture(torch.ones(1), M[None], 0.25 * torch.eye(3)[None]).flow()
    other = watch.measure(replace(law(M), flow=narrow))
    gains = watch.rewards - watch.first["reward"]
    assert other["reward_gain_error"] == pytest.approx(float(gains.std(1).mean()) / 8**0.5) and gains.std() > 0.1


def watch_std(watch: Guard) -> Tensor:
    return (watch.noise @ M).std(1).mean()


class Shift(nn.Module):
    """Noise moved by a constant: (v_tuned - v)_{0,1} = m."""

    def forward(self, x: Tensor, s: float, t: float, cond: Cond = None) -> Tensor:
        return M.expand_as(x)


def test_tuned_noise_is_as_far_as_its_shift(tmp_path: Path) -> None:
    """KL of N(m, I) from N(0, I), exactly; the frozen map says nothing about it."""
    watch = guard(tmp_path)
    watch.temperature = 1.0
    now = watch.measure(replace(watch.reference, noise=lambda x0, cond: x0 + Shift()(x0, 0, 1)))
    assert now["kl"] == pytest.approx(SIZE / 2, rel=1e-5)
    assert "ess" not in now and "ess_target" not in now
    assert now["reward"] - watch.before["reward"] == pytest.approx(SIZE, rel=1e-4)


@pytest.mark.usefixtures("clip")
def test_diversity_is_none_where_all_pictures_are_one(tmp_path: Path) -> None:
    narrow = GaussianMixture(torch.ones(1), M[None], 1e-6 * torch.eye(3)[None]).flow()
    watch = guard(tmp_path, replace(law(M), decode=lambda x: decode(10 * x)))
    assert watch.before["diversity"] > 1e-3
    assert watch.measure(replace(watch.reference, flow=narrow))["diversity"] < watch.before["diversity"] / 100


@pytest.fixture
def clip() -> None:
    """Asks for pictures to be looked at."""


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        ({}, []),
        ({"held_out": 1.76}, []),  # 0.1 standard deviations, and two standard errors: 2 - 0.05 - 0.2
        ({"held_out": 1.74}, ["the held-out reward fell"]),
        ({"diversity": 0.201}, []),
        ({"diversity": 0.199}, ["diversity fell"]),
        ({"kl": 9.9}, []),
        ({"kl": 10.1}, ["KL is above 10"]),
        (
            {"held_out": 0.0, "kl": 99.0, "diversity": 0.0},
            ["the held-out reward fell", "diversity fell", "KL is above"],
        ),
    ],
)
def test_each_bound(change: dict[str, float], broken: list[str]) -> None:
    said = Rule(kl_most=10).broken(FINE | change, BEFORE)
    assert len(said) == len(broken) and all(a.startswith(b) for a, b in zip(said, broken, strict=True))


def test_without_a_held_out_reward_it_binds_nothing() -> None:
    assert Rule(0, 1).broken({"reward": 9.0, "diversity": 0.0, "kl": 1e9}, BEFORE) == []


@pytest.mark.parametrize("name", ["held_out_fall", "diversity_fall", "kl_most", "patience"])
@pytest.mark.parametrize("value", [-0.5, -1, math.nan])
def test_bounds_that_are_none(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"guard.{name} must be .*{value}"):
        Rule(**{name: value})  # type: ignore[arg-type]


def test_patience_is_counted_in_whole_measurements() -> None:
    with pytest.raises(ValueError, match=r"guard.patience must be a whole number, got 1.5"):
        Rule(patience=1.5)  # type: ignore[arg-type]


History = Callable[..., Guard]


@pytest.fixture
def history(tmp_path: Path) -> History:
    """A guard that finds measurements in log.jsonl: (reward, kl), ten steps apart, with a bound of 10 nats."""

    def make(*rows: tuple[float, float], patience: int = 2) -> Guard:
        lines = [{"step": 5, "loss": 1.0}]
        for k, (reward, kl) in enumerate(rows, 1):
            now = FINE | {"reward": reward, "kl": kl}
            lines.append({"step": 10 * k, **{f"guard/{key}": value for key, value in now.items()}})
        (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        watch = guard(tmp_path, rule=Rule(kl_most=10, patience=patience))
        watch.before = dict(BEFORE)
        return watch

    return make


def test_the_best_keeps_the_rule_and_beats_the_reference(history: History) -> None:
    best = history((1.5, 1), (2.5, 2), (2.2, 3), (9, 11)).best()
    assert best is not None and (best["step"], best["reward"]) == (20, 2.5)
    assert history((0.9, 1), (9, 11)).best() is None
    assert history((1.0, 1)).best() is None  # no better than the reference
    assert history().best() is None


def test_it_ends_when_patience_is_over(history: History) -> None:
    good, bad = (2, 1), (3, 11)
    assert history(good, bad).verdict == "" and history(bad).verdict == "" and history().verdict == ""
    assert history(bad, good, bad).verdict == ""
    assert history(bad, good, bad, bad).verdict == "over-optimised since step 30"
    assert history(bad, bad, bad).verdict == "over-optimised since step 10"
    assert history(bad, patience=1).verdict == "over-optimised since step 10"
    assert history(bad, bad, bad, patience=0).verdict == ""


def test_words_of_a_gain(history: History) -> None:
    assert guard(Path("nowhere")).words() == "nothing was measured"
    said = history((1.5, 1), (2.5, 2)).words()
    assert said == "reward +1.5 (from 1), held-out reward -0.1 (from 2), diversity -25 %, KL 2 nats; kept step 20"


def test_words_of_a_reward_that_was_cheated(history: History) -> None:
    said = history((2.5, 2), (9, 11), (9, 12)).words()
    assert said.startswith("reward +8 (from 1), ")
    assert "KL 12 nats: over-optimised since step 20 (KL is above 10); kept step 10, with reward +1.5 (from 1)" in said


def test_words_of_nothing_gained(history: History) -> None:
    said = history((0.5, 1)).words()
    end = "KL 1 nats; no measurement is above the reference within the rule, so the model is left as it was"
    assert said.startswith("reward -0.5 (from 1)") and said.endswith(end)
    assert "over-optimised" not in said
    cheated = history((9, 11)).words()
    assert "over-optimised since step 10 (KL is above 10); no measurement is above the reference" in cheated


def test_judging_again_forgets_what_came_later(history: History, tmp_path: Path) -> None:
    """A run that was killed goes on from a checkpoint, and measures again what it had measured beyond."""
    watch = history((2, 1), (3, 2), (4, 3))
    told = watch(nn.Identity(), tmp_path, 20)
    assert [row["step"] for row in watch.history] == [10, 20]
    assert watch.history[0]["reward"] == 2
    assert watch.history[1] == {"step": 20} | {key.removeprefix("guard/"): value for key, value in told.items()}
    assert {key.partition("/")[0] for key in told} == {"guard"}


def test_only_the_best_is_saved(history: History, tmp_path: Path) -> None:
    watch, saved = history(), []
    scales = iter([1.0, 0.5, 2.0, 40.0])  # the last is beyond the bound
    watch.of, watch.save = lambda flow: law(next(scales) * M), lambda model, step: saved.append(model)
    watch.before["reward"] = float(guard(tmp_path).before["reward"])
    watch.before.pop("held_out")
    for step in (10, 20, 30, 40):
        watch(nn.Identity(), tmp_path, step)
    kept = [float(model.flow.mixture.means[0, 0] / M[0]) for model in saved]  # type: ignore[attr-defined]
    assert kept == pytest.approx([1, 2])
    best = watch.best()
    assert best is not None and best["step"] == 30


def test_a_line_that_was_being_written_is_left_out(history: History, tmp_path: Path) -> None:
    history((2, 1))
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 20, "guard/rew')
    assert [row["step"] for row in guard(tmp_path).history] == [10]


def test_a_model_that_is_rejected_everywhere(tmp_path: Path) -> None:
    """Its mean reward is -inf, and no error."""
    watch = guard(tmp_path)
    watch.score = to_reward(lambda images: torch.full((len(images),), -math.inf))
    watch.before = watch.measure(watch.reference)
    assert watch.before["reward"] == -math.inf
