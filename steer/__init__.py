"""Steer generative flow maps with rewards.

    import steer
    out = steer.sample("a red heart", reward="clip")
    out = steer.sample("a red heart", reward=my_function, method="smc", n=32, seed=0)

Names load what they need when they are first used, so that `import steer` itself costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from steer import (
        analytic,
        data,
        interpolants,
        lookahead,
        methods,
        metrics,
        models,
        moves,
        objectives,
        plots,
        posterior,
    )
    from steer.api import pipeline, sample
    from steer.comparing import Comparison, compare
    from steer.finetuning import finetune
    from steer.flow_map import jump, velocity
    from steer.learning import train
    from steer.many import sample_many
    from steer.models import Model, load_model, save_model
    from steer.particles import Particles, Trace
    from steer.run import Seen
    from steer.samples import Samples

__all__ = [
    "Comparison", "Model", "Particles", "Samples", "Seen", "Trace", "__version__", "analytic", "compare", "data",
    "finetune", "interpolants", "jump", "load_model", "lookahead", "methods", "metrics", "models", "moves",
    "objectives", "pipeline", "plots", "posterior", "sample", "sample_many", "save_model", "train", "velocity",
]  # fmt: skip

_MODULE_OF = {
    "Comparison": "comparing",
    "Model": "models",
    "Particles": "particles",
    "Samples": "samples",
    "Seen": "run",
    "Trace": "particles",
    "compare": "comparing",
    "finetune": "finetuning",
    "jump": "flow_map",
    "load_model": "models",
    "pipeline": "api",
    "sample": "api",
    "sample_many": "many",
    "save_model": "models",
    "train": "learning",
    "velocity": "flow_map",
}


def __getattr__(name: str) -> object:
    """Load a public name on first use."""
    if name not in __all__:
        raise AttributeError(f"module 'steer' has no attribute {name!r}; it has {', '.join(__all__)}")
    home = _MODULE_OF.get(name)
    value = getattr(import_module(f"steer.{home}"), name) if home else import_module(f"steer.{name}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
