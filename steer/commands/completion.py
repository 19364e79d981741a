"""Print a script that completes commands, settings and names in a shell.

    source <(steer completion bash)                          in ~/.bashrc
    source <(steer completion zsh)                           in ~/.zshrc, after compinit
    steer completion fish | source                           in ~/.config/fish/config.fish

What can be completed is asked of the steer that is installed, at each press of the key.
"""

from steer.completing import SCRIPTS, candidates
from steer.settings import unknown

CONFIG = None


def words() -> list[str]:
    """The shells."""
    return list(SCRIPTS)


def run(overrides: list[str]) -> None:
    """The script of a shell; `steer completion words LINE` is what the scripts call."""
    shell, *line = overrides or [""]
    if shell == "words":
        print("\n".join(candidates(" ".join(line))))
    elif shell not in SCRIPTS:
        raise unknown("shell", shell, SCRIPTS)
    else:
        print(SCRIPTS[shell], end="")
