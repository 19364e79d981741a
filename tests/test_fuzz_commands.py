"""Any words on the command line: they work, or one line says what is wrong; none of them is code, none is looked up."""

# ruff: noqa: ANN401 (values of any kind)

import contextlib
import io
import os
import tempfile
import warnings
from pathlib import Path

import pytest
from fuzzing import INSIDE, fuzz
from hypothesis import given
from hypothesis import strategies as st

from steer import cli
from steer.composing import compose, quote_prompt

SAFE = [
    "reward=redness",
    "model=shapes",
    "n=2",
    "steps=1",
    "method=best_of_n",
    "temperature=1",
    "seed=0",
    "progress=false",
]
SIGNS = st.text(st.sampled_from("ab1 ,=$'\"[]{}()\\+~@.%#é\n"), max_size=7)
VALUES = st.one_of(
    SIGNS, st.integers(-3, 4).map(str), st.floats().map(str),
    st.sampled_from(["null", "true", "no", "[1]", "{a: 1}", "${n}", "${oc.env:NONE_SUCH}", "${nope}", "x,y", "${",
                     "???", "range(1,3)", "1e400", "{_target_: os.getcwd}", "${now:%Y}"]),
)  # fmt: skip
KEYS = [
    "prompt", "prompts", "batch", "n", "steps", "temperature", "budget", "seed", "device", "progress", "want", "chunk",
    "chunk.network", "checkpoint", "spread", "out", "method.steps", "method.temperature", "method._target_", "promt",
    "reward._target_", "reward.name", "reward.cost", "lookahead", "lookahead.k", "hydra.run.dir", "defaults", "method",
    "pipeline", "", "a.b",
]  # fmt: skip


def told(*arguments: str) -> tuple[int, str]:
    """The exit status and what stands on stderr."""
    err = io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        status = cli.main(list(arguments))
    return status, err.getvalue()


def check(sign: str, key: str, value: str) -> None:
    """Nothing escapes, nothing is imported, and a command that is refused leaves no file."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        status, words = told("sample", *(s for s in SAFE if s.partition("=")[0] != key), f"{sign}{key}={value}")
        lines = [line for line in words.splitlines() if not line.startswith("steer: warning:")]
        assert status in (0, 2), words
        if status == 2:
            assert len(lines) == 1 and len(lines[0]) > len("steer: ") and not any(word in lines[0] for word in INSIDE)
            assert os.listdir(folder) == []
        else:
            left = [str(path) for path in Path(folder).rglob("*") if path.name.endswith(".part") or path.name[0] == "."]
            assert not lines and not left


OVERRIDE = (st.sampled_from(["", "", "+", "++", "~"]), st.sampled_from(KEYS), VALUES)


@fuzz(12)
@given(*OVERRIDE)
def test_any_override_works_or_is_refused_in_one_line(sign: str, key: str, value: str) -> None:
    check(sign, key, value)


@pytest.mark.slow
@fuzz(300)
@given(*OVERRIDE)
def test_many_overrides(sign: str, key: str, value: str) -> None:
    check(sign, key, value)


OTHERS = [
    ("train", "steps=null"), ("train", "lr=[1]"), ("train", "betas=[a,b]"), ("train", "seed=99999999999999999999"),
    ("train", "weight_decay=nan"), ("train", "network.width=x"), ("train", "data=nope"), ("train", "~objective"),
    ("train", "++objective._target_=os.getcwd"), ("train", "++data._target_=os.getcwd"), ("train", "out="),
    ("finetune", "rank=null"), ("finetune", "alpha=x"), ("finetune", "calls=[1]"), ("finetune", "guard=x"),
    ("finetune", "rounds=3"), ("finetune", "guard_pictures=99999999999999999999"), ("finetune", "normalise=no"),
    ("finetune", "++objective.collector={_target_: os.getcwd}"), ("finetune", "objective.collector=x"),
    ("finetune", "~reward"), ("finetune", "temperature=hot"), ("finetune", "prompts=nowhere.txt"),
    ("bench", "fast=maybe"), ("bench", "nope"), ("list", "nope"), ("compare", "methods=x"), ("serve-reward", "port=x"),
]  # fmt: skip


SHORT = {"bench": ["exact"], "train": ["steps=1", "rows=2"], "finetune": ["steps=1"]}  # were it not refused


@pytest.mark.parametrize(("command", "override"), OTHERS, ids=lambda text: text)
def test_other_commands_refuse_it_too(command: str, override: str, tmp_path: Path) -> None:
    first = SHORT.get(command, []) if "=" in override or command != "bench" else []
    with contextlib.chdir(tmp_path):
        status, words = told(command, *first, override)
    assert status == 2 and words.startswith("steer: ") and words.count("\n") == 1, words
    assert not any(word in words for word in INSIDE), words
    assert os.listdir(tmp_path) == []


def typed(text: str) -> None:
    """It arrives as it is, also where it looks like a setting, or like something to look up in the environment."""
    if not text.startswith(("[", "'", '"')):
        assert compose("sample", quote_prompt([f"prompt={text}"])).prompt == text


TEXTS = st.text(st.one_of(st.characters(), st.sampled_from("\\'\"${}[]")), min_size=1, max_size=12)


@fuzz(30)
@given(TEXTS)
def test_a_prompt_is_what_was_typed(text: str) -> None:
    typed(text)


@pytest.mark.slow
@fuzz(300)
@given(TEXTS)
def test_many_prompts(text: str) -> None:
    typed(text)


def test_a_prompt_looks_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "told")
    for text in (
        "${oc.env:SECRET}",
        "'${oc.env:SECRET}'",
        "\\${oc.env:SECRET}",
        "a ${oc.env:SECRET} b",
        "[${oc.env:SECRET}]",
    ):
        assert "told" not in str(compose("sample", quote_prompt([f"prompt={text}"])).prompt)


WAYS = [
    "++reward._target_=evil.f", "++method={_target_: evil.f}", "+method.x={_target_: evil.f}",
    "++chunk._target_=evil.f", "++method._target_=steer.composing.import_object",
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_no_override_names_a_class(way: str, tmp_path: Path) -> None:
    """Hydra would import it: a setting may choose among files of configs/, and names no code."""
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')\ndef f(*_, **__): pass\n")
    with contextlib.chdir(tmp_path), pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        status, words = told("sample", *SAFE, way)
    assert status == 2 and ("_target_=" in words or "is unknown" in words), words
    assert not (tmp_path / "imported").exists()
