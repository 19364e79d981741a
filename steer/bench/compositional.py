"""The embedded model of shapes: does a picture show its caption? By an exact verifier, for methods at equal calls.

The verifier's graded score is the reward, its verdict is what counts: a method returns its best picture, and that shows
the caption or does not. "weighted" is the share of right pictures under the method's weights: of the law it samples.
"""

import math
import warnings
from typing import Any

import torch
from torch import Tensor

from rewards.scenes import CATEGORIES, parse
from rewards.shapes import ShapesVerifier
from steer import settings
from steer.api import sample
from steer.bench.comparison import most_particles
from steer.bench.embedded import plain
from steer.bench.verifier import calibration
from steer.data.shapes import prompts
from steer.models import Model, load_model
from steer.plots import blank, png

Row = dict[str, object]
METHODS = ("best_of_n", "smc_sde", "smc", "mfm_gf", "tree_search", "beam", "paths")
BUDGETS = (16, 64, 256)
TEMPERATURE = 0.05


def run(fast: bool = False) -> dict[str, list[Row]]:
    """Accuracy of plain pictures, of methods by budget, of each by category, and the verifier's own errors."""
    model = load_model("shapes")
    count = 1 if fast else 10
    captions = prompts("seen", 7 * count, seed=1) + prompts("held-out", 5 * count, seed=1)
    unsteered = plain_accuracy(model, captions, 4 if fast else 16)
    verdicts = {
        (method, budget): steered(model, captions, method, budget)
        for budget in (BUDGETS[:1] if fast else BUDGETS)
        for method in METHODS
    }
    return {
        "accuracy of plain pictures": unsteered,
        "accuracy of the best picture, by method and calls": overall(captions, verdicts),
        "accuracy of the best picture, by category": by_category(captions, verdicts),
        "errors of the verifier": list(calibration(200 if fast else 2000)),
    }


@torch.no_grad()
def plain_accuracy(model: Model, captions: list[str], n: int) -> list[Row]:
    """By category and calls, of n unsteered pictures a caption; seen and held-out combinations apart."""
    rows: list[Row] = []
    verifier = ShapesVerifier()
    for calls in (1, 2, 4, 8):
        images = plain(model, captions, n, calls)
        right = torch.stack([verifier.check(x, [c] * n) for x, c in zip(images.cpu(), captions, strict=True)]).double()
        rows.append({"calls": calls, **_means(captions, right.mean(1))})
    return rows


def steered(model: Model, captions: list[str], method: str, budget: int) -> dict[str, Tensor] | None:
    """Of each caption: whether the best picture is right, and the weighted share of right ones; None: too few calls."""
    built = settings.build("method", method)
    n, temperature = most_particles(built, budget), TEMPERATURE if hasattr(built, "temperature") else None
    if n is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = sample(
            captions, reward="shapes", model=model, method=method, n=n, budget=budget, temperature=temperature, seed=3,
            progress=False,
        )  # fmt: skip
    verifier = ShapesVerifier()
    right = torch.stack([verifier.check(x, [c] * n) for x, c in zip(out.images.cpu(), captions, strict=True)]).double()
    best = right.gather(1, out.best_index[:, None].cpu())[:, 0]
    return {"best": best, "weighted": (out.log_w.exp().cpu() * right).sum(1), "calls": out.trace.calls.cpu()}


def overall(captions: list[str], verdicts: dict[tuple[str, int], dict[str, Tensor] | None]) -> list[Row]:
    """One row for each method and budget; "error / best_of_n" is the ratio of the shares of wrong best pictures."""
    rows: list[Row] = []
    for (method, budget), found in verdicts.items():
        if found is None:
            rows.append({"method": method, "budget": budget})
            continue
        reference = verdicts[("best_of_n", budget)]
        assert reference is not None
        error, theirs = (1 - part["best"].mean().item() for part in (found, reference))
        rows.append({
            "method": method, "budget": budget, "calls": found["calls"].double().mean().item(),
            "right": 1 - error, "standard error": (error * (1 - error) / len(captions)) ** 0.5,
            "right, weighted": found["weighted"].mean().item(),
            "error / best_of_n": error / theirs if theirs else math.nan,
        })  # fmt: skip
    return rows


def by_category(captions: list[str], verdicts: dict[tuple[str, int], dict[str, Tensor] | None]) -> list[Row]:
    """One row for each method and budget, one column for each category."""
    return [
        {"method": method, "budget": budget, **_means(captions, found["best"])}
        for (method, budget), found in verdicts.items()
        if found is not None
    ]


def _means(captions: list[str], right: Tensor) -> dict[str, float]:
    """Mean over the captions of each category and split."""
    from rewards.scenes import is_held_out

    kinds = [parse(c) for c in captions]
    out: dict[str, float] = {}
    for category in CATEGORIES:
        rows = [i for i, scene in enumerate(kinds) if scene.category == category]
        if rows:
            out[category] = right[rows].mean().item()
    for name, held in (("seen", False), ("held out", True)):
        rows = [i for i, scene in enumerate(kinds) if is_held_out(scene) == held]
        out[name] = right[rows].mean().item()
    return {"all": right.mean().item(), **out}


def plot(tables: dict[str, list[Row]]) -> bytes:
    """PNG: the share of wrong best pictures against network calls, a line for each method."""
    rows: list[Any] = [r for r in tables["accuracy of the best picture, by method and calls"] if "right" in r]
    figure = blank(6, 4, dpi=110)
    axes = figure.subplots()
    for method, marker in zip(dict.fromkeys(r["method"] for r in rows), "os^vDPX", strict=False):
        of = [r for r in rows if r["method"] == method]
        axes.plot([r["budget"] for r in of], [1 - r["right"] for r in of], marker=marker, label=method)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("network calls a caption")
    axes.set_ylabel("share of captions whose best picture is wrong")
    axes.legend(frameon=False, fontsize=8)
    axes.grid(color="0.92")
    return png(figure)
