"""The studio without its page: what can be asked of it, a run seen from the inside, and what is drawn."""

import contextlib
import json
import math
import re
import shlex
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from colours import CountingFlow, redness
from studio_parts import TABLE, asked, colours, own_reward
from torch import Tensor

import steer
from steer import cli
from steer.commands.studio import _offered
from steer.composing import compose, quote_prompt
from steer.flow_map import Cond
from steer.interpolants import Time
from steer.studio import Limits, Shelf, drawing, shelf
from steer.studio.offers import AUTOMATIC, BEST, MIX, SEEDS, Asked
from steer.studio.running import EVERY, Run, Step, Stopped

pytestmark = pytest.mark.filterwarnings("ignore:the samples descend", "ignore:nearly all weight", "ignore:the reward's")


@pytest.fixture(scope="module")
def offered() -> Shelf:
    return shelf()


# what can be asked


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"prompt": "  "}, "The prompt has 0 characters; write 1 to 300"),
        ({"prompt": "x" * 301}, "The prompt has 301 characters; write 1 to 300"),
        ({"model": "/etc"}, "model='/etc' is unknown; known: emoji, shapes"),
        ({"reward": "os:system"}, "reward='os:system' is unknown; known: clip, "),
        ({"method": "smcc"}, "method='smcc' is unknown; known: .*did you mean 'smc'"),
        ({"n": 65}, "n=65 is out of range; give 1 to 64"),
        ({"n": 2.5}, "n=2.5 is no whole number"),
        ({"n": "many"}, "n='many' is no number"),
        ({"budget": 4097}, "budget=4097 is out of range; give 0 to 4096"),
        ({"temperature": "0"}, "temperature=0.0 must be above 0; leave it empty"),
        ({"temperature": "nan"}, "temperature='nan' is no number"),
        ({"seed": SEEDS}, "seed=4294967296 is out of range"),
        ({"reward": MIX, "mix": [["", 1]]}, "The mix has 0 rows; give 1 to 8"),
        ({"reward": MIX, "mix": [["clip", 1], ["clip", 2]]}, "The mix has 2 rows; give 1 to 8, each of another reward"),
        ({"reward": MIX, "mix": [["clop", 1]]}, "reward='clop' is unknown; known: .*did you mean 'clip'"),
        ({"reward": MIX, "mix": [["clip", "much"]]}, "the weight of clip='much' is no number"),
        ({"reward": MIX, "mix": "rm -rf"}, "The mix has 0 rows"),
    ],
)
def test_what_cannot_be_asked(changed: dict[str, object], message: str, offered: Shelf) -> None:
    with pytest.raises(ValueError, match=message):
        asked(offered, **changed)


def test_limits_are_whole_numbers() -> None:
    with pytest.raises(ValueError, match="limits.n=0 must be a whole number, at least 1"):
        Limits(n=0)


def test_rewards_that_lack_something_are_told_apart(offered: Shelf) -> None:
    import rewards

    assert set(offered.rewards) | set(offered.lacking) == set(rewards.names())
    assert not set(offered.rewards) & set(offered.lacking)
    assert "reference=PATH" in offered.lacking["ssim"] and next(iter(offered.rewards)) == "clip"


def test_an_empty_seed_is_drawn_and_then_known(offered: Shelf) -> None:
    drawn = {asked(offered, seed="").seed for _ in range(4)}
    assert len(drawn) > 1 and all(0 <= seed < SEEDS for seed in drawn)


@pytest.mark.parametrize(
    "prompt", ["[a fox", "'tis", '"quoted" $HOME', "it's (nearly) {good}", "100% = a \\ b: c", "null", "ein Bär?"]
)
def test_the_command_holds_any_prompt(prompt: str, offered: Shelf) -> None:
    words = shlex.split(asked(offered, prompt=prompt).command())
    assert words[:2] == ["steer", "sample"]
    assert compose("sample", quote_prompt([words[2]])).prompt == prompt


def finished(asked: Asked) -> Run:
    run = Run(asked)
    for _ in run.sights():
        pass
    return run


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"method": AUTOMATIC, "temperature": "0.05", "prompt": "it's a $HOME, 'a house'"},
        {"method": BEST, "budget": 40, "n": 2},
        {"reward": MIX, "mix": TABLE, "method": "best_of_n", "budget": 0},
        {"reward": "mine.py:score"},
        {"reward": "given", "model": "shapes"},
    ],
)
@pytest.mark.filterwarnings("ignore:the scales of")
def test_the_same_pictures_again(changed: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the command and by the Python that the page shows: those of the run itself, bit for bit."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("warnings.showwarning", lambda *_: None)
    reward = own_reward(tmp_path)
    if changed.get("reward") == "given":
        left = ["reward=colour-match", "reward.colour=green"]
        reward = ("given", _offered(compose("studio", left), left, {})[1])
    run = finished(asked(shelf(reward=reward), **changed))
    assert run.samples is not None
    namespace: dict[str, Any] = {}
    exec(run.asked.python(), namespace)
    assert torch.equal(namespace["out"].images, run.samples.images)
    assert namespace["out"].report["reward"] == run.samples.report["reward"]
    words = shlex.split(run.asked.command())
    assert cli.main([*words[1:], "progress=false", "out=again"]) == 0
    assert json.loads(Path("again/report.json").read_text())["pictures"] == run.samples.report["pictures"]
    from PIL import Image
    from torchvision.transforms.functional import pil_to_tensor

    (folder,) = (f for f in Path("again").iterdir() if f.is_dir())
    for i, picture in enumerate(run.samples.images[0]):
        written = pil_to_tensor(Image.open(folder / f"steered-{i:03d}.png"))
        assert torch.equal(written, (picture * 255).round().byte())


# a run from the inside


def test_a_run_tells_every_step_and_ends_with_its_result() -> None:
    run = finished(asked(colours(), model="colours", reward="mine", budget=40, n=8, temperature="0.5"))
    assert run.samples is not None
    trace = run.samples.trace
    assert [step.t for step in run.steps] == pytest.approx(trace.times.tolist())
    assert [step.ess for step in run.steps] == trace.ess[:, 0].tolist()
    assert torch.allclose(torch.tensor(run.steps[-1].weights), run.samples.log_w[0].exp())
    assert torch.allclose(torch.tensor(run.steps[-1].rewards), run.samples.rewards[0])
    assert run.calls == 4 * 8 + trace.forward.item()


def test_sights_come_while_the_run_goes_on() -> None:
    """The network is slowed down so that some pass between two; the first comes at once, and all show real pictures."""

    class Slow(CountingFlow):
        def __call__(self, x: Tensor, s: Time, t: Time, cond: Cond = None) -> Tensor:
            time.sleep(EVERY / 3)
            return super().__call__(x, s, t, cond)

    run = Run(asked(colours(Slow()), model="colours", reward="mine", budget=48, n=4, temperature="1"))
    sights = []
    for sight in run.sights():
        assert run.samples is None
        sights.append(sight)
    assert len(sights) >= 3 and len(sights[0].steps) == 1
    assert [len(s.steps) for s in sights] == sorted({len(s.steps) for s in sights})
    for sight in sights:
        assert torch.allclose(redness(sight.pictures), sight.rewards, atol=1e-4)
        assert torch.allclose(torch.tensor(sight.steps[-1].rewards), sight.rewards)


def test_a_stop_ends_the_run_at_its_next_network_call() -> None:
    flow, rows = CountingFlow(), 0

    def watching(seen: steer.Seen) -> None:
        nonlocal rows
        if seen.t and not rows:
            rows = len(flow.rows)
            run.stop()

    run = Run(asked(colours(flow), model="colours", reward="mine", budget=400, n=4, temperature="1"), watching)
    with pytest.raises(Stopped):
        for _ in run.sights():
            pass
    assert run.samples is None and rows == 4 + 2 and len(flow.rows) <= rows + 1


def test_a_reader_who_goes_away_ends_the_run() -> None:
    flow = CountingFlow()
    run = Run(asked(colours(flow), model="colours", reward="mine", budget=4000, n=4, temperature="1"))
    with contextlib.closing(run.sights()) as sights:
        next(sights)
    assert len(flow.rows) < 900 and run.samples is None


def test_what_a_reward_raises_comes_through() -> None:
    def broken(images: Tensor) -> Tensor:
        raise ZeroDivisionError("all mine")

    run = Run(asked(colours(reward=broken), model="colours", reward="mine"))
    with pytest.raises(ZeroDivisionError, match="all mine"):
        next(run.sights())


def test_warnings_of_the_run_are_kept() -> None:
    def flat(images: Tensor) -> Tensor:
        return images.sum((1, 2, 3)) * 0

    run = finished(asked(colours(reward=flat), model="colours", reward="mine"))
    assert any("gives all plain pictures of a prompt the same score" in text for text in run.said)


# what is drawn


def test_rejected_pictures_have_no_part_in_a_step() -> None:
    seen = steer.Seen(torch.zeros(1, 1, 3, 2), torch.tensor([[[1.0, -math.inf, 2.0]]]))
    assert Step.of(seen) == Step([1.0, 2.0])


def test_a_result_shows_all_of_it_and_nothing_of_the_reward_as_html() -> None:
    def score(images: Tensor) -> Tensor:
        return redness(images)

    score.__name__ = "<script>alert(1)</script>"
    made = colours(reward=score)
    samples = finished(asked(made, model="colours", reward="mine", n=6, budget=48, temperature="0.02")).samples
    assert samples is not None
    html = drawing.result(samples, None, ["a & b"], 64)
    assert "<script" not in html and "&lt;script&gt;" in html and "a &amp; b" in html
    assert html.count("<figure") == 12 and html.count("<path") == 6 and html.count("<image") == 12
    line = samples.trace.ancestors[0].tolist()
    left = sorted(int(float(x) // drawing.CELL) for x in re.findall(r'<path d="M([\d.]+),', html))
    assert left == sorted(line) and len(set(line)) < 6
    assert f"{len(set(line))} of 6 first particles have descendants" in html
    assert f"<td>{samples.report['reward']['best']:.4g}</td>" in html
    sources = re.findall(r'(?:src|href)="(.{11})', html)
    assert len(sources) == 24 and set(sources) == {"data:image/"}


def test_figures_hold_what_the_steps_say() -> None:
    pytest.importorskip("matplotlib")
    steps = [Step([1.0, 3.0], 0.0, [0.25, 0.75], 1.6), Step([2.0, 4.0], 0.5, [0.5, 0.5], 2.0), Step([5.0])]
    rewards, size, weights = (figure.axes[0] for figure in drawing.figures(steps, 2))
    lines = {line.get_label(): line.get_ydata() for line in rewards.lines}
    assert list(lines["best"]) == [3.0, 4.0, 5.0] and list(lines["mean"]) == [2.0, 3.0, 5.0]
    assert list(size.lines[0].get_ydata()) == [1.6, 2.0]
    assert [bar.get_height() for bar in weights.patches] == [0.5, 0.5]
    assert drawing.plots(steps, 2).count("<img") == 3


# the command


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["reward=none.py:f"], "there is no file 'none.py'"),
        (["reward=ssim"], "reward 'ssim' lacks a picture to compare with"),
        (["model=nowhere"], "model='nowhere' is no embedded model and no folder"),
        (["limits.n=0"], "limits.n=0 must be a whole number"),
        (["port=99999"], "port=99999 must be a whole number from 0 to 65535"),
        (["prt=1"], "setting='prt' is unknown; known: .*did you mean 'port'"),
    ],
)
def test_bad_input_of_the_command(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert cli.main(["studio", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("steer: ") and error.count("\n") == 1 and re.search(message, error), error
