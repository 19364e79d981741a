"""The figure of a fine-tuning: what was gained, and at what it was lost."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steer.plots.canvas import BLACK, BLUE, GREEN, GREY, MARKERS, PURPLE, VERMILION, WIDTH, blank

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
NAMES = {"reward": "reward", "held_out": "held-out reward", "diversity": "diversity"}


def overoptimisation(report: Mapping[str, Any] | Sequence[Row] | str | Path) -> "Figure":
    """What a fine-tuning gained and lost: reward, held-out reward and diversity over its steps, and the first two
    against each other.

    A star is the step that was kept; crosses are the measurements from which on the run was over-optimised until its
    end, by its rule (`steer.guards.broken_since`); dotted lines are the model before.

    Args:
        report: what report.json of `steer.finetune` holds, its path, or only its "history", whose first measurement is
            then the model before, under the default rule, with no allowance for errors that it does not hold.

    Raises:
        ValueError: nothing was measured, or a measurement lacks a figure.
    """
    from steer.guards import Rule, broken_since

    told = _report(report)
    history, before, kept = told["history"], told["before"], told.get("best")
    told_rule = told.get("rule", {}).items()
    rule: dict[str, Any] = {key: float(v) if isinstance(v, str) else v for key, v in told_rule}  # "inf", in JSON
    since = broken_since(history, Rule(**rule), before)
    over = [] if since is None else [row for row in history if row["step"] >= since]
    figures = [key for key in NAMES if all(key in row for row in (before, *history))]
    judged = "held_out" in figures
    plot = blank(WIDTH, 1.3 * len(figures) + 0.9)
    grid = plot.add_gridspec(len(figures), 2 if judged else 1, width_ratios=(1.2, 1) if judged else None)
    for k, key in enumerate(figures):
        axes = plot.add_subplot(grid[k, 0], sharex=plot.axes[0] if k else None)
        _line(axes, history, before, kept, over, ("step", key), f"{MARKERS[k]}-", (BLUE, PURPLE, GREEN)[k])
        axes.tick_params(labelbottom=k == len(figures) - 1)
    plot.axes[-1].set_xlabel("step")
    if judged:
        axes = plot.add_subplot(grid[:, 1])
        _line(axes, history, before, kept, over, ("reward", "held_out"), "o-", GREY)
        axes.axvline(before["reward"], color=GREY, linestyle=":", linewidth=1)
        axes.set_xlabel(NAMES["reward"])
    plot.legend(*plot.axes[0].get_legend_handles_labels(), loc="outside upper center", frameon=False, ncols=3)
    return plot


def _line(
    axes: "Axes", history: Sequence[Row], before: Row, kept: Row | None, over: Sequence[Row], of: tuple[str, str],
    style: str, colour: str,
) -> None:  # fmt: skip
    """One figure against another, in the order of the steps, with what is marked."""
    x, y = of
    axes.plot([row[x] for row in history], [row[y] for row in history], style, color=colour, markersize=4)
    axes.axhline(before[y], color=GREY, linestyle=":", linewidth=1, label="the model before")
    if over:
        label = f"over-optimised from step {over[0]['step']:.0f}"
        axes.plot([row[x] for row in over], [row[y] for row in over], "X", color=BLACK, markersize=6, label=label)
    if kept is not None:
        axes.plot(kept[x], kept[y], "*", color=VERMILION, markersize=12, label=f"kept: step {kept['step']:.0f}")
    axes.set_title(NAMES[y], fontsize=10, loc="left")


def _report(report: Mapping[str, Any] | Sequence[Row] | str | Path) -> dict[str, Any]:
    """The report of a fine-tuning, also of its path or its history alone."""
    if isinstance(report, str | Path):
        report = json.loads(Path(report).read_text(encoding="utf8"))
    told: dict[str, Any] = dict(report) if isinstance(report, Mapping) else {"history": report}
    if not told.get("history"):
        raise ValueError("report holds no history: nothing was measured; take report.json of steer.finetune")
    first = {"held_out_std": 0.0, "held_out_error": 0.0, "kl": 0.0, **told["history"][0]}
    told.setdefault("before", first)
    lacking = {"step", "reward", "diversity", "kl"} - set.intersection(*map(set, told["history"]))
    if lacking:
        raise ValueError(f"report: a measurement of its history lacks {', '.join(sorted(lacking))}")
    return told
