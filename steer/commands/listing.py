"""List models, methods, rewards and what else has a name.

    steer list                                               all names
    steer list methods                                       which need a gradient, what comes back, calls, papers
    steer list rewards                                       which have a gradient, which can run here, what others lack
    steer list rewards --json                                the same for a program
    steer list models|lookaheads|objectives|tuning|data|networks|experiments

What a table says is read off the objects themselves; calls are those of a small run, as configured. In a terminal
long texts are folded; `steer list rewards | less -S` shows a line each.
"""

from steer.printing import as_json, print_table
from steer.settings import names, unknown

CONFIG = None
GROUPS = ("model", "method", "lookahead", "reward", "data", "objective", "tuning", "network", "experiment")


def words() -> list[str]:
    """What can be listed, in the plural."""
    return [group if group in ("data", "tuning") else f"{group}s" for group in GROUPS]


def run(overrides: list[str]) -> None:
    """All names, or a table with a row for each of one group."""
    asked = [word for word in overrides if word != "--json"]
    if len(asked) > 1:
        raise ValueError(f"steer list takes one group, got {' '.join(asked)}; give one of {', '.join(words())}")
    if asked and asked[0].removesuffix("s") not in GROUPS:
        raise unknown("group", asked[0], words())
    if asked:
        from steer.catalogue import catalogue

        title, rows = asked[0], catalogue(asked[0].removesuffix("s"))
    else:
        title, rows = "names", [{"group": group, "names": ", ".join(names(group))} for group in GROUPS]
    if "--json" in overrides:
        print(as_json(rows).decode("utf8"), end="")
    else:
        print_table(title, rows, long="fold")
