"""How many pictures a second a judge over HTTP scores: `rewards.VlmJudge` against a server that only waits.

The server is a real one, in a process of its own, and answers each request after the same time. So with c requests
under way at once nobody has more than c / latency answers a second; what lacks is the client's own work (a PNG,
its base64, a connection, a reply read), which runs on one core.
`python -m steer.bench.judge LATENCY` is that server; it prints its address.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

Row = dict[str, object]
TOP = [{"token": "Yes", "logprob": -0.1}, {"token": "No", "logprob": -2.4}]
REPLY = {"choices": [{"message": {"content": "Yes"}, "logprobs": {"content": [{"top_logprobs": TOP}]}}]}


def vlm_throughput(
    requests: int = 256, concurrency: Sequence[int] = (1, 8, 32), latency: float = 0.05, size: int = 64
) -> list[Row]:
    """A row for each number of requests under way at once: seconds and requests a second, without a cache.

    "under way" is the most that the server saw at once, "of the most" the share of c / latency that was reached.
    """
    import torch

    from rewards import VlmJudge

    images = torch.rand(requests, 3, size, size, generator=torch.Generator().manual_seed(0))
    prompts = ["a red heart"] * requests
    rows: list[Row] = []
    for c in concurrency:
        with _server(latency) as url:
            judge = VlmJudge(url, ask="logprobs", concurrency=c, cache=None, api_key_env="STEER_BENCH_NO_KEY")
            judge(images[:1], prompts[:1])  # connections, imports
            start = time.perf_counter()
            judge(images, prompts)
            seconds = time.perf_counter() - start
            rate, most = requests / seconds, _most(url)
        figures = {"seconds": seconds, "requests a second": rate, "of the most": rate * latency / c}
        rows.append({"concurrency": c, "under way": most, "requests": requests, "latency": latency, **figures})
    return rows


@contextmanager
def _server(latency: float) -> Iterator[str]:
    """The address of a server in a process of its own."""
    root = str(Path(__file__).resolve().parents[2])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "steer.bench.judge", str(latency)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            url = process.stdout.readline().strip()
            if not url:
                raise RuntimeError("the server of the benchmark did not start")
            yield url
        finally:
            process.kill()


def _most(url: str) -> int:
    from rewards.web import Endpoint

    return json.loads(Endpoint(url).ask("/models"))["most"]


class _Waiting(BaseHTTPRequestHandler):
    """Yes, after `latency` seconds; GET tells the most requests that were under way at once."""

    latency, now, most = 0.0, 0, 0
    turn = threading.Lock()

    def do_GET(self) -> None:  # noqa: N802 (a name that http.server asks for)
        self._send({"most": _Waiting.most})

    def do_POST(self) -> None:  # noqa: N802
        self.rfile.read(int(self.headers["Content-Length"]))
        self._count(1)
        time.sleep(_Waiting.latency)
        self._count(-1)
        self._send(REPLY)

    def _count(self, change: int) -> None:
        with _Waiting.turn:
            _Waiting.now += change
            _Waiting.most = max(_Waiting.most, _Waiting.now)

    def _send(self, answer: object) -> None:
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


class _Server(ThreadingHTTPServer):
    request_queue_size = 128


def main() -> None:
    """Serve until killed."""
    _Waiting.latency = float(sys.argv[1])
    with _Server(("127.0.0.1", 0), _Waiting) as server:
        print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
