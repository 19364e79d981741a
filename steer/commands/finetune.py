"""Tune a model with a reward, until its plain samples score high.

    steer finetune model=emoji reward=clip objective=nft     into runs/finetune
    steer finetune model=emoji reward=clip objective=draft steps=40 lr=2e-4 out=runs/tuned
    steer finetune model=shapes reward=my_file.py:score prompts=prompts.txt objective=grpo
    steer finetune model=emoji objective=dpo pairs=FOLDER    from pairs of pictures, of which one is the better
    steer sample model=runs/tuned prompt="a red heart"       what it draws then

The same command goes on where a killed run was; `accelerate launch -m steer finetune ...` uses many GPUs.
"""

import json
from pathlib import Path

from steer.commands.sample import is_first, model_of
from steer.composing import compose, plain, reward_of, take_free

CONFIG = "finetune"


def run(overrides: list[str]) -> None:
    """A tuned model in the folder `out`."""
    from hydra.utils import instantiate

    left, free = take_free(overrides)
    config = compose(CONFIG, left)
    reward, objective = reward_of(config, free), instantiate(config.objective)
    given = plain(config, "reward", "objective", "model")
    given |= {key: tuple(given[key]) for key in ("betas", "ema")}

    from steer import finetune

    model = model_of(config, free, given.pop("pipeline"))
    finetune(model, reward, given.pop("prompts"), objective=objective, **given)
    if is_first():
        report = json.loads((Path(config.out) / "report.json").read_text(encoding="utf8"))
        print(report["words"])
        print(f"wrote {config.out}; steer.load_model({str(config.out)!r}) reads it")
