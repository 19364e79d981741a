"""`compare`: methods on the same prompts at equal budgets of network calls, judged by a reward that none saw."""

import io
import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import rewards
from steer.api import ready, sample
from steer.arguments import check_device, check_held_out, check_method, check_numbers, check_prompts, check_reward
from steer.bench.comparison import figures, most_particles
from steer.bench.measuring import as_csv
from steer.compare_page import compare_page
from steer.methods import BestOfN, Method
from steer.models import Model
from steer.printing import as_json
from steer.problem import Problem, generators
from steer.progress import bar
from steer.samples import Samples, check_folder, write_bytes
from steer.settings import build, called
from steer.sheets import fit

METHODS = ("best_of_n", "smc", "tds", "beam")
SHOWN, SIDE = 4, 128  # pictures of a prompt that are kept, and their longest side in pixels
BEST = {"reward": "optimised, best", "judge": "judge, best"}  # who calls what the best

Row = dict[str, Any]


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    rows: one a budget and method, see `compare`.
    plain: for each prompt its best unsteered pictures, side by side, as PNG.
    strips: the same of each row's steered ones; empty for a method that took no part.
    prompts, reward, judge: what was compared; the names of the rewards.
    command: what to type for the same again, where that is known.
    """

    rows: list[Row]
    plain: list[bytes]
    strips: list[list[bytes]]
    prompts: list[str]
    reward: str
    judge: str | None
    command: str = ""

    def save(self, folder: str | Path) -> Path:
        """Write compare.html, compare.csv and compare.json, that one last; the folder's path comes back."""
        folder = check_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        told = {"prompts": self.prompts, "reward": self.reward, "judge": self.judge, "command": self.command}
        write_bytes(compare_page(self), folder / "compare.html")
        write_bytes(as_csv({"compare": self.rows}), folder / "compare.csv")
        write_bytes(as_json(told | {"rows": self.rows}), folder / "compare.json")
        return folder


def compare(
    prompt: str | list[str],
    *,
    reward: Any,  # noqa: ANN401 (whatever rewards.to_reward takes)
    methods: Sequence[Any] = METHODS,
    model: str | Model = "emoji",
    budget: int = 128,
    budgets: Sequence[int] | None = None,
    n: int | None = None,
    temperature: float | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool = True,
    chunk: Any = None,  # noqa: ANN401 (as `steer.sample` takes it)
    held_out: Any = "judge",  # noqa: ANN401 (as `steer.sample` takes it)
) -> Comparison:
    """Run methods on the same prompts, from noise of the same seed, at equal budgets.

    A row has the budget, the method, its particles n, and means over the prompts: see `steer.bench.comparison.compare`,
    whose columns these are. "best by" says for which of them, the reward or the judge, it is the best of its budget;
    "warnings" what the report warns of. A method that cannot take part has a row with a "note" that says why.

    Args:
        prompt: as `steer.sample` takes it.
        reward: as `steer.sample` takes it.
        methods: names, or method objects.
        model: as `steer.sample` takes it; loaded once.
        budget: network calls a prompt, a backward pass counted as two.
        budgets: several of them.
        n: pictures a prompt; None takes 4 to 16 by the budget, halved until a method can divide it, and for best-of-n,
            which lives on many draws, as many as its steps leave.
        temperature: as `steer.sample` takes it.
        seed: of the noise.
        device: as `steer.sample` takes it.
        progress: a progress bar of the methods.
        chunk: as `steer.sample` takes it.
        held_out: the judge, as `steer.sample` takes it.

    Raises:
        ValueError: an argument is out of range or unknown.
        FileNotFoundError: a reward lacks files, packages or a server.
    """
    prompts, place, score = check_prompts(prompt), check_device(device), check_reward(reward)
    amounts, named = _amounts(budget, budgets), _named(methods)
    check_numbers(1 if n is None else n, None, temperature, None, seed)
    kept = check_held_out(held_out)
    model = ready(model, place, False)
    gradient = _has_gradient(model, prompts, score, place, seed)
    given = {
        "reward": score,
        "model": model,
        "temperature": temperature,
        "seed": seed,
        "device": device,
        "chunk": chunk,
        "held_out": kept,
    }
    rows, strips, plain, judge = [], [], [], None
    with bar(progress, "methods", len(amounts) * len(named), "methods") as tick:
        for amount, (name, method) in itertools.product(amounts, named.items()):
            count = n or _particles(method, amount)
            row: Row = {"budget": amount, "method": name}
            note, strip = _unfit(method, count, amount, gradient, rewards.name_of(score)), []
            if note:
                row["note"] = note
            else:
                out = _drawn(prompts, given | {"method": method, "n": count, "budget": amount})
                row |= {"n": count} | figures(out) | {"warnings": "; ".join(out.report["warnings"])}
                strip = _strips(out.images, out.rewards)
                plain = plain or _strips(out.unsteered, out.unsteered_rewards)
                judge = out.report["held_out"] and out.report["held_out"]["name"]
            rows.append(row)
            strips.append(strip)
            tick(1)
    return Comparison(_marked(rows), plain, strips, prompts, rewards.name_of(score), judge)


def _amounts(budget: object, budgets: Sequence[object] | None) -> list[int]:
    """The budgets, each a whole number above 0."""
    amounts: Any = [budget] if budgets is None else budgets
    if not isinstance(amounts, Sequence) or isinstance(amounts, str) or not amounts:
        raise ValueError(f"budgets={budgets!r} must be a list of numbers of network calls, such as [32, 128]")
    for amount in amounts:
        check_numbers(1, None, None, amount, None)
    return list(amounts)


def _named(methods: object) -> dict[str, Method]:
    """The methods by their names; of an object see `steer.settings.called`."""
    if isinstance(methods, str) or not isinstance(methods, Sequence) or not methods:
        raise ValueError(f"methods={methods!r} must be a list of names or methods, such as ['smc', 'tds']")
    named: dict[str, Method] = {}
    for method in methods:
        check_method(method)
        name = method if isinstance(method, str) else called("method", method)
        if method is None or name in named:
            raise ValueError(f"methods={methods!r} holds {name!r}, no method or one of before; leave it out")
        named[name] = build("method", method) if isinstance(method, str) else method
    return named


def _has_gradient(model: Model, prompts: list[str], score: rewards.Reward, place: torch.device, seed: int) -> bool:
    with torch.no_grad():
        problem = Problem(model, prompts, score, place)
        return problem.has_gradient(problem.noise(1, generators(prompts, seed)))


def _particles(method: Method, amount: int) -> int:
    """As many as suit the method at the budget."""
    draws = amount // method.steps if isinstance(method, BestOfN) else most_particles(method, amount)
    return draws or 1


def _unfit(method: Method, n: int, budget: int, gradient: bool, reward: str) -> str:
    """Why a method cannot take part; "" where it can."""
    if method.needs_gradient and not gradient:
        return f"left out: it follows the reward's gradient, and reward {reward!r} has none"
    try:
        method.with_budget(budget, n)
    except ValueError as error:
        return f"left out: {error}"
    return ""


def _drawn(prompts: list[str], given: dict[str, Any]) -> Samples:
    """One run; what it warns of is in its report."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module=r"steer\.comparing")
        return sample(prompts, progress=False, **given)


def _strips(images: Tensor, r: Tensor) -> list[bytes]:
    """For each prompt its pictures [n 3 h w] of highest reward, side by side, as PNG; images [p n 3 h w], r [p n]."""
    return [_strip(row[order[:SHOWN]]) for row, order in zip(images, r.argsort(1, descending=True), strict=True)]


def _strip(images: Tensor) -> bytes:
    from PIL import Image

    tiles = [fit(picture, min(SIDE, max(picture.shape[1:]))) for picture in images]
    wide, high = tiles[0].size
    sheet = Image.new("RGB", (wide * len(tiles), high), "white")
    for i, tile in enumerate(tiles):
        sheet.paste(tile, (i * wide, 0))
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    return buffer.getvalue()


def _marked(rows: list[Row]) -> list[Row]:
    """The rows, with what each is the best by among those of its budget."""
    best = {}
    for who, column in BEST.items():
        for budget in dict.fromkeys(row["budget"] for row in rows):
            of = [row for row in rows if row["budget"] == budget and row.get(column) is not None]
            if of:
                best[who, budget] = max(of, key=lambda row: row[column])["method"]
    return [
        row | {"best by": ", ".join(who for who in BEST if best.get((who, row["budget"])) == row["method"])}
        for row in rows
    ]
