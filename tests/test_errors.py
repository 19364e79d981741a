"""Bad input: one clear error, naming the argument, its value and the cure, before the network is called."""

import math
import re

import pytest
import torch
from colours import CountingFlow, colour_model, redness
from torch import Tensor

import steer
from steer.methods import SMC
from steer.posterior import Learned


def test_the_good_call_passes() -> None:
    steer.sample("a", reward=redness, model=colour_model(), n=2, temperature=1.0, progress=False)


@pytest.mark.parametrize(
    "bad, message",
    [
        ({"prompt": ""}, "prompt='' .*say what the picture shows"),
        ({"prompt": ["a", "  "]}, "empty text"),
        ({"prompt": []}, r"prompt=\[\] must be a text"),
        ({"prompt": 3}, "prompt=3 must be a text"),
        ({"prompt": ["a", None]}, "must be a text, or a list of texts"),
        ({"n": 0}, "n=0 must be a whole number, at least 1"),
        ({"n": 2.5}, r"n=2\.5 must be a whole number"),
        ({"n": True}, "n=True must be"),
        ({"n": None}, "n=None must be"),
        ({"steps": 0}, "steps=0 must be a whole number, at least 1"),
        ({"budget": -1}, "budget=-1 must be a whole number, at least 1"),
        ({"steps": 2, "budget": 64}, "steps=2 and budget=64 both fix the number of steps; give one"),
        ({"temperature": 0}, "temperature=0 must be above 0"),
        ({"temperature": -1.0}, r"temperature=-1\.0 must be above 0"),
        ({"temperature": math.nan}, "temperature=nan must be above 0"),
        ({"temperature": "hot"}, "temperature='hot' must be above 0"),
        ({"seed": -1}, "seed=-1 must be a whole number from 0"),
        ({"seed": 2**63}, "must be a whole number from 0"),
        ({"seed": 1.5}, r"seed=1\.5 must be a whole number"),
        ({"want": "worst"}, "want='worst' must be 'sample' .* or 'best'"),
        ({"chunk": 0}, "chunk=0 must be a whole number, at least 1"),
        ({"chunk": {"netwrok": 1}}, "names 'netwrok'; known: network, decoder, reward"),
        ({"device": "gpu9"}, "device='gpu9' cannot be used here .*try 'cpu'"),
        ({"model": "emojy"}, "model='emojy' is no embedded model .*did you mean 'emoji'"),
        ({"method": "smcc"}, "method='smcc' is unknown; known: beam, best_of_n, .*smc.*did you mean 'smc'"),
        ({"method": SMC}, "must be a name .* a method object such as SMC"),
        ({"method": 3}, "method=3 must be a name"),
        ({"reward": "clop"}, "reward='clop' is unknown; known: .*clip.*did you mean 'clip'"),
        ({"reward": 3}, "reward=3 is no reward"),
        ({"reward": []}, "reward is empty"),
        ({"reward": {"redness": math.inf}}, "weight of reward 'redness' is inf"),
        (
            {"method": "guidance", "reward": "jpeg-size"},
            "method='guidance' follows .*'jpeg-size' has none; use method='smc'",
        ),
        ({"method": "smc", "budget": 3}, "budget of 3 calls is too small for 4 particles.*; the least is 4"),
        ({"method": "guidance", "budget": 15}, "the least is 16"),
        (
            {"method": SMC(lookahead=Learned(2))},
            r"lookahead=Learned\(\) needs a posterior map, which model='colours' lacks",
        ),
    ],
)
def test_arguments(bad: dict[str, object], message: str) -> None:
    flow = CountingFlow()
    given = {"prompt": "a", "reward": redness, "model": colour_model(flow), "n": 4, "progress": False} | bad
    with pytest.raises((ValueError, TypeError)) as caught:
        steer.sample(given.pop("prompt"), **given)  # type: ignore[arg-type]
    assert re.search(message, str(caught.value), re.DOTALL), str(caught.value)
    assert flow.rows == []


def scalar(images: Tensor) -> Tensor:
    return images.mean()


def column(images: Tensor) -> Tensor:
    return images.mean((1, 2, 3))[:, None]


def nan(images: Tensor) -> Tensor:
    return images.mean((1, 2, 3)) * math.nan


def infinite(images: Tensor) -> Tensor:
    return images.mean((1, 2, 3)) + math.inf


def words(images: Tensor) -> list[str]:
    return ["good"] * len(images)


def imaginary(images: Tensor) -> Tensor:
    return images.mean((1, 2, 3)).to(torch.complex64)


def nothing(images: Tensor) -> None:
    return None


@pytest.mark.parametrize(
    "reward, message",
    [
        (scalar, "reward 'scalar' returned shape .*one score a picture"),
        (column, r"reward 'column' returned shape \[\d+, 1\]"),
        (nan, "reward 'nan' returned NaN"),
        (infinite, r"returned NaN or \+inf for pictures \[0"),
        (words, "reward 'words' returned list; return a tensor, array or list of"),
        (imaginary, "returned torch.complex64; return real numbers"),
        (nothing, "reward 'nothing' returned NoneType; return a tensor"),
    ],
)
@pytest.mark.parametrize("method", [None, "smc"])
def test_rewards_that_break_the_contract(reward: object, message: str, method: str | None) -> None:
    flow = CountingFlow()
    with pytest.raises((ValueError, TypeError)) as caught:
        steer.sample("a", reward=reward, model=colour_model(flow), method=method, n=4, progress=False)
    assert re.search(message, str(caught.value)), str(caught.value)
    assert flow.rows == []


def test_a_model_whose_weights_are_missing_or_damaged(tmp_path: object) -> None:
    from pathlib import Path
    from shutil import copytree

    from steer.models import ASSETS

    folder = Path(str(tmp_path)) / "copy"
    copytree(ASSETS / "emoji", folder)
    weights = folder / "flow.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="flow.safetensors are damaged .*install"):
        steer.sample("a", reward="redness", model=str(folder), progress=False)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match="flow.safetensors"):
        steer.sample("a", reward="redness", model=str(folder), progress=False)
