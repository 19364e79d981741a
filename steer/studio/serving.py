"""The server of the studio: for this machine alone, without a word to any other."""

import os
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from steer.studio.offers import Shelf

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

HOST = "127.0.0.1"
MOST_BYTES = 1 << 16  # of a request: settings and a table of a few rows
REFUSED = ("file", "upload", "proxy", "component_server", "stream", "run-history", "deep_link", "dev/")
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; "
    "frame-ancestors 'none'; form-action 'none'; base-uri 'self'"
)


class Guard:
    """An ASGI app that refuses other hosts' names (so that no page elsewhere can reach this one under a name of its
    own), files, and long requests, and forbids the page to load anything from elsewhere.
    """

    def __init__(self, app: "ASGIApp") -> None:
        self.app = app

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Answer, or hand on."""
        from starlette.responses import PlainTextResponse

        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        words = _refusal(scope) if scope["type"] == "http" else "this server takes HTTP alone"
        if words:
            return await PlainTextResponse(words, 403)(scope, receive, send)

        async def guarded(message: "Message") -> None:
            if message["type"] == "http.response.start":
                more = {"content-security-policy": POLICY, "x-content-type-options": "nosniff",
                        "referrer-policy": "no-referrer"}  # fmt: skip
                message["headers"] = [*message["headers"], *((k.encode(), v.encode()) for k, v in more.items())]
            await send(message)

        await self.app(scope, receive, guarded)


def _refusal(scope: "Scope") -> str | None:
    """Why a request is refused; None where it is not."""
    headers = {key.decode("latin1").lower(): value.decode("latin1") for key, value in scope["headers"]}
    if headers.get("host", "").rpartition(":")[0] not in (HOST, "localhost"):
        return f"this server answers to {HOST} alone"
    if any(scope["path"].removeprefix("/gradio_api").lstrip("/").startswith(part) for part in REFUSED):
        return "this server takes no files"
    length = headers.get("content-length", "0" if scope["method"] in ("GET", "HEAD") else "")
    if not length.isdecimal() or int(length) > MOST_BYTES or "transfer-encoding" in headers:
        return f"a request has at most {MOST_BYTES} bytes, and says how many"
    return None


@contextmanager
def started(shelf: Shelf, port: int = 0) -> Iterator[str]:
    """The studio, answering until the block ends, and its address; port 0 takes a free one.

    Raises:
        ValueError: the port is none. OSError: it is taken. ModuleNotFoundError: gradio or matplotlib is not installed.
    """
    port = _free(port)
    with tempfile.TemporaryDirectory(prefix="steer-studio-") as folder, _environment(folder):
        page, looks = _page(shelf)
        try:
            page.launch(
                server_name=HOST, server_port=port, share=False, inbrowser=False, prevent_thread_lock=True, quiet=True,
                app_kwargs={"middleware": [_guard()]}, ssr_mode=False, mcp_server=False, pwa=False, run_history=False,
                enable_monitoring=False, footer_links=[], allowed_paths=[], max_file_size=1, **looks,
            )  # fmt: skip
            yield f"http://{HOST}:{port}"
        finally:
            page.close(verbose=False)


@contextmanager
def _environment(folder: str) -> Iterator[None]:
    """What gradio reads for itself: its one folder, and that it is to report nothing to anyone."""
    told = {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_ALLOWED_PATHS": ""}
    before = {key: os.environ.get(key) for key in told}
    os.environ.update(told)
    try:
        yield
    finally:
        for key, value in before.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})


def _page(shelf: Shelf) -> tuple[Any, dict[str, Any]]:
    import rewards.towers

    rewards.towers.mend_torchvision()  # before gradio looks for what is installed
    try:
        import gradio  # noqa: F401
        import matplotlib  # noqa: F401, ICN001
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"steer studio needs {error.name}; pip install 'steer[studio]'") from error
    from steer.studio.page import looks, page

    return page(shelf), looks()


def _guard() -> Any:  # noqa: ANN401
    from starlette.middleware import Middleware

    return Middleware(Guard)


def _free(port: object) -> int:
    """The port, tried; for 0 one that is free."""
    if not isinstance(port, int) or isinstance(port, bool) or not 0 <= port < 1 << 16:
        raise ValueError(f"port={port!r} must be a whole number from 0 to 65535")
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((HOST, port))
        except OSError as error:
            raise OSError(
                f"port={port} cannot be opened ({error.strerror}); give another, or 0 for a free one"
            ) from error
        return tried.getsockname()[1]


def serve(shelf: Shelf, port: int = 7860) -> None:
    """The studio on this machine until SIGINT or SIGTERM; prints its address. See `started` for what it raises."""
    ended = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        ended.set()

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with started(shelf, port) as address:
            print(f"steer studio is at {address} for this machine alone; Ctrl+C ends it", flush=True)
            while not ended.wait(0.5):  # a wait without end would not hear of signals on Windows
                pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    print("stopped", flush=True)
