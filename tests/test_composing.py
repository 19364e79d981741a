"""From words to settings: what configs/ holds builds what it states, and the help's examples are right."""

import re
import shlex

import pytest
import yaml
from hydra.utils import instantiate

from steer import cli
from steer.commands import COMMANDS
from steer.composing import compose, quote_prompt, take_free, to_plain
from steer.settings import CONFIGS, build, names


@pytest.mark.parametrize("prompt", ["a fox, a cat", "it's (nearly) {good}", "100% = a \\ b: c", "null", "ein Bär?"])
def test_a_prompt_is_text_whatever_it_holds(prompt: str) -> None:
    assert compose("sample", quote_prompt([f"prompt={prompt}"])).prompt == prompt


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_line_and_examples_that_name_it(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    overview = capsys.readouterr().out
    assert cli.main([name, "--help"]) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert f"  {name} " in overview and first.endswith(".") and first in overview
    assert sum(line.startswith("    ") and f"steer {name}" in line for line in rest) >= 2


def examples() -> list[list[str]]:
    """The words of all examples of commands that have settings; those with files of one's own are left out."""
    text = "\n".join(cli.help_of(name) for name in COMMANDS)
    lines = re.findall(r"^    steer ((?:sample|compare|train|finetune) .*)", text, re.MULTILINE)
    words = [shlex.split(line.partition("   ")[0]) for line in lines]
    return [w for w in words if not any("my_file.py" in x for x in w)]


@pytest.mark.parametrize("words", examples(), ids=" ".join)
def test_the_examples_of_the_help_are_right(words: list[str]) -> None:
    """Their settings exist and are of the right type."""
    left, _ = take_free(quote_prompt(words[1:]))
    assert compose(words[0], left)


def test_a_setting_may_be_any_argument_of_its_class() -> None:
    """Also where the file in configs/ does not name it."""
    config = compose("sample", ["method=smc", "method.chain=sde", "method.churn=2"])
    method = instantiate(config.method)
    assert (method.chain, method.churn, method.steps) == ("sde", 2, 8)


def test_a_number_where_a_text_belongs_is_taken_as_it_was_written() -> None:
    assert compose("sample", ["out=0042"]).out == "0042"


def test_a_yes_or_no_is_no_number() -> None:
    for wrong in ("n=true", "method.steps=true"):
        with pytest.raises(ValueError, match="must be a whole number"):
            compose("sample", ["method=smc", wrong])
    assert compose("train", ["lr=1"]).lr == 1


@pytest.mark.parametrize(("group", "name"), [(g, n) for g in ("method", "reward", "tuning") for n in names(g)])
def test_what_a_file_sets_may_be_given_again(group: str, name: str) -> None:
    """So its types are those that are asked for on the command line."""
    command, key = ("finetune", "objective") if group == "tuning" else ("sample", group)
    stated = yaml.safe_load((CONFIGS / group / f"{name}.yaml").read_text())
    told = {k: v for k, v in stated.items() if isinstance(v, bool | int | float) and not k.startswith("_")}
    config = compose(command, [f"{key}={name}", *(f"{key}.{k}={str(v).lower()}" for k, v in told.items())])
    assert {k: config[key][k] for k in told} == told


@pytest.mark.parametrize("group, name", [(g, n) for g in ("method", "reward") for n in names(g)])
def test_every_config_composes_and_builds(group: str, name: str) -> None:
    config = compose("sample", [f"{group}={name}"])
    assert instantiate(config[group]) == build(group, name)


@pytest.mark.parametrize("name", names("method"))
def test_configs_of_methods_are_of_the_class_and_the_settings_they_state(name: str) -> None:
    stated, built = yaml.safe_load((CONFIGS / "method" / f"{name}.yaml").read_text()), build("method", name)
    assert stated.pop("_target_") == f"steer.methods.{type(built).__name__}"
    plain = {key: value for key, value in stated.items() if not isinstance(value, dict)}
    assert plain == {key: getattr(built, key) for key in plain}


def test_no_two_names_mean_the_same_method() -> None:
    assert len({str(build("method", name)) for name in names("method")}) == len(names("method"))


def test_names_are_those_that_the_rewards_package_knows() -> None:
    import rewards

    assert set(names("reward")) == set(rewards.names())


def test_all_that_finetune_takes_has_a_key() -> None:
    """With the defaults of the function and of the loop, where nothing is said."""
    import inspect

    from steer.finetuning import DEFAULTS, Rule, finetune
    from steer.settings import build
    from steer.training import Settings

    config = compose("finetune", [])
    given = {key: p.default for key, p in inspect.signature(finetune).parameters.items() if key != "settings"}
    loop = vars(Settings(**DEFAULTS)) | {"steps": given["steps"]}
    assert set(config) == (set(given) | set(loop)) - {"sample_every", "drop"} | {"pipeline"}  # always told
    plain = {key: to_plain(config[key]) for key in config if key != "pipeline"}
    known = {**loop, **given} | {"betas": [0.9, 0.99], "ema": [0.5]}
    assert instantiate(config.objective) == build("tuning", given["objective"])
    assert Rule(**plain["guard"]) == Rule()
    taken = {"model", "reward", "objective", "guard", "rounds"}
    assert {key: plain[key] for key in set(plain) - taken} == {key: known[key] for key in set(plain) - taken}


@pytest.mark.parametrize("command", ["sample", "finetune", "compare"])
def test_all_that_can_be_chosen_of_a_pipeline_has_a_key(command: str) -> None:
    from steer.models.diffusers import LOADING
    from steer.models.families.base import Choices

    found = compose(command, [])["pipeline"]
    assert set(found) == {*Choices.__dataclass_fields__, *LOADING}
    assert not any(value is not None for value in found.values())


def test_rounds_are_those_of_the_class() -> None:
    from steer.experience import Rounds

    assert Rounds(**compose("finetune", []).rounds) == Rounds()
