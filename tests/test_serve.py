"""`steer serve-reward`: as a user runs it, and what it refuses."""

import inspect
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import rewards
import steer
from rewards.serving import serve
from steer import cli
from steer.composing import compose
from steer.methods import Guidance
from steer.settings import CONFIGS


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder, and no token."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STEER_TOKEN", raising=False)
    monkeypatch.setattr("warnings.showwarning", lambda *_: None)


@contextmanager
def command(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The real command line, and the address that it prints."""
    given = [sys.executable, "-m", "steer", "serve-reward", "port=0", *arguments]
    root = str(Path(steer.__file__).resolve().parents[1])
    with subprocess.Popen(given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          env=os.environ | {"PYTHONPATH": root}) as process:  # fmt: skip
        try:
            assert process.stdout
            line = process.stdout.readline()
            found = re.fullmatch(r"serving reward '(.+)' on (http://127\.0\.0\.1:\d+)\n", line)
            assert found, line + process.communicate()[1]
            yield process, found[2]
        finally:
            process.kill()


def test_steering_by_a_reward_in_another_process(tmp_path: Path) -> None:
    """A method that takes gradients: pictures and scores are those of the reward in this one."""
    with command("reward=redness") as (process, url):
        given = {"method": Guidance(2), "n": 2, "seed": 0, "progress": False, "temperature": 0.1}
        far = steer.sample("a house", reward=rewards.Remote(url), **given)
        near = steer.sample("a house", reward="redness", **given)
        assert torch.equal(far.images, near.images) and torch.equal(far.rewards, near.rewards)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)
        assert process.returncode == 0 and out == "stopped\n" and "Traceback" not in err


def test_what_is_being_scored_is_answered_before_the_end(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import pathlib, time\n"
        "def score(images):\n"
        "    if len(images) == 3:\n"
        "        pathlib.Path('scoring').touch()\n"
        "        time.sleep(1.0)\n"
        "    return [1.0] * len(images)\n"
    )
    with command("reward=mine.py:score") as (process, url):
        far, found = rewards.Remote(url, retries=0), []
        thread = threading.Thread(target=lambda: found.extend(far(torch.rand(3, 3, 8, 8), ["x"] * 3).tolist()))
        thread.start()
        while not Path("scoring").exists() and thread.is_alive():
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        thread.join()
        assert found == [1.0, 1.0, 1.0] and process.wait(20) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["reward=clop"], "reward='clop' is unknown; known: .*did you mean 'clip'"),
        (["reward=none.py:f"], "there is no file 'none.py'"),
        (["reward={clip: much}"], "the weight of reward 'clip' is 'much'"),
        (["prt=1"], "setting='prt' is unknown; known: .*did you mean 'port'"),
        (["port=99999"], "port=99999 must be a whole number from 0 to 65535"),
        (["port=eight"], "port='eight' must be a whole number"),
        (["most_bytes=1"], "most_bytes=1 must be a whole number, at least 131072"),
        (["host=1.2.3.4.5", "port=0"], "host='1.2.3.4.5', port=0 cannot be opened .*port=0 for any that is free"),
        (
            ["reward=remote", "reward.url=http://127.0.0.1:1"],
            "no server answers at url='http://127.0.0.1:1'; start one",
        ),
    ],
)
def test_bad_input(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve-reward", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("steer: ") and error.count("\n") == 1
    assert re.search(message, error), error


def test_help_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    """Every key is an argument of `serve`, with its default."""
    assert cli.main(["serve-reward", "--help"]) == 0
    assert capsys.readouterr().out.endswith((CONFIGS / "serve.yaml").read_text())
    assert cli.main(["--help"]) == 0
    assert "steer serve-reward reward=clip port=8123" in capsys.readouterr().out
    config = compose("serve", [])
    defaults = {key: p.default for key, p in inspect.signature(serve).parameters.items()}
    told = set(config) - {"reward"}
    assert told == set(defaults) - {"reward", "token_env"}
    assert {key: config[key] for key in told} == {key: defaults[key] for key in told}
