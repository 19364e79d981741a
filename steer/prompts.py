"""Where the prompts of fine-tuning come from: a list, a file, or a function that draws them."""

import hashlib
import random
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

Source = str | Path | Sequence[str] | Callable[[int, int], list[str]]


def read(source: str | Path) -> list[str]:
    """The prompts of a text file, one a line; empty lines and lines that begin with # are left out.

    Raises:
        ValueError: there is no such file, or it holds no prompt.
    """
    path = Path(source)
    if not path.is_file():
        raise ValueError(f"prompts={str(source)!r} is no file; give a text file with a prompt a line, or a list")
    lines = (line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines())
    found = [line for line in lines if line and not line.startswith("#")]
    if not found:
        raise ValueError(f"prompts={str(source)!r} holds no prompt; write one a line")
    return found


FEWEST = 20  # prompts of which some are held out


class Prompts:
    """The prompts of each round of fine-tuning, a function of the seed and the round.

    source: a list or a file, gone through in a random order that is another in each epoch (a prompt that stands there
        twice comes twice as often); or a function
        ``draw(count, seed) -> prompts``, asked anew each round.
    held_out: prompts that are never used for tuning: a list or a file, or None, which takes a tenth of at least 20 (at
        most `MOST`) away from them, and judges by the prompts of the tuning where there are fewer. Of a function, what
        it drew first counts as the list.

    Raises:
        ValueError: no prompts, or texts that are none.
    """

    MOST = 32

    def __init__(self, source: Source, held_out: str | Path | Sequence[str] | None = None, seed: int = 0) -> None:
        self.seed, self.draw = seed, source if callable(source) else None
        pool = self._draw(4 * self.MOST, -1) if callable(source) else _texts("prompts", source)
        self.pool = list(pool)
        if held_out is not None:
            self.held_out = list(dict.fromkeys(_texts("held_out_prompts", held_out)))
            kept = set(self.held_out)
            self.pool = [q for q in self.pool if q not in kept]
            if not self.pool:
                raise ValueError("all prompts are among held_out_prompts; none is left to tune with")
            return
        distinct = list(dict.fromkeys(self.pool))
        if len(distinct) < FEWEST:
            self.held_out = distinct
            warnings.warn(
                f"prompts has {len(distinct)}, fewer than {FEWEST}: the guard measures on these themselves; "
                "held_out_prompts= gives it others",
                stacklevel=4,
            )
            return
        order = random.Random(f"held out {seed}").sample(distinct, len(distinct))
        self.held_out = order[: min(self.MOST, max(1, len(order) // 10))]
        kept = set(self.held_out)
        self.pool = [q for q in self.pool if q not in kept]

    @property
    def digest(self) -> str:
        """What tells these prompts from others."""
        text = "\n".join([*self.pool, "held out", *self.held_out])
        return hashlib.sha256(text.encode("utf8", "surrogatepass")).hexdigest()[:16]

    def round(self, number: int, count: int) -> list[str]:
        """`count` prompts for a round: the next ones of the list, none again before all have been; or newly drawn.

        Raises:
            ValueError: the function draws too few, or hardly any that is not held out.
        """
        if self.draw is not None:
            return self._others(count, number)
        out: list[str] = []
        while len(out) < count:
            epoch, place = divmod(number * count + len(out), len(self.pool))
            order = random.Random(f"{self.seed}:{epoch}").sample(self.pool, len(self.pool))
            out += order[place : place + count - len(out)]
        return out

    def _others(self, count: int, number: int) -> list[str]:
        """`count` prompts that the function draws and that are not held out."""
        kept = set(self.held_out) - set(self.pool)
        asked = count + len(kept)
        while asked <= 1000 * (count + len(kept)):
            found = [q for q in self._draw(asked, number) if q not in kept]
            if len(found) >= count:
                return found[:count]
            asked *= 2  # some were drawn more than once
        raise ValueError(f"prompts={self.draw!r} draws hardly any prompt that is not held out; hold out fewer")

    def _draw(self, count: int, number: int) -> list[str]:
        assert self.draw is not None
        drawn = _texts("prompts", self.draw(count, self.seed * 1_000_003 + number + 1))
        if len(drawn) < count:
            raise ValueError(f"prompts={self.draw!r} was asked for {count} prompts and gave {len(drawn)}")
        return drawn


def _texts(name: str, given: object) -> list[str]:
    found = read(given) if isinstance(given, str | Path) else list(given) if isinstance(given, Sequence) else []
    if not found or not all(isinstance(q, str) and q.strip() for q in found):
        raise ValueError(
            f"{name}={given!r} must be a list of texts, a file with one a line, or a function that draws them"
        )
    return found
