"""Pages that stand alone: texts are escaped, charts are to scale, and report.html tells what report.json does."""

import html
import math
import re
from pathlib import Path

import pytest
from colours import colour_model, redness

import steer
from steer import pages


def test_texts_are_escaped_everywhere() -> None:
    evil = "<script>alert('x')</script>&"
    parts = [
        pages.heading(evil), pages.paragraph(evil), pages.code(evil), pages.table([{evil: evil}]),
        pages.picture(b"", evil), pages.chart({evil: [(0.0, 1.0)]}, evil, evil),
    ]  # fmt: skip
    page = pages.page(evil, *parts).decode()
    assert "<script" not in page and page.count("&lt;script&gt;") >= 9


def test_a_chart_is_to_scale_and_leaves_out_what_is_no_number() -> None:
    chart = pages.chart({"a": [(0.0, 0.0), (5.0, 1.0), (10.0, 4.0), (7.0, math.nan)]}, "x", "y")
    points = [tuple(map(float, p.split(","))) for p in re.findall(r'polyline points="(.*?)"', chart)[0].split()]
    (x0, y0), (x1, y1), (x2, y2) = points
    assert (x1 - x0) / (x2 - x0) == pytest.approx(0.5, abs=1e-3) and (y0 - y1) / (y0 - y2) == pytest.approx(
        0.25, abs=1e-3
    )
    assert chart.count("<circle") == 3
    lifted = pages.chart({"a": [(0.0, 2.0), (1.0, 4.0)]}, "x", "y", least=0.0)
    heights = [float(p.split(",")[1]) for p in re.findall(r'polyline points="(.*?)"', lifted)[0].split()]
    assert pages.HEIGHT - pages.BOTTOM - heights[0] == pytest.approx((pages.HEIGHT - pages.BOTTOM - heights[1]) / 2)


def test_no_points_no_chart_and_one_point_is_a_dot() -> None:
    assert pages.chart({"a": [(0.0, math.inf)]}, "x", "y") == ""
    assert pages.chart({"a": [(1.0, 1.0)]}, "x", "y").count("<circle") == 1


def test_dots_are_to_scale_the_highest_above_and_beside_the_mark() -> None:
    chart = pages.dots({"low": 1.0, "none": math.nan, "high": 3.0, "<mid>": 2.5}, "score", ("plain", 2.0))
    spots = [tuple(map(float, spot)) for spot in re.findall(r'<circle cx="(.*?)" cy="(.*?)"', chart)]
    (x3, y3), (x2, y2), (x1, y1) = spots
    assert (x2 - x1) / (x3 - x1) == pytest.approx(0.75, abs=1e-3) and y3 < y2 < y1
    assert float(re.findall(r'd="M([\d.]+),[\d.]+V[\d.]+" stroke', chart)[0]) == pytest.approx((x1 + x3) / 2, abs=0.1)
    assert ">plain 2<" in chart and "&lt;mid&gt;" in chart and "none" not in chart.replace('"none"', "")
    assert pages.dots({"a": math.nan}, "score", ("plain", 1.0)) == ""


def test_numbers_stand_to_the_right_and_marked_rows_out() -> None:
    table = pages.table([{"name": "a", "n": 1}, {"name": "b", "n": 0.25}], marked=[1])
    assert '<tr class="marked"><td>b</td><td class="number">0.25</td>' in table and "<tr><td>a</td>" in table


@pytest.mark.filterwarnings("ignore:the samples descend", "ignore:nearly all weight")
def test_the_report_of_a_run_on_one_page(tmp_path: Path) -> None:
    out = steer.sample(
        ["a <fox>", "b"],
        reward=redness,
        model=colour_model(),
        method="smc",
        n=6,
        temperature=0.05,
        seed=0,
        progress=False,
    )
    page = (out.save(tmp_path) / "report.html").read_text(encoding="utf8")
    assert not re.search(r"https?:|<script|<link|url\(", page) and "a <fox>" not in page and "a &lt;fox&gt;" in page
    for text in out.report["warnings"]:
        assert html.escape(text) in page
    assert out.report["warnings"] and "<h2>The same again</h2>" not in page  # nobody typed a command
    assert f"{out.report['reward']['steered']:.4g}" in page
    assert page.count("<polyline") == 2 and page.count("<circle") == 2 * len(out.trace.times)
    assert f"<td>{out.report['seed']}</td>" in page


@pytest.mark.filterwarnings("ignore:the samples descend", "ignore:nearly all weight")
def test_many_prompts_do_not_swell_the_page(tmp_path: Path) -> None:
    told = {"reward": redness, "model": colour_model(), "method": "best_of_n", "n": 1, "seed": 0, "progress": False}
    out = steer.sample([f"prompt {i}" for i in range(40)], **told)
    page = (out.save(tmp_path) / "report.html").read_text(encoding="utf8")
    assert page.count("<img ") == 4 and "sheet-5.png and on" in page and (tmp_path / "sheet-5.png").exists()
    assert len(page) < 2_000_000
