"""The command line: `steer COMMAND`, with hydra overrides; the commands themselves are in `steer.commands`."""

import os
import sys
import traceback
import warnings
from importlib.util import find_spec
from pathlib import Path

from steer.commands import COMMANDS, command
from steer.settings import CONFIGS, unknown
from steer.stopping import Stopped

USAGE = """\
Steer and fine-tune generative flow maps with rewards.

usage: steer COMMAND [KEY=VALUE ...] [--debug]

{commands}
  help COMMAND    what it does, examples, and every setting with its default

  steer sample prompt="a red heart" reward=clip            pictures, plain and steered, into outputs/
  steer sample prompt="a house" reward=my_file.py:score    a reward of your own: score(images [b 3 h w]) -> [b]
  steer compare prompt="a fox" methods=[smc,tds] budget=128
  steer finetune model=emoji reward=clip objective=nft     a model whose plain samples score high
  steer serve-reward reward=clip port=8123                 for another machine
  steer list methods                                       which need a gradient, what they cost
  steer doctor                                             what can run here

Errors are one line and exit with 2; --debug shows where they came from. Errors of your own reward are shown whole.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run a command; 0, 2 after an error in the input, 130 or 143 after it was told to stop.

    Where nobody reads what it prints any more (`steer list | head -1`) it ends without a word, with 141.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    debug, rest = "--debug" in arguments, [a for a in arguments if a != "--debug"]
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            status = _dispatch(rest)
        sys.stdout.flush()
        return status
    except Stopped as stopped:
        print(f"steer: {stopped}", file=sys.stderr)
        return stopped.status
    except KeyboardInterrupt:
        print("steer: interrupted; no file is half-written", file=sys.stderr)
        return 130
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _is_about_input(error):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that Python's own end is quiet too
            return 141
        if debug or not _is_about_input(error):
            raise
        told = "; ".join([str(error), *getattr(error, "__notes__", [])])
        print("steer: " + " ".join(told.split()), file=sys.stderr)
        return 2


def _dispatch(arguments: list[str]) -> int:
    name, *overrides = arguments or ["--help"]
    if name == "help" and overrides:
        name, overrides = overrides[0], ["--help"]
    if name in ("-h", "--help", "help"):
        print(usage(), end="")
        return 0
    if name == "--version":
        from steer import __version__

        print(f"steer {__version__}")
        return 0
    if name not in COMMANDS:
        raise unknown("command", name, COMMANDS)
    if {"-h", "--help"} & set(overrides):
        print(help_of(name), end="")
        return 0
    return command(name).run(overrides) or 0


def usage() -> str:
    """What `steer --help` prints."""
    lines = [f"  {name:<14}  {(command(name).__doc__ or '').splitlines()[0]}" for name in COMMANDS]
    return USAGE.format(commands="\n".join(lines))


def help_of(name: str) -> str:
    """What `steer COMMAND --help` prints: its docstring, and the commented file of its settings."""
    module = command(name)
    text = (module.__doc__ or "").strip()
    config = getattr(module, "CONFIG", None)
    if config is None:
        return f"{text}\n"
    return f"{text}\n\nSettings, as KEY=VALUE:\n\n{(CONFIGS / f'{config}.yaml').read_text(encoding='utf8')}"


def _show_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    """One line of what concerns the user; deprecations of other packages do not."""
    if category is UserWarning:
        print("steer: warning: " + " ".join(str(message).split()), file=sys.stderr)


def _is_about_input(error: Exception) -> bool:
    """Whether this project, or hydra, raised it on purpose: then its message says enough, and where is no matter.

    An error that began anywhere else is a user's own, or a fault of ours; both are shown whole.
    """
    if isinstance(error, SystemError | MemoryError | AssertionError | AttributeError | NameError):
        return False
    frames = traceback.extract_tb(error.__traceback__)
    origin = Path(frames[-1].filename).resolve() if frames else Path()
    here = Path(__file__).resolve().parent
    homes = [here, here.parent / "rewards", *(_home(m) for m in ("hydra", "omegaconf"))]
    return any(home in origin.parents for home in homes)


def _home(module: str) -> Path:
    spec = find_spec(module)
    return Path(spec.origin).resolve().parent if spec and spec.origin else Path("/nowhere")
