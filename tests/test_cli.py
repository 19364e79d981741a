"""The command line: the parts in this process, the whole of it as a user starts it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra.utils import instantiate

from steer import api, cli
from steer.chunks import Chunks
from steer.settings import CONFIGS, build, names

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
    assert done.stderr.startswith("steer: reward='clop' is unknown; known: brightness, clip,")
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
    assert (method["name"], method["steps"], method["ess_threshold"], method["temperature"]) == ("SMC", 2, 0.25, 3)


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
    assert set(seen) == set(inspect.signature(api.sample).parameters)
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


@pytest.mark.parametrize("prompt", ["a fox, a cat", "it's (nearly) {good}", "100% = a \\ b: c", "null", "ein Bär?"])
def test_a_prompt_is_text_whatever_it_holds(prompt: str) -> None:
    assert cli._compose("sample", cli._quote_prompt([f"prompt={prompt}"])).prompt == prompt


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["smaple"],
            "command='smaple' is unknown; known: sample, .*serve-reward, bench, list; did you mean 'sample'",
        ),
        (["sample", "promt=x"], "setting='promt' is unknown; known: .*did you mean 'prompt'"),
        (["sample", "a red heart"], "setting 'a red heart' has no value; write a red heart=VALUE"),
        (["sample", "prompt="], "prompt='' holds an empty text"),
        (["sample", "want=worst"], "want='worst' must be 'sample'"),
        (["sample", "chunk=0"], "chunk=0 must be a whole number"),
        (["sample", "chunk.reward=no"], "chunk={'reward': 'no'} must be"),
        (["sample", "n=0"], "n=0 must be a whole number"),
        (["sample", "n=many"], "n='many' must be a whole number"),
        (["sample", "method=smcc"], "method='smcc' is unknown.*did you mean 'smc'"),
        (["sample", "method=smc", "method.stepz=3"], "stepz"),
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
            "bench='exakt' is unknown; known: exact, embedded, values, compositional, overhead, training, finetune, "
            "scale; did you mean 'exact'",
        ),
        (["list", "all"], "takes no settings"),
    ],
)
def test_bad_input(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    import re

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
    assert "temperature: null # in units of the reward" in capsys.readouterr().out
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("steer 0.")


def test_list_names_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list"]) == 0
    printed = capsys.readouterr().out
    for group in ("model", "method", "reward"):
        assert all(name in printed for name in names(group))


@pytest.mark.parametrize("group, name", [(g, n) for g in ("method", "reward") for n in names(g)])
def test_every_config_composes_and_builds(group: str, name: str) -> None:
    config = cli._compose("sample", [f"{group}={name}"])
    assert instantiate(config[group]) == build(group, name)


@pytest.mark.parametrize("name", names("method"))
def test_configs_of_methods_are_of_the_class_and_the_settings_they_state(name: str) -> None:
    stated, built = yaml.safe_load((CONFIGS / "method" / f"{name}.yaml").read_text()), build("method", name)
    assert stated.pop("_target_") == f"steer.methods.{type(built).__name__}"
    plain = {key: value for key, value in stated.items() if not isinstance(value, dict)}
    assert plain == {key: getattr(built, key) for key in plain}


def test_no_two_names_mean_the_same_method() -> None:
    assert len({str(build("method", name)) for name in names("method")}) == len(names("method"))


def test_names_are_those_that_the_rewards_package_knows() -> None:
    import rewards

    assert set(names("reward")) == set(rewards.names())


def test_bench_prints_and_writes(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "exact", "fast=true", "out=figures"]) == 0
    tables = json.loads(Path("figures/exact.json").read_text())
    assert {row["method"] for row in tables["exact"]} >= {"SMC", "best-of-n", "guidance"}
    assert "sliced" in capsys.readouterr().out


def test_interruption_exits_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(overrides: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, "list", interrupted)
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
            "objective=DirectGradient needs a differentiable reward, .jpeg-size. is not; take nft",
        ),
    ],
)
def test_bad_input_of_finetune(more: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    import re

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
    assert printed == (CONFIGS / "finetune.yaml").read_text() and "tuning@objective: nft" in printed


def test_all_that_finetune_takes_has_a_key() -> None:
    """With the defaults of the function and of the loop, where nothing is said."""
    import inspect

    from steer.finetuning import DEFAULTS, Rule, finetune
    from steer.settings import build
    from steer.training import Settings

    config = cli._compose("finetune", [])
    given = {key: p.default for key, p in inspect.signature(finetune).parameters.items() if key != "settings"}
    loop = vars(Settings(**DEFAULTS)) | {"steps": given["steps"]}
    assert set(config) == (set(given) | set(loop)) - {"sample_every", "drop"}  # a prompt is always told
    plain = {key: cli._to_plain(config[key]) for key in config}
    known = {**loop, **given} | {"betas": [0.9, 0.99], "ema": [0.5]}
    assert instantiate(config.objective) == build("tuning", given["objective"])
    assert Rule(**plain["guard"]) == Rule()
    taken = {"model", "reward", "objective", "guard", "rounds"}
    assert {key: plain[key] for key in set(plain) - taken} == {key: known[key] for key in set(plain) - taken}


def test_rounds_are_those_of_the_class() -> None:
    from steer.experience import Rounds

    assert Rounds(**cli._compose("finetune", []).rounds) == Rounds()
