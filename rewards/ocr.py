"""Whether a picture shows the words that were asked for, as a small reader of text sees it."""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from torch import Tensor

from rewards.contract import check_images
from rewards.function import to_pil
from rewards.packages import lacking_packages

# a single quote is also an apostrophe: it opens only where no letter stands before, and closes where none follows
QUOTED = re.compile(r"\"(.+?)\"|\u201c(.+?)\u201d|\u2018(.+?)\u2019(?!\w)|(?<!\w)'(.+?)'(?!\w)")


@dataclass(frozen=True)
class Ocr:
    """max(0, 1 - d(read, asked) / len(asked)): 1 where a picture shows the words asked for and no more, 0 for none.

    d is the edit distance (Levenshtein) between all that is read, from top to bottom, and all that is asked for; case
    and spaces do not count. A black box, without gradients, that takes some 0.1 s a picture.

    text: the words asked for; None: what stands in quotes in the prompt, as in `a shop with a sign "OPEN"`.
    side: for finding words, a picture is enlarged until its shorter side has this many pixels, as the finder was made
        for scans; the letters are then cut out of the picture as it is and stretched to a height of 48. At the
        reader's own 736, words of 7 or 8 pixels in pictures of 32 were read a little worse than at 320, in three times
        the time; to enlarge the whole picture first gained nothing.

    Text is read upright: the reader's guess of upside-down lines is off. Its models (PP-OCRv6, small) ship in the
    package rapidocr; nothing is downloaded.

    Ref: Flow-GRPO: Training Flow Matching Models via Online RL (arXiv:2505.05470), visual text rendering.

    Raises:
        ValueError: a text without letters, or side < 32; at a call, a prompt that quotes no words where text is None.
        ModuleNotFoundError: at a call, when rapidocr or onnxruntime is not installed.
    """

    text: str | None = None
    side: int = 320
    name: str = "ocr"
    differentiable: bool = False
    cost: float = 10.0

    def __post_init__(self) -> None:
        if self.text is not None and not fold(self.text):
            raise ValueError(f"text={self.text!r} has no letters; give words, or None to take them from the prompt")
        if self.side < 32:
            raise ValueError(f"side={self.side} must be at least 32 pixels, as the finder of words needs")

    def missing(self) -> str | None:
        """What is not installed, in one sentence; None where the reward can run."""
        return lacking_packages(self.name, "ocr", "rapidocr", "onnxruntime")

    def asked(self, prompt: str) -> str:
        """The words asked for, folded.

        Raises:
            ValueError: the prompt quotes none and there is no `text`.
        """
        words = fold(" ".join(quoted(prompt)) if self.text is None else self.text)
        if not words:
            raise ValueError(f"the prompt {prompt!r} quotes no words; write 'a sign that says \"OPEN\"', or give text=")
        return words

    def read(self, images: Tensor) -> list[list[str]]:
        """The lines of text in each picture [b 3 h w] in [0,1], from top to bottom."""
        if lacks := self.missing():
            raise ModuleNotFoundError(lacks)
        reader = _reader(self.side)
        arrays = (np.asarray(picture)[..., ::-1] for picture in to_pil(images))
        return [list(reader(np.ascontiguousarray(bgr)).txts or ()) for bgr in arrays]

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Scores [b] of pictures [b 3 h w] in [0,1]."""
        check_images(images, prompts)
        asked = [self.asked(prompt) for prompt in prompts]
        lines = self.read(images)
        scores = [
            max(0.0, 1 - edit_distance(fold("".join(read)), want) / len(want))
            for read, want in zip(lines, asked, strict=True)
        ]
        return images.new_tensor(scores)


def quoted(prompt: str) -> list[str]:
    """What stands in quotes, single, double or curly, in order."""
    return ["".join(groups) for groups in QUOTED.findall(prompt)]


def fold(text: str) -> str:
    """The text without spaces, in lower case."""
    return "".join(text.split()).casefold()


def edit_distance(a: str, b: str) -> int:
    """Fewest letters to insert, delete or replace that make b of a (Levenshtein)."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]


@lru_cache(maxsize=2)
def _reader(side: int) -> Any:  # noqa: ANN401 (an engine of rapidocr)
    from rapidocr import RapidOCR

    settings = {"Global.log_level": "critical", "Global.use_cls": False, "Det.limit_side_len": side}
    return RapidOCR(params=settings)
