"""Completion: what is offered, in a real bash too, and that no press of a key waits for torch."""

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from steer.commands import COMMANDS
from steer.completing import SCRIPTS, candidates
from steer.settings import names, read

DEFINED = f'steer() {{ "{sys.executable}" -m steer "$@"; }}\n'


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("steer fin", ["finetune"]),
        ("steer", []),
        ("steer nothing ", []),
        ("steer help ser", ["serve-reward"]),
        ("steer bench ex", ["exact"]),
        ("steer list re", ["rewards"]),
        ("steer completion ", ["bash", "zsh", "fish", "--help"]),
        ("steer sample method=fk", ["method=fk"]),
        ("steer sample n=4 method=tree", ["method=tree", "method=tree_search"]),
        ("steer sample look", ["lookahead="]),
        ("steer sample prog", ["progress="]),
        ("steer sample progress=", ["progress=true", "progress=false"]),
        ("steer sample chunk.", ["chunk.network=", "chunk.decoder=", "chunk.reward="]),
        ("steer sample method=beam method.ch", ["method.children="]),
        ("steer sample method.", []),
        ("steer sample reward.mo", ["reward.model="]),
        ("steer finetune objective=mean", ["objective=mean_flow_nft"]),
        ("steer finetune objective.sh", ["objective.share="]),
        ("steer train objective=mean", ["objective=mean_flow"]),
        ("steer serve-reward po", ["port="]),
    ],
)
def test_what_is_offered(line: str, offered: list[str]) -> None:
    assert candidates(line) == offered


def test_commands_and_keys_are_all_offered() -> None:
    assert set(candidates("steer ")) >= set(COMMANDS)
    keys = {word.rstrip("=") for word in candidates("steer sample ") if word.endswith("=")}
    assert keys == (set(read("sample")) - {"defaults"}) | {"model", "reward", "method", "lookahead"}
    assert candidates("steer sample reward=") == [f"reward={name}" for name in names("reward")]


def test_a_press_of_the_key_imports_neither_torch_nor_hydra() -> None:
    code = (
        "import sys; from steer.cli import main; main(['completion', 'words', 'steer sample method=s']); "
        "print(*sorted({'torch', 'hydra', 'rich', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["method=smc", "method=smc_sde", "method=svdd", ""]


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("steer fine", "finetune"),
        ("steer sample method=sm", "smc smc_sde"),
        ("steer sample n=4 meth", "method="),
        ("steer sample prompt='a fox' reward=jp", "jpeg-size"),
        ("steer sample nothing=", ""),
    ],
)
def test_the_function_of_bash(line: str, offered: str) -> None:
    """Bash takes = for the end of a word: it is given what follows."""
    asked = 'COMP_LINE="$LINE"; COMP_POINT=${#COMP_LINE}; _steer steer 2>/dev/null; echo "${COMPREPLY[*]}"'
    script = f"{DEFINED}{SCRIPTS['bash']}{asked}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=os.environ | {"LINE": line})
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{offered}\n", "")


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_the_tab_key_in_bash(tmp_path: Path) -> None:
    """A terminal, a line, and the key: the shell writes the rest of the word, and no blank after a setting's =."""
    (tmp_path / "rc").write_text(f"PS1='ready> '\n{DEFINED}{SCRIPTS['bash']}")
    child, terminal = pty.fork()
    if child == 0:
        os.execvp("bash", ["bash", "--noprofile", "--rcfile", str(tmp_path / "rc"), "-i"])
    try:
        assert "ready> " in _read(terminal, "ready> ")
        os.write(terminal, b"steer sample meth\t")
        assert "steer sample method=" in _read(terminal, "method=")
        os.write(terminal, b"best\t")
        assert "best_of_n " in _read(terminal, "best_of_n ")
    finally:
        os.close(terminal)
        os.waitpid(child, 0)


def _read(terminal: int, until: str) -> str:
    """What the terminal shows, up to some text, or for 30 seconds."""
    seen, end = "", time.monotonic() + 30
    while until not in seen and time.monotonic() < end:
        if select.select([terminal], [], [], 0.2)[0]:
            seen += os.read(terminal, 4096).decode(errors="replace")
    return seen


def test_the_scripts_of_the_other_shells_name_the_same_call() -> None:
    for shell in ("zsh", "fish"):
        assert "completion words" in SCRIPTS[shell]
        if shutil.which(shell):
            assert subprocess.run([shell, "-n"], input=SCRIPTS[shell], text=True).returncode == 0
