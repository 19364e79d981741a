"""What a vision-language model is asked about a picture, and how its reply becomes a score."""

import base64
import math
import re
from typing import Any

LOGPROBS, GRADED = "logprobs", "graded"
AROUND = " \t\n\r\"'*.,:\u0120\u2581"  # what tokenisers put around a word: spaces also as letters of their own
NUMBER = re.compile(r"(\d+(?:\.\d+)?)(?:\s*/\s*(\d+))?\.?")


class Unreadable(ValueError):
    """A reply that holds no score."""


def request(model: str, how: str, question: str, png: bytes, max_tokens: int) -> dict[str, Any]:
    """The body of a request to /chat/completions: the picture as a data URL, then the question."""
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + base64.b64encode(png).decode()}}
    content = [picture, {"type": "text", "text": question}]
    body = {"model": model, "messages": [{"role": "user", "content": content}], "temperature": 0}
    if how == LOGPROBS:
        return body | {"max_tokens": 1, "logprobs": True, "top_logprobs": 20}
    return body | {"max_tokens": max_tokens}


def yes_share(reply: Any) -> float | None:  # noqa: ANN401 (decoded JSON)
    """P(yes) / (P(yes) + P(no)) of the first token, over all ways to write the two; None where the server gives no
    probabilities.

    A word that is not among the listed ones has probability 0.

    Raises:
        Unreadable: neither is listed, or the reply has another form.
    """
    logprobs = _choice(reply).get("logprobs")
    tokens = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not tokens:
        return None
    try:
        top = [(str(t["token"]), float(t["logprob"])) for t in tokens[0]["top_logprobs"]]
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise Unreadable("logprobs without top_logprobs of tokens") from error
    yes, no = ([p for token, p in top if token.strip(AROUND).lower() == word] for word in ("yes", "no"))
    best = max(yes + no, default=math.nan)
    if not math.isfinite(best):
        seen = ", ".join(repr(token) for token, _ in top[:5])
        raise Unreadable(f"neither yes nor no, but {seen or 'nothing'}; ask a question that they answer")
    a, b = (sum(math.exp(p - best) for p in side) for side in (yes, no))
    return a / (a + b)


def grade(reply: Any, grades: tuple[float, float]) -> float:  # noqa: ANN401
    """The number that the reply consists of, from the range `grades` to [0, 1]. "7", "7.5", "7/10" and "7." are read.

    Raises:
        Unreadable: it is anything else, or out of the range.
    """
    message = _choice(reply).get("message")
    text = message.get("content") if isinstance(message, dict) else None
    found = NUMBER.fullmatch(text.strip()) if isinstance(text, str) else None
    lowest, highest = grades
    if not found or (found[2] and float(found[2]) != highest) or not lowest <= float(found[1]) <= highest:
        shown = repr(text[:80]) if isinstance(text, str) else "no text"
        raise Unreadable(f"{shown}, where a number from {lowest:g} to {highest:g} alone was asked for")
    return (float(found[1]) - lowest) / (highest - lowest)


def tokens_of(reply: Any) -> tuple[int, int] | None:  # noqa: ANN401
    """Tokens read and written, by the reply's `usage`; None where it does not tell."""
    usage = reply.get("usage") if isinstance(reply, dict) else None
    if not isinstance(usage, dict):
        return None
    read, written = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if isinstance(read, int) and isinstance(written, int) and min(read, written) >= 0:
        return read, written
    return None


def _choice(reply: Any) -> dict[str, Any]:  # noqa: ANN401
    choices = reply.get("choices") if isinstance(reply, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise Unreadable("JSON without choices")
    return choices[0]
