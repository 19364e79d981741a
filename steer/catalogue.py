"""What there is, a row each, read off the objects themselves: attributes, docstrings, and small runs."""

import functools
import inspect
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

import rewards
from rewards.calibration import calibration_of
from steer import settings
from steer.analytic import GaussianMixture
from steer.flow_map import Cond
from steer.interpolants import Linear, Time
from steer.models import MODELS, families, load_model
from steer.objectives import Batch, Student

Row = dict[str, object]
PARTICLES = 4  # of the run that counts a method's calls


def catalogue(group: str) -> list[Row]:
    """The rows of a folder of configs/, by name; of models also the pipelines of diffusers that are known."""
    if group == "model":
        return [*map(model, MODELS), *map(pipeline, families.known())]
    if group in ROWS:
        return [ROWS[group](name) for name in settings.names(group)]
    return [{group: name, "what": _what(group, name)} for name in settings.names(group)]


def method(name: str) -> Row:
    """Whether it needs a gradient, what comes back, and calls a particle, by a run on a Gaussian with a linear reward.

    A method that meets p exp(reward / temperature) estimates log Z; the others have none.
    """
    built = settings.build("method", name)
    normal = GaussianMixture(torch.ones(1), torch.zeros(1, 2), torch.eye(2)[None])
    rng = torch.Generator().manual_seed(0)
    x0 = torch.randn(1, PARTICLES, 2, generator=rng)
    _, trace = built(normal.flow(), Linear(), lambda x1: x1.sum(-1), x0, rng=rng)
    return {
        "method": name,
        "needs a gradient": _yes(built.needs_gradient),
        "what comes back": "the target" if bool(trace.log_z.isfinite().all()) else "high rewards",
        "calls a particle": round(float(trace.calls.double().mean()) / PARTICLES),
        "paper": paper(type(built), name),
        "settings": _settings("method", name),
    }


def reward(name: str) -> Row:
    """Whether it has a gradient, whether it can run here, and its mean and spread over reference pictures."""
    built = settings.build("reward", name)
    scale, lacks, slope = calibration_of(built), rewards.missing(built), rewards.is_differentiable(built)
    return {
        "reward": name,
        "gradient": "depends" if slope is None else _yes(slope),
        "runs here": _yes(lacks is None),
        "shipped scale": scale and f"{scale.mean:.3g} +- {scale.std:.2g}",
        "lacks": lacks,
        "what": " ".join([*_settings("reward", name).split()[1:], _what("reward", name)]),
    }


def model(name: str) -> Row:
    """Its pictures, its latents, and whether it draws from p(x1 | x_t) in one call."""
    from steer.api import PLAIN_STEPS

    loaded = load_model(name, "cpu")
    with torch.no_grad():
        picture = loaded.decode(torch.zeros(1, *loaded.shape))
    return {
        "model": name,
        "pictures": _shape(picture.shape[1:]),
        "latents": _shape(loaded.shape),
        "steps": PLAIN_STEPS,
        "posterior map": _yes(loaded.posterior),
        "what": _sentence(inspect.getmodule(type(loaded.encode))),
    }


def pipeline(name: str) -> Row:
    """A class of diffusers pipelines; its shapes are those of a checkpoint."""
    about = _sentence(inspect.getmodule(families.family_of(name)))
    return {"model": name, "what": f"diffusers, model=FOLDER or model=OWNER/NAME: {about}"}


def lookahead(name: str) -> Row:
    """The calls of a look."""
    built = settings.build("lookahead", name)
    return {
        "lookahead": name,
        "calls": built.calls,
        "paper": paper(type(built), name),
        "settings": _settings("lookahead", name),
        "what": _what("lookahead", name),
    }


def objective(name: str) -> Row:
    """Whether it needs a teacher, and derivatives of the map, by a run on a map that notices them."""
    seen, built = _Noticing(), settings.build("objective", name)
    distils = isinstance(built, functools.partial)
    goal = built(teacher=seen) if distils else built
    student = Student(seen, average=seen, weight=lambda s, t: torch.zeros_like(s))
    goal(student, Batch(torch.zeros(16, 2)), torch.Generator().manual_seed(0))
    return {
        "objective": name,
        "needs a teacher": _yes(distils),
        "needs derivatives": _yes(seen.derived),
        "paper": paper(type(goal), name),
        "settings": _settings("objective", name),
        "what": _what("objective", name),
    }


class _Noticing:
    """The flow map of one point, which notices when it is differentiated in forward mode."""

    derived = False

    def __call__(self, x: Tensor, s: Time, t: Time, cond: Cond = None) -> Tensor:
        given = (x, s, t)
        tangents = [forward_ad.unpack_dual(u).tangent for u in given if isinstance(u, Tensor)]
        self.derived = self.derived or any(tangent is not None for tangent in tangents)
        return -x + 0 * sum(torch.as_tensor(u).sum() for u in given)


def tuning(name: str) -> Row:
    """Whether its optimum is p exp(reward / temperature), and whether it needs the reward's gradient."""
    from steer.finetuning import needs_gradient

    built = settings.build("tuning", name)
    return {
        "objective": name,
        "exact": _yes(built.exact),
        "needs a gradient": _yes(needs_gradient(built)),
        "paper": paper(type(built), name),
        "what": _what("tuning", name),
    }


ROWS: dict[str, Callable[[str], Row]] = {
    "method": method,
    "reward": reward,
    "lookahead": lookahead,
    "objective": objective,
    "tuning": tuning,
}


def paper(kind: type, name: str) -> str:
    """The arXiv id that the docstring of a class, or of its module, states as the source of a name.

    Of several it is the one whose clause names it, or else the first.
    """
    for text in (kind.__doc__ or "", getattr(inspect.getmodule(kind), "__doc__", None) or ""):
        found = re.findall(r"(.*?)arXiv:(\d{4}\.\d{5})", re.split(r"Sources?:", text, maxsplit=1)[-1], re.DOTALL)
        if found:
            clauses = [(re.split(r"[.;]\s", said)[-1].lower(), number) for said, number in found]
            named = [number for clause, number in clauses if _names(clause, name)]
            return [*named, found[0][1]][0]
    return ""


def _names(clause: str, name: str) -> bool:
    """Whether the first word of a name, or all of it written as one, stands in a text."""
    first, more, _ = name.partition("_")
    whole = name.replace("_", "")
    return bool(re.search(rf"\b{first}\b", clause)) or (bool(more) and whole in re.sub(r"\W", "", clause))


def _what(group: str, name: str) -> str:
    """The comment of its file in configs/, or else the first sentence of the docstring of what it builds."""
    target = settings.read(f"{group}/{name}").get("_target_")
    return settings.says(group, name) or (_sentence(_found(target)) if target else "")


def _found(path: str) -> object:
    from hydra.utils import get_object

    return get_object(path)


def _sentence(thing: object) -> str:
    """The first of its docstring."""
    text = " ".join((inspect.getdoc(thing) or "").partition("\n\n")[0].split())
    return re.split(r"(?<=[.])\s(?=[A-Z])", text, maxsplit=1)[0].rstrip(".")


def _settings(group: str, name: str) -> str:
    """The class, and what its file in configs/ sets otherwise than the class does."""
    told = settings.read(f"{group}/{name}")
    kind: Any = _found(told["_target_"])
    default = {key: p.default for key, p in inspect.signature(kind).parameters.items()}
    values = {key: _short(value) for key, value in told.items() if key in default and value not in (default[key], {})}
    return " ".join([kind.__name__, *(f"{key}={value}" for key, value in values.items())])


def _short(value: Any) -> Any:  # noqa: ANN401
    """A part as its class alone."""
    return value["_target_"].rpartition(".")[2] if isinstance(value, dict) and "_target_" in value else value


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _yes(said: bool) -> str:
    return "yes" if said else "no"
