"""What steer.sample returns: saved whole or not at all, and shown in a notebook."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from colours import colour_model, redness
from PIL import Image
from torch import Tensor

import steer
from steer.samples import Samples, check_folder, slug


def draw(prompts: list[str], n: int = 5, seed: int = 0) -> Samples:
    given = {"reward": redness, "model": colour_model(), "temperature": 1.0, "progress": False}
    return steer.sample(prompts, method="best_of_n", n=n, seed=seed, **given)


def files(folder: Path) -> list[str]:
    return sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file())


def read(path: Path) -> Tensor:
    return torch.from_numpy(np.asarray(Image.open(path)).copy()).permute(2, 0, 1)


def test_best_is_the_picture_of_the_highest_reward() -> None:
    out = draw(["a", "b"], n=7)
    scores = redness(out.best)
    assert torch.allclose(scores, out.rewards.amax(1), atol=1e-4)


def test_save_writes_every_picture_the_sheet_and_the_report(tmp_path: Path) -> None:
    out = draw(["a red heart", "Ünï / code?"], n=3)
    assert out.save(tmp_path / "new" / "folder") == tmp_path / "new" / "folder"
    found = files(tmp_path / "new" / "folder")
    for i, stem in enumerate(["00-a-red-heart", "01-n-code"]):
        assert f"best-{stem}.png" in found
        for j in range(3):
            for kind, images in (("steered", out.images), ("unsteered", out.unsteered)):
                name = f"{stem}/{kind}-{j:03d}.png"
                assert torch.equal(read(tmp_path / "new" / "folder" / name), (images[i, j] * 255).round().byte())
                found.remove(name)
    assert found == ["best-00-a-red-heart.png", "best-01-n-code.png", "report.html", "report.json", "sheet.png"]


def test_the_report_is_strict_json_and_says_what_matters(tmp_path: Path) -> None:
    out = draw(["a", "b"], n=1)  # one picture a prompt: there is no diversity, which JSON must bear
    text = (out.save(tmp_path) / "report.json").read_text(encoding="utf8")
    report = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert report == out.report
    assert report["diversity"] == {"unsteered": None, "steered": None}
    for key in (
        "prompts",
        "model",
        "method",
        "temperature",
        "seed",
        "reward",
        "held_out",
        "survivors",
        "cost",
        "versions",
    ):
        assert key in report
    assert torch.allclose(torch.tensor(report["pictures"]["rewards"]), out.rewards)


def test_saving_again_leaves_nothing_of_the_run_before(tmp_path: Path) -> None:
    (tmp_path / "mine.png").write_bytes(b"mine")
    draw(["a", "b"], n=6).save(tmp_path)
    draw(["a"], n=2).save(tmp_path)
    stems = [f"00-a/{kind}-00{j}.png" for kind in ("steered", "unsteered") for j in range(2)]
    told = ["report.html", "report.json", "sheet.png"]
    assert files(tmp_path) == sorted(["best-00-a.png", "mine.png", *told, *stems])
    assert (tmp_path / "mine.png").read_bytes() == b"mine"
    assert not (tmp_path / "01-b").exists()  # nor its folder


@pytest.mark.parametrize("moment", [1, 4, 9])
def test_an_interruption_leaves_no_half_written_file(
    tmp_path: Path, moment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, written = Path.write_bytes, []

    def interrupted(path: Path, content: bytes) -> int:
        written.append(path)
        if len(written) > moment:
            write(path, content[: len(content) // 2])
            raise KeyboardInterrupt
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        draw(["a"], n=4).save(tmp_path)
    monkeypatch.undo()
    assert "report.json" not in files(tmp_path)
    for name in files(tmp_path):
        Image.open(tmp_path / name).load()


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"out='.*file/inside' cannot be written \(.*\); name another folder"):
        check_folder(tmp_path / "file" / "inside")


def test_a_notebook_shows_the_sheet() -> None:
    out = draw(["a", "b"], n=5)
    sheet = Image.open(io.BytesIO(out._repr_png_()))
    assert sheet.format == "PNG" and sheet.width > 600
    pixels = np.asarray(sheet.convert("RGB"))
    for picture in (out.unsteered[1], out.images[0]):  # flat colours, so every picture can be found again
        wanted = (picture[0, :, 0, 0] * 255).round().byte().numpy()
        assert (pixels == wanted).all(-1).sum() >= 128 * 128


def test_many_prompts_go_on_a_second_sheet(tmp_path: Path) -> None:
    draw([f"prompt {i}" for i in range(9)], n=1).save(tmp_path)
    first, second = (Image.open(tmp_path / name).height for name in ("sheet.png", "sheet-2.png"))
    assert first > 6 * second


def test_a_prompt_as_a_file_name() -> None:
    assert slug("A Red, red heart!") == "a-red-red-heart"
    assert slug("../../etc") == "etc"
    assert slug("日本") == "prompt"
    assert len(slug("x" * 300)) == 40
