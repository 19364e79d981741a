"""Names of models, methods and rewards: the files of configs/, each of which builds one object; functions by name."""

import difflib
import importlib
import importlib.util
import itertools
import re
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

_HERE = Path(__file__).resolve().parent
CONFIGS = _HERE / "configs" if (_HERE / "configs").is_dir() else _HERE.parent / "configs"
"""Beside this file in an installed package, beside the package in a checkout."""
ELSEWHERE = {"particles": "n", "samples": "n", "iterations": "steps", "epochs": "steps", "learning_rate": "lr",
             "cfg": "guidance"}  # what other libraries call settings  # fmt: skip


def names(group: str) -> list[str]:
    """The names of a group ("model", "method" or "reward"), sorted."""
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


@cache
def read(config: str) -> dict[str, Any]:
    """What configs/CONFIG.yaml says, unresolved."""
    import yaml

    return yaml.safe_load((CONFIGS / f"{config}.yaml").read_text(encoding="utf8")) or {}


def groups(config: str) -> dict[str, str]:
    """The settings of configs/CONFIG.yaml that choose a file by name, and the folder of configs/ that holds it."""
    parts = [key.partition("@") for entry in read(config).get("defaults", []) if entry != "_self_" for key in entry]
    return {key or folder: folder for folder, _, key in parts}


@cache
def classes() -> frozenset[str]:
    """The classes that files of configs/ name."""
    texts = (path.read_text(encoding="utf8") for path in CONFIGS.rglob("*.yaml"))
    return frozenset(name for text in texts for name in re.findall(r"_target_: *([\w.]+)", text))


def says(group: str, name: str) -> str:
    """What the comment at the top of configs/GROUP/NAME.yaml says; "" where there is none."""
    lines = (CONFIGS / group / f"{name}.yaml").read_text(encoding="utf8").splitlines()
    comment = itertools.takewhile(lambda line: line.startswith("#"), lines)
    return " ".join(line.lstrip("# ") for line in comment if "@package" not in line)


def unknown(argument: str, value: str, known: Iterable[str], more: str = "", also: Iterable[str] = ()) -> ValueError:
    """The error for a name that is not known: it lists those that are, and the one of them, or of `also`, that may have
    been meant.
    """
    known = list(known)
    near = nearest(value, [*known, *also])
    hint = f"; did you mean {near!r}?" if near else ""
    return ValueError(f"{argument}={value!r} is unknown; known: {', '.join(known)}{more}{hint}")


def nearest(value: str, known: Iterable[str]) -> str | None:
    """The name that was meant, by what follows its last dot: the same but for case, spelt alike, of a word in common
    (the longest), or at least not spelt altogether otherwise; None where none is.
    """
    last = {name: _last(name) for name in known}
    low = _last(value)
    low = ELSEWHERE.get(low.removeprefix("num_"), low)
    words = [name for name, own in last.items() if _share_word(low, own)]
    alike = [difflib.get_close_matches(low, last.values(), 1, least) for least in (0.8, 0.6)]
    found = [*alike[0], *sorted((last[name] for name in words), key=len, reverse=True), *alike[1]]
    return next((name for name, own in last.items() if found and own == found[0]), None)


def _last(name: str) -> str:
    return name.rpartition(".")[2].lower().replace("-", "_")


def _share_word(a: str, b: str) -> bool:
    """Whether one is a word of the other, or its beginning."""
    short, long = sorted((a, b), key=len)
    return len(short) > 2 and (short in long.split("_") or long.startswith(short))


def called(group: str, part: object) -> str:
    """The name in configs/GROUP by which a user calls a part, such as "tds" of `SMC(chain="sde", twist=1.0)`.

    Of the names of its class it is the one with which it has most settings in common; of another class, that's name.
    """
    from hydra.utils import get_object

    alike = {}
    for name in names(group):
        target = read(f"{group}/{name}").get("_target_", "")
        if target.endswith(f".{type(part).__name__}") and get_object(target) is type(part):
            named = vars(build(group, name))
            alike[name] = sum(value == named.get(key) for key, value in vars(part).items())
    return max(alike, key=lambda name: alike[name], default=type(part).__name__)


def build(group: str, name: str) -> Any:  # noqa: ANN401 (whatever the file names)
    """The object that configs/GROUP/NAME.yaml describes.

    Raises:
        ValueError: there is no such name; the message lists the known ones and the nearest.
    """
    if name not in names(group):
        raise unknown(group, name, names(group))
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    return instantiate(OmegaConf.load(CONFIGS / group / f"{name}.yaml"))


def free_reward(text: str) -> Any:  # noqa: ANN401 (whatever rewards.to_reward takes)
    """`{clip: 1, redness: 50}` as a dict of weights, `[clip, redness]` as a list, `module:name` as that object."""
    if text.startswith(("{", "[")):
        from omegaconf import OmegaConf
        from yaml import YAMLError

        try:
            return OmegaConf.to_container(OmegaConf.create(text))
        except YAMLError as error:
            what = getattr(error, "problem", None) or "no YAML"
            raise ValueError(f"reward={text!r} cannot be read ({what}); write {{clip: 1, redness: 50}}") from error
    if ":" not in text and text.endswith(".py") and Path(text).is_file():
        raise ValueError(f"reward={text!r}: name the function in it, reward={text}:NAME")
    if "," in text and not Path(text.partition(":")[0]).is_file():
        raise ValueError(f"reward={text!r}: several go together as reward='{{{': 1, '.join(text.split(','))}: 1}}'")
    if ":" not in text:
        raise unknown("reward", text, names("reward"), ", or module:function, or file.py:function")
    return import_object(text)


def import_object(text: str) -> Any:  # noqa: ANN401
    """The object named by "package.module:name" or "path/to/file.py:name"; the working directory is searched too.

    Raises:
        ValueError: there is no such module, file or name. Errors inside the module pass unchanged.
    """
    place, _, name = text.rpartition(":")
    if place.endswith(".py"):
        if not Path(place).is_file():
            raise ValueError(f"reward={text!r}: there is no file {place!r}; name one that exists")
        spec = importlib.util.spec_from_file_location(Path(place).stem, place)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        if not all(part.isidentifier() for part in place.split(".")):
            raise ValueError(f"reward={text!r}: {place!r} is no name of a module; write package.module:name")
        sys.path.insert(0, str(Path.cwd()))
        try:
            module = importlib.import_module(place)
        except ModuleNotFoundError as error:
            if error.name and not f"{place}.".startswith(f"{error.name}."):
                raise
            cure = "install it, or run from its folder"
            raise ValueError(f"reward={text!r}: there is no module {place!r}; {cure}") from error
        finally:
            sys.path.pop(0)
    if not hasattr(module, name):
        raise unknown("reward", text, [f"{place}:{n}" for n in vars(module) if not n.startswith("_")])
    return getattr(module, name)
