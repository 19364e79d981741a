"""From words on a command line to settings: hydra overrides, checked against what configs/ and the classes know."""

import inspect
import re
from collections.abc import Iterable, Iterator
from typing import Any

from steer.settings import CONFIGS, classes, free_reward, groups, names, read, unknown

Config = Any  # a DictConfig
QUOTES = ("'", '"')
KINDS = {bool: "true or false", int: "a whole number", float: "a number"}


def compose(config: str, overrides: Iterable[str]) -> Config:
    """configs/CONFIG.yaml with the overrides.

    A setting of a method, an objective or another part may be any argument of its class, whether or not its file in
    configs/ names it.

    Raises:
        ValueError: a key or a name is unknown, or a value is of another type than the setting; the message says what is
            known, or what type it is.
    """
    from hydra import compose as composed
    from hydra import initialize_config_dir
    from hydra.errors import OverrideParseException

    given = [_Override(text, config) for text in overrides]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        known = list(dict.fromkeys([*map(str, composed(config)), *groups(config)]))
        inner = [f"{key}.{name}" for key, part in read(config).items() if isinstance(part, dict) for name in part]
        for one in given:
            one.check_root(known, inner)
        given = [one for one in given if not (one.optional and one.value == "null")]  # as it is without
        try:
            base = composed(config, [one.text for one in given if one.chooses])
            result = composed(config, [one.text if one.chooses else one.within(base) for one in given])
        except OverrideParseException as error:
            cure = "put quotes around texts with signs in them, as in KEY=\"['a <b>', 'c: d']\""
            raise ValueError(f"setting {error.override!r} cannot be read; {cure}") from error
    for one in given:
        one.check_type(base, result)
    strange = next((name for name in _classes(to_plain(result)) if name not in classes()), None)
    if strange:
        raise ValueError(f"_target_={strange!r} stands in no file of configs/; take a name that `steer list` prints")
    return result


def _classes(config: Any) -> Iterator[object]:  # noqa: ANN401 (lists and dicts)
    """The classes of the parts of a config, by which hydra would import and call whatever they name."""
    for key, value in config.items() if isinstance(config, dict) else enumerate(config):
        if key == "_target_":
            yield value
        elif isinstance(value, dict | list):
            yield from _classes(value)


class _Override:
    """KEY=VALUE, of the settings of one command.

    key: without the signs + and ~ of hydra. chooses: whether it names a file of configs/, as method=smc does.
    """

    def __init__(self, text: str, config: str) -> None:
        key, equals, self.value = text.partition("=")
        if not equals and not key.startswith("~"):
            bare = text.lstrip("-")
            cure = f"{bare}=VALUE" if bare.isidentifier() else f'prompt="{text}"'
            raise ValueError(f"setting {text!r} has no value; write {cure}")
        if key.startswith("-"):
            raise ValueError(f"setting {text!r} begins with a dash; write {text.lstrip('-')}")
        self.sign, self.key = re.match(r"([+~]*)(.*)", key, re.DOTALL).groups()  # pyright: ignore[reportOptionalMemberAccess]
        self.group = None if "~" in self.sign else groups(config).get(self.key)
        self.text, self.chooses = text, self.group is not None
        self.optional = {self.key: None} in read(config).get("defaults", [])
        if "~" in self.sign and not self.optional and ("." not in self.key or self.key.startswith("model.")):
            raise ValueError(f"setting {text!r} takes away what is needed; write {self.key}=VALUE")
        if self.group and self.group != self.key:
            self.text = f"{self.sign}{self.group}@{self.key}={self.value}"

    def check_root(self, known: list[str], inner: list[str]) -> None:
        """Its first part is a setting, and what it chooses exists; it may have been meant for an inner one."""
        root = self.key.partition(".")[0].partition("@")[0]
        if root not in known:
            raise unknown("setting", root, known, also=inner)
        if self.group and self.value not in names(self.group) and not (self.optional and self.value == "null"):
            raise unknown(self.key, self.value, names(self.group))

    def within(self, base: Config) -> str:
        """Its text for hydra, which wants a plus before what the file does not name; ValueError for an unknown key."""
        from omegaconf import DictConfig, OmegaConf

        parent, dot, last = self.key.rpartition(".")
        if not dot or self.sign:
            return self.text
        node = OmegaConf.select(base, parent)
        if not isinstance(node, DictConfig):
            raise ValueError(f"setting {self.key!r}: {_cure(base, parent)}")
        known = [str(key) for key in node if not str(key).startswith("_")]
        more = [name for name in _arguments(node) if name not in known]
        if last in more:
            return f"+{self.text}"
        if last not in known:
            raise unknown("setting", self.key, [f"{parent}.{name}" for name in [*known, *more]])
        return self.text

    def check_type(self, base: Config, result: Config) -> None:
        """Its value is of the type of its default; a number where a text belongs is taken as it was written."""
        from omegaconf import ListConfig, OmegaConf

        if self.chooses or self.sign:
            return
        value, default = OmegaConf.select(result, self.key), OmegaConf.select(base, self.key)
        parent, _, last = self.key.rpartition(".")
        if parent:
            default = _arguments(OmegaConf.select(base, parent)).get(last, default)
        kind = "a list" if isinstance(default, ListConfig) else KINDS.get(type(default))
        if isinstance(default, str) and isinstance(value, bool | int | float):
            OmegaConf.update(result, self.key, self.value)
        elif kind and not _suits(value, type(default)):
            raise ValueError(f"{self.key}={value!r} must be {kind}, such as {default!r}")


def _suits(value: object, kind: type) -> bool:
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    return isinstance(value, int | float) if kind is float else isinstance(value, kind)


def _cure(base: Config, parent: str) -> str:
    """What to write in place of a setting whose owner has none."""
    if parent in base and base[parent] is not None:
        return f"{parent} has no settings of its own; write {parent}=VALUE"
    chosen = f"a {parent}" if (CONFIGS / parent).is_dir() else f"{parent!r}, which is not set"
    example = f"; name one too, as in {parent}={names(parent)[0]}" if (CONFIGS / parent).is_dir() else ""
    return f"it is a setting of {chosen}{example}"


def _arguments(node: Any) -> dict[str, Any]:  # noqa: ANN401 (a part of a config)
    """Names and defaults of what the class of a part takes; none for what is no class."""
    from hydra.utils import get_object
    from omegaconf import DictConfig

    if not isinstance(node, DictConfig) or "_target_" not in node:
        return {}
    parameters = inspect.signature(get_object(node["_target_"])).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is not p.VAR_KEYWORD and p.kind is not p.VAR_POSITIONAL}


def plain(config: Config, *without: str) -> dict[str, Any]:
    """All settings but some, as plain values."""
    return {str(key): to_plain(config[key]) for key in config if key not in without}


def to_plain(value: Any) -> Any:  # noqa: ANN401
    """Lists and dicts in the place of omegaconf's."""
    from omegaconf import OmegaConf

    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def quote_prompt(overrides: list[str]) -> list[str]:
    """A prompt is text, whatever characters it holds; only a list in brackets or a text in quotes is left to hydra."""
    quoted = []
    for override in overrides:
        key, equals, text = override.partition("=")
        if key == "prompt" and equals and not text.startswith("["):
            text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)  # else it would be looked up, in the environment too
            override = f"prompt={text if text.startswith(QUOTES) else as_text(text)}"
        quoted.append(override)
    return quoted


def as_text(text: str) -> str:
    """A text in the quotes in which hydra takes it as it is."""
    return "'" + re.sub(r"(\\*)('|\Z)", _escape, text) + "'"


def _escape(match: re.Match[str]) -> str:
    """A quote with a backslash before it; backslashes that stand before a quote twice, as hydra reads them."""
    return 2 * match[1] + ("\\'" if match[2] else "")


def take_free(overrides: list[str]) -> tuple[list[str], dict[str, str]]:
    """Take out rewards and models that are no names in configs/: functions, weights, folders.

    Raises:
        ValueError: settings of a reward stand beside one that has none in configs/.
    """
    free, left = {}, []
    for override in overrides:
        key, _, value = override.partition("=")
        if key in ("reward", "model") and value not in names(key):
            free[key] = value
        else:
            left.append(override)
    lost = next((text for text in left if text.partition(".")[0] in free), None)
    if lost:
        key = lost.partition(".")[0]
        raise ValueError(f"setting {lost!r}: only a {key} that `steer list` names has settings; leave it out")
    return left, free


def reward_of(config: Config, free: dict[str, str]) -> Any:  # noqa: ANN401 (whatever rewards.to_reward takes)
    """The reward that is meant: what `take_free` took out, or the one that the config describes."""
    from hydra.utils import instantiate

    return free_reward(free["reward"]) if "reward" in free else instantiate(config.reward)
