"""The shipped pictures: what is in them, and that the build script draws them again bit for bit."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from steer.data import emoji

ROOT = Path(__file__).parents[2]
ICONS = json.loads((Path(__file__).parent / "icons.json").read_text())


def test_counts_and_columns() -> None:
    data = emoji.load()
    assert data.images.shape == (5226, 64, 64, 3) and data.images.dtype == np.uint8
    assert data.coverage.shape == (5226, 64, 64)
    assert {s: data.styles.count(s) for s in emoji.STYLES} == {"noto": 1689, "fluent": 1594, "twemoji": 1943}
    assert len(set(data.captions)) == 1954
    assert all(len(c) == 5226 for c in (data.captions, data.tags, data.styles, data.groups, data.subgroups))
    assert all(data.captions) and max(data.captions.count(c) for c in ("red heart", "fox", "grinning face")) == 3


def test_a_red_heart_is_red_over_white() -> None:
    data = emoji.load()
    for i in (i for i, c in enumerate(data.captions) if c == "red heart"):
        r, g, b = data.images[i][30, 32].astype(int)
        assert r > 200 and g < 80 and b < 90
        assert (data.images[i][0, 0] == 255).all() and data.coverage[i][0, 0] == 0 and data.coverage[i][30, 32] == 255


def test_uncovered_pixels_are_white() -> None:
    data = emoji.load()
    assert (data.images[data.coverage == 0] == 255).all()


def test_the_arrays_cannot_be_spoilt() -> None:
    with pytest.raises(ValueError, match="read-only"):
        emoji.load().images[0, 0, 0, 0] = 1


@pytest.mark.parametrize("entry", ICONS, ids=lambda e: f"{e['style']}-{e['name']}")
def test_the_build_script_draws_the_same_pixels(entry: dict) -> None:
    pytest.importorskip("resvg_py", reason="drawing SVG needs resvg-py, which the tests install")
    spec = importlib.util.spec_from_file_location("build_emoji", ROOT / "scripts" / "build_emoji.py")
    assert spec and spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    drawn = script.render(entry["icon"]["body"], entry["icon"], entry["defaults"])
    data = emoji.load()
    np.testing.assert_array_equal(drawn[..., :3], data.images[entry["index"]])
    np.testing.assert_array_equal(drawn[..., 3], data.coverage[entry["index"]])


def test_a_damaged_sheet_is_named(tmp_path: Path) -> None:
    bad = tmp_path / "noto.webp"
    bad.write_bytes(b"not a picture")
    with pytest.raises(OSError, match="noto.webp"):
        emoji._read_sheet(bad, 1)
