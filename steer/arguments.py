"""The arguments of `steer.sample`, checked before any work: each error names the argument, its value and the cure."""

import dataclasses
from collections.abc import Sequence
from numbers import Integral, Real

import torch

import rewards
from steer import settings
from steer.models import Model
from steer.posterior import Learned

WANTS = ("sample", "best")
MOST = 2**31 - 1  # of what is counted; nobody waits for more


def check_prompts(prompt: object) -> list[str]:
    """One prompt or several, as a list."""
    prompts = [prompt] if isinstance(prompt, str) else list(prompt) if isinstance(prompt, Sequence) else []
    if not prompts or not all(isinstance(p, str) for p in prompts):
        raise ValueError(f"prompt={prompt!r} must be a text, or a list of texts with at least one")
    if any(not p.strip() for p in prompts):
        raise ValueError(f"prompt={prompt!r} holds an empty text; say what the picture shows")
    return prompts


def check_numbers(n: object, steps: object, temperature: object, budget: object, seed: object) -> None:
    """Ranges of the numbers; None is legal for all but n."""
    for name, value in {"n": n, "steps": steps, "budget": budget}.items():
        if (value is not None or name == "n") and not (is_whole(value) and value >= 1):  # pyright: ignore
            raise ValueError(f"{name}={value!r} must be a whole number, at least 1")
        if value is not None and value > MOST:  # pyright: ignore
            raise ValueError(f"{name}={value!r} must be at most {MOST}")
    if steps is not None and budget is not None:
        raise ValueError(f"steps={steps!r} and budget={budget!r} both fix the number of steps; give one of them")
    if temperature is not None and not (is_number(temperature) and temperature > 0):  # pyright: ignore
        raise ValueError(f"temperature={temperature!r} must be above 0 (lower steers harder), or None to measure it")
    if seed is not None and not (is_whole(seed) and 0 <= seed < 2**63):  # pyright: ignore
        raise ValueError(f"seed={seed!r} must be a whole number from 0 to 2**63 - 1, or None to draw one")


def check_flags(**flags: object) -> None:
    """True or False: a text such as "no" would count as true."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name}={value!r} must be true or false")


def is_whole(value: object) -> bool:
    """Whether it is a whole number, of any type."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether it is a real number, of any type."""
    return isinstance(value, Real) and not isinstance(value, bool)


def check_device(device: str | torch.device | None) -> torch.device:
    """The device, tried; None takes CUDA where there is one."""
    try:
        place = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device is None else device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError, ValueError) as error:
        raise ValueError(f"device={device!r} cannot be used here ({str(error).splitlines()[0]}); try 'cpu'") from error
    return place


def check_reward(given: object, compare: bool = True) -> rewards.Reward:
    """A text is a name in configs/reward, or names a function; anything else is what `rewards.to_reward` makes of it.

    Raises:
        ValueError, TypeError: it is none.
        FileNotFoundError: it lacks files, packages or a server; the message says how to get them.
    """
    if isinstance(given, str):
        given = settings.build("reward", given) if given in settings.names("reward") else settings.free_reward(given)
    score = rewards.to_reward(given, compare=compare)
    if lacks := rewards.missing(score):
        raise FileNotFoundError(lacks)
    return score


def check_held_out(given: object) -> rewards.Reward | str | None:
    """A reward as `check_reward` makes it; "judge" and None stay what they are."""
    known = ["judge", *settings.names("reward")]
    if isinstance(given, str) and given not in known and ":" not in given:
        raise settings.unknown("held_out", given, known, ", or module:function, or None")
    return given if given is None or (isinstance(given, str) and given == "judge") else check_reward(given)


def check_method(method: object) -> None:
    """A name in configs/method, a method object, or None."""
    known = settings.names("method")
    if isinstance(method, str):
        if method not in known:
            raise settings.unknown("method", method, known, ", or a method object")
    elif method is not None and (isinstance(method, type) or not dataclasses.is_dataclass(method)):
        raise ValueError(
            f"method={method!r} must be a name ({', '.join(known)}), a method object such as SMC(steps=8), or None"
        )


def check_want(want: object) -> None:
    """A sample of the law, or the best picture."""
    if not isinstance(want, str) or want not in WANTS:
        raise ValueError(
            f"want={want!r} must be 'sample' (pictures of the tilted law) or 'best' (the best one that can be found)"
        )


def check_lookahead(method: object, model: Model) -> None:
    """A look-ahead that needs a posterior map finds one in the model."""
    if isinstance(getattr(method, "lookahead", None), Learned) and not model.posterior:
        raise ValueError(
            f"lookahead=Learned() needs a posterior map, which model={model.name!r} lacks; take model='emoji' or "
            "lookahead=Glass(), or train one (`steer train posterior=64 objective=posterior_glass`)"
        )


def check_compiler(place: torch.device) -> None:
    """torch.compile, tried on a function of one line: it needs a compiler that torch does not bring along."""
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(4, device=place))
    except Exception as error:
        needs = "Triton and a C compiler" if place.type == "cuda" else "a C++ compiler (g++ or clang++; CXX names it)"
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ValueError(
            f"compile=True: torch.compile needs {needs}, and does not work here ({cause}); install it, or leave "
            "compile out"
        ) from error
