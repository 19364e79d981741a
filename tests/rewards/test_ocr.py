"""Words in pictures: rendered ones are read, others score by their edit distance, and nothing is downloaded."""

import itertools
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

import rewards
from rewards.inverse import Blur
from rewards.ocr import edit_distance, fold, quoted

pytest.importorskip("rapidocr")
pytest.importorskip("onnxruntime")


def lettered(text: str, size: int = 64, font: float = 18) -> Tensor:
    """Black words in the middle of a pale picture [3 h w]."""
    picture = Image.new("RGB", (size, size), (250, 240, 220))
    letters = ImageFont.load_default(font)
    ImageDraw.Draw(picture).text((size / 2, size / 2), text, (20, 20, 20), letters, "mm", align="center")
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255


def sign(text: str) -> str:
    return f'a sign that says "{text}"'


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    return torch.stack([lettered("OPEN"), lettered("oven"), lettered(""), lettered("JAZZ\nBAR")])


def test_words_are_read_and_wrong_ones_cost_their_edits(pictures: Tensor) -> None:
    """OVEN is one letter of four from OPEN; JAZZBAR is further than OPEN is long; an empty picture has nothing."""
    scores = rewards.Ocr()(pictures, [sign("OPEN")] * 4)
    assert scores.tolist() == [1.0, 0.75, 0.0, 0.0]


def test_each_picture_has_its_own_prompt(pictures: Tensor) -> None:
    prompts = [sign("open"), "'Oven'", "\u201cbar\u201d", 'a "jazz" club, the neon reads "bar"']
    scores = rewards.Ocr()(pictures, prompts)
    assert scores.tolist() == [1.0, 1.0, 0.0, 1.0]
    assert torch.equal(rewards.Ocr()(pictures.flip(0), prompts[::-1]), scores.flip(0))
    assert torch.equal(rewards.Ocr()(pictures[1:2], prompts[1:2]), scores[1:2])


def test_text_of_the_settings_goes_before_the_prompt(pictures: Tensor) -> None:
    assert rewards.Ocr(text="jazz bar")(pictures, [sign("OPEN")] * 4).tolist()[3] == 1.0
    assert rewards.Ocr(text="OPEN")(pictures[:1], ["a fox"]).tolist() == [1.0]


def test_lines_come_from_top_to_bottom(pictures: Tensor) -> None:
    assert rewards.Ocr().read(pictures) == [["OPEN"], ["oven"], [], ["JAZZ", "BAR"]]


def test_more_words_than_asked_for_cost() -> None:
    assert rewards.Ocr()(lettered("OPEN 24 h", 128)[None], [sign("OPEN 24")]).item() == pytest.approx(1 - 1 / 6)


def test_the_more_blurred_the_lower() -> None:
    sharp = lettered("HELLO", 64, 16)[None]
    scores = [rewards.Ocr()(x, [sign("HELLO")]).item() for x in (sharp, Blur(3.0)(sharp), Blur(8.0)(sharp))]
    assert scores[0] == 1 and scores[2] == 0 and scores[0] > scores[1] >= scores[2]


def test_small_letters_are_read() -> None:
    """Twelve words, letters 9 pixels high, in grainy pictures of 32 pixels: at most one letter in twenty is lost."""
    words = ["open", "fox", "hello", "stop", "sale", "cafe", "red", "moon", "jazz", "exit", "tea", "bank"]
    small = torch.stack([lettered(word, 32, 9) for word in words])
    small += 0.05 * torch.randn(small.shape, generator=torch.Generator().manual_seed(0))
    assert rewards.Ocr()(small, [sign(word) for word in words]).mean() > 0.95


def test_what_every_reward_promises(pictures: Tensor) -> None:
    """As in test_contract.py, whose pictures show no words."""
    reward, asked = rewards.Ocr(), [sign("OPEN")] * 4
    r = reward(pictures.requires_grad_(True), asked)
    assert r.shape == (4,) and r.dtype == torch.float32 and not r.requires_grad
    assert rewards.is_differentiable(reward) is False and rewards.missing(reward) is None
    assert reward(pictures.detach().double(), asked).dtype == torch.float64
    assert torch.equal(reward(pictures.detach().bfloat16(), asked).float(), r)
    wide = torch.nn.functional.interpolate(pictures.detach(), (96, 128), mode="bilinear")
    assert reward(wide, asked).tolist() == r.tolist()


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ('a sign "OPEN"', ["OPEN"]), ("no quotes", []), ("it's a sign that says 'don't walk'", ["don't walk"]),
        ("the dogs' sign 'OPEN'", ["OPEN"]),
        ("\u201ccaf\u00e9\u201d and \u2018it\u2019s ok\u2019", ["caf\u00e9", "it\u2019s ok"]),
        ('"one" then "two"', ["one", "two"]),
    ],
)  # fmt: skip
def test_what_stands_in_quotes(prompt: str, words: list[str]) -> None:
    assert quoted(prompt) == words


def test_case_and_spaces_are_folded() -> None:
    assert fold(" Hello\n WORLD ") == "helloworld"


def test_edit_distance_is_the_fewest_edits() -> None:
    """Known pairs, and on random words a search through all strings in reach of one edit at a time."""
    assert [edit_distance(*p) for p in (("kitten", "sitting"), ("", "abc"), ("flaw", "lawn"), ("a", "a"))] == [
        3,
        3,
        2,
        0,
    ]
    letters = "ab"
    words = ["".join(w) for n in range(4) for w in itertools.product(letters, repeat=n)]
    for a in random.Random(0).sample(words, 5):
        reached, distance = {a}, {a: 0}
        for d in range(1, 4):
            edits = {
                w[:i] + c + w[j:]
                for w in reached
                for i in range(len(w) + 1)
                for j in (i, i + 1)
                for c in ("", *letters)
            }
            reached = {w for w in edits if len(w) <= 4}
            distance |= {w: d for w in reached if w not in distance}
        assert all(edit_distance(a, w) == distance[w] for w in words)


def test_it_is_quiet_and_opens_no_connection() -> None:
    """In a process of its own, which would end in an error at the first attempt."""
    code = """
import sys
def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"): raise SystemExit("a connection was asked for")
sys.addaudithook(refuse)
import torch, rewards
print(rewards.Ocr(text="x")(torch.ones(1, 3, 64, 64), ["a"]).tolist())
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[0.0]\n", "")


def test_errors_come_before_anything_is_read() -> None:
    with pytest.raises(ValueError, match="the prompt 'a fox' quotes no words; write .*or give text="):
        rewards.Ocr()(torch.ones(2, 3, 64, 64), [sign("OPEN"), "a fox"])
    with pytest.raises(ValueError, match="text=' ' has no letters"):
        rewards.Ocr(text=" ")
    with pytest.raises(ValueError, match="side=8"):
        rewards.Ocr(side=8)


def test_a_package_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rapidocr", None)  # as Python marks a module that cannot be imported
    said = rewards.missing(rewards.Ocr())
    assert said == "reward 'ocr' lacks the Python package rapidocr; run: pip install 'steer[ocr]'"
    with pytest.raises(ModuleNotFoundError, match="lacks the Python package rapidocr"):
        rewards.Ocr()(torch.ones(1, 3, 64, 64), [sign("OPEN")])
