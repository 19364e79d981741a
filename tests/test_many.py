"""Many prompts, each into its folder: over processes, after kills and after faults the same as in one quiet run."""

import html
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from colours import colour_model, redness
from PIL import Image
from sampling_processes import environment, finish, many, prompts, start, torchrun
from torch import Tensor

import steer
from steer import cli
from steer.methods import SMC
from steer.stopping import Stopped

FEW = ["a fox", "a house", "a fox", "a cup", "a tree"]
GIVEN: dict[str, Any] = {"reward": redness, "method": "smc", "n": 3, "steps": 2, "seed": 0, "progress": False}


def draw(out: Path, texts: Any = FEW, **more: Any) -> list[dict[str, Any]]:  # noqa: ANN401
    return steer.sample_many(texts, out=out, **{"model": colour_model(), **GIVEN, **more})


def files(folder: Path) -> dict[str, Any]:
    """All that a run wrote, without its seconds."""
    found: dict[str, Any] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        content: Any = path.read_bytes()
        if path.name == "report.json":
            content = json.loads(content)
            for part in ("unsteered", "steered"):
                assert min(content["cost"][part].pop("seconds").values()) >= 0
        elif path.name == "report.html":
            content = re.sub(r"(<td>(?:un)?steered</td>.*)<td.*?</td></tr>", r"\1", content.decode())
        found[str(path.relative_to(folder))] = content
    return found


def done(folder: Path) -> int:
    return len(list(folder.glob("*/report.json")))


def wait(ready: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Until a run is in the middle."""
    until = time.perf_counter() + 90
    while not ready():
        assert process.poll() is None and time.perf_counter() < until
        time.sleep(0.005)


def go_on(world: int, folder: Path) -> None:
    """The same run again, to its end: here, or in several processes."""
    if world == 1:
        many(str(folder))
    else:
        finish(start(world, folder, "many"))


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What sixty prompts come to in one process that nobody disturbs."""
    folder = tmp_path_factory.mktemp("quiet")
    many(str(folder))
    return files(folder)


SLOW = [pytest.param(*worlds, marks=pytest.mark.slow) for worlds in ((1, 2), (2, 2))]


@pytest.mark.parametrize(("first", "then"), [(1, 1), (2, 1), *SLOW])
def test_killed_and_taken_up_again(first: int, then: int, tmp_path: Path, quiet: dict[str, Any]) -> None:
    """By SIGKILL, with some prompts done; by more or fewer processes: no file is another, missing, or too many."""
    processes = start(first, tmp_path, "many")
    wait(lambda: done(tmp_path) > 12, processes[0])
    for process in processes:
        process.kill()
        process.communicate()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/report.json")}
    assert 12 < len(before) < 60 and not (tmp_path / "results.jsonl").exists()
    go_on(then, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in before} == before  # what was done was not done again
    assert files(tmp_path) == quiet


def test_the_lines_are_those_of_the_reports(quiet: dict[str, Any]) -> None:
    rows = [json.loads(line) for line in quiet["results.jsonl"].decode().splitlines()]
    assert [row["prompt"] for row in rows] == prompts() and [row["position"] for row in rows] == list(range(60))
    for row in rows:
        report = quiet[f"{row['folder']}/report.json"]
        scores = torch.tensor(report["pictures"]["rewards"])
        assert report["prompts"] == [row["prompt"]]
        assert (row["best"], row["mean"]) == pytest.approx((scores.max().item(), scores.mean().item()))
        assert row["log_z"] == report["log_z"][0] and row["calls"] == 6  # three particles, two steps
        assert f"{row['folder']}/steered-002.png" in quiet
    assert len({row["folder"] for row in rows}) == 60


def test_each_prompt_gets_what_it_gets_alone_and_a_prompt_that_comes_twice_the_same(tmp_path: Path) -> None:
    rows = draw(tmp_path, batch=2)
    for row in rows:
        alone = steer.sample(row["prompt"], model=colour_model(), **GIVEN)
        report = json.loads((tmp_path / row["folder"] / "report.json").read_text())
        assert row["best"] == pytest.approx(alone.rewards.max().item(), abs=1e-4)
        assert row["log_z"] == pytest.approx(alone.trace.log_z.item(), abs=1e-3)
        assert report["temperature"] == pytest.approx(alone.report["temperature"], rel=1e-4)
        assert set(report) == set(alone.report)
        pixels = Image.open(tmp_path / row["folder"] / "best.png").getpixel((0, 0))
        assert pixels == pytest.approx((255 * alone.best[0, :, 0, 0]).tolist(), abs=1)
    first, again = rows[0], rows[2]
    assert (first["folder"], again["folder"]) == ("00000-a-fox", "00002-a-fox")
    assert first["best"] == pytest.approx(again["best"], abs=1e-4)


def test_a_file_of_prompts(tmp_path: Path) -> None:
    """UTF-8, with or without a mark of its order; empty lines and remarks are none."""
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffein Bär\n\n  \n# a remark\na fox\nein Bär\n".encode())
    assert [row["prompt"] for row in draw(tmp_path / "out", file)] == ["ein Bär", "a fox", "ein Bär"]
    file.write_bytes(b"ein B\xe4r\n")
    with pytest.raises(ValueError, match="prompts='.*' is no UTF-8 text .* save it as UTF-8"):
        draw(tmp_path / "out", str(file))


def test_a_finished_run_is_left_alone_and_any_batch_goes_on(tmp_path: Path) -> None:
    rows = draw(tmp_path)
    before = files(tmp_path)
    assert draw(tmp_path, batch=1, model=broken_model()) == rows and files(tmp_path) == before
    (tmp_path / "00003-a-cup" / "report.json").unlink()
    assert [row["best"] for row in draw(tmp_path, batch=1)] == pytest.approx([row["best"] for row in rows], abs=1e-4)


def broken_model() -> steer.Model:
    def flow(*given: object) -> Tensor:
        raise AssertionError("nothing is left to draw")

    return steer.Model(flow, *list(vars(colour_model()).values())[1:])


@pytest.mark.parametrize(
    ("texts", "more", "message"),
    [
        (FEW, {"n": 4}, "n=4 was 3, which the run in .* began with; give that, or another folder"),
        (FEW, {"seed": 1}, "seed=1 was 0"),
        (FEW, {"method": "smc_sde"}, "method.* was "),
        (FEW, {"method": SMC(ess_threshold=0.9)}, "method.ess_threshold=0.9 was 0.5"),
        (FEW, {"reward": "redness", "temperature": 1.0}, "reward.* was "),
        (FEW, {"temperature": 1.0}, "temperature=1.0 was None"),
        (FEW[:4], {}, "prompts holds 4 prompts, not the 5 which"),
        (["a fox", "a hat", *FEW[2:]], {}, "prompts has 'a hat' at position 1, not 'a house', which the run in"),
    ],
)
def test_another_run_in_the_same_folder_is_refused(
    texts: list[str], more: dict[str, Any], message: str, tmp_path: Path
) -> None:
    draw(tmp_path)
    before = files(tmp_path)
    with pytest.raises(ValueError, match=message):
        draw(tmp_path, texts, **more)
    assert files(tmp_path) == before


def test_where_nothing_is_done_yet_a_run_may_begin_anew(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="budget"):
        draw(tmp_path, steps=None, budget=1)
    assert len(draw(tmp_path)) == 5


def test_a_seed_that_is_drawn_is_kept(tmp_path: Path) -> None:
    rows = draw(tmp_path, seed=None)
    seed = json.loads((tmp_path / "run.json").read_text())["seed"]
    (tmp_path / rows[1]["folder"] / "report.json").unlink()
    assert draw(tmp_path, seed=None) == draw(tmp_path, seed=seed) == rows


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"spread": "particles"}, "spread='particles' shares one prompt's pictures .* leave it out"),
        ({"batch": 0}, "batch=0 must be a whole number, at least 1"),
        ({"n": 0}, "n=0 must be"),
        ({"want": "all"}, "want='all' must be"),
        ({"method": "smcc"}, "method='smcc' is unknown"),
        ({"stepz": 1}, "setting='stepz' is unknown; known: .*did you mean 'steps'"),
        ({"texts": ["a", " "]}, "holds an empty text"),
        ({"texts": "none.txt"}, "prompts='none.txt' is no file"),
    ],
)
def test_bad_input_leaves_nothing(more: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        draw(tmp_path / "out", **more)
    assert not (tmp_path / "out").exists()


class OwnError(Exception):
    """An exception that only this file knows."""


def test_a_reward_that_fails_on_one_prompt(tmp_path: Path) -> None:
    """Its own exception with the prompts, what was done stays, and once it is mended the run goes on."""
    mended = False

    def score(images: Tensor, prompts: list[str]) -> Tensor:
        if "a cup" in prompts and not mended:
            raise OwnError("cracked")
        return redness(images)

    with pytest.raises(OwnError, match="cracked") as caught:
        draw(tmp_path, batch=1, reward=score)
    note = caught.value.__notes__[-1]
    assert note.startswith("while drawing 00003 'a cup'; what is done stays in") and done(tmp_path) == 3
    mended = True
    rows = draw(tmp_path, batch=1, reward=score)
    assert [row["best"] for row in rows] == [row["best"] for row in draw(tmp_path / "again", batch=1, reward=score)]


def test_the_index_shows_each_prompt_and_leads_to_its_page(tmp_path: Path) -> None:
    texts = ["a fox", "<b>a cup</b> & more", "a tree"]
    rows = draw(tmp_path, texts, held_out="brightness")
    page = (tmp_path / "index.html").read_text(encoding="utf8")
    assert "&lt;b&gt;a cup&lt;/b&gt; &amp; more" in page and not re.search("<b>|https?:|<script", page)
    assert re.findall(r'<a href="(.*?)/report.html">', page) == [row["folder"] for row in rows]
    assert re.findall(r'<img .*? src="(.*?)/best.png">', page) == [row["folder"] for row in rows]
    for row in rows:
        assert (tmp_path / row["folder"] / "best.png").exists()
        assert html.escape(row["prompt"]) in (tmp_path / row["folder"] / "report.html").read_text(encoding="utf8")
        numbers = [row[key] for key in ("best", "mean", "unsteered", "held_out")]
        assert all(f'<td class="number">{number:.4g}</td>' in page for number in numbers)
    (tmp_path / "index.html").unlink()
    draw(tmp_path, texts, held_out="brightness")
    assert (tmp_path / "index.html").read_text(encoding="utf8") == page  # a run that goes on writes it again
    with pytest.raises(ValueError, match="held_out=judge was brightness, which the run in"):
        draw(tmp_path, texts)


def test_a_refused_run_leaves_nothing(tmp_path: Path) -> None:
    """Also where only the method finds the fault, or the model is none; a folder that was there stays."""
    (tmp_path / "mine").mkdir()
    for out in ("new", "mine"):
        with pytest.raises(ValueError, match="budget"):
            draw(tmp_path / out, steps=None, budget=1)
        with pytest.raises(ValueError, match="model='none'"):
            draw(tmp_path / out, model="none")
    assert list(tmp_path.iterdir()) == [tmp_path / "mine"] and not list((tmp_path / "mine").iterdir())


def test_warnings_are_in_the_reports_and_counted(tmp_path: Path) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (row,) = draw(tmp_path, ["a fox"], n=32, temperature=0.01)
    report = json.loads((tmp_path / row["folder"] / "report.json").read_text())
    assert row["warnings"] == len(report["warnings"]) > 0


def test_a_signal_stops_between_batches(tmp_path: Path, quiet: dict[str, Any]) -> None:
    (process,) = start(1, tmp_path, "many")
    wait(lambda: done(tmp_path) > 4, process)
    process.terminate()
    _, text = process.communicate(timeout=60)
    assert process.returncode == 143, text
    assert f"stopped as asked, with {done(tmp_path)} of 60 prompts done; the same command goes on" in text
    assert done(tmp_path) % 2 == 0 and not list(tmp_path.rglob("*.part"))
    go_on(1, tmp_path)
    assert files(tmp_path) == quiet


def test_an_interruption_is_obeyed_in_this_process_too(tmp_path: Path) -> None:
    told: list[int] = []

    def score(images: Tensor, prompts: list[str]) -> Tensor:
        if "a cup" in prompts and not told:
            told.append(signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return redness(images)

    with pytest.raises(Stopped, match="with 4 of 5 prompts done") as caught:
        draw(tmp_path, batch=1, reward=score)
    assert caught.value.status == 130


def test_a_process_that_dies_ends_the_launch(tmp_path: Path, quiet: dict[str, Any]) -> None:
    began = time.perf_counter()
    ended = torchrun(2, tmp_path, "many:5")
    assert ended.returncode != 0 and time.perf_counter() - began < 60
    assert "exitcode  : 5" in ended.stderr and "rank      : 1" in ended.stderr
    assert 0 < done(tmp_path) < 60
    go_on(1, tmp_path)
    assert files(tmp_path) == quiet


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("a fox\na cup\na hat\n")
    given = ["sample", "prompts=prompts.txt", "reward=redness", "method=best_of_n", "n=2", "seed=0", "out=o", "batch=2"]
    assert cli.main([*given, "progress=false"]) == 0
    assert "wrote o: 3 prompts, mean of the best " in capsys.readouterr().out
    rows = [json.loads(line) for line in Path("o/results.jsonl").read_text().splitlines()]
    assert [row["folder"] for row in rows] == ["00000-a-fox", "00001-a-cup", "00002-a-hat"]
    assert cli.main([*given, "prompt=a fox"]) == 2
    assert "prompts='prompts.txt' and prompt='a fox' are both given" in capsys.readouterr().err
    assert cli.main([*given, "n=3"]) == 2
    assert "n=3 was 2, which the run in o began with" in capsys.readouterr().err


def test_processes_that_would_all_draw_the_same_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.main(["sample", "prompt=a fox", "reward=redness", "out=o"]) == 2
    assert "2 processes would each draw the same pictures; say spread=particles" in capsys.readouterr().err


def test_as_a_user_launches_them(tmp_path: Path) -> None:
    """By accelerate two processes share four prompts, by torchrun the pictures of one."""
    (tmp_path / "prompts.txt").write_text("a fox\na cup\na hat\na tree\n")
    small = ["reward=redness", "method=best_of_n", "n=3", "seed=0", "progress=false"]
    accelerate = ["accelerate.commands.launch", "--multi_gpu", "--num_processes=2"]
    elastic = ["torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    told = environment(0, 1)
    for launcher, more, said in (
        (accelerate, ["prompts=prompts.txt", "batch=1", "out=many"], "wrote many: 4 prompts"),
        (elastic, ["prompt=a fox", "spread=particles", "out=one"], "wrote one"),
    ):
        command = [sys.executable, "-m", *launcher, "-m", "steer", "sample", *small, *more]
        ended = subprocess.run(command, env=told, cwd=tmp_path, capture_output=True, text=True, timeout=100)
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.count(said) == 1
    whole = json.loads((tmp_path / "one" / "report.json").read_text())
    (part,) = (json.loads(p.read_text()) for p in (tmp_path / "many").glob("00000-*/report.json"))
    assert whole["cost"]["processes"]["number"] == 2
    rewards = [torch.tensor(report["pictures"]["rewards"]) for report in (whole, part)]
    assert torch.allclose(*rewards, atol=1e-4)
