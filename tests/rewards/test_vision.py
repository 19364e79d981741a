"""How networks look at pictures, where their files are found, and what is kept of them."""

import pickle
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rewards import vision
from rewards.function import to_pil
from rewards.towers import import_open_clip, look_of
from rewards.vision import Kept, Look, Source
from steer.data import emoji


def drawings(h: int, w: int) -> Tensor:
    """Three emoji drawings with hard edges, the worst case of resizing, in whole bytes."""
    x = torch.tensor(emoji.load().images[:3]).permute(0, 3, 1, 2).float() / 255
    return torch.nn.functional.interpolate(x, (h, w), mode="nearest")


@pytest.mark.parametrize("shape", [(64, 64), (300, 200), (97, 151), (40, 64), (224, 100)], ids=str)
@pytest.mark.parametrize("resize", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_looks_as_open_clip_does_with_pil(shape: tuple[int, int], resize: str, interpolation: str) -> None:
    """PIL clips what bicubic overshoots, between its two passes too: ours, clipped at the end, is within two bytes at
    99 % of the pixels (bilinear: all), and as it is differs by less than 0.01 on average.
    """
    import_open_clip()
    from open_clip.transform import image_transform

    images = drawings(*shape)
    whole = image_transform(96, False, mean=(0.0,) * 3, std=(1.0,) * 3, resize_mode=resize, interpolation=interpolation)
    theirs = torch.stack([whole(p) for p in to_pil(images)])
    ours = Look(96, (0.0,) * 3, (1.0,) * 3, resize, interpolation)(images)
    clipped = (ours.clamp(0, 1) - theirs).abs()
    assert (clipped < 2 / 255).float().mean() > (0.99 if interpolation == "bicubic" else 0.999999)
    assert clipped.max() < 0.1 and (ours - theirs).abs().mean() < 0.01


def test_clips_look_is_that_of_transformers() -> None:
    """transformers rounds an odd margin down, torchvision to even: shapes without one."""
    import_open_clip()
    from transformers import CLIPImageProcessor

    see = CLIPImageProcessor(size={"shortest_edge": 96}, crop_size={"height": 96, "width": 96})
    for shape in ((96, 96), (300, 200), (64, 128)):
        images = drawings(*shape)
        theirs = see(images=to_pil(images), return_tensors="pt")["pixel_values"]
        difference = (Look(96)(images) - theirs).abs()
        assert difference.mean() < 0.02 and difference.median() < 0.016  # one byte is 0.0152 here


def test_edges_are_cut_off_evenly_or_padded_with_black() -> None:
    images = torch.ones(1, 3, 8, 4)
    plain = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    longest = Look(8, resize="longest", **plain)(images)
    assert longest[0, 0, 0].tolist() == [0, 0, 1, 1, 1, 1, 0, 0] and longest.sum() == 3 * 8 * 4
    rows = torch.arange(8.0).view(1, 1, 8, 1).expand(1, 3, 8, 4)
    assert Look(4, **plain)(rows)[0, 0, :, 0].tolist() == [2, 3, 4, 5]
    assert Look(4, (1.0,) * 3, (2.0,) * 3)(rows)[0, 0, :, 0].tolist() == [0.5, 1, 1.5, 2]


@pytest.mark.parametrize("resize", ["shortest", "longest", "squash"])
def test_gradients_are_those_of_differences(resize: str) -> None:
    """A linear map, so that any step will do: <gradient, d> = f(x + d) - f(x)."""
    rng = torch.Generator().manual_seed(0)
    x, d = (torch.rand(1, 3, 9, 12, generator=rng).requires_grad_(True) for _ in range(2))
    weight = torch.randn(1, 3, 5, 5, generator=rng)
    look = Look(5, resize=resize)
    (gradient,) = torch.autograd.grad((look(x) * weight).sum(), x)
    change = ((look(x + d) - look(x)) * weight).sum()
    torch.testing.assert_close((gradient * d).sum(), change, rtol=1e-4, atol=1e-4)


def test_looks_of_open_clip_settings() -> None:
    siglip = {
        "size": (224, 224),
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "resize_mode": "squash",
        "interpolation": "random",
    }
    assert look_of(siglip) == Look(224, (0.5,) * 3, (0.5,) * 3, "squash", "bicubic")
    assert look_of({"size": 64, "fill_color": 255}) == Look(64, fill=1.0)
    with pytest.raises(ValueError, match=r"size=\(224, 448\).*square"):
        look_of({"size": (224, 448)})
    with pytest.raises(ValueError, match="resize='crop' is unknown; give 'shortest'"):
        Look(8, resize="crop")
    with pytest.raises(ValueError, match="interpolation='nearest' is unknown; give 'bicubic'"):
        Look(8, interpolation="nearest")


def test_files_in_a_folder(tmp_path: Path) -> None:
    source = Source("model", str(tmp_path), ("a.bin", "b.json"))
    (tmp_path / "a.bin").touch()
    assert source.find("a.bin") == tmp_path / "a.bin" and source.find("b.json") is None
    sentence = vision.missing("mine", source)
    assert sentence == f"reward 'mine' lacks b.json of model={str(tmp_path)!r} (put what is missing in this folder)"
    with pytest.raises(FileNotFoundError, match="b.json of model="):
        source.path("b.json")
    (tmp_path / "b.json").touch()
    assert vision.missing("mine", source) is None


def test_files_in_the_cache_of_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The hub's own layout of its cache: refs name a snapshot."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    source = Source("model", "somebody/something", ("a.bin",))
    words = r"a.bin of model='somebody/something' \(`hf download somebody/something a.bin`, or let model name a folder"
    with pytest.raises(FileNotFoundError, match=words):
        source.path("a.bin")
    folder = tmp_path / "models--somebody--something"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "snapshots" / "abc" / "a.bin").touch()
    assert source.path("a.bin") == folder / "snapshots" / "abc" / "a.bin" and source.lacking() is None
    assert "hf download" in str(Source("model", str(tmp_path / "no" / "such" / "folder"), ("a.bin",)).lacking())


def test_texts_are_kept_for_one_device_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Kept, "TEXTS", 3)
    kept: Kept[str] = Kept()
    seen: list[list[str]] = []

    def encode(texts: list[str]) -> Tensor:
        seen.append(texts)
        return torch.tensor([[float(len(t))] for t in texts])

    assert kept.texts(["a", "bb", "a"], encode).flatten().tolist() == [1, 2, 1]
    assert kept.texts(["bb", "ccc", "dddd", "eeeee"], encode).flatten().tolist() == [2, 3, 4, 5]
    kept.texts(["dddd", "a"], encode)
    assert seen == [["a", "bb"], ["ccc", "dddd", "eeeee"], ["a"]] and len(kept._texts) == 3
    devices: list[torch.device] = []
    for name in ("cpu", "cpu", "meta", "cpu"):
        kept.on(torch.device(name), lambda device: devices.append(device) or "loaded")
    assert [d.type for d in devices] == ["cpu", "meta", "cpu"] and not kept._texts
    for copied in (deepcopy(kept), pickle.loads(pickle.dumps(kept))):
        assert copied._loaded is None


def test_no_code_in_a_checkpoint_is_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "sprung",)

    path = tmp_path / "weights.pt"
    torch.save({"state": Trap()}, path)
    with pytest.raises(ValueError, match=r"reward 'mine': the files in .*weights.pt' are damaged.*again"):
        with vision.loading("mine", path):
            vision.read_checkpoint(path)
    assert not (tmp_path / "sprung").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "sprung").exists()  # it would have been


def test_checkpoints_are_read_as_float32(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    weights = {"a": torch.arange(3).half(), "b": torch.arange(2)}
    torch.save(weights, tmp_path / "a.pt")
    save_file(weights, tmp_path / "a.safetensors")
    for name in ("a.pt", "a.safetensors"):
        read = vision.read_checkpoint(tmp_path / name)
        assert read["a"].dtype == torch.float32 and read["b"].dtype == torch.int64
        assert read["a"].tolist() == [0, 1, 2] and read["b"].tolist() == [0, 1]
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(TypeError, match="holds a list"):
        vision.read_checkpoint(tmp_path / "list.pt")
