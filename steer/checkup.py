"""What works on this machine: `steer doctor` prints it."""

import importlib.metadata
import os
import platform
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from steer import __version__, settings

FEW = 4  # cores on which threads that spin are a matter


class Finding(NamedTuple):
    """What was looked at, and what was found.

    good: None is a note, False a fault of what steer itself needs. group: what it is one of, see `grouped`.
    """

    about: str
    good: bool | None
    found: str
    group: str = ""


def checkup() -> list[Finding]:
    """All findings; nothing is downloaded or left behind. Where a package is lacking they end with that."""
    found = list(packages())
    if any(finding.good is False for finding in found):
        return found
    looks = (torchvision, devices, threads, models, scorers, clips, caches, run)
    return [*found, *(finding for look in looks for finding in look())]


def grouped(found: list[Finding]) -> list[Finding]:
    """The findings of a group in one: all that are good, and of the others those that say the same."""
    alike: dict[tuple[object, ...], list[Finding]] = {}
    for i, one in enumerate(found):
        key = (one.group, one.good, one.good or one.found) if one.group else (i,)
        alike.setdefault(key, []).append(one)
    return [_merged(of) if len(of) > 1 else of[0] for of in alike.values()]


def _merged(of: list[Finding]) -> Finding:
    first, names = of[0], [one.about.removeprefix(f"{of[0].group} ") for one in of]
    if first.good:
        said = (f"{name} {one.found}" for name, one in zip(names, of, strict=True))
        return Finding(f"{first.group}s", True, ", ".join(said))
    return Finding(f"{first.group}s", first.good, f"{', '.join(names)}: {first.found}")


def packages() -> Iterator[Finding]:
    """The versions of what steer requires."""
    from packaging.requirements import Requirement

    yield Finding("steer", True, f"{__version__}, python {platform.python_version()}, {platform.platform()}")
    try:
        asked = [Requirement(text) for text in importlib.metadata.requires("steer") or ()]
    except importlib.metadata.PackageNotFoundError:
        yield Finding("installation", None, "steer runs from a folder and is not installed; pip install -e . there")
        return
    for one in asked:
        if one.marker is None or one.marker.evaluate({"extra": ""}):
            yield _package(one.name, one.specifier)


def _package(name: str, wanted: object) -> Finding:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, False, f"not installed; pip install '{name}{wanted}'", "package")
    good = version in wanted  # type: ignore[operator]
    said = version if good else f"{version}, but {wanted} is needed; pip install '{name}{wanted}'"
    return Finding(name, good, said, "package")


def torchvision() -> Iterator[Finding]:
    """Whether torchvision is of the same build as torch."""
    import torch

    from rewards.towers import mend_torchvision

    try:
        mended = mend_torchvision() is not None
    except Exception as error:
        yield Finding("torchvision", False, f"cannot be imported: {error}; install the one that fits torch")
        return
    if mended:
        cure = f"pip install torchvision from the index that torch {torch.__version__} came from"
        yield Finding("torchvision", None, f"of another build than torch; its compiled operators are not used. {cure}")


def devices() -> Iterator[Finding]:
    """Where networks can run."""
    import torch

    for i in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(i)
        yield Finding(f"cuda:{i}", True, f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB")
    if not torch.cuda.is_available():
        yield Finding("cuda", None, "none; networks run on the CPU, which the embedded models are made for")


def threads() -> Iterator[Finding]:
    """Cores and threads, and whether waiting threads spin."""
    import torch

    cores, used = available(), torch.get_num_threads()
    told = f"{used} threads on {cores} cores"
    spins = os.environ.get("OMP_WAIT_POLICY", "").upper() != "PASSIVE" and os.environ.get("GOMP_SPINCOUNT") != "0"
    if used > cores:
        yield Finding("threads", None, f"{told}: more than there are; export OMP_NUM_THREADS={cores}")
    elif spins and 1 < used and cores <= FEW:
        cure = "export OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=0"
        yield Finding("threads", None, f"{told}, which spin while they wait and slow down all else here; {cure}")
    else:
        yield Finding("threads", True, told)


def available() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def models() -> Iterator[Finding]:
    """The embedded models, loaded; and diffusers."""
    from steer.models import MODELS, load_model
    from steer.models.diffusers import import_diffusers
    from steer.models.families import known

    for name in MODELS:
        try:
            load_model(name, "cpu")
        except (OSError, ValueError) as error:
            yield Finding(f"model {name}", False, str(error), "model")
        else:
            yield Finding(f"model {name}", True, "loads", "model")
    try:
        import_diffusers()
    except (ValueError, RuntimeError) as error:
        yield Finding("pipelines", None, str(error))
    else:
        yield Finding("pipelines", True, f"diffusers loads; known: {', '.join(known())}")


def scorers() -> Iterator[Finding]:
    """Which rewards can run here, and what each of the others lacks."""
    import rewards

    lacks = {name: rewards.missing(settings.build("reward", name)) for name in settings.names("reward")}
    yield Finding("rewards", True, "can run here: " + ", ".join(name for name, text in lacks.items() if text is None))
    for name, text in lacks.items():
        if text is not None:
            yield Finding(f"reward {name}", None, text.removeprefix(f"reward {name!r} "), "reward")


def clips() -> Iterator[Finding]:
    """Which models of open_clip the reward clip could take besides its own."""
    from rewards.open_clip_files import here

    found = here()
    told = "none is here; rewards.missing(rewards.Clip(NAME, TAG)) tells how large one is, and which command fetches it"
    yield Finding("weights of open_clip", True if found else None, ", ".join(found) or told)


def caches() -> Iterator[Finding]:
    """Whether folders where downloads are kept can be written."""
    import torch
    from huggingface_hub.constants import HF_HUB_CACHE

    from steer.samples import check_folder

    for variable, folder in {"HF_HOME": Path(HF_HUB_CACHE), "TORCH_HOME": Path(torch.hub.get_dir())}.items():
        try:
            check_folder(folder)
        except ValueError:
            yield Finding(f"cache {folder}", None, f"cannot be written; let {variable} name another", "cache")
        else:
            yield Finding(f"cache {folder}", True, "can be written", "cache")


def run() -> Iterator[Finding]:
    """Two pictures by best of n, of one step."""
    from steer import sample

    start = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            out = sample("a red heart", reward="redness", method="best_of_n", n=2, steps=1, seed=0, progress=False)
    except Exception as error:
        yield Finding("a small run", False, f"{type(error).__name__}: {error}")
        return
    good = bool(out.rewards.isfinite().all() and ((out.images >= 0) & (out.images <= 1)).all())
    took = f"two pictures in {time.perf_counter() - start:.1f} s on {out.images.device}"
    yield Finding("a small run", good, took if good else "pictures or rewards are no numbers in their range")
