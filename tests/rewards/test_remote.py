"""A reward on the other side of a real socket: the same scores and gradients, and a server that nothing brings down."""

import base64
import http.client
import io
import json
import pickle
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from PIL import Image
from torch import Tensor

import rewards
from rewards import wire
from rewards.serving import Server
from tests.rewards.http_servers import Answer, closed_port, running, told

PROMPTS = ["a red heart", "a fox", 'x \u2764 "y"']


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STEER_TOKEN", raising=False)


def pictures(b: int = 3, size: int = 32) -> Tensor:
    return torch.rand(b, 3, size, size, generator=torch.Generator().manual_seed(0))


@contextmanager
def served(reward: object, **settings: object) -> Iterator[Server]:
    with running(Server(reward, port=0, **settings)) as server:  # type: ignore[arg-type]
        yield server


def remote(url: str, **settings: object) -> rewards.Remote:
    return rewards.Remote(url, **{"wait": (0.01, 0.1), "retries": 2} | settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["redness", "clip", "jpeg-size"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_scores_are_those_of_the_reward_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    reward, images = rewards.get(name), pictures().to(dtype)
    with served(reward) as server:
        far = remote(server.url)
        scores = far(images, PROMPTS)
        assert (far.differentiable, far.cost) == (reward.differentiable, reward.cost)  # type: ignore[attr-defined]
    assert scores.dtype == dtype and torch.equal(scores, reward(images, PROMPTS))


@pytest.mark.parametrize("name", ["redness", "clip", "colour-match"])
def test_gradients_are_those_of_the_reward_bit_for_bit(name: str) -> None:
    reward, near, weights = rewards.get(name), pictures().requires_grad_(True), torch.tensor([1.0, 0.0, -4.0])
    far = near.detach().clone().requires_grad_(True)
    with served(reward) as server:
        scores = remote(server.url)(far, PROMPTS)
        (scores * weights).sum().backward()
    (reward(near, PROMPTS) * weights).sum().backward()
    assert torch.equal(scores, reward(near, PROMPTS)) and near.grad is not None and far.grad is not None
    torch.testing.assert_close(far.grad, near.grad, rtol=1e-6, atol=0)
    assert far.grad[1].abs().sum() == 0 < far.grad[2].abs().sum()


def test_a_gradient_of_weight_one_is_equal_bit_for_bit_and_there_is_no_second_one() -> None:
    images = pictures().requires_grad_(True)
    with served("clip") as server:
        scores = remote(server.url)(images, PROMPTS)
    (far,) = torch.autograd.grad(scores.sum(), images, retain_graph=True)
    (near,) = torch.autograd.grad(rewards.get("clip")(images, PROMPTS).sum(), images)
    assert torch.equal(far, near)
    (first,) = torch.autograd.grad(scores.square().sum(), images, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_no_gradient_where_none_is_wanted_or_there_is_none() -> None:
    images = pictures().requires_grad_(True)
    with served("jpeg-size") as black, served("redness") as server:
        assert not remote(black.url)(images, PROMPTS).requires_grad
        far = remote(server.url)
        assert not far(images.detach(), PROMPTS).requires_grad
        with torch.no_grad():
            assert not far(images, PROMPTS).requires_grad
        assert rewards.probe_differentiable(far, images.detach(), PROMPTS)


def test_a_function_of_ones_own_is_probed_at_the_start() -> None:
    with served(lambda images: images[:, 1].mean((1, 2))) as smooth, served(lambda images: [1.0] * len(images)) as flat:
        assert remote(smooth.url).differentiable is True and remote(flat.url).differentiable is False
        assert torch.equal(remote(flat.url)(pictures(2), PROMPTS[:2]), torch.ones(2))


def test_rejections_travel_and_nan_is_an_error() -> None:
    def picky(images: Tensor) -> Tensor:
        return torch.where(images[:, 0, 0, 0] > 2, torch.nan, images.mean((1, 2, 3)).log())

    images = torch.zeros(2, 3, 4, 4)
    images[1] = 1
    with served(rewards.Function(picky, "picky", differentiable=False)) as server:
        far = remote(server.url)
        assert far(images, PROMPTS[:2]).tolist() == [-torch.inf, 0]
        with pytest.raises(OSError, match=rf"{server.url}/score answers 422 .*'picky' returned NaN"):
            far(3 * images, PROMPTS[:2])
        assert far(images, PROMPTS[:2]).tolist() == [-torch.inf, 0]


def test_large_batches_go_in_parts_that_the_server_takes() -> None:
    counted = rewards.Counted(rewards.Redness())
    images = pictures(10, 64)  # of 49,152 bytes
    with served(counted, most_bytes=1 << 18) as server:
        assert torch.equal(remote(server.url)(images, ["x"] * 10), rewards.Redness()(images, ["x"] * 10))
        assert (counted.calls, counted.pictures) == (3, 10)  # four fit beside the prompts
        assert torch.equal(remote(server.url, chunk=1)(images, ["x"] * 10), rewards.Redness()(images, ["x"] * 10))
        assert counted.calls == 13
        assert remote(server.url)(images[:0], []).shape == (0,) and counted.calls == 13
        with pytest.raises(ValueError, match="a picture of 786432 bytes is more than .* takes"):
            remote(server.url)(pictures(1, 256), ["x"])


@pytest.mark.parametrize("name", ["redness", "clip"])
def test_json_of_pngs_gives_the_scores_of_eight_bits(name: str) -> None:
    images, reward = pictures(), rewards.get(name)
    with served(reward) as server:
        far = remote(server.url, format="json")
        scores = far(images.requires_grad_(True), PROMPTS)
        assert far.differentiable is False and not scores.requires_grad
    eight = (images.detach() * 255).round() / 255
    torch.testing.assert_close(scores, reward(eight, PROMPTS).detach(), rtol=1e-6, atol=1e-5)


def test_any_server_of_scores_can_be_asked_in_json() -> None:
    """One that knows nothing of ours: the fields of HTTP scorers elsewhere, another path, "-inf" as a text."""

    def scores(n: int, asked: object) -> Answer:
        given = asked.json  # type: ignore[attr-defined]
        levels = [Image.open(io.BytesIO(base64.b64decode(p))).getpixel((0, 0))[0] for p in given["images"]]
        return Answer(
            json.dumps({"scores": ["-inf" if v == 0 else v for v in levels], "extra": given["prompts"]}).encode()
        )

    images = (torch.tensor([0, 7, 255]) / 255).view(3, 1, 1, 1).expand(3, 3, 4, 4)
    with told(scores) as server:
        far = remote(server.url + "/api/reward", path="", format="json")
        assert far(images, PROMPTS).tolist() == [-torch.inf, 7, 255]
        assert server.asked[0].path == "/api/reward" and server.asked[0].json["prompts"] == PROMPTS


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"<html>", "answers Expecting value"),
        (b'{"score": [1, 2, 3]}', r'answers no {"scores": \[...\]} of 3 numbers'),
        (b'{"scores": [1, 2]}', "of 3 numbers"),
        (b'{"scores": [1, 2, "3"]}', "scores that are no numbers"),
        (b'{"scores": [1, 2, NaN]}', "NaN is no JSON"),
        (b'{"error": "out of memory"}', "answers an error: out of memory"),
    ],
)
def test_answers_that_hold_no_scores(body: bytes, message: str) -> None:
    with told(lambda n, a: Answer(body)) as server, pytest.raises(OSError, match=message) as error:
        remote(server.url, format="json")(pictures(), PROMPTS)
    assert f"{server.url}/score" in str(error.value) and len(server.asked) == 1


@pytest.mark.parametrize(
    "fault", [Answer(b"", 503), Answer(delay=2.0), Answer(b'{"scores": [1, 2, 3]}', cut=3), Answer(b"", 429)]
)
def test_what_passes_is_tried_again_exactly_so_often(fault: Answer) -> None:
    good = Answer(b'{"scores": [1, 2, 3]}')
    with told(lambda n, a: fault if n < 2 else good) as server:
        assert remote(server.url, format="json", timeout=0.8)(pictures(), PROMPTS).tolist() == [1, 2, 3]
        assert len(server.asked) == 3
    with told(lambda n, a: fault) as server:
        with pytest.raises(OSError, match="after 3 tries"):
            remote(server.url, format="json", timeout=0.8)(pictures(), PROMPTS)
        assert len(server.asked) == 3


@pytest.mark.parametrize("form", ["safetensors", "json"])
def test_nobody_there(form: str) -> None:
    far = remote(f"http://127.0.0.1:{closed_port()}", format=form)
    lacking = far.missing()
    assert lacking and "steer serve-reward" in lacking and far.url in lacking
    with pytest.raises(OSError) as error:
        far(pictures(), PROMPTS)
    assert str(error.value) == lacking and far.cost == 0
    assert far.differentiable is (None if form == "safetensors" else False)


def test_a_server_of_something_else_or_of_another_version() -> None:
    with told(lambda n, a: Answer()) as server:
        with pytest.raises(OSError, match="/health is not that of a server of rewards; check the url"):
            remote(server.url)(pictures(), PROMPTS)
    with served("redness") as server:
        server.about["version"] = 99
        with pytest.raises(OSError, match="speaks version 99 of the protocol, this client 1; install the same"):
            remote(server.url)(pictures(), PROMPTS)


def post(server: Server, body: bytes, path: str = "/score", **headers: str) -> tuple[int, dict]:
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=10)
    connection.request("POST", path, body, {key.replace("_", "-"): value for key, value in headers.items()})
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def png(size: tuple[int, int] = (4, 4)) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", size).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def save(**tensors: Tensor) -> bytes:
    from safetensors.torch import save

    return save(tensors)


def texts(*prompts: str) -> Tensor:
    return torch.tensor(list(json.dumps(prompts).encode()), dtype=torch.uint8)


BAD = {
    "pickle": (pickle.dumps({"images": [1]}), wire.TENSORS, 400, "no safetensors file"),
    "nothing": (b"", wire.TENSORS, 400, "no safetensors file"),
    "a huge header": (b"\xff" * 64, wire.TENSORS, 400, "no safetensors file"),
    "other tensors": (save(a=torch.ones(1)), wire.TENSORS, 400, "holds .'a'"),
    "prompts as floats": (save(images=pictures(1), prompts=torch.ones(1)), wire.TENSORS, 400, "the latter uint8"),
    "prompts no JSON": (save(images=pictures(1), prompts=torch.tensor([1, 2]).byte()), wire.TENSORS, 400, "no JSON"),
    "too few prompts": (save(images=pictures(2), prompts=texts("x")), wire.TENSORS, 400, "1 prompts for 2 images"),
    "NaN": (save(images=pictures(1) * torch.nan, prompts=texts("x")), wire.TENSORS, 400, "NaN or infinity"),
    "bytes": (save(images=pictures(1).byte(), prompts=texts("x")), wire.TENSORS, 400, "torch.uint8"),
    "a tiny type": (
        save(images=pictures(1).to(torch.float8_e5m2), prompts=texts("x")), wire.TENSORS, 400, "float8_e5m2; give one"
    ),
    "no batch": (save(images=pictures(1)[0], prompts=texts("x")), wire.TENSORS, 400, "shape"),
    "a form": (b"images=1", "application/x-www-form-urlencoded", 415, "send application/x-safetensors or"),
    "no JSON": (b"{", "application/json", 400, "Expecting"),
    "deep JSON": (b"[" * 100_000, "application/json", 400, "nested too deeply"),
    "other JSON": (b'{"images": "x"}', "application/json", 400, "the body is no"),
    "numbers": (b'{"images": [1], "prompts": ["x"]}', "application/json", 400, "not a text in base64"),
    "no base64": (b'{"images": ["!!"], "prompts": ["x"]}', "application/json", 400, "no picture in base64"),
    "no picture": (b'{"images": ["AAAA"], "prompts": ["x"]}', "application/json", 400, "no picture in base64"),
    "two sizes": (
        json.dumps({"images": [png(), png((5, 4))], "prompts": ["x", "y"]}).encode(), "application/json", 400, "sizes"
    ),
    "a bomb": (
        json.dumps({"images": [png((9000, 9000))], "prompts": ["x"]}).encode(), "application/json", 400, "too large"
    ),
    "too long": (bytes(2 << 20), wire.TENSORS, 413, "at most 1048576 are taken"),
}  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with served("redness", most_bytes=1 << 20) as found:
        yield found


@pytest.mark.parametrize("case", BAD)
def test_bad_bodies_are_refused_in_words_and_the_server_goes_on(case: str, server: Server) -> None:
    body, kind, status, message = BAD[case]
    found, said = post(server, body, Content_Type=kind)
    assert found == status and re.search(message, said["error"]), said
    assert remote(server.url)(pictures(), PROMPTS).shape == (3,)


def test_other_paths_and_broken_requests(server: Server) -> None:
    good = wire.pack(pictures(), PROMPTS)
    assert post(server, good, "/scores", Content_Type=wire.TENSORS)[0] == 404
    assert post(server, good, "/score?gradient=2", Content_Type=wire.TENSORS)[0] == 404
    assert post(server, good, "/score", Content_Type=wire.TENSORS, Content_Length="x")[0] == 411
    for raw in (
        b"what\r\n\r\n",
        b"PUT /score HTTP/1.1\r\n\r\n",
        b"\xff\x00\xff\r\n\r\n",
        b"GET /x HTTP/9.9\r\n\r\n",
        b"",
    ):
        with socket.create_connection(server.server_address[:2], timeout=5) as line:
            line.sendall(raw)
            line.shutdown(socket.SHUT_WR)
            said = b"".join(iter(lambda: line.recv(65536), b""))
        assert not raw or json.loads(said[said.rindex(b"{") :])["error"]
    with socket.create_connection(server.server_address[:2]) as line:  # goes away in the middle
        line.sendall(b"POST /score HTTP/1.1\r\nContent-Length: 1000\r\n\r\nabc")
    assert remote(server.url)(pictures(), PROMPTS).shape == (3,)


def test_a_reward_that_raises_is_answered_and_shown_to_the_caller(caplog: pytest.LogCaptureFixture) -> None:
    def broken(images: Tensor) -> Tensor:
        raise RuntimeError("all mine")

    with served(rewards.Function(broken, differentiable=False)) as server:
        with pytest.raises(OSError, match="422 .*the reward fails on these pictures: RuntimeError: all mine"):
            remote(server.url)(pictures(), PROMPTS)
    assert "Traceback" in caplog.text  # on the server's side


def test_the_reward_scores_one_request_at_a_time() -> None:
    now, most = [], []

    def slow(images: Tensor) -> Tensor:
        now.append(1)
        most.append(len(now))
        time.sleep(0.02)
        now.pop()
        return images.mean((1, 2, 3))

    with served(rewards.Function(slow, differentiable=False)) as server:
        threads = [threading.Thread(target=remote(server.url), args=(pictures(), PROMPTS)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert most == [1] * 8


def test_a_token_is_asked_for_and_told_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEER_TOKEN", "open-sesame")
    with served("redness") as server:
        far = remote(server.url)
        assert far(pictures(), PROMPTS).shape == (3,)
        assert "sesame" not in repr(far) and b"sesame" not in pickle.dumps(far)
        monkeypatch.setenv("STEER_TOKEN", "guessed")
        with pytest.raises(OSError, match=r"answers 401 .*the token is missing or wrong; .*variable STEER_TOKEN"):
            far(pictures(), PROMPTS)
        monkeypatch.delenv("STEER_TOKEN")
        assert "answers 401" in str(remote(server.url).missing())


def test_an_open_door_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="host='0.0.0.0': whoever reaches it .*STEER_TOKEN"):
        Server("redness", "0.0.0.0", 0).server_close()


def test_copies_ask_the_server_anew() -> None:
    with served("redness") as server:
        far = remote(server.url + "/")
        assert far(pictures(), PROMPTS).shape == (3,)
        other = pickle.loads(pickle.dumps(far))
        assert other == far and other._said == {} and torch.equal(other(pictures(), PROMPTS), far(pictures(), PROMPTS))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": "here"}, "url='here' is no address"), ({"format": "pickle"}, "format='pickle' is unknown; known: saf"),
        ({"chunk": 0}, "chunk=0 must be at least 1"), ({"timeout": -1}, "timeout=-1"),
    ],
)  # fmt: skip
def test_settings_that_can_be_none(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rewards.Remote(**settings)


def test_ports_that_can_be_none() -> None:
    with served("redness") as server, pytest.raises(OSError, match="cannot be opened .*port=0 for any that is free"):
        Server("redness", port=server.server_address[1])
    for port in (-1, 1 << 16, "http"):
        with pytest.raises(ValueError, match=f"port={port!r} must be a whole number from 0 to 65535"):
            Server("redness", port=port)  # type: ignore[arg-type]
