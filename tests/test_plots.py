"""What figures show, against the numbers they are of; colours, against eyes that lack a cone."""

import itertools
import math
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from colours import colour_model, redness
from torch import Tensor

import steer
from steer import plots
from steer.analytic import GaussianMixture
from steer.checkpoints import write_json
from steer.guards import Rule, broken_since
from steer.interpolants import Linear
from steer.methods import SMC, WarmStart
from steer.particles import Particles, Trace, ess

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

pytest.importorskip("matplotlib", reason="matplotlib is not installed; pip install 'steer[bench]'")
pytestmark = pytest.mark.filterwarnings("ignore:the samples descend", "ignore:nearly all weight", "ignore:the reward's")

# Machado, Oliveira, Fernandes, "A physiologically-based model for simulation of color vision deficiency" (2009), whole
# loss of a cone, on linear RGB
EYES = {
    "whole": [[1.0, 0, 0], [0, 1, 0], [0, 0, 1]],
    "deuteranope": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "protanope": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
}
TO_XYZ = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]


def lab(colour: str, eye: str) -> Tensor:
    """CIELAB (white D65) of a colour "#rrggbb", as an eye sees it."""
    rgb = torch.tensor([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]).double()
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = torch.tensor(TO_XYZ).double()
    seen = xyz @ (torch.tensor(EYES[eye]).double() @ linear).clamp(0, 1) / xyz.sum(1)
    f = torch.where(seen > 216 / 24389, seen ** (1 / 3), (24389 / 27 * seen + 16) / 116)
    return torch.stack([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def test_the_distance_of_colours_is_that_of_cielab() -> None:
    white, red = lab("#ffffff", "whole"), lab("#ff0000", "whole")
    assert torch.allclose(white, torch.tensor([100.0, 0, 0]).double(), atol=1e-3)
    assert torch.allclose(red, torch.tensor([53.24, 80.09, 67.20]).double(), atol=0.02)  # the textbook's
    green = (lab("#008000", "deuteranope") - lab("#a06000", "deuteranope")).norm()
    assert green < 0.5 * (lab("#008000", "whole") - lab("#a06000", "whole")).norm()


@pytest.mark.parametrize("eye", EYES)
def test_all_eyes_tell_the_colours_apart(eye: str) -> None:
    """By 15 and more: some six times what is just noticed side by side (2.3)."""
    seen = [lab(colour, eye) for colour in plots.COLOURS]
    assert len(seen) == 7
    assert min((a - b).norm().item() for a, b in itertools.combinations(seen, 2)) > 15


def test_importing_draws_in_nothing_and_drawing_leaves_pyplot_alone() -> None:
    code = (
        "import sys, torch; from steer import plots; assert 'matplotlib' not in sys.modules; "
        "plots.png(plots.trajectories(torch.randn(3, 2, 2))); assert 'matplotlib.pyplot' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def line(axes: "Axes", label: str) -> "Line2D":
    (found,) = [one for one in axes.lines if one.get_label() == label]
    return found


def points(axes: "Axes", label: str) -> Tensor:
    """The points [n 2] of a line."""
    return torch.from_numpy(line(axes, label).get_xydata()).float()


# paths in the plane


def test_paths_are_drawn_where_they_are(rng: torch.Generator) -> None:
    paths, looks = torch.randn(5, 6, 2, generator=rng), torch.randn(4, 6, 2, generator=rng)
    (axes,) = plots.trajectories(paths, looks, n=3).axes
    drawn = [torch.from_numpy(one.get_xydata()).float() for one in axes.lines if one.get_linestyle() == "-"]
    assert len(drawn) == 3 and all(torch.equal(one, paths[:, i]) for i, one in enumerate(drawn))
    assert torch.equal(points(axes, "noise"), paths[0, :3]) and torch.equal(points(axes, "data"), paths[-1, :3])
    assert line(axes, "noise").get_markerfacecolor() == "white"
    assert torch.equal(points(axes, "look-ahead"), looks[-1, :3])
    diamonds = [one for one in axes.lines if one.get_marker() == "D"]
    assert [one.get_alpha() for one in diamonds] == sorted(one.get_alpha() for one in diamonds) and len(diamonds) == 4


def test_behind_paths_is_the_law(mixture: GaussianMixture, rng: torch.Generator) -> None:
    paths, draws = torch.randn(3, 2, 2, generator=rng), mixture.sample(50, rng=rng)
    (axes,) = plots.trajectories(paths, law=draws).axes
    assert torch.equal(points(axes, "target"), draws.float())
    (axes,) = plots.trajectories(paths, law=mixture).axes
    (contours,) = axes.collections
    highest = torch.from_numpy(contours.get_paths()[-2].vertices).mean(0)  # around the mode of the highest density
    grid = torch.cartesian_prod(torch.linspace(-3, 3, 200), torch.linspace(-3, 3, 200)).double()
    assert (highest - grid[mixture.log_prob(grid).argmax()]).norm() < 0.1
    low, high = torch.tensor([axes.get_xlim(), axes.get_ylim()]).T
    assert (mixture.sample(500, rng=rng).double() > low).all(1).float().mean() > 0.99 and (high > 1.5).all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"paths": torch.zeros(3, 2)}, r"paths must have shape \[steps\+1 m 2\], got \(3, 2\)"),
        ({"paths": torch.zeros(1, 4, 2)}, "paths must have shape"),
        ({"paths": torch.zeros(3, 4, 3)}, "paths must have shape"),
        ({"looks": torch.zeros(5, 4, 2)}, r"looks must have shape \[2 or 3, 4 2\].* got \(5, 4, 2\)"),
        ({"looks": torch.zeros(2, 3, 2)}, "looks must have shape"),
        ({"law": torch.zeros(9, 3)}, r"law must have shape samples \[k 2\]"),
        ({"law": GaussianMixture(torch.ones(1), torch.zeros(1, 3), torch.eye(3)[None])}, "a mixture in the plane"),
        ({"n": 0}, "n=0: draw at least 1 path"),
    ],
)
def test_what_is_no_path(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plots.trajectories(**{"paths": torch.zeros(3, 4, 2)} | given)


# a run


@pytest.fixture(scope="module")
def run() -> tuple[Particles, Trace]:
    """Two prompts of 32 particles in the plane, under a reward that resamples them."""
    law, rng = GaussianMixture(torch.ones(1), torch.zeros(1, 2), torch.eye(2)[None]), torch.Generator().manual_seed(0)
    x0 = torch.randn(2, 32, 2, generator=rng)
    return SMC(steps=6)(law.flow(), Linear(), lambda x1: 3 * x1[..., 0], x0, rng=rng)


@pytest.mark.parametrize("prompt", [0, 1])
def test_weights_are_those_of_the_trace(run: tuple[Particles, Trace], prompt: int) -> None:
    particles, trace = run
    above, below = plots.weights(trace, prompt).axes
    size = points(above, "ESS before resampling")
    assert torch.equal(size[:, 0], trace.times) and torch.equal(size[:, 1], trace.ess[:, prompt])
    drawn = trace.resampled[:, prompt]
    assert 0 < drawn.sum() < 6 and torch.equal(points(above, "resampled"), size[drawn])
    assert points(above, "all 32")[:, 1].tolist() == [32, 32]
    dots = torch.stack([torch.from_numpy(one.get_ydata()) for one in below.lines if one.get_marker() == "."], 1)
    assert torch.allclose(dots.sum(1), torch.ones(6)) and torch.allclose(ess(dots.log()), trace.ess[:, prompt])
    assert torch.allclose(dots[-1], particles.log_w[prompt].exp(), atol=1e-6)
    assert torch.equal(points(below, "largest weight")[:, 1], dots.amax(1))


def test_steps_without_times_are_numbered(run: tuple[Particles, Trace]) -> None:
    from dataclasses import replace

    above, below = plots.weights(replace(run[1], times=torch.zeros(6))).axes
    assert points(above, "ESS before resampling")[:, 0].tolist() == [1, 2, 3, 4, 5, 6]
    assert below.get_xlabel() == "step"


def test_bands_are_the_descendants_of_each_first_particle(run: tuple[Particles, Trace]) -> None:
    _, trace = run
    (axes,) = plots.genealogy(trace, prompt=1).axes
    assert trace.lines is not None and torch.equal(trace.lines[0, 1], torch.arange(32))
    columns = torch.cat([trace.lines[:, 1], trace.ancestors[None, 1]])
    alive = set(columns[-1].tolist())
    assert 1 < len(alive) < 32 and axes.get_title("left") == f"{len(alive)} of 32 first particles have descendants left"
    for first, band in enumerate(axes.collections):
        corners = torch.from_numpy(band.get_paths()[0].vertices)
        for step, column in enumerate(columns, 1):
            at = corners[corners[:, 0] == step, 1]
            assert at.max() - at.min() == (column == first).sum()
        assert (band.get_facecolor()[0, 0] == pytest.approx(0.88)) == (first not in alive)


@pytest.mark.parametrize("name", ["smc", "beam", "noise_smc", "paths", "fmtt_search"])
def test_a_trace_holds_the_weights_and_lines_that_who_watches_is_told(name: str) -> None:
    seen: list[steer.Seen] = []
    given = {"reward": redness, "n": 6, "seed": 0, "progress": False, "model": colour_model(), "method": name}
    hot = {} if name == "paths" else {"temperature": 0.3}
    out = steer.sample(["a", "b"], watch=seen.append, **given, **hot)
    weighed = [s for s in seen if s.ess is not None]
    assert out.trace.log_w is not None and out.trace.lines is not None
    assert torch.equal(torch.stack([s.log_w for s in weighed]), out.trace.log_w)
    assert torch.equal(torch.stack([s.ancestors for s in weighed]), out.trace.lines)
    assert torch.equal(ess(out.trace.log_w), out.trace.ess)
    assert plots.genealogy(out, 1).axes and plots.weights(out, 1).axes


def test_lines_behind_a_warm_start_lead_to_the_first_noises() -> None:
    seen: list[steer.Seen] = []
    method = WarmStart(moves=3, method=SMC(steps=3, chain="sde"))
    given = {"reward": redness, "n": 16, "seed": 0, "progress": False, "model": colour_model(), "method": method}
    trace = steer.sample("a", watch=seen.append, temperature=0.02, **given).trace
    assert trace.lines is not None and len(trace.lines) == len(trace.ess) == 6
    assert torch.equal(trace.lines[-1], seen[-1].ancestors) and torch.equal(trace.lines[-1], trace.ancestors)
    assert len(trace.lines[0].unique()) == 16 > len(trace.lines[3].unique())


def test_prompts_that_go_in_groups_have_their_own_lines() -> None:
    given = {"reward": redness, "n": 6, "seed": 0, "progress": False, "model": colour_model(), "method": "tds"}
    whole, apart = (steer.sample(["a", "b"], temperature=0.1, **given, **chunk).trace
                    for chunk in ({}, {"chunk": {"network": 1}}))  # fmt: skip
    assert whole.lines is not None and apart.log_w is not None and whole.log_w is not None
    assert torch.equal(whole.lines, apart.lines) and torch.allclose(whole.log_w, apart.log_w, atol=1e-4)
    part = whole.part(slice(1, 2))
    assert torch.equal(part.lines, whole.lines[:, 1:]) and torch.equal(part.log_w, whole.log_w[:, 1:])


def test_what_is_no_run(run: tuple[Particles, Trace]) -> None:
    from dataclasses import replace

    bare = replace(run[1], log_w=None, lines=None)
    with pytest.raises(ValueError, match="the trace holds no log_w; take what"):
        plots.weights(bare)
    with pytest.raises(ValueError, match="the trace holds no lines; take what"):
        plots.genealogy(bare)
    with pytest.raises(ValueError, match="prompt=2: the trace is of 2 prompts, counted from 0"):
        plots.genealogy(run[1], prompt=2)


# errors against cost

ROWS = [
    {"method": name, "calls": calls, "error": scale / calls, "se": 0.1 / calls}
    for name, scale in (("smc", 1.0), ("tds", 2.0))
    for calls in (16, 4, 8)
]


def test_errors_are_those_of_the_rows_in_the_order_of_cost() -> None:
    (axes,) = plots.errors(ROWS, reference=0.01).axes
    assert axes.get_xscale() == axes.get_yscale() == "log"
    assert points(axes, "smc").tolist() == [[4, 0.25], [8, 0.125], [16, 0.0625]]
    assert points(axes, "tds").tolist() == [[4, 0.5], [8, 0.25], [16, 0.125]]
    assert points(axes, "reference")[:, 1].tolist() == pytest.approx([0.01, 0.01])
    assert line(axes, "smc").get_marker() != line(axes, "tds").get_marker()
    assert line(axes, "smc").get_color() != line(axes, "tds").get_color()
    band = torch.from_numpy(axes.collections[0].get_paths()[0].vertices)
    at = band[band[:, 0] == 4, 1]
    assert (at.min().item(), at.max().item()) == pytest.approx((0.25 - 2 * 0.025, 0.25 + 2 * 0.025))


def test_more_methods_than_colours_differ_in_their_lines() -> None:
    rows = [{"name": i, "n": n, "w1": 1 / n + i} for i in range(15) for n in (1, 2)]
    (axes,) = plots.errors(rows, x="n", y="w1", by="name").axes
    assert not axes.collections  # no standard errors, no bands
    looks = {(one.get_color(), one.get_marker(), one.get_linestyle()) for one in axes.lines}
    assert len(looks) == 15


def test_ticks_that_would_touch_are_left_out() -> None:
    rows = [{"method": "a", "calls": calls, "error": 1.0} for calls in (4, 7, 8, 16, 31, 32, 64)]
    assert plots.errors(rows).axes[0].get_xticks().tolist() == [4, 7, 16, 31, 64]


def test_what_has_no_place_on_logarithmic_axes() -> None:
    with pytest.raises(ValueError, match="rows hold no 'calls', 'w1' and 'method' together"):
        plots.errors(ROWS, y="w1")
    with pytest.raises(ValueError, match="must be above 0 on logarithmic axes"):
        plots.errors([{"method": "a", "calls": 0, "error": 1.0}])


# a fine-tuning

BEFORE = {"reward": 1.0, "held_out": 5.0, "held_out_std": 2.0, "held_out_error": 0.1, "diversity": 0.4, "kl": 0.0}
FALL = (5.0, 5.5, 4.2, 5.1, 4.4, 3.0)  # 4.6 is allowed: it is broken at step 20, not at 30, and from 40 to the end


def history(held_out: tuple[float, ...] = FALL) -> list[dict[str, float]]:
    return [
        {"step": 10.0 * k, "reward": 1.0 + k, "held_out": h, "diversity": 0.4 - 0.01 * k, "kl": 0.1 * k}
        for k, h in enumerate(held_out)
    ]


def test_the_marked_point_is_that_of_the_rule() -> None:
    rows = history()
    assert broken_since(rows, Rule(), BEFORE) == 40
    report = {"history": rows, "before": BEFORE, "best": rows[3], "rule": {"held_out_fall": 0.1}}
    reward, held_out, diversity, against = plots.overoptimisation(report).axes
    label = "over-optimised from step 40"
    assert points(reward, label).tolist() == [[40, 5], [50, 6]]
    assert torch.allclose(points(held_out, label), torch.tensor([[40, 4.4], [50, 3.0]]))
    assert torch.allclose(points(against, label), torch.tensor([[5, 4.4], [6, 3.0]]))
    assert torch.allclose(points(held_out, "kept: step 30"), torch.tensor([[30, 5.1]]))
    assert torch.allclose(points(against, "kept: step 30"), torch.tensor([[4, 5.1]]))
    assert line(diversity, "the model before").get_ydata()[0] == 0.4
    curve = torch.from_numpy(held_out.lines[0].get_xydata()).float()
    assert torch.allclose(curve, torch.tensor([[r["step"], r["held_out"]] for r in rows]))


def test_another_rule_moves_the_point_and_a_good_run_has_none() -> None:
    report = {"history": history(), "before": BEFORE, "best": None}
    strict = plots.overoptimisation(report | {"rule": {"diversity_fall": 0.01}})
    assert points(strict.axes[0], "over-optimised from step 10").shape == (5, 2)
    good = plots.overoptimisation(report | {"history": history((5.0, 5.2, 5.4))})
    assert {text.get_text() for text in good.legends[0].texts} == {"the model before"}


def test_a_history_alone_and_a_file_are_enough(tmp_path: Path) -> None:
    alone = plots.overoptimisation(history())  # the first measurement is what was before: 5, without an allowance
    assert len(points(alone.axes[0], "over-optimised from step 40")) == 2
    without = [{k: v for k, v in row.items() if k != "held_out"} for row in history()]
    assert [axes.get_title("left") for axes in plots.overoptimisation(without).axes] == ["reward", "diversity"]
    report = {"history": history(), "before": BEFORE, "best": None, "rule": vars(Rule())}
    write_json(tmp_path / "report.json", report)  # as steer.finetune does
    told = plots.overoptimisation(tmp_path / "report.json")
    assert points(told.axes[0], "over-optimised from step 40").tolist() == [[40, 5], [50, 6]]


def test_what_was_not_measured() -> None:
    with pytest.raises(ValueError, match="report holds no history: nothing was measured"):
        plots.overoptimisation({"history": []})
    with pytest.raises(ValueError, match="report: a measurement of its history lacks diversity, kl"):
        plots.overoptimisation([{"step": 1, "reward": 2.0}])


# pictures


def test_the_best_picture_of_each_prompt_is_framed(rng: torch.Generator) -> None:
    images, scores = torch.rand(2, 10, 3, 4, 5, generator=rng), torch.randn(2, 10, generator=rng)
    scores[0, 3] = -math.inf
    figure = plots.contact_sheet(images, scores, ["a fox", "a house"])
    assert [part.get_suptitle() for part in figure.subfigs] == ["a fox", "a house"]
    for i, part in enumerate(figure.subfigs):
        shown = [axes for axes in part.axes if axes.images]
        drawn = torch.stack([torch.from_numpy(axes.images[0].get_array().data) for axes in shown])
        assert torch.equal(drawn.permute(0, 3, 1, 2), images[i])
        framed = [j for j, axes in enumerate(shown) if axes.spines["left"].get_visible()]
        assert framed == [scores[i].argmax()]
        assert [axes.get_xlabel() for axes in shown] == [f"{score:.3g}" for score in scores[i].tolist()]
        assert len(part.axes) == 16 and not any(axes.spines["left"].get_visible() for axes in part.axes[10:])


def test_pictures_alone_have_no_frame() -> None:
    figure = plots.contact_sheet(torch.rand(3, 3, 4, 4))
    assert len(figure.subfigs[0].axes) == 3
    assert not any(axes.spines["left"].get_visible() for axes in figure.subfigs[0].axes)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"images": torch.zeros(3, 4, 4)}, r"images must have shape \[p n 3 h w\] or \[n 3 h w\], got \(3, 4, 4\)"),
        ({"images": torch.zeros(2, 1, 4, 4)}, "images must have shape"),
        ({"scores": torch.zeros(3)}, r"scores must have shape \[2\], one a picture, got \(3,\)"),
        ({"prompts": "a fox"}, "prompts='a fox' must be a list of 1"),
        ({"prompts": ["a", "b"]}, "must be a list of 1"),
    ],
)
def test_what_is_no_sheet(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plots.contact_sheet(**{"images": torch.zeros(2, 3, 4, 4)} | given)


# writing


def test_a_figure_is_written_whole_by_its_suffix(tmp_path: Path) -> None:
    figure = plots.errors(ROWS)
    assert plots.save(figure, tmp_path / "a.png").read_bytes() == plots.png(figure)
    assert plots.save(figure, str(tmp_path / "a.svg")).read_text().startswith("<?xml")
    with pytest.raises(ValueError, match="must end in .png or .svg"):
        plots.save(figure, tmp_path / "a.pdf")
    with pytest.raises(ValueError, match="there is no folder .*; make it first"):
        plots.save(figure, tmp_path / "none" / "a.png")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.png", "a.svg"]


def test_what_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(b"old")

    def fails(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", fails)
    with pytest.raises(OSError, match="no space"):
        plots.save(plots.errors(ROWS), tmp_path / "a.png")
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"] and (tmp_path / "a.png").read_bytes() == b"old"


def test_a_notebook_shows_a_figure() -> None:
    formatters = pytest.importorskip("IPython.core.formatters")
    figure = plots.errors(ROWS)
    shown, _ = formatters.DisplayFormatter().format(figure)
    assert shown["image/png"] == plots.png(figure) and shown["image/png"].startswith(b"\x89PNG")
    import io

    from PIL import Image

    assert Image.open(io.BytesIO(shown["image/png"])).width == 900  # what a README shows, and a little more
