"""What tests by hypothesis share: how many examples, how long each may take, words that no message of ours holds."""

from datetime import timedelta

from hypothesis import HealthCheck, settings

PATIENCE = timedelta(seconds=30)  # of one call, on a machine that has other work
INSIDE = (
    "not supported between",
    "has no attribute",
    "NoneType",
    "argument after **",
    "Traceback",
    "unexpected keyword",
)


def fuzz(examples: int) -> settings:
    """Settings of hypothesis: nothing written; the same examples each time, but for constants of the modules loaded."""
    return settings(
        max_examples=examples, deadline=PATIENCE, derandomize=True, database=None, print_blob=False,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
