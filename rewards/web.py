"""Requests over HTTP by the standard library alone: one try, tries again with growing waits, errors without secrets."""

import email.utils
import http.client
import json
import logging
import os
import random
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

T = TypeVar("T")
JSON = "application/json"
MOST = 1 << 30  # bytes of one answer
PIECE = 1 << 16
LOGGER = logging.getLogger(__name__)
DICE = random.SystemRandom()  # the jitter must not move anybody's seeded draws


class NoAnswer(OSError):
    """A request that came to nothing, after all its tries.

    status: of the server's answer; None where none came (refused, timed out, cut off).
    text: the server's own words, shortened.
    wait: seconds that it asks to wait (Retry-After).
    """

    def __init__(self, message: str, status: int | None = None, text: str = "", wait: float = 0.0) -> None:
        super().__init__(message)
        self.status, self.text, self.wait, self.tries = status, text, wait, 1

    @property
    def passing(self) -> bool:
        """Whether another try may do better: 408, 429, 5xx, and where no answer came."""
        return self.status is None or self.status in (408, 429) or self.status >= 500

    def __str__(self) -> str:
        return f"{self.args[0]} (after {self.tries} tries)" if self.tries > 1 else str(self.args[0])


@dataclass(frozen=True)
class Endpoint:
    """A server.

    url: without a slash at its end.
    key_env: the environment variable that holds its key, sent as "Authorization: Bearer KEY" where it is set. The key
        is read at each request and kept nowhere; where a server repeats it, errors show *** instead.
    timeout: seconds to connect, to wait for each piece of an answer, and for the whole of its body.
    """

    url: str
    key_env: str | None = None
    timeout: float = 60.0

    def ask(self, path: str = "", body: bytes | None = None, kind: str = JSON) -> bytes:
        """GET, or with a body POST, once; the body of an answer 2xx. Redirections are not followed: the key would be
        told to someone else.

        Raises:
            NoAnswer: another status, or no whole answer in time.
            ValueError: the key is nothing that a header can hold.
        """
        key, url = self._key(), self.url + path
        headers = {"Accept": "*/*", "User-Agent": "steer"} | ({"Authorization": f"Bearer {key}"} if key else {})
        request = urllib.request.Request(url, body, headers | ({} if body is None else {"Content-Type": kind}))
        try:
            with _opener().open(request, timeout=self.timeout) as reply:
                return _read(reply, time.monotonic() + self.timeout)
        except urllib.error.HTTPError as error:
            with error:
                raise self._refused(url, error) from None
        except (OSError, http.client.HTTPException) as error:
            raise self.error(f"{url} gives no whole answer: {_reason(error, self.timeout)}") from None

    def error(self, message: str, status: int | None = None, text: str = "", wait: float = 0.0) -> NoAnswer:
        """A `NoAnswer` in which the key stands nowhere."""
        key = self._key()
        message, text = (s.replace(key, "***") if key else s for s in (message, text))
        return NoAnswer(message, status, text, wait)

    def _key(self) -> str:
        key = os.environ.get(self.key_env or "", "").strip()
        if not (key.isascii() and key.isprintable()):
            raise ValueError(f"environment variable {self.key_env} holds characters that no key has; set it anew")
        return key

    def _refused(self, url: str, error: urllib.error.HTTPError) -> NoAnswer:
        """Names what the server says, and what helps."""
        try:
            text = _words(_read(error, time.monotonic() + self.timeout, PIECE))
        except (OSError, http.client.HTTPException):
            text = ""
        cure = {
            401: f"put a valid key into the environment variable {self.key_env}",
            403: f"the key in the environment variable {self.key_env} does not allow it",
            404: "check the url, and the names in the request",
        }.get(error.code, f"it redirects to {error.headers.get('Location')}; give that" if error.code < 400 else "")
        said = "; ".join(part for part in (text, cure) if part)
        wait = _retry_after(error.headers.get("Retry-After"))
        return self.error(f"{url} answers {error.code} {error.reason}" + (f": {said}" if said else ""),
                          error.code, text, wait)  # fmt: skip


class _Still(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object, **__: object) -> None:
        """Nowhere: 3xx becomes an error."""


@lru_cache(maxsize=1)
def _opener() -> urllib.request.OpenerDirector:
    """One for all requests: reading the certificates anew would cost more than a request."""
    return urllib.request.build_opener(_Still, urllib.request.HTTPSHandler(context=ssl.create_default_context()))


def _read(reply: Any, end: float, most: int = MOST) -> bytes:  # noqa: ANN401 (HTTPResponse or HTTPError)
    """The whole body: a server that closes too early, trickles or floods is an error."""
    parts, size = [], 0
    while part := reply.read1(PIECE):
        parts.append(part)
        size += len(part)
        if time.monotonic() > end:
            raise TimeoutError
        if size > most:
            raise OSError(f"it is longer than {most} bytes")
    if getattr(reply, "length", None):
        raise http.client.IncompleteRead(b"", reply.length)
    return b"".join(parts)


def _reason(error: Exception, timeout: float) -> str:
    inner = getattr(error, "reason", error)
    if isinstance(inner, TimeoutError):
        return f"none within {timeout:g} s"
    if isinstance(inner, http.client.IncompleteRead):
        return "the connection was closed in the middle"
    return str(inner) or type(inner).__name__


def _words(body: bytes) -> str:
    """What an error's body says: the message of JSON, or else its first 200 characters."""
    text = body.decode("utf8", "replace").strip()
    try:
        found = json.loads(text)
        found = found.get("error", found.get("message", found.get("detail", text)))
        text = str(found.get("message", found) if isinstance(found, dict) else found)
    except (ValueError, AttributeError):
        pass
    return " ".join(text.split())[:200]


def _retry_after(value: str | None) -> float:
    """Seconds, from a number of them or a date."""
    try:
        return max(0.0, float(value or 0))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(str(value)).timestamp() - time.time())
    except ValueError:
        return 0.0


def retrying(
    attempt: Callable[[], T], retries: int, wait: tuple[float, float], stop: threading.Event | None = None
) -> T:
    """attempt(), again after a failure that may pass, `retries` times at most.

    Before the k-th it waits wait[0] * 2^(k-1) seconds, times a random factor in [1/2, 1], or what the server asks for
    if that is longer, but never more than wait[1].

    stop: ends the waiting; the last failure is raised.
    """
    stop = stop or threading.Event()
    for k in range(retries + 1):
        try:
            return attempt()
        except NoAnswer as error:
            error.tries = k + 1
            seconds = min(wait[1], max(wait[0] * 2**k * DICE.uniform(0.5, 1), error.wait))
            if k == retries or not error.passing:
                raise
            LOGGER.info("%s; again in %.2f s", error, seconds)
            if stop.wait(seconds):
                raise
    raise ValueError(f"retries={retries} must be at least 0")


def check_url(argument: str, url: str) -> str:
    """The url without a slash at its end.

    Raises:
        ValueError: it is no http address of a server, or holds a user, a password or a query (that end up in logs).
    """
    parts = urllib.parse.urlsplit(url)
    if parts.username or parts.password or parts.query or parts.fragment:
        shown = f"{parts.scheme}://{parts.hostname}{parts.path}"
        raise ValueError(
            f"{argument} for {shown} holds more than that; leave it out, and put a key into the environment"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{argument}={url!r} is no address; give one such as http://127.0.0.1:8000/v1")
    return url.rstrip("/")


def check_patience(timeout: float, retries: int, wait: tuple[float, float]) -> None:
    """Hold settings of requests to what they can be.

    Raises:
        ValueError: a time-out that is not positive, fewer than no retries, or waits that shrink.
    """
    if not timeout > 0:
        raise ValueError(f"timeout={timeout} must be positive seconds")
    if retries < 0:
        raise ValueError(f"retries={retries} must be at least 0")
    if len(wait) != 2 or not 0 <= wait[0] <= wait[1]:
        raise ValueError(f"wait={wait} must be the first and the longest seconds between tries, such as (0.5, 30)")
