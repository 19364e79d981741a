"""What may come next on a command line of `steer`, and the scripts that ask for it. Nothing here imports torch."""

from collections.abc import Mapping
from typing import Any

from steer.commands import COMMANDS, command
from steer.settings import groups, names, read

BASH = """\
_steer() {
    local line="${COMP_LINE:0:$COMP_POINT}" word last candidate
    word="${line##*[[:space:]]}"
    last="${word%"${word##*[=:]}"}"  # bash completes what follows the last = or : alone
    COMPREPLY=()
    while IFS= read -r candidate; do
        COMPREPLY+=("${candidate#"$last"}")
    done < <("$1" completion words "$line" 2>/dev/null)
    [[ ${#COMPREPLY[@]} -eq 1 && "${COMPREPLY[0]}" == *= ]] && compopt -o nospace
    [[ ${#COMPREPLY[@]} -eq 1 && -z "${COMPREPLY[0]}" ]] && COMPREPLY=()
    return 0
}
complete -o default -F _steer steer
"""
ZSH = """\
_steer() {
    local -a found
    found=(${(f)"$($words[1] completion words "${(j: :)words[1,CURRENT]}" 2>/dev/null)"})
    compadd -Q -S '' -- $found
}
compdef _steer steer
"""
FISH = """\
complete -c steer -f -a '(steer completion words (commandline -cp | string collect) 2>/dev/null)'
"""
SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}


def candidates(line: str) -> list[str]:
    """Whole words that may stand in the place of the last one of a line, which begins with the program's name.

    A setting ends with "=", and with its "=" come the names or the values that are known.
    """
    *before, last = line.split(" ")
    given = [word for word in before if word][1:]
    if not given:
        found = [*COMMANDS, "help", "--version"]
    elif given[0] == "help":
        found = list(COMMANDS)
    elif given[0] in COMMANDS:
        module = command(given[0])
        config, words = getattr(module, "CONFIG", None), getattr(module, "words", list)
        found = words() if len(given) == 1 else []
        found = [*found, *(_settings(config, last, given) if config else []), "--help"]
    else:
        found = []
    return [word for word in found if word.startswith(last)]


def _settings(config: str, last: str, given: list[str]) -> list[str]:
    """KEY= of every setting, or KEY=NAME once the last word has its "="; what parts have is read from configs/."""
    told, parts = read(config), groups(config)
    key, equals, _ = last.partition("=")
    if equals and key in parts:
        return [f"{key}={name}" for name in names(parts[key])]
    if equals:
        return [f"{key}={word}" for word in ("true", "false")] if isinstance(told.get(key), bool) else []
    parent, dot, _ = last.partition(".")
    if dot:
        name, known = _chosen(config, given).get(parent), names(parts[parent]) if parent in parts else []
        inside: Any = read(f"{parts[parent]}/{name}") if name in known else told.get(parent)
        nested = inside if isinstance(inside, Mapping) else {}
        return [f"{parent}.{name}=" for name in nested if not name.startswith("_") and name != "defaults"]
    return [f"{name}=" for name in dict.fromkeys([*parts, *told]) if name != "defaults"]


def _chosen(config: str, given: list[str]) -> dict[str, Any]:
    """What each part is: by the words that are given, or else by default."""
    entries = [entry for entry in read(config).get("defaults", []) if entry != "_self_"]
    default = {key.partition("@")[2] or key: value for entry in entries for key, value in entry.items()}
    return default | {word.partition("=")[0]: word.partition("=")[2] for word in given if "=" in word}
