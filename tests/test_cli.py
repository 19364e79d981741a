"""The command line: the parts in this process, the whole of it as a user starts it."""

import html
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from steer import api, cli
from steer.chunks import Chunks
from steer.settings import CONFIGS, names

SMALL = ["reward=redness", "n=4", "steps=2", "seed=0", "method=smc", "progress=false"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs in an empty folder, with its own warnings."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("warnings.showwarning", lambda *_: None)


def steer(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "steer", *arguments], capture_output=True, text=True, timeout=300)


def test_sample_as_a_user_runs_it(tmp_path: Path) -> None:
    done = steer("sample", "prompt=a red heart", "reward=clip", "n=4", "seed=0", "out=hearts")
    assert done.returncode == 0, done.stderr
    assert "clip-judge" in done.stdout and "wrote hearts" in done.stdout
    report = json.loads((tmp_path / "hearts" / "report.json").read_text())
    assert report["prompts"] == ["a red heart"] and report["seed"] == 0
    assert (tmp_path / "hearts" / "sheet.png").stat().st_size > 10_000
    assert [f.name for f in tmp_path.iterdir()] == ["hearts"]  # no folder of hydra's


def test_an_error_is_one_line_and_exit_status_2(tmp_path: Path) -> None:
    done = steer("sample", "reward=clop")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("steer: reward='clop' is unknown; known: aesthetic, brightness, clip,")
    assert "did you mean 'clip'" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_where_an_error_comes_from() -> None:
    done = steer("sample", "reward=clop", "--debug")
    assert done.returncode == 1 and "Traceback" in done.stderr


def test_an_error_in_a_users_reward_is_shown_whole(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def score(images):\n    raise ValueError('all mine')\n")
    done = steer("sample", "reward=mine.py:score", *SMALL[1:])
    assert done.returncode == 1
    assert "mine.py" in done.stderr and "ValueError: all mine" in done.stderr


@pytest.mark.parametrize("name", ["mine.py:score", "mine:score"])
def test_a_reward_of_ones_own(name: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def score(images):\n    return images[:, 1].mean((1, 2))\n")
    assert cli.main(["sample", "prompt=a fox", *SMALL[1:], f"reward={name}", "out=o"]) == 0
    assert json.loads(Path("o/report.json").read_text())["reward"]["name"] == "score"


def test_settings_reach_the_method() -> None:
    given = ["method.ess_threshold=0.25", "temperature=3", "out=o", "prompt=[a fox, a cat]"]
    assert cli.main(["sample", *SMALL, *given]) == 0
    report = json.loads(Path("o/report.json").read_text())
    method = report["method"]
    assert report["prompts"] == ["a fox", "a cat"]
    assert (method["name"], method["steps"], method["ess_threshold"], method["temperature"]) == ("smc", 2, 0.25, 3)


def test_all_that_sample_takes_reaches_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the defaults of the function where nothing is said."""
    import inspect

    import steer as package

    seen: dict = {}

    def sample(prompt: str, **given: object) -> None:
        seen.update(given, prompt=prompt)
        raise ValueError("enough")

    monkeypatch.setattr(package, "sample", sample)
    asked = ["want=best", "chunk.decoder=16", "compile=true", "checkpoint=true", "budget=64", "device=cpu"]
    with pytest.raises(ValueError, match="enough"):
        cli.main(["sample", *asked])
    parts = {"network": 1024, "decoder": 16, "reward": 128}
    assert seen == seen | {"want": "best", "chunk": parts, "compile": True, "checkpoint": True, "budget": 64}
    assert set(seen) == set(inspect.signature(api.sample).parameters) - {"watch"}  # of Python alone
    seen.clear()
    with pytest.raises(ValueError, match="enough"):
        cli.main(["sample"])
    defaults = {key: p.default for key, p in inspect.signature(api.sample).parameters.items()}
    assert Chunks.of(seen["chunk"]) == Chunks()
    told = set(seen) - {"prompt", "reward", "chunk"}
    assert {key: seen[key] for key in told} == {key: defaults[key] for key in told}


def test_want_chunk_and_checkpoint_as_a_user_gives_them() -> None:
    given = ["prompt=a fox", "reward=redness", "n=4", "budget=64", "seed=0", "progress=false", "out=o"]
    assert cli.main(["sample", *given, "want=best"]) == 0
    assert json.loads(Path("o/report.json").read_text())["method"]["name"] == "fmrg_e"
    assert cli.main(["sample", *given, "method=fmrg_j", "chunk={network: 4}", "checkpoint=true"]) == 0
    report = json.loads(Path("o/report.json").read_text())
    assert report["cost"]["steered"]["network_recomputed"] == report["cost"]["steered"]["network_backward"] > 0


def test_a_method_takes_another_look_ahead() -> None:
    """In place of its own, also where that has other settings."""
    assert cli.main(["sample", *SMALL, "method=diamond", "lookahead=jump", "n=2", "out=o"]) == 0
    assert json.loads(Path("o/report.json").read_text())["method"]["lookahead"]["name"] == "Jump"


def test_rewards_with_weights() -> None:
    assert cli.main(["sample", *SMALL[1:], "reward={redness: 2, brightness: -1}", "out=o"]) == 0
    assert json.loads(Path("o/report.json").read_text())["reward"]["name"] == "2 redness + -1 brightness"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["smaple"],
            "command='smaple' is unknown; known: sample, .*serve-reward, .*bench, list, .*did you mean 'sample'",
        ),
        (["sample", "height=32"], "setting='height' is unknown; .*did you mean 'pipeline.height'"),
        (["sample", "promt=x"], "setting='promt' is unknown; known: .*did you mean 'prompt'"),
        (["sample", "a red heart"], "setting 'a red heart' has no value; write prompt=\"a red heart\""),
        (["sample", "prompt="], "prompt='' holds an empty text"),
        (["sample", "want=worst"], "want='worst' must be 'sample'"),
        (["sample", "chunk=0"], "chunk=0 must be a whole number"),
        (["sample", "chunk.reward=no"], "chunk.reward='no' must be a whole number, such as 128"),
        (["sample", "n=0"], "n=0 must be a whole number"),
        (["sample", "n=many"], "n='many' must be a whole number, such as 16"),
        (["sample", "method=smcc"], "method='smcc' is unknown.*did you mean 'smc'"),
        (
            ["sample", "method=smc", "method.stpes=4"],
            "setting='method.stpes' is unknown; .*did you mean 'method.steps'",
        ),
        (["sample", "method=smc", "method.chian=sde"], "known: method.steps, .*did you mean 'method.chain'"),
        (["sample", "method=smc", "method.steps=many"], "method.steps='many' must be a whole number, such as 8"),
        (["sample", "method=smc", "method.steps=2.5"], "method.steps=2.5 must be a whole number"),
        (["sample", "method=smc", "method.corrected=1"], "method.corrected=1 must be true or false, such as True"),
        (["sample", "method=smc", "method.twist=hard"], "method.twist='hard' must be a number, such as 0.0"),
        (["sample", "method.steps=4"], "'method.steps': it is a setting of a method; name one too, as in method="),
        (["sample", "n.most=4"], "'n.most': n has no settings of its own; write n=VALUE"),
        (["sample", "progress=maybe"], "progress='maybe' must be true or false"),
        (["sample", "reward=jpeg-size", "reward.qualty=50"], "did you mean 'reward.quality'"),
        (["sample", "reward=math:sin", "reward.quality=50"], "only a reward that `steer list` names has settings"),
        (["sample", "prompt=[a <b>,c]"], r"setting 'prompt=\[a <b>,c\]' cannot be read; put quotes around texts"),
        (["train", "ema=0.5"], r"ema=0.5 must be a list, such as \[0.999\]"),
        (["train", "lr=fast"], "lr='fast' must be a number, such as 0.001"),
        (["compare", "methods=smc"], "methods='smc' must be a list, such as "),
        (["compare", "methods=[smc,smcc]"], "method='smcc' is unknown; .*did you mean 'smc'"),
        (["compare", "methods=[smc,smc]"], "holds 'smc', no method or one of before; leave it out"),
        (["compare", "budgets=32"], "budgets=32 must be a list of numbers of network calls"),
        (["compare", "budgets=[32,0]"], "budget=0 must be a whole number, at least 1"),
        (["sample", "method=smc", "lookahead=glas"], "lookahead='glas' is unknown; known: .*did you mean 'glass'"),
        (["sample", "lookahead=glass"], "lookahead= is a setting of a method; name one too"),
        (["sample", "method=tree", "lookahead=glass"], "unexpected keyword argument 'lookahead'"),
        (["sample", "model=emojy"], "model='emojy' is no embedded model"),
        (["sample", "reward=none.py:f"], "there is no file 'none.py'"),
        (["sample", "reward=no_such_module:f"], "there is no module 'no_such_module'"),
        (["sample", "reward=math:sinh2"], "reward='math:sinh2' is unknown; known: .*did you mean 'math:sinh'"),
        (["sample", "out=file/inside"], r"out='file/inside' cannot be written"),
        (["sample", "method=guidance", "reward=jpeg-size"], "follows the reward's gradient"),
        (
            ["bench", "exakt"],
            "bench='exakt' is unknown; known: exact, embedded, .*did you mean 'exact'",
        ),
        (["list", "methds"], "group='methds' is unknown; known: models, methods, .*did you mean 'methods'"),
        (["list", "methods", "rewards"], "takes one group, got methods rewards"),
        (["doctor", "now"], "takes no settings, got 'now'"),
        (["completion", "tcsh"], "shell='tcsh' is unknown; known: bash, zsh, fish"),
        (["help", "sampel"], "command='sampel' is unknown; .*did you mean 'sample'"),
    ],
)
def test_bad_input(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("")
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("steer: ") and error.count("\n") == 1
    assert re.search(message, error), error


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--help"], ["-h"]):
        assert cli.main(arguments) == 0
        assert 'steer sample prompt="a red heart" reward=clip' in capsys.readouterr().out
    assert cli.main(["sample", "--help"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("Draw pictures of a prompt") and told.endswith((CONFIGS / "sample.yaml").read_text())
    assert cli.main(["help", "sample"]) == 0 and capsys.readouterr().out == told
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("steer 0.")


def test_errors_go_to_stderr_and_results_to_stdout() -> None:
    done = steer("list", "networks", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert [row["network"] for row in json.loads(done.stdout)] == names("network")
    done = steer("list", "networs")
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.startswith("steer: group='networs'")


def test_nobody_reading_ends_it_quietly() -> None:
    """`steer list | head -1`, with a reader that is gone before anything is written."""
    started = subprocess.Popen([sys.executable, "-m", "steer", "list"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert started.stdout and started.stderr
    started.stdout.close()
    assert (started.wait(60), started.stderr.read()) == (141, b"")


def test_the_report_holds_the_command_that_draws_the_same_again() -> None:
    assert cli.main(["sample", *[s for s in SMALL if s != "seed=0"], "prompt=a 'fox'", "out=o"]) == 0
    report = json.loads(Path("o/report.json").read_text())
    program, *words = shlex.split(report["command"])
    assert program == "steer" and f"seed={report['seed']}" in words
    assert html.escape(report["command"]) in Path("o/report.html").read_text(encoding="utf8")
    before = Path("o/sheet.png").read_bytes()
    assert cli.main([*words, "out=again"]) == 0
    assert Path("again/sheet.png").read_bytes() == before


def test_compare_as_a_user_runs_it(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["prompt=[a fox,a cat]", "reward=jpeg-size", "methods=[best_of_n,tds]", "budget=8", "n=2", "out=c"]
    assert cli.main(["compare", *given, "progress=false"]) == 0
    printed = capsys.readouterr().out
    assert "left out: it follows the reward's gradient, and reward 'jpeg-size' has none" in printed
    found = json.loads(Path("c/compare.json").read_text())
    assert found["prompts"] == ["a fox", "a cat"] and found["judge"] == "clip-judge"
    assert [(row["method"], row.get("calls")) for row in found["rows"]] == [("best_of_n", 8), ("tds", None)]
    assert Path("c/compare.html").stat().st_size > 5_000 and Path("c/compare.csv").read_text().count("\n") == 3


def test_list_names_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list"]) == 0
    printed = capsys.readouterr().out
    for group in ("model", "method", "reward"):
        assert all(name in printed for name in names(group))


def test_bench_prints_and_writes(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "exact", "fast=true", "out=figures"]) == 0
    told = json.loads(Path("figures/exact.json").read_text())
    tables = told["tables"]
    assert {row["method"] for row in tables["exact"]} >= {"SMC", "best-of-n", "guidance"}
    assert "sliced" in capsys.readouterr().out


def test_interruption_exits_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(overrides: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("steer.commands.listing.run", interrupted)
    assert cli.main(["list"]) == 130
    assert "interrupted" in capsys.readouterr().err


TUNING = [
    "finetune", "model=shapes", "reward=redness", "steps=2", "batch=4", "rank=2", "rounds.prompts=2", "rounds.group=4",
    "average_every=1", "guard_every=1", "guard_pictures=2", "calls=1", "tracker=null", "progress=false", "out=tuned",
]  # fmt: skip


@pytest.fixture
def texts(tmp_path: Path) -> list[str]:
    """A file of prompts, of which two are held out."""
    (tmp_path / "prompts.txt").write_text("# mine\na red circle\n\na blue star\na green square\n")
    return ["prompts=prompts.txt", "held_out_prompts=[a red circle,a pink star]"]


@pytest.mark.parametrize(
    ("objective", "setting", "stated"),
    [
        ("draft", "objective.steps=3", {"class": "DirectGradient", "kind": "draft", "steps": 3}),
        ("grpo_restart", "objective.collector.kind=sde", {"class": "PolicyGradient"}),
    ],
)
def test_finetune_as_a_user_runs_it(
    objective: str, setting: str, stated: dict, texts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The settings that are given arrive, those of the objective too; the same command finds its work done."""
    given = [*TUNING, *texts, f"objective={objective}", setting, "guard.kl_most=1e9", "held_out=brightness"]
    assert cli.main(given) == 0
    printed = capsys.readouterr().out
    report = json.loads(Path("tuned/report.json").read_text())
    assert report["words"] in printed and "wrote tuned; steer.load_model('tuned') reads it" in printed
    assert (report["model"], report["reward"], report["rank"]) == ("shapes", "redness", 2)
    assert report["held_out_prompts"] == ["a red circle", "a pink star"] and report["rule"]["kl_most"] == 1e9
    assert [row["step"] for row in report["history"]] == [1, 2] and "held_out" in report["before"]
    facts = json.loads(Path("tuned/checkpoints/step-00000002/state.json").read_text())
    assert facts["objective"] == facts["objective"] | stated
    assert facts["objective"]["collector"]["class"] == {"draft": "Noise", "grpo_restart": "Chain"}[objective]
    kept = Path("tuned/flow.safetensors").read_bytes()
    assert cli.main(given) == 0 and Path("tuned/flow.safetensors").read_bytes() == kept


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["objective=nfft"], "objective='nfft' is unknown; known: adjoint, .*did you mean 'nft'"),
        (["objective=lsd"], "objective='lsd' is unknown; known: adjoint, "),
        (["guards.patience=1"], "setting='guards' is unknown; known: .*did you mean 'guard'"),
        (["rankk=1"], "setting='rankk' is unknown; known: .*did you mean 'rank'"),
        (["prompts=none.txt"], "prompts='none.txt' is no file"),
        (["guard.patience=-1"], "guard.patience must be at least 0, got -1"),
        (
            ["objective=draft", "reward=jpeg-size"],
            "objective='draft' follows .* reward 'jpeg-size' has none; take one that needs none: best_of_n, .*nft",
        ),
    ],
)
def test_bad_input_of_finetune(more: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*TUNING, *more]) == 2
    error = capsys.readouterr().err
    assert error.startswith("steer: ") and error.count("\n") == 1
    assert re.search(message, error), error


def test_list_and_help_tell_of_tuning(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list"]) == 0
    printed = capsys.readouterr().out
    assert "tuning" in printed and ", ".join(names("tuning")) in printed
    assert cli.main(["finetune", "--help"]) == 0
    printed = capsys.readouterr().out
    assert printed.endswith((CONFIGS / "finetune.yaml").read_text()) and "tuning@objective: nft" in printed
