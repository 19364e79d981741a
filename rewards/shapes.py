"""Whether a picture shows what a caption of shapes says, decided exactly: an object is there or it is not."""

from dataclasses import dataclass, field
from itertools import permutations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rewards.contract import check_images
from rewards.objects import Finder, Objects
from rewards.scenes import COLOURS, RELATIONS, SHAPES, Scene, parse

SIDE = 64  # of the pictures that the settings of `Finder` are meant for
CHUNK = 64  # pictures looked at together
MOST = 6  # so many of the largest objects are tried as those that the caption names

_SHAPE = {name: i for i, name in enumerate(SHAPES)}
_COLOUR = {name: i for i, name in enumerate(COLOURS)}


@dataclass(frozen=True)
class ShapesVerifier:
    """The share of a caption's assertions that a picture meets, in [0,1]: 1 exactly where it shows its caption.

    An assertion is: the number of objects (an extra one breaks it); each object's shape; each object's colour (where it
    is free: that it has one); the relation, which holds if the centres of mass are further apart along its axis than
    across it. Found objects stand for the caption's in the way that meets most. A black box, without gradients.

    Prompts are captions as in `rewards.scenes`, such as "a red circle left of a blue square". Pictures have a white
    background; those whose shorter side is not 64 are resized to that.

    finder: how objects are found.
    whole: the share of the score that only a picture which meets all gets: 1 is the verdict alone.

    Ref: GenEval (arXiv:2310.11513), with colours and template overlap in the place of a learned detector.
    """

    finder: Finder = field(default_factory=Finder)
    whole: float = 0.0
    name: str = "shapes"
    differentiable: bool = False
    cost: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.whole <= 1:
            raise ValueError(f"whole={self.whole} must be a share between 0 and 1")

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Scores [b] of pictures [b 3 h w] in [0,1].

        Raises:
            ValueError: a prompt is no caption of shapes; or other pictures.
        """
        counts = self._count(images, prompts)
        return images.new_tensor([(1 - self.whole) * met / of + self.whole * (met == of) for met, of in counts])

    def check(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Whether each picture [b 3 h w] in [0,1] shows its caption: bool [b].

        Raises:
            ValueError: a prompt is no caption of shapes; or other pictures.
        """
        verdicts = [met == of for met, of in self._count(images, prompts)]
        return torch.tensor(verdicts, dtype=torch.bool, device=images.device)

    def _count(self, images: Tensor, prompts: list[str]) -> list[tuple[int, int]]:
        check_images(images, prompts)
        scenes = [parse(prompt) for prompt in prompts]
        counts = []
        for start in range(0, len(scenes), CHUNK):
            pictures, some = _pixels(images[start : start + CHUNK]), scenes[start : start + CHUNK]
            found = self.finder(pictures)
            counts += [assertions(s, found, at) for s, at in zip(some, found.of(len(some)), strict=True)]
        return counts


def _pixels(images: Tensor) -> np.ndarray:
    """Pictures [b h w 3] as an array, of shorter side 64."""
    images, short = images.detach().float(), min(images.shape[2:])
    if short != SIDE:
        size = [max(SIDE, round(side * SIDE / short)) for side in images.shape[2:]]
        images = F.interpolate(images, size, mode="bilinear", antialias=True)
    return images.clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()


def assertions(scene: Scene, found: Objects, at: slice) -> tuple[int, int]:
    """How many of a scene's assertions the objects `at` meet, and how many there are."""
    things = scene.objects
    of = 1 + 2 * len(things) + (scene.relation is not None)
    number = int(at.stop - at.start == len(things))
    at = slice(at.start, min(at.stop, at.start + MOST))
    shapes, colours = found.shape[at].tolist(), found.colour[at].tolist()
    right = [
        [(s == _SHAPE[t.shape]) + (c == _COLOUR[t.colour] if t.colour else c >= 0) for t in scene.things]
        for s, c in zip(shapes, colours, strict=True)
    ]
    if len(scene.things) == 1:
        return number + sum(sorted((marks for (marks,) in right), reverse=True)[: len(things)]), of
    if len(right) < 2:
        return number + max((max(marks) for marks in right), default=0), of
    met = (
        right[i][0] + right[j][1] + (scene.relation is not None and _holds(scene.relation, found.centre[at], i, j))
        for i, j in permutations(range(len(right)), 2)
    )
    return number + max(met), of


def _holds(relation: str, centre: np.ndarray, i: int, j: int) -> bool:
    """Whether object i is left of, right of, above or below object j."""
    (x, y), (across, down) = centre[i] - centre[j], RELATIONS[relation]
    return bool(x * across + y * down > abs(x * down) + abs(y * across))
