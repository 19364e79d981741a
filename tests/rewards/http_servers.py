"""Real HTTP servers on this machine that behave as they are told, badly too, and note what they are asked."""

# ruff: noqa: ANN401 (what JSON holds, and what the standard library leaves open)

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Answer:
    """status and body; seconds to wait before; `cut` bytes of the body are never sent."""

    body: bytes = b"{}"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    cut: int = 0


@dataclass(frozen=True)
class Asked:
    """One POST."""

    path: str
    headers: dict[str, str]
    body: bytes
    time: float

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Told(ThreadingHTTPServer):
    """Answers the n-th POST (from 0) with play(n, asked); what it was asked is in `asked`, GETs are only counted."""

    request_queue_size = 128
    daemon_threads = True

    def __init__(self, play: Callable[[int, Asked], Answer]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.play, self.asked, self.gets = play, [], 0
        self.now, self.most, self.turn = 0, 0, threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients of these tests go away as they like."""


class _Handler(BaseHTTPRequestHandler):
    server: Told

    def do_GET(self) -> None:
        self.server.gets += 1
        self._send(Answer(b'{"data": []}'))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        asked = Asked(self.path, dict(self.headers), body, time.monotonic())
        server = self.server
        with server.turn:
            n = len(server.asked)
            server.asked.append(asked)
            server.now += 1
            server.most = max(server.most, server.now)
        try:
            answer = server.play(n, asked)
            time.sleep(answer.delay)
        finally:
            with server.turn:
                server.now -= 1
        self._send(answer)

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        for key, value in ({"Content-Length": str(len(answer.body))} | answer.headers).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(answer.body[: len(answer.body) - answer.cut])

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@contextmanager
def running(server: Any) -> Iterator[Any]:
    """The server, answering in a thread until the block ends."""
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def told(play: Callable[[int, Asked], Answer]) -> Iterator[Told]:
    with running(Told(play)) as server:
        yield server


def closed_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def completion(text: str, top: dict[str, float] | None = None, usage: tuple[int, int] | None = None) -> Answer:
    """What an OpenAI-compatible server answers: a text, log-probabilities of its first token, tokens in and out."""
    choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": text}, "logprobs": None}
    if top is not None:
        listed = [{"token": token, "logprob": p, "bytes": None} for token, p in top.items()]
        choice["logprobs"] = {"content": [{**listed[0], "top_logprobs": listed}]}
    body: dict[str, Any] = {"id": "x", "object": "chat.completion", "choices": [choice]}
    if usage:
        body["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
    return Answer(json.dumps(body).encode())
