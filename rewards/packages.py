"""Packages that a reward needs and that are not installed with this one."""

import importlib.util


def lacking_packages(reward: str, extra: str, *packages: str) -> str | None:
    """One sentence: which packages a reward lacks, and how to get them; None where all are installed.

    extra: the extra of this distribution that installs them.
    packages: as they are imported.
    """
    gone = [package for package in packages if importlib.util.find_spec(package) is None]
    if not gone:
        return None
    return f"reward {reward!r} lacks the Python package {' and '.join(gone)}; run: pip install 'steer[{extra}]'"
