"""Every method on the embedded model at equal budgets, judged by the CLIP that none of them optimises."""

import warnings
from typing import Any

import torch
from torch import Tensor

import rewards
from steer import settings
from steer.api import sample
from steer.methods import Method
from steer.models import Model
from steer.plots import BLUE, SKY, blank, png
from steer.samples import Samples

Row = dict[str, object]
PARTICLES = {16: 4, 64: 8, 256: 16}  # from so many network calls a prompt on; fewer where a method cannot divide these
BUDGETS = tuple(PARTICLES)
COLUMNS = {"plain": "unsteered", "best": "best", "weighted": "weighted"}  # and what a report calls them


def compare(model: Model, captions: list[str], reward: rewards.Reward, budgets: tuple[int, ...] = BUDGETS) -> list[Row]:
    """One row a method and budget: means over captions.

    "judge" and "optimised" are scores by the held-out CLIP and by the reward: "plain" of unsteered pictures, "best" of
    the picture with the highest reward, "weighted" of the law for which the weights stand. "wins" is the share of
    captions whose best picture has a judge score above the mean of their plain ones; "distinct" the share of particles
    with descendants; "diversity" the root mean square difference of two pictures of a caption. A row of no figures: the
    budget is too small for the method. Methods that follow a gradient are left out where the reward has none.
    """
    rows: list[Row] = []
    for budget in budgets:
        for name in settings.names("method"):
            method = settings.build("method", name)
            if not method.needs_gradient or rewards.is_differentiable(reward) is not False:
                n = most_particles(method, budget)
                figures = {} if n is None else measure(model, captions, reward, name, n, budget)
                rows.append({"budget": budget, "method": name, "n": n} | figures)
    return rows


def most_particles(method: Method, budget: int) -> int | None:
    """The number of `PARTICLES`, halved until the method can divide the budget; None where it cannot even for one."""
    n = PARTICLES[max((calls for calls in PARTICLES if calls <= budget), default=min(PARTICLES))]
    while n >= 1:
        try:
            method.with_budget(budget, n)
        except ValueError:
            n //= 2
        else:
            return n
    return None


def measure(
    model: Model, captions: list[str], reward: rewards.Reward, method: str | Method, n: int, budget: int
) -> Row:
    """The figures of one method, by its name or with its settings; see `compare`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a report warns of is in the columns
        out = sample(captions, reward=reward, model=model, method=method, n=n, budget=budget, seed=2, progress=False)
    return figures(out)


def figures(out: Samples) -> Row:
    """The columns of `compare` of one run; those of the judge only where the model has one that the reward is not."""
    report, judged = out.report, out.facts.judged
    row: Row = {"calls": report["cost"]["steered"]["calls"]}
    for who, scores in (("judge", report["held_out"]), ("optimised", report["reward"])):
        if scores:
            row |= {f"{who}, {key}": scores[name] for key, name in COLUMNS.items()}
    if judged:
        best = judged.steered.gather(1, out.best_index[:, None])[:, 0]
        row["wins"] = (best > judged.unsteered.mean(1)).float().mean().item()
    return row | {
        "distinct": report["survivors"]["distinct"],
        "diversity": report["diversity"]["steered"],
        "seconds": report["cost"]["steered"]["seconds"]["total"],
    }


@torch.no_grad()
def score(reward: rewards.Reward, images: Tensor, captions: list[str]) -> Tensor:
    """Scores [p n] of pictures [p n 3 h w]."""
    n = images.shape[1]
    texts = [c for c in captions for _ in range(n)]
    return rewards.Chunked(reward, 256)(images.flatten(0, 1), texts).unflatten(0, images.shape[:2])


def dots(tables: dict[str, list[Row]]) -> bytes:
    """PNG of tables by `compare`: a line a method, a dot a budget; above the optimised reward, below the judge."""
    tallest = max(len({row["method"] for row in rows}) for rows in tables.values())
    figure = blank(5 * len(tables), 2.0 + 0.42 * tallest, dpi=110)
    panels = figure.subplots(2, len(tables), squeeze=False)
    for column, (title, rows) in enumerate(tables.items()):
        for line, column_name in enumerate(("optimised, best", "judge, best")):
            axes = panels[line, column]
            _panel(axes, [row for row in rows if column_name in row], column_name)
            axes.set_title(title if line == 0 else "", fontsize=9)
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return png(figure)


def _panel(axes: Any, rows: list[Row], key: str) -> None:  # noqa: ANN401 (matplotlib is optional)
    """Methods in the order of their last figure, with the plain pictures' as a line."""
    last = {row["method"]: row[key] for row in rows}
    names = sorted(last, key=lambda name: last[name])  # pyright: ignore[reportArgumentType, reportCallIssue]
    axes.axvline(rows[0][key.replace("best", "plain")], color="0.6", linewidth=0.8)
    for shade, budget in zip(("0.75", SKY, BLUE), dict.fromkeys(row["budget"] for row in rows), strict=False):
        of = [row for row in rows if row["budget"] == budget]
        places = [names.index(str(row["method"])) for row in of]
        axes.plot([row[key] for row in of], places, "o", color=shade, markersize=4, label=f"{budget} calls")
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set_xlabel(key, fontsize=8)
    axes.grid(axis="y", color="0.92")
