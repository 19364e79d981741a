"""Tell what works here: packages, devices, threads, rewards, models, and a small run.

    steer doctor                                             0 where all that steer itself needs works, else 1
    steer doctor --json                                      the same for a program

What a reward lacks is told with how to get it, and is no fault: rewards whose weights do not ship are optional.
"""

from steer.printing import as_json, print_table

CONFIG = None
MARKS = {True: "ok", None: "note", False: "FAULT"}


def run(overrides: list[str]) -> int:
    """A table; 1 where something that steer itself needs does not work."""
    from steer.checkup import checkup, grouped

    if rest := [word for word in overrides if word != "--json"]:
        raise ValueError(f"steer doctor takes no settings, got {rest[0]!r}; leave it out")
    found, whole = checkup(), "--json" in overrides
    shown = found if whole else grouped(found)
    rows = [{"about": one.about, "": MARKS[one.good], "found": one.found} for one in shown]
    if whole:
        print(as_json(rows).decode("utf8"), end="")
    else:
        print_table("steer doctor", rows, long="fold")
    faults = [one.about for one in found if one.good is False]
    if not overrides:
        print(f"{len(faults)} faults: {', '.join(faults)}" if faults else "all that steer itself needs works here")
    return 1 if faults else 0
