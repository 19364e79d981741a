"""A reward served to other machines over HTTP, by the standard library; `rewards.wire` is the protocol."""

import hmac
import json
import logging
import os
import signal
import sys
import threading
import urllib.parse
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from rewards import wire
from rewards.base import to_reward
from rewards.contract import check_scores, cost_of, is_differentiable, missing, name_of, probe_differentiable
from rewards.web import JSON

LOGGER = logging.getLogger(__name__)
MOST_BYTES = 1 << 28
PATIENCE = 30.0  # seconds that a client may pause


class Refused(Exception):
    """What is answered instead of scores."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Server(ThreadingHTTPServer):
    """Requests are read side by side; one lock lets the reward score them one after another.

    A reward that does not say whether it is differentiable is probed at the start; one whose weights or packages are
    missing is refused there.
    """

    request_queue_size = 128
    daemon_threads = False  # those that are being answered are answered before the end

    def __init__(
        self,
        reward: object,
        host: str = "127.0.0.1",
        port: int = 8123,
        *,
        device: str | None = None,
        most_bytes: int = MOST_BYTES,
        token_env: str = "STEER_TOKEN",
    ) -> None:
        _check(port, most_bytes)
        self.reward = to_reward(reward)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.most_bytes, self.turn = most_bytes, threading.Lock()
        self.token = os.environ.get(token_env, "").strip()
        self.about = self._about()
        try:
            super().__init__((host, port), Handler)
        except (OSError, OverflowError) as error:
            cure = "take another, port=0 for any that is free"
            raise OSError(f"host={host!r}, port={port} cannot be opened ({error}); {cure}") from None
        if not self.token and not host.startswith("127.") and host != "localhost":
            hint = f"set the environment variable {token_env} on both sides"
            warnings.warn(f"host={host!r}: whoever reaches it may use the reward; {hint}", stacklevel=3)

    @property
    def url(self) -> str:
        """Where it is reached."""
        return f"http://{self.server_address[0]!s}:{self.server_address[1]}"

    def score(self, images: Tensor, prompts: list[str], gradient: bool) -> tuple[Tensor, Tensor | None]:
        """Scores [b], and if asked for d score / d picture [b 3 h w], both on the CPU."""
        with self.turn, torch.set_grad_enabled(gradient):
            x = images.to(self.device).requires_grad_(gradient)
            scores = check_scores(self.reward, self.reward(x, prompts), len(x), x)
            if not gradient:
                return scores.cpu(), None
            if not scores.requires_grad:
                raise ValueError(f"reward {name_of(self.reward)!r} says it is differentiable, but its scores are not")
            found = torch.autograd.grad(scores.sum(), x, allow_unused=True)[0]
            return scores.detach().cpu(), torch.zeros_like(images) if found is None else found.cpu()

    def _about(self) -> dict[str, Any]:
        if lacking := missing(self.reward):
            raise OSError(lacking)
        differentiable = is_differentiable(self.reward)
        if differentiable is None:
            pictures = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)).to(self.device)
            differentiable = probe_differentiable(self.reward, pictures, ["a red heart", "a fox"])
        said = {"name": name_of(self.reward), "differentiable": differentiable, "cost": cost_of(self.reward)}
        return said | {"version": wire.VERSION, "most_bytes": self.most_bytes}

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        """A client that went away is no fault of ours; anything else is shown."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """One connection. Whatever is wrong with a request is answered in words, and the server goes on."""

    server: Server  # type: ignore[assignment]
    timeout = PATIENCE
    server_version = "steer"
    unread = 0  # bytes of the request's body

    def do_GET(self) -> None:  # noqa: N802 (a name that http.server asks for)
        """GET /health."""
        self._answer_with(self._health)

    def do_POST(self) -> None:  # noqa: N802
        """POST /score."""
        self._answer_with(self._score)

    def _answer_with(self, work: Any) -> None:  # noqa: ANN401 (a method)
        try:
            kind, body = work()
        except Refused as error:
            self._drop()
            self._send(error.status, JSON, _error(str(error)))
        else:
            self._send(200, kind, body)

    def _health(self) -> tuple[str, bytes]:
        self._check_token()
        if self.path != "/health":
            raise Refused(404, f"there is no {self.path!r} to get; there are GET /health and POST /score")
        return JSON, json.dumps(self.server.about).encode("utf8")

    def _score(self) -> tuple[str, bytes]:
        from safetensors.torch import save

        self.unread = self._length()
        self._check_token()
        parts = urllib.parse.urlsplit(self.path)
        if parts.path != "/score" or parts.query not in ("", "gradient=0", "gradient=1"):
            raise Refused(404, f"there is no {self.path!r}; there are POST /score and POST /score?gradient=1")
        gradient = parts.query == "gradient=1"
        images, prompts = self._pictures(gradient)
        try:
            scores, found = self.server.score(images, prompts, gradient)
        except Exception as error:  # a user's reward may raise anything, and the server must go on
            LOGGER.exception("the reward failed")
            said = " ".join(str(error).split())[:500]
            raise Refused(422, f"the reward fails on these pictures: {type(error).__name__}: {said}") from error
        if found is None:
            return JSON, wire.pack_scores(scores)
        return wire.TENSORS, save({"scores": scores.contiguous(), "gradient": found.contiguous()})

    def _pictures(self, gradient: bool) -> tuple[Tensor, list[str]]:
        kind = self.headers.get_content_type()
        if kind not in (JSON, wire.TENSORS):
            raise Refused(415, f"Content-Type is {kind}; send {wire.TENSORS} or {JSON}")
        if gradient and (kind == JSON or not self.server.about["differentiable"]):
            raise Refused(400, f"gradient=1 needs a reward that has one, and Content-Type {wire.TENSORS}")
        body = self._body()
        try:
            return wire.unpack(body) if kind == wire.TENSORS else wire.unpack_json(body, self.server.most_bytes)
        except ValueError as error:
            raise Refused(400, " ".join(str(error).split())[:500]) from None

    def _length(self) -> int:
        given = self.headers.get("Content-Length", "")
        if not (given.isascii() and given.isdigit()):
            raise Refused(411, "Content-Length is missing, or no number")
        return int(given)

    def _body(self) -> bytes:
        length, most = self.unread, self.server.most_bytes
        if length > most:
            raise Refused(413, f"the body has {length} bytes, at most {most} are taken; send fewer pictures at once")
        body, self.unread = self.rfile.read(length), 0
        if len(body) < length:
            raise Refused(400, f"the body ends after {len(body)} of {length} bytes")
        return body

    def _drop(self) -> None:
        """Read on and forget, up to a bound: a client that is cut off while it sends would not see the answer."""
        left = min(self.unread, 2 * self.server.most_bytes)
        while left > 0 and (piece := self.rfile.read(min(left, 1 << 16))):
            left -= len(piece)

    def _check_token(self) -> None:
        given = self.headers.get("Authorization", "").encode("utf8")
        if self.server.token and not hmac.compare_digest(given, f"Bearer {self.server.token}".encode()):
            raise Refused(401, "the token is missing or wrong")

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What http.server itself refuses, such as a line that is no request: in the same form."""
        self._send(code, JSON, _error(message or self.responses.get(code, ("refused", ""))[0]))

    def log_message(self, format: str, *args: object) -> None:
        """To the log, not to the terminal."""
        LOGGER.debug(format, *args)


def serve(
    reward: object,
    host: str = "127.0.0.1",
    port: int = 8123,
    *,
    device: str | None = None,
    most_bytes: int = MOST_BYTES,
    token_env: str = "STEER_TOKEN",
) -> None:
    """Serve a reward until SIGINT or SIGTERM; `rewards.Remote(url)` is the other side.

    What is being scored then is answered first; a second signal ends at once.

    reward: anything that `to_reward` takes.
    host, port: by default this machine alone; port 0 takes a free one. The line that is printed names it.
    device: where pictures are scored; None takes CUDA where there is one.
    most_bytes: the longest body that is taken.
    token_env: the environment variable whose value, if it is set, every request must bring along.

    Raises:
        ValueError: a setting that can be none. OSError: the port is taken, or the reward's weights are missing.
    """
    server = Server(reward, host, port, device=device, most_bytes=most_bytes, token_env=token_env)

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        threading.Thread(target=server.shutdown).start()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        print(f"serving reward {name_of(server.reward)!r} on {server.url}", flush=True)
        server.serve_forever()
    finally:
        server.server_close()
        for number, handler in before.items():
            signal.signal(number, handler)
    print("stopped", flush=True)


def _error(words: str) -> bytes:
    return json.dumps({"error": words}).encode("utf8")


def _check(port: int, most_bytes: int) -> None:
    if not isinstance(port, int) or not 0 <= port < 1 << 16:
        raise ValueError(f"port={port!r} must be a whole number from 0 to 65535")
    if not isinstance(most_bytes, int) or most_bytes < 1 << 17:
        raise ValueError(f"most_bytes={most_bytes!r} must be a whole number, at least {1 << 17}")
