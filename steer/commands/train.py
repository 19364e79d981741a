"""Train a flow map from pictures, or distil one.

    steer train experiment=emoji                             the embedded model from scratch; into runs/emoji
    steer train data=folder data.path=pictures network=patches out=runs/mine
    steer train model=runs/mine teacher=runs/mine objective=distil out=runs/fast
    steer train data=shapes objective=lsd steps=8000 batch=512 lr=5e-4
    accelerate launch -m steer train experiment=emoji        on many GPUs

The same command goes on where a killed run was.
"""

from steer.commands.sample import is_first
from steer.composing import compose, plain

CONFIG = "train"


def run(overrides: list[str]) -> None:
    """A model in the folder `out`."""
    from hydra.utils import instantiate

    config = compose(CONFIG, overrides)
    objective, data = instantiate(config.objective), instantiate(config.data)
    given = plain(config, "objective", "data", "experiment")
    given |= {key: tuple(given[key]) for key in ("betas", "ema")}

    from steer import train

    train(data=data, objective=objective, **given)
    if is_first():
        print(f"wrote {config.out}; steer.load_model({str(config.out)!r}) reads it")
