"""The command line: `steer sample`, `train`, `finetune`, `serve-reward`, `bench` and `list`, with hydra overrides."""

import json
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from steer.printing import as_json, print_summary, print_table
from steer.settings import CONFIGS, names, unknown
from steer.stopping import Stopped

USAGE = """\
usage: steer COMMAND [KEY=VALUE ...] [--debug]

  steer sample prompt="a red heart" reward=clip            pictures, plain and steered, into outputs/
  steer sample prompt="[a fox,a blue fox]" n=32 method=smc temperature=2 seed=0 out=foxes
  steer sample prompt="a house" reward=my_file.py:score    a reward of your own: score(images [b 3 h w]) -> [b]
  steer sample prompt="a house" reward="{clip: 1, redness: 50}" budget=512
  steer sample prompt="a house" method=smc method.ess_threshold=0.8
  steer sample prompt="a house" want=best budget=256 chunk.decoder=16
  steer sample prompts=prompts.txt reward=clip out=many    a folder for each prompt; goes on where it was ended
  accelerate launch -m steer sample prompts=prompts.txt    each process takes its share of the prompts
  accelerate launch -m steer sample spread=particles n=256 each takes its share of one prompt's pictures
  steer sample --help                                      every key, with its default
  steer train experiment=emoji                             the embedded model from scratch; out=runs/emoji
  steer train data=folder data.path=pictures network=patches out=runs/mine
  steer train model=runs/mine teacher=runs/mine objective=distil out=runs/fast
  steer finetune model=emoji reward=clip objective=nft     a model whose plain samples score high; out=runs/finetune
  steer finetune model=shapes reward=my_file.py:score prompts=prompts.txt objective=grpo
  steer serve-reward reward=clip port=8123                 for another machine's reward=remote reward.url=http://...
  steer bench NAME [fast=true]                             print figures and write them; NAME: exact, embedded,
                                                           values, compositional,
                                                           training, finetune, overhead, scale
  steer list                                               models, methods, rewards, objectives, ... by name

Errors are one line and exit with 2; --debug shows where they came from. Errors of your own reward are shown whole.
"""

GROUPS = {"sample": ("method", "lookahead"), "train": ("data", "objective", "network", "experiment"),
          "finetune": ("objective",)}  # fmt: skip
LONG = 200  # rows of a table that is written, but not printed


def main(arguments: list[str] | None = None) -> int:
    """Run a command; 0, 2 after an error in the input, 130 or 143 after it was told to stop."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug, rest = "--debug" in arguments, [a for a in arguments if a != "--debug"]
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            return _dispatch(rest)
    except Stopped as stopped:
        print(f"steer: {stopped}", file=sys.stderr)
        return stopped.status
    except KeyboardInterrupt:
        print("steer: interrupted; no file is half-written", file=sys.stderr)
        return 130
    except Exception as error:
        if debug or not _is_about_input(error):
            raise
        told = "; ".join([str(error), *getattr(error, "__notes__", [])])
        print("steer: " + " ".join(told.split()), file=sys.stderr)
        return 2


def _dispatch(arguments: list[str]) -> int:
    command, *overrides = arguments or ["--help"]
    if command in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    if command == "--version":
        from steer import __version__

        print(f"steer {__version__}")
        return 0
    if command not in COMMANDS:
        raise unknown("command", command, COMMANDS)
    if {"-h", "--help"} & set(overrides):
        print(
            USAGE if command == "list" else (CONFIGS / f"{command.partition('-')[0]}.yaml").read_text(encoding="utf8"),
            end="",
        )
        return 0
    COMMANDS[command](overrides)
    return 0


def _show_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    """One line of what concerns the user; deprecations of other packages do not."""
    if category is UserWarning:
        print("steer: warning: " + " ".join(str(message).split()), file=sys.stderr)


def _is_about_input(error: Exception) -> bool:
    """Whether this project, or hydra, raised it on purpose: then its message says enough, and where is no matter.

    An error that began anywhere else is a user's own, or a fault of ours; both are shown whole.
    """
    if isinstance(error, SystemError | MemoryError | AssertionError | AttributeError | NameError):
        return False
    frames = traceback.extract_tb(error.__traceback__)
    origin = Path(frames[-1].filename).resolve() if frames else Path()
    here = Path(__file__).resolve().parent
    homes = [here, here.parent / "rewards", *(_home(m) for m in ("hydra", "omegaconf"))]
    return any(home in origin.parents for home in homes)


def _home(module: str) -> Path:
    import importlib.util

    spec = importlib.util.find_spec(module)
    return Path(spec.origin).resolve().parent if spec and spec.origin else Path("/nowhere")


def run_sample(overrides: list[str]) -> None:
    """`steer sample`: everything that can be wrong with the input is found before any sampling."""
    from hydra.utils import instantiate

    from steer.samples import check_folder

    overrides, free = _take_free(_quote_prompt(overrides))
    config = _compose("sample", overrides)
    reward = _free_reward(free["reward"]) if "reward" in free else instantiate(config.reward)
    folder = check_folder(config.out)
    method = _method(config)
    taken = ("reward", "method", "lookahead", "model", "out")
    plain = {key: _to_plain(config[key]) for key in config if key not in taken}

    plain |= {"reward": reward, "method": method, "model": free.get("model") or str(config.model.name)}
    prompts, prompt, batch = (plain.pop(key) for key in ("prompts", "prompt", "batch"))
    if prompts is not None:
        if any(o.startswith("prompt=") for o in overrides):
            raise ValueError(f"prompts={prompts!r} and prompt={prompt!r} are both given; leave one of them out")
        return _sample_many(prompts, {"out": folder, "batch": batch, **plain})
    several = int(os.environ.get("WORLD_SIZE", "1"))
    if several > 1 and not plain["spread"]:
        raise ValueError(
            f"{several} processes would each draw the same pictures; say spread=particles to share them out, or give "
            "prompts=FILE to share out prompts"
        )

    from steer import sample

    out = sample(prompt, **plain)
    if several == 1 or _first():
        out.save(folder)
        print_summary(out.report, folder)


def _sample_many(prompts: Any, given: dict[str, Any]) -> None:  # noqa: ANN401 (a file or a list)
    """Each prompt into a folder of its own; the process that finishes last tells of all."""
    from steer import sample_many

    rows, folder = sample_many(prompts, **given), given["out"]
    if (folder / "results.jsonl").exists():
        best = [row["best"] for row in rows if row["best"] is not None]
        mean = f", mean of the best {sum(best) / len(best):.4g}" if best else ""
        print(f"wrote {folder}: {len(rows)} prompts{mean}; results.jsonl has a line of each")


def _first() -> bool:
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


def run_train(overrides: list[str]) -> None:
    """`steer train`: a model in the folder `out`; the same command goes on where a killed run was."""
    from hydra.utils import instantiate

    config = _compose("train", overrides)
    objective, data = instantiate(config.objective), instantiate(config.data)
    plain = {key: _to_plain(config[key]) for key in config if key not in ("objective", "data", "experiment")}
    plain |= {key: tuple(plain[key]) for key in ("betas", "ema")}

    from steer import train

    train(data=data, objective=objective, **plain)
    if _first():
        print(f"wrote {config.out}; steer.load_model({str(config.out)!r}) reads it")


def run_finetune(overrides: list[str]) -> None:
    """`steer finetune`: a tuned model in the folder `out`; the same command goes on where a killed run was."""
    from hydra.utils import instantiate

    overrides, free = _take_free(overrides)
    config = _compose("finetune", overrides)
    reward = _free_reward(free["reward"]) if "reward" in free else instantiate(config.reward)
    objective = instantiate(config.objective)
    taken = ("reward", "objective", "model")
    plain = {key: _to_plain(config[key]) for key in config if key not in taken}
    plain |= {key: tuple(plain[key]) for key in ("betas", "ema")}

    from steer import finetune

    model = free.get("model") or str(config.model.name)
    finetune(model, reward, plain.pop("prompts"), objective=objective, **plain)
    if _first():
        report = json.loads((Path(config.out) / "report.json").read_text(encoding="utf8"))
        print(report["words"])
        print(f"wrote {config.out}; steer.load_model({str(config.out)!r}) reads it")


def run_serve(overrides: list[str]) -> None:
    """`steer serve-reward`: a reward over HTTP, until a signal ends it."""
    from hydra.utils import instantiate

    from rewards import serve

    overrides, free = _take_free(overrides)
    config = _compose("serve", overrides)
    reward = _free_reward(free["reward"]) if "reward" in free else instantiate(config.reward)
    serve(reward, config.host, config.port, device=config.device, most_bytes=config.most_bytes)


def run_bench(overrides: list[str]) -> None:
    """`steer bench NAME`: prints tables, writes NAME.json, NAME.csv and, where there is a plot, NAME.png."""
    from steer.bench import TABLES, as_csv, plot, run
    from steer.samples import check_folder, write_bytes

    name, *rest = overrides or [""]
    if name not in TABLES:
        raise unknown("bench", name, TABLES)
    config = _compose("bench", rest)
    folder = check_folder(config.out)
    tables = run(name, fast=config.fast)
    for title, rows in tables.items():
        if len(rows) <= LONG:
            print_table(title, rows)
        else:
            print(f"{title}: {len(rows)} rows, in {name}.csv")
    folder.mkdir(parents=True, exist_ok=True)
    files = {"json": as_json(tables), "csv": as_csv(tables), "png": plot(name, tables)}
    for kind, content in files.items():
        if content is not None:
            write_bytes(content, folder / f"{name}.{kind}")
    print(f"wrote {folder / name}." + ", .".join(kind for kind, content in files.items() if content is not None))


def run_list(overrides: list[str]) -> None:
    """`steer list`: the names of the groups."""
    if overrides:
        raise ValueError(f"steer list takes no settings, got {overrides[0]!r}; leave it out")
    groups = ("model", "method", "lookahead", "reward", "data", "objective", "tuning", "network", "experiment")
    print_table("names", [{"group": group, "names": ", ".join(names(group))} for group in groups])


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "sample": run_sample,
    "train": run_train,
    "finetune": run_finetune,
    "serve-reward": run_serve,
    "bench": run_bench,
    "list": run_list,
}


def _compose(config: str, overrides: list[str]) -> Any:  # noqa: ANN401 (a DictConfig)
    """The composed config; unknown keys and names are reported with those that are known."""
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        known = [str(key) for key in compose(config)] + [g for g in GROUPS.get(config, ())]
        for override in overrides:
            key, equals, value = override.partition("=")
            root = key.lstrip("+~").partition(".")[0].partition("@")[0]
            if not equals and not key.startswith("~"):
                raise ValueError(f"setting {override!r} has no value; write {override}=VALUE")
            if root not in known:
                raise unknown("setting", root, known)
            group = _group(config, key)
            known_names = [*names(group), *(["null"] if key in ("method", "lookahead", "experiment") else [])]
            if key in GROUPS.get(config, ()) and value not in known_names:
                raise unknown(key, value, names(group))
        return compose(config, [o.replace("objective=", "tuning@objective=", 1) if _group(config, o.partition("=")[0])
                                == "tuning" else o for o in overrides])  # fmt: skip


def _group(config: str, key: str) -> str:
    """The folder of configs/ that a key names: objectives of fine-tuning have one of their own."""
    return "tuning" if (config, key) == ("finetune", "objective") else key


def _quote_prompt(overrides: list[str]) -> list[str]:
    """A prompt is text, whatever characters it holds; only a list in brackets is left to hydra."""
    quoted = []
    for override in overrides:
        key, equals, text = override.partition("=")
        if key == "prompt" and equals and not text.startswith(("[", "'", '"')):
            escaped = re.sub(r"(\\*)('|$)", _escape, text)
            override = f"prompt='{escaped}'"
        quoted.append(override)
    return quoted


def _escape(match: re.Match[str]) -> str:
    """A quote with a backslash before it; backslashes that stand before a quote twice, as hydra reads them."""
    return 2 * match[1] + ("\\'" if match[2] else "")


def _take_free(overrides: list[str]) -> tuple[list[str], dict[str, str]]:
    """Take out rewards and models that are no names in configs/: functions, weights, folders."""
    free, left = {}, []
    for override in overrides:
        key, _, value = override.partition("=")
        if key in ("reward", "model") and value not in names(key):
            free[key] = value
        else:
            left.append(override)
    return left, free


def _free_reward(text: str) -> Any:  # noqa: ANN401 (whatever rewards.to_reward takes)
    """`{clip: 1, redness: 50}` as a dict of weights, `[clip, redness]` as a list, `module:name` as that object."""
    if text.startswith(("{", "[")):
        from omegaconf import OmegaConf

        return OmegaConf.to_container(OmegaConf.create(text))
    if ":" not in text:
        raise unknown("reward", text, names("reward"), ", or module:function, or file.py:function")
    return import_object(text)


def import_object(text: str) -> Any:  # noqa: ANN401
    """The object named by "package.module:name" or "path/to/file.py:name"; the working directory is searched too.

    Raises:
        ValueError: there is no such module, file or name. Errors inside the module pass unchanged.
    """
    import importlib
    import importlib.util

    place, _, name = text.rpartition(":")
    if place.endswith(".py"):
        if not Path(place).is_file():
            raise ValueError(f"reward={text!r}: there is no file {place!r}; name one that exists")
        spec = importlib.util.spec_from_file_location(Path(place).stem, place)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        sys.path.insert(0, str(Path.cwd()))
        try:
            module = importlib.import_module(place)
        except ModuleNotFoundError as error:
            if error.name and not f"{place}.".startswith(f"{error.name}."):
                raise
            cure = "install it, or run from its folder"
            raise ValueError(f"reward={text!r}: there is no module {place!r}; {cure}") from error
        finally:
            sys.path.pop(0)
    if not hasattr(module, name):
        raise unknown("reward", text, [f"{place}:{n}" for n in vars(module) if not n.startswith("_")])
    return getattr(module, name)


def _to_plain(value: Any) -> Any:  # noqa: ANN401
    from omegaconf import OmegaConf

    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
