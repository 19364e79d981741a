"""steer.sample, on a model whose steered law is known, and on the embedded one."""

import dataclasses
import math
import warnings

import pytest
import torch
from colours import MEAN, SCALE, STD, CountingFlow, colour_model, redness
from torch import Tensor

import rewards
import steer
from steer import arguments
from steer.methods import SMC, BestOfN, Guidance
from steer.report import make_report

QUIET = {"progress": False}
DIRECTION = torch.tensor([1.0, -1.0, 0.0])


def latents(images: Tensor) -> Tensor:
    """x [p n 3] of flat pictures [p n 3 h w]."""
    return (images[..., 0, 0] - 0.5) / SCALE


@pytest.mark.parametrize("method", [SMC(steps=8), BestOfN(steps=1), Guidance(steps=8, weights="path")])
def test_the_steered_law_is_the_tilted_one(method: object) -> None:
    temperature, n = 1.0, 1024
    out = steer.sample(
        "a colour", reward=redness, model=colour_model(), method=method, n=n, temperature=temperature, seed=0, **QUIET
    )
    x, w = latents(out.images)[0], out.log_w[0].exp()
    truth = MEAN + STD**2 * DIRECTION / temperature
    error = (w[:, None] * (x - truth)).square().sum(0).sqrt()  # the standard error of a self-normalised estimate
    assert ((w @ x - truth).abs() < 5 * error).all() and (error < 0.1).all()
    log_z = (DIRECTION @ MEAN) / temperature + (STD / temperature) ** 2 * DIRECTION.square().sum() / 2
    assert out.trace.log_z.item() == pytest.approx(log_z.item(), abs=0.2)


def test_unsteered_pictures_start_from_the_same_noise() -> None:
    plain = BestOfN(steps=4)
    out = steer.sample("a", reward=redness, model=colour_model(), method=plain, n=9, temperature=1.0, seed=3, **QUIET)
    assert torch.equal(out.images, out.unsteered)
    assert torch.equal(out.rewards, out.unsteered_rewards)


def test_a_seed_fixes_everything() -> None:
    def draw(seed: int | None) -> steer.Samples:
        return steer.sample(["a", "b"], reward=redness, model=colour_model(), n=5, seed=seed, **QUIET)

    first, again, other, drawn = draw(1), draw(1), draw(2), draw(None)
    assert torch.equal(first.images, again.images) and torch.equal(first.log_w, again.log_w)
    assert not torch.equal(first.images, other.images)
    assert torch.equal(draw(drawn.report["seed"]).images, drawn.images)


@pytest.mark.parametrize("method", ["best_of_n", "smc", "guidance"])
@pytest.mark.parametrize("p, n", [(1, 1), (1, 8), (3, 5)])
def test_shapes_and_weights(method: str, p: int, n: int) -> None:
    out = steer.sample(["a"] * p, reward=redness, model=colour_model(), method=method, n=n, temperature=1.0, **QUIET)
    assert out.images.shape == out.unsteered.shape == (p, n, 3, 8, 8)
    assert out.rewards.shape == out.log_w.shape == out.unsteered_rewards.shape == (p, n)
    assert torch.allclose(out.log_w.exp().sum(1), torch.ones(p))
    assert out.best.shape == (p, 3, 8, 8)
    assert torch.allclose(out.rewards, redness(out.images.flatten(0, 1)).view(p, n), atol=1e-4)


@pytest.mark.parametrize("method", ["best_of_n", "smc", "guidance"])
@pytest.mark.parametrize("budget", [40, 130])
def test_a_budget_is_never_overspent_and_costs_are_true(method: str, budget: int) -> None:
    flow = CountingFlow()
    p, n = 2, 8
    given = {"reward": redness, "model": colour_model(flow), "temperature": 1.0, "seed": 0}
    out = steer.sample(["a", "b"], method=method, n=n, budget=budget, **given, **QUIET)
    cost = out.report["cost"]
    assert (out.trace.calls <= budget).all()
    assert p * (cost["steered"]["network_forward"] + cost["unsteered"]["network_forward"]) == sum(flow.rows)
    assert p * cost["steered"]["network_backward"] == flow.backward
    assert cost["steered"]["calls"] == out.trace.calls.float().mean().item()
    assert flow.backward > 0 or method != "guidance"


def test_temperature_is_a_quarter_of_the_spread_of_plain_rewards() -> None:
    out = steer.sample(["a", "b"], reward=redness, model=colour_model(), method="smc", n=64, seed=0, **QUIET)
    spread = out.unsteered_rewards.double().std(1).mean().item()
    assert out.report["temperature"] == pytest.approx(0.25 * spread)
    assert out.report["temperature_origin"].startswith("measured: 0.25 x")
    assert spread == pytest.approx(STD * math.sqrt(2), rel=0.25)


@pytest.mark.parametrize(
    "method, asked, temperature, origin",
    [
        ("smc", 3.0, 3.0, "given"),
        (SMC(temperature=2.0), None, 2.0, "the method's own"),
        (SMC(temperature=2.0), 5.0, 5.0, "given"),
        (SMC(), math.inf, None, "given"),
    ],
)
def test_where_the_temperature_comes_from(
    method: object, asked: float | None, temperature: float | None, origin: str
) -> None:
    given = {"reward": redness, "model": colour_model(), "n": 4, "seed": 0}
    out = steer.sample("a", method=method, temperature=asked, **given, **QUIET)
    assert (out.report["temperature"], out.report["temperature_origin"]) == (temperature, origin)


@pytest.mark.filterwarnings("ignore:the samples descend")
def test_a_method_object_at_its_default_temperature_is_measured() -> None:
    out = steer.sample("a", reward=redness, model=colour_model(), method=SMC(steps=3), n=4, seed=0, **QUIET)
    assert out.report["temperature_origin"].startswith("measured")
    assert out.report["method"]["steps"] == 3


def numpy_reward(images: Tensor) -> object:
    return images.numpy().mean((1, 2, 3))


def list_reward(images: Tensor, prompts: list[str]) -> list[float]:
    return [float(len(p)) + float(image.mean()) for image, p in zip(images, prompts, strict=True)]


@pytest.mark.parametrize(
    "reward, chosen",
    [
        (redness, "tds"),
        (numpy_reward, "smc_sde"),
        (list_reward, "smc_sde"),
        ("redness", "tds"),
        ("jpeg-size", "smc_sde"),
    ],
)
def test_the_method_follows_from_the_reward(reward: object, chosen: str) -> None:
    out = steer.sample("a", reward=reward, model=colour_model(), n=4, temperature=1.0, seed=0, **QUIET)
    assert out.report["method"]["name"] == chosen


def test_each_picture_is_scored_with_its_own_prompt() -> None:
    prompts = ["a", "bbb", "cc"]
    given = {"reward": lambda images, prompts: [len(p) for p in prompts], "model": colour_model()}
    out = steer.sample(prompts, method="smc", n=4, temperature=1.0, seed=0, **given, **QUIET)
    assert out.rewards.tolist() == [[len(p)] * 4 for p in prompts]


class OwnError(Exception):
    """An exception that only this file knows."""


def test_an_error_in_a_reward_is_shown_as_it_is() -> None:
    def broken(images: Tensor) -> Tensor:
        raise OwnError("mine")

    with pytest.raises(OwnError, match="mine") as caught:
        steer.sample("a", reward=broken, model=colour_model(), n=4, **QUIET)
    assert caught.value.__cause__ is None and caught.value.__context__ is None


@pytest.mark.parametrize("method, errors", [("best_of_n", 5), ("smc", 5), ("guidance", 4)])
def test_every_method_raises_the_reward(method: str, errors: float) -> None:
    given = {"reward": redness, "model": colour_model(), "temperature": 1.0, "seed": 0}
    scores = steer.sample("a", method=method, n=512, **given, **QUIET).report["reward"]
    assert scores["weighted"] > scores["unsteered"] + errors * scores["error"]


def test_a_reward_may_reject() -> None:
    def no_dark(images: Tensor) -> Tensor:
        r = redness(images)
        return torch.where(r > 1, r, -math.inf)

    given = {"reward": no_dark, "model": colour_model(), "temperature": 1.0, "seed": 0}
    out = steer.sample("a", method="best_of_n", n=64, **given, **QUIET)
    rejected = out.rewards == -math.inf
    assert 0 < rejected.sum() < 64
    assert (out.log_w[rejected] == -math.inf).all()
    assert out.report["reward"]["weighted"] > 1


def test_a_reward_that_cannot_choose_is_told_of() -> None:
    given = {"reward": lambda images: torch.ones(len(images)), "model": colour_model(), "n": 8, "seed": 0}
    with pytest.warns(
        UserWarning, match="the same score .'a'.: .* temperature=1 is used there; check the reward"
    ) as seen:
        out = steer.sample("a", method="best_of_n", **given, **QUIET)
    assert torch.allclose(out.log_w.exp(), torch.full((1, 8), 1 / 8))
    assert out.report["warnings"] == [str(one.message) for one in seen] and len(seen) == 1
    with pytest.warns(UserWarning, match="nothing to choose by; check the reward$"):
        steer.sample("a", method="beam", **given, **QUIET)  # which has no law to sample


def test_warnings_of_a_prompt_are_its_own() -> None:
    def flat_for_b(images: Tensor, prompts: list[str]) -> Tensor:
        return redness(images) * torch.tensor([float(q != "b") for q in prompts])

    given = {"reward": flat_for_b, "model": colour_model(), "n": 8, "seed": 0, "method": "best_of_n"}
    with pytest.warns(UserWarning, match="'b'"):
        out = steer.sample(["a", "b"], **given, **QUIET)
    told = [make_report(out.part(i, i + 1), out.facts.part(slice(i, i + 1)))["warnings"] for i in (0, 1)]
    assert [any("same score" in text for text in texts) for texts in told] == [False, True]


def test_what_is_said_of_a_reward_is_in_the_report() -> None:
    """Each time, although a warning of the same words is heard once."""
    given = {"model": colour_model(), "n": 4, "seed": 0, "method": "best_of_n"}
    for _ in range(2):
        with pytest.warns(UserWarning, match="unlike scales"):
            out = steer.sample("a", reward={"redness": 1.0, "clip": 1.0}, **given, **QUIET)
        assert sum("unlike scales" in text for text in out.report["warnings"]) == 1


def test_searches_are_not_told_that_their_samples_descend_from_few() -> None:
    """Beam, tree and gradient searches return the highest rewards, and say so: they estimate no log Z."""
    given = {"reward": redness, "model": colour_model(), "n": 16, "temperature": 0.01, "seed": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = steer.sample("a", method="beam", **given, **QUIET)
    assert out.report["survivors"]["least_distinct"] <= 2 / 16 and out.report["warnings"] == []


def test_a_reward_may_be_held_out() -> None:
    """For a model without a judge of its own; None takes none where there is one."""
    given = {"reward": redness, "model": colour_model(), "n": 4, "seed": 0, "method": "best_of_n"}
    assert steer.sample("a", **given, **QUIET).report["held_out"] is None
    for held in ("brightness", rewards.Brightness(), lambda images: images.mean((1, 2, 3))):
        out = steer.sample("a", held_out=held, **given, **QUIET)
        assert out.report["held_out"]["name"] == rewards.name_of(held)
        truth = rewards.to_reward(held)(out.images[0], ["a"] * 4).mean().item()
        assert out.report["held_out"]["steered"] == pytest.approx(truth, rel=1e-5)
    with pytest.raises(ValueError, match="held_out='brightnes' is unknown; known: judge, .*did you mean 'brightness'"):
        steer.sample("a", held_out="brightnes", **given, **QUIET)
    emoji = {"reward": "redness", "n": 1, "steps": 1, "seed": 0, "method": "best_of_n"}
    assert steer.sample("a fox", held_out=None, **emoji, **QUIET).report["held_out"] is None


@pytest.mark.parametrize("method", ["smc", "guidance"])
def test_parts_of_bounded_size_change_nothing(method: str) -> None:
    def draw(chunk: int | None) -> steer.Samples:
        given = {"reward": redness, "model": colour_model(), "method": method, "n": 6, "temperature": 1.0, "seed": 0}
        return steer.sample(["a", "b"], chunk=chunk, **given, **QUIET)

    whole, parts = draw(None), draw(5)
    assert torch.allclose(whole.images, parts.images, atol=1e-5)
    assert torch.allclose(whole.rewards, parts.rewards, atol=1e-3)


@pytest.mark.parametrize("method, near", [("best_of_n", 1e-4), ("smc", 1e-4), ("guidance", 1e-2), ("tds", 1e-2)])
def test_prompts_in_a_batch_get_the_pictures_they_get_alone(method: str, near: float) -> None:
    """Of the embedded model, whatever the chunks: up to float32, which gradients through its decoder magnify."""
    prompts = ["a red heart", "a fox", "a house"]
    given = {"reward": "clip", "method": method, "steps": 2, "n": 4, "seed": 3}
    together = steer.sample(prompts, **given, **QUIET)
    alone = steer.sample(prompts[1], chunk=3, **given, **QUIET)
    assert torch.allclose(together.images[1], alone.images[0], atol=near)
    assert torch.allclose(together.unsteered[1], alone.unsteered[0], atol=1e-4)
    assert torch.allclose(together.rewards[1], alone.rewards[0], atol=10 * near)
    assert torch.allclose(together.log_w[1].exp(), alone.log_w[0].exp(), atol=1e-2)


def test_a_collapse_of_one_prompt_of_many_is_told_of() -> None:
    """And not where the best picture is wanted: a search is meant to collapse."""

    def picky(images: Tensor, prompts: list[str]) -> Tensor:
        return redness(images) * torch.tensor([100.0 if q == "b" else 0.01 for q in prompts])

    given = {"reward": picky, "model": colour_model(), "method": "smc", "n": 32, "temperature": 1.0, "seed": 0}
    with pytest.warns(UserWarning, match="descend from .* of 32 particles: take a temperature above .* or n above 32"):
        out = steer.sample(["a", "b", "c"], **given, **QUIET)
    assert out.report["survivors"]["distinct"] > 0.6 > 0.1 > out.report["survivors"]["least_distinct"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steer.sample(["a", "b", "c"], want="best", **given, **QUIET)


@pytest.mark.parametrize("method, cure", [("guidance", "strength or max_ratio"), ("tds", "max_ratio or twist")])
def test_a_gradient_that_dwarfs_the_flow_is_told_of(method: str, cure: str) -> None:
    given = {"reward": redness, "model": colour_model(), "method": method, "n": 16, "seed": 0}
    with pytest.warns(UserWarning, match=f"gradient asks for pushes .* raise temperature, or lower {cure}"):
        out = steer.sample("a", temperature=0.01, **given, **QUIET)
    assert out.report["push"] > 4
    gentle = steer.sample("a", temperature=10.0, **given, **QUIET).report
    assert gentle["push"] < 1 and not [text for text in gentle["warnings"] if "pushes" in text]


@pytest.mark.slow
def test_the_flow_compiled_draws_the_same_pictures() -> None:
    layer = torch.nn.Linear(3, 3).requires_grad_(False)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(3) / 2)

    def flow(x: Tensor, s: object, t: object, cond: object = None) -> Tensor:
        return layer(x).tanh() * (1 + 0.1 * torch.as_tensor(t, dtype=x.dtype).reshape(-1, 1))

    try:
        arguments.check_compiler(torch.device("cpu"))
    except ValueError as error:
        pytest.skip(str(error))
    model = dataclasses.replace(colour_model(), flow=flow)
    for method in ("smc", "guidance"):
        given = {"reward": redness, "model": model, "method": method, "n": 6, "temperature": 1.0, "seed": 0}
        plain, fast = (steer.sample(["a", "b"], compile=c, **given, **QUIET) for c in (False, True))
        assert torch.allclose(plain.images, fast.images, atol=1e-5)
        assert plain.trace.calls.tolist() == fast.trace.calls.tolist()


def test_without_a_compiler_the_error_names_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no g++")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(ValueError, match=r"compile=True: torch.compile needs a C\+\+ compiler .*\(no g\+\+\); install"):
        steer.sample("a", reward=redness, model=colour_model(), compile=True, device="cpu", **QUIET)


def test_a_large_push_into_few_survivors_is_told_of() -> None:
    given = {"reward": redness, "model": colour_model(), "method": "smc", "n": 64, "seed": 0}
    with pytest.warns(UserWarning, match="descend from 1 of 64|all weight is on one"):
        out = steer.sample("a", temperature=0.01, **given, **QUIET)
    assert out.report["warnings"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not steer.sample("a", temperature=3.0, **given, **QUIET).report["warnings"]


def test_the_embedded_model_reports_a_judge_that_was_not_optimised() -> None:
    out = steer.sample("a red heart", reward="clip", method="best_of_n", n=8, seed=0, **QUIET)
    held = out.report["held_out"]
    assert held["name"] == "clip-judge"
    judge = rewards.get("clip-judge")
    scores = judge(out.unsteered[0], ["a red heart"] * 8)
    assert held["unsteered"] == pytest.approx(scores.mean().item(), abs=1e-3)
    assert held["best"] == pytest.approx(judge(out.best, ["a red heart"]).item(), abs=1e-3)


def test_a_reward_that_rises_while_the_judge_falls_is_told_of() -> None:
    judge = rewards.get("clip-judge")

    def contrary(images: Tensor, prompts: list[str]) -> Tensor:
        return -judge(images, prompts)

    with pytest.warns(UserWarning, match="contrary rose from .* while clip-judge, which was not optimised, fell"):
        steer.sample("a red heart", reward=contrary, method="best_of_n", n=16, seed=0, **QUIET)


def test_the_judge_does_not_judge_itself() -> None:
    out = steer.sample("a fox", reward="clip-judge", method="best_of_n", steps=1, n=4, seed=0, **QUIET)
    assert out.report["held_out"] is None
