"""Draw pictures of a prompt, plain and steered by a reward.

    steer sample prompt="a red heart" reward=clip            into outputs/: report.html shows all of it
    steer sample prompt="[a fox,a blue fox]" n=32 method=smc temperature=2 seed=0 out=foxes
    steer sample prompt="a house" reward=my_file.py:score    a reward of your own: score(images [b 3 h w]) -> [b]
    steer sample prompt="a house" reward="{clip: 1, redness: 50}" want=best budget=256
    steer sample prompts=prompts.txt out=many                a folder for each prompt; goes on where it was ended

`accelerate launch -m steer sample prompts=FILE` shares out prompts, `... spread=particles n=256` one prompt's pictures.
Settings of a method, a reward or a look-ahead: method.ess_threshold=0.8, reward.model=..., lookahead.k=4; of a pipeline
of diffusers (model=FOLDER or a hub id): pipeline.height=512 pipeline.dtype=float16.
"""

import dataclasses
import os
import shlex
from typing import Any

from steer.composing import compose, plain, quote_prompt, reward_of, take_free
from steer.printing import print_summary

CONFIG = "sample"


def run(overrides: list[str]) -> None:
    """Everything that can be wrong with the input is found before any sampling."""
    from steer.samples import check_folder

    left, free = take_free(quote_prompt(overrides))
    config = compose(CONFIG, left)
    given = plain(config, "reward", "method", "lookahead", "model", "out")
    folder = check_folder(config.out)
    given |= {"reward": reward_of(config, free), "method": _method(config)}
    given["model"] = model_of(config, free, given.pop("pipeline"))
    prompts, prompt, batch = (given.pop(key) for key in ("prompts", "prompt", "batch"))
    if prompts is not None:
        if any(o.startswith("prompt=") for o in overrides):
            raise ValueError(f"prompts={prompts!r} and prompt={prompt!r} are both given; leave one of them out")
        return _many(prompts, {"out": folder, "batch": batch, **given})
    several = int(os.environ.get("WORLD_SIZE", "1"))
    if several > 1 and not given["spread"]:
        raise ValueError(
            f"{several} processes would each draw the same pictures; say spread=particles to share them out, or give "
            "prompts=FILE to share out prompts"
        )

    from steer import sample

    out = sample(prompt, **given)
    if several == 1 or is_first():
        report = out.report | {"command": command_again("sample", overrides, out.report["seed"])}
        dataclasses.replace(out, report=report).save(folder)
        print_summary(report, folder)


def model_of(config: Any, free: dict[str, Any], choices: dict[str, Any]) -> Any:  # noqa: ANN401
    """The model by name, or loaded, where something is chosen of a pipeline."""
    if not isinstance(choices, dict):
        raise ValueError(f"pipeline={choices!r} has settings of its own; write pipeline.KEY=VALUE")
    name = free.get("model", str(config.model.name))
    chosen = {key: value for key, value in choices.items() if value is not None}
    if not chosen:
        return name
    from steer.arguments import check_device
    from steer.models import load_model

    return load_model(name, check_device(config.device), **chosen)


def command_again(name: str, overrides: list[str], seed: int) -> str:
    """What to type for the same again, with the seed that was drawn where none was given."""
    kept = [text for text in overrides if not text.startswith("seed=")]
    return shlex.join(["steer", name, *kept, f"seed={seed}"])


def _many(prompts: Any, given: dict[str, Any]) -> None:  # noqa: ANN401 (a file or a list)
    """Each prompt into a folder of its own; the process that finishes last tells of all."""
    from steer import sample_many

    rows, folder = sample_many(prompts, **given), given["out"]
    if (folder / "results.jsonl").exists():
        best = [row["best"] for row in rows if row["best"] is not None]
        mean = f", mean of the best {sum(best) / len(best):.4g}" if best else ""
        warned = sum(row["warnings"] > 0 for row in rows)
        print(f"wrote {folder}: {len(rows)} prompts{mean}; index.html shows them, results.jsonl has a line of each")
        if warned:
            print(f"{warned} of them have warnings, which their report.html shows")


def is_first() -> bool:
    """Whether this is the one process that speaks."""
    from accelerate import PartialState

    return PartialState().is_main_process


def _method(config: Any) -> Any:  # noqa: ANN401
    """The method, with the look-ahead that is set; None where none is named."""
    from hydra.utils import instantiate

    method, lookahead = config.get("method"), config.get("lookahead")
    if not lookahead:
        return instantiate(method) if method else None
    if not method:
        raise ValueError("lookahead= is a setting of a method; name one too, as in method=smc")
    return instantiate({**method, "lookahead": lookahead})
