"""The judge over HTTP, against real servers on this machine: what it asks, reads, retries, keeps, spends and hides."""

import asyncio
import base64
import copy
import io
import json
import logging
import math
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

import rewards
from rewards.asking import LOGPROBS, Unreadable, grade, yes_share
from rewards.cache import Cache, key_of
from rewards.purse import Spent
from rewards.web import NoAnswer, retrying
from tests.rewards.http_servers import Answer, Asked, Told, closed_port, completion, told

ROOT = Path(__file__).resolve().parents[2]
KEY = "sk-secret-0123456789"


def pictures(b: int) -> Tensor:
    """One grey each: picture i has the level i / 255."""
    return (torch.arange(b) / 255).view(b, 1, 1, 1).expand(b, 3, 8, 8)


def level(asked: Asked) -> int:
    """Which of `pictures` a request holds: its PNG is decoded."""
    url = asked.json["messages"][0]["content"][0]["image_url"]["url"]
    assert url.startswith("data:image/png;base64,")
    return Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).getpixel((0, 0))[0]  # type: ignore[index]


def probability(asked: Asked) -> float:
    return (level(asked) + 1) / 300


def yes(n: int, asked: Asked) -> Answer:
    """P(yes) tells the picture, so that the order of scores can be seen."""
    p = probability(asked)
    return completion("Yes", {"Yes": math.log(p), "No": math.log(1 - p)}, (100, 1))


def judge(server: Told, tmp_path: Path | None = None, **settings: object) -> rewards.VlmJudge:
    plain: dict = {"ask": LOGPROBS, "wait": (0.01, 0.2), "cache": None if tmp_path is None else str(tmp_path / "c")}
    return rewards.VlmJudge(server.url + "/v1/", "small-vlm", **plain | settings)


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def test_the_share_of_yes_by_hand() -> None:
    """All ways to write the two words are summed; other tokens count for nothing."""
    log = {"Yes": 0.3, " yes": 0.1, "\u2581YES": 0.05, "No": 0.2, "\u0120no": 0.05, "Maybe": 0.3}
    reply = json.loads(completion("Yes", {k: math.log(p) for k, p in log.items()}).body)
    assert yes_share(reply) == pytest.approx(0.45 / 0.7)
    assert yes_share(json.loads(completion("Yes", {"Yes": -0.1, "Well": -3.0}).body)) == 1
    assert yes_share(json.loads(completion("No", {"No": -9999.0, "Yes": -9999.0}).body)) == 0.5
    assert yes_share(json.loads(completion("Yes").body)) is None
    with pytest.raises(Unreadable, match="neither yes nor no, but 'Well'"):
        yes_share(json.loads(completion("Well", {"Well": -0.1}).body))


@pytest.mark.parametrize(
    ("text", "score"), [("1", 0), ("10", 1), (" 5.5\n", 0.5), ("4/10", 1 / 3), ("4 / 10.", 1 / 3), ("7.", 2 / 3)]
)
def test_grades_are_scaled(text: str, score: float) -> None:
    assert grade(json.loads(completion(text).body), (1, 10)) == pytest.approx(score)


@pytest.mark.parametrize("text", ["0", "11", "-3", "7/5", "seven", "I give it 7", "7 8", "", "NaN", "1e1", "\u0667x"])
def test_grades_are_read_strictly(text: str) -> None:
    with pytest.raises(Unreadable, match="where a number from 1 to 10 alone was asked for"):
        grade(json.loads(completion(text).body), (1, 10))


def test_what_is_asked_and_what_comes_back() -> None:
    images = pictures(3)
    with told(yes) as server:
        scores = judge(server, question="Is it {prompt}? {x}")(images.double(), ["a {b}", "c", "d"])
    assert scores.dtype == torch.float64
    torch.testing.assert_close(scores, torch.tensor([1, 2, 3]).double() / 300)
    asked = sorted(server.asked, key=level)
    assert [a.path for a in asked] == ["/v1/chat/completions"] * 3
    assert asked[0].headers["Authorization"] == f"Bearer {KEY}"
    body = asked[0].json
    assert body["messages"][0]["content"][1] == {"type": "text", "text": "Is it a {b}? {x}"}
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("small-vlm", 0, 1)
    assert (body["logprobs"], body["top_logprobs"]) == (True, 20)


def test_thirty_two_are_under_way_at_once_and_the_order_is_kept() -> None:
    """The server answers none of the first 32 before it has them all; it never sees more."""
    all_there = threading.Barrier(32, timeout=20)

    def play(n: int, asked: Asked) -> Answer:
        if n < 32:
            all_there.wait()
        return yes(n, asked)

    with told(play) as server:
        scores = judge(server)(pictures(80), ["x"] * 80)
    assert server.most == 32 and len(server.asked) == 80
    torch.testing.assert_close(scores, torch.arange(1, 81) / 300)


def test_fewer_at_once_where_told() -> None:
    with told(lambda n, a: (time.sleep(0.02), yes(n, a))[1]) as server:
        judge(server, concurrency=3)(pictures(12), ["x"] * 12)
    assert server.most == 3


def test_equal_pictures_are_asked_once() -> None:
    images = pictures(2)[[0, 1, 0, 0]]
    with told(yes) as server:
        scores = judge(server)(images, ["x", "x", "x", "y"])
    assert len(server.asked) == 3 and scores[0] == scores[2] == scores[3]


def test_grades_of_a_server_without_logprobs_with_one_warning(tmp_path: Path) -> None:
    with told(lambda n, a: completion("7")) as server:
        reward = judge(server, tmp_path, ask="auto", grades=(1, 10))
        with pytest.warns(UserWarning, match="gives no logprobs") as warned:
            scores = reward(pictures(3), ["x"] * 3)
        reward(pictures(6), ["x"] * 6)
    assert len(warned) == 1 and scores.tolist() == pytest.approx([2 / 3] * 3)
    asked = [a.json for a in server.asked]
    assert ["logprobs" in a for a in asked] == [True, *[False] * 6]  # the first one settles it for all
    assert "Grade it from 1" in asked[1]["messages"][0]["content"][1]["text"] and asked[1]["max_tokens"] == 16


def test_grades_where_the_server_refuses_logprobs() -> None:
    def play(n: int, asked: Asked) -> Answer:
        refused = Answer(b'{"error": {"message": "logprobs are not supported with this model"}}', 400)
        return refused if "logprobs" in asked.json else completion("10")

    with told(play) as server, pytest.warns(UserWarning, match="gives no logprobs"):
        assert judge(server, ask="auto")(pictures(2), ["x"] * 2).tolist() == [1, 1]
    assert len(server.asked) == 3


def test_auto_takes_probabilities_where_there_are_some() -> None:
    with told(yes) as server:
        scores = judge(server, ask="auto")(pictures(5), ["x"] * 5)
    torch.testing.assert_close(scores, torch.arange(1, 6) / 300)
    assert len(server.asked) == 5


def test_logprobs_that_are_asked_for_and_lacking() -> None:
    with told(lambda n, a: completion("Yes")) as server, pytest.raises(OSError, match='no logprobs.*take ask="graded"'):
        judge(server)(pictures(1), ["x"])


FAULTS: dict[str, Callable[[], Answer]] = {
    "500": lambda: Answer(b"oh", 500),
    "408": lambda: Answer(b"", 408),
    "503": lambda: Answer(b'{"error": "busy"}', 503),
    "slow": lambda: Answer(delay=2.0),
    "cut off": lambda: Answer(b'{"choices": []}', cut=4),
    "no length, no end": lambda: Answer(b"5\r\nabc", headers={"Transfer-Encoding": "chunked"}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_passes_is_tried_again_exactly_so_often(fault: str) -> None:
    """Two faults, then a score; with one retry less, an error that names the address and the tries."""

    def play(n: int, asked: Asked) -> Answer:
        return FAULTS[fault]() if n < 2 else yes(n, asked)

    with told(play) as server:
        assert judge(server, retries=2, timeout=0.8)(pictures(1), ["x"]).item() == pytest.approx(1 / 300)
        assert len(server.asked) == 3
    with told(play) as server:
        with pytest.raises(OSError, match=rf"{server.url}/v1/chat/completions .*\(after 2 tries\)"):
            judge(server, retries=1, timeout=0.8)(pictures(1), ["x"])
        assert len(server.asked) == 2


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_what_does_not_pass_is_asked_once(status: int) -> None:
    with told(lambda n, a: Answer(b'{"error": {"message": "never so"}}', status)) as server:
        with pytest.raises(NoAnswer, match=f"answers {status} .*never so") as error:
            judge(server)(pictures(1), ["x"])
    assert len(server.asked) == 1 and error.value.status == status


def test_retry_after_is_honoured_within_bounds() -> None:
    def play(n: int, asked: Asked) -> Answer:
        return Answer(b"", 429, {"Retry-After": "0.5" if n == 0 else "3600"}) if n < 2 else yes(n, asked)

    with told(play) as server:
        judge(server, wait=(0.001, 0.7))(pictures(1), ["x"])
    first, second, third = (a.time for a in server.asked)
    assert second - first >= 0.5 and 0.7 <= third - second < 30


def test_waits_double_with_jitter_up_to_the_longest() -> None:
    class Noted(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout or 0)
            return False

    def attempt() -> None:
        raise NoAnswer("no", 500)

    for _ in range(20):
        waits: list[float] = []
        with pytest.raises(NoAnswer, match="after 7 tries"):
            retrying(attempt, 6, (0.1, 1.0), Noted())
        assert len(waits) == 6 and all(0.05 * 2**k <= w <= 0.1 * 2**k for k, w in enumerate(waits[:4]))
        assert 0.8 <= waits[4] <= 1 == waits[5]


def test_a_failure_ends_the_waiting_of_the_others() -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(NoAnswer, match="^busy$"):
        retrying(lambda: (_ for _ in ()).throw(NoAnswer("busy", 503)), 5, (60.0, 60.0), stop)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Answer(b"<html>"), "answers no JSON; is it an OpenAI-compatible server"),
        (Answer(b"[]"), "JSON without choices"),
        (Answer(b'{"choices": []}'), "JSON without choices"),
        (Answer(b'{"choices": [{"logprobs": {"content": [{}]}}]}'), "logprobs without top_logprobs"),
        (completion("Hm", {"Hm": -0.1}), "neither yes nor no, but 'Hm'"),
        (Answer(b"", 302, {"Location": "http://else.where/"}), "redirects to http://else.where/; give that"),
    ],
)
def test_replies_that_hold_no_score(answer: Answer, message: str) -> None:
    with told(lambda n, a: answer) as server, pytest.raises(OSError, match=message) as error:
        judge(server)(pictures(1), ["x"])
    assert server.url in str(error.value) and len(server.asked) == 1


def test_pictures_that_fail_are_rejected_where_told_and_others_are_not(tmp_path: Path) -> None:
    def play(n: int, asked: Asked) -> Answer:
        return Answer(b'{"error": "unsafe"}', 400) if level(asked) == 1 else yes(n, asked)

    with told(play) as server:
        reward = judge(server, tmp_path, on_failure="reject")
        with pytest.warns(UserWarning, match="1 of 3 pictures have no score and are rejected: .*unsafe"):
            scores = reward(pictures(3), ["x"] * 3)
        assert scores[1] == -torch.inf and scores[[0, 2]].isfinite().all()
        with pytest.warns(UserWarning, match="1 of 1 pictures"):  # a failure is not kept: it alone is asked again
            assert torch.equal(reward(pictures(3), ["x"] * 3), scores)
    assert len(server.asked) == 4


def test_a_key_that_is_refused_is_no_matter_of_one_picture() -> None:
    with told(lambda n, a: Answer(b"", 401)) as server, pytest.raises(OSError, match="variable OPENAI_API_KEY"):
        judge(server, on_failure="reject")(pictures(40), ["x"] * 40)
    assert len(server.asked) <= 32


def test_nobody_there_is_told_before_anything_is_tried() -> None:
    reward = rewards.VlmJudge(f"http://127.0.0.1:{closed_port()}/v1", cache=None)
    lacking = reward.missing()
    assert lacking and "vllm serve" in lacking and "base_url=" in lacking
    start = time.monotonic()
    with pytest.raises(OSError) as error:
        reward(pictures(1), ["x"])
    assert (
        str(error.value) == lacking and time.monotonic() - start < 3
    )  # three seconds of waits at least, were it tried again
    with told(yes) as server:
        assert judge(server).missing() is None


def test_a_server_that_goes_away_in_between_is_tried_again() -> None:
    with told(yes) as server:
        reward = judge(server, retries=3)
        reward(pictures(1), ["x"])
    with pytest.raises(OSError, match=r"gives no whole answer: .*refused.*after 4 tries"):
        reward(pictures(2), ["x"] * 2)


def test_the_cache_saves_every_request_also_in_a_new_process(tmp_path: Path) -> None:
    with told(yes) as server:
        first = judge(server, tmp_path, ask="auto")(pictures(6), ["x"] * 6)
        assert len(server.asked) == 6
        assert torch.equal(judge(server, tmp_path, ask="auto")(pictures(6), ["x"] * 6), first)
        code = (
            "import sys, torch, rewards; images = (torch.arange(7) / 255).view(7, 1, 1, 1).expand(7, 3, 8, 8);"
            "judge = rewards.VlmJudge(sys.argv[1], 'small-vlm', cache=sys.argv[2]);"
            "print(judge(images[:6], ['x'] * 6).tolist()); judge(images, ['x'] * 7)"
        )
        command = [sys.executable, "-c", code, server.url + "/v1", str(tmp_path / "c")]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == first.tolist() and len(server.asked) == 7  # one picture was new
    files = [f for f in (tmp_path / "c").rglob("*") if f.is_file()]
    assert len(files) == 8 and all(f.suffix == ".json" for f in files)  # one says how the server is asked


@pytest.mark.parametrize(
    "change",
    [
        {"model": "other"}, {"question": "Really {prompt}?"}, {"extra": {"seed": 1}},
        {"ask": "graded"},
    ],
)  # fmt: skip
def test_another_question_is_another_answer(change: dict, tmp_path: Path) -> None:
    def play(n: int, asked: Asked) -> Answer:
        return yes(n, asked) if "logprobs" in asked.json else completion("3")

    with told(play) as server:
        judge(server, tmp_path)(pictures(1), ["x"])
        settings = {"model": "small-vlm"} | change
        rewards.VlmJudge(server.url + "/v1", **{"cache": str(tmp_path / "c"), "ask": LOGPROBS} | settings)(
            pictures(1), ["x"]
        )
    assert len(server.asked) == 2


def test_damaged_files_of_the_cache_are_asked_for_anew(tmp_path: Path) -> None:
    with told(yes) as server:
        first = judge(server, tmp_path)(pictures(1), ["x"])
        (file,) = [f for f in (tmp_path / "c").rglob("*.json")]
        for text in ("{", '{"score": "high"}', '{"score": 7.0}', "[1]"):
            file.write_text(text)
            assert torch.equal(judge(server, tmp_path)(pictures(1), ["x"]), first)
    assert len(server.asked) == 5


def scribble(cache: Cache, key: str) -> None:
    for i in range(300):
        cache.write(key, {"score": 0.5, "text": "x" * (i * 97 % 9000)})


def test_the_cache_is_never_read_by_half_while_others_write(tmp_path: Path) -> None:
    """Four processes write the same key, with entries of different lengths, while this one reads it."""
    cache, key = Cache(tmp_path), key_of("a", {"b": 1})
    cache.write(key, {"score": 0.5})
    writers = [multiprocessing.get_context("fork").Process(target=scribble, args=(cache, key)) for _ in range(4)]
    for writer in writers:
        writer.start()
    reads = 0
    while any(writer.is_alive() for writer in writers) or not reads:
        entry = cache.read(key)
        assert entry and entry["score"] == 0.5
        reads += 1
    assert [writer.exitcode for writer in writers] == [0] * 4
    assert [f.name for f in tmp_path.rglob("*") if f.is_file()] == [f"{key}.json"]


def test_a_cache_that_cannot_be_written_is_told_before_a_request(tmp_path: Path) -> None:
    (tmp_path / "c").write_text("")
    with told(yes) as server, pytest.raises(OSError, match=r"cache='.*c' cannot be written to .*or None"):
        judge(server, tmp_path)(pictures(1), ["x"])
    assert server.asked == []


def test_requests_are_capped_and_what_was_answered_is_not_lost(tmp_path: Path) -> None:
    with told(yes) as server:
        with pytest.raises(Spent, match=r"max_requests=5 is reached: 5 requests, 500 \+ 5 tokens.*kept in cache="):
            judge(server, tmp_path, max_requests=5)(pictures(20), ["x"] * 20)
        assert len(server.asked) == 5
        judge(server, tmp_path)(pictures(20), ["x"] * 20)
    assert len(server.asked) == 20


def test_tries_count_as_requests() -> None:
    with told(lambda n, a: Answer(b"", 500)) as server, pytest.raises(Spent, match="max_requests=2"):
        judge(server, max_requests=2)(pictures(1), ["x"])
    assert len(server.asked) == 2


@pytest.mark.parametrize("cap", [0.0, 0.0149, 0.0151, 0.1])
def test_dollars_are_capped_before_they_are_spent(cap: float, tmp_path: Path) -> None:
    """A request costs 100 * 20 / 1e6 + 1 * 1000 / 1e6 = 0.003 dollars, though 32 may be under way at once."""
    with told(yes) as server:
        reward = judge(server, tmp_path, max_spend=cap, price=(20.0, 1000.0), input_tokens=100, max_tokens=1)
        with pytest.raises(Spent, match=f"max_spend={cap:g} would be passed"):
            reward(pictures(50), ["x"] * 50)
        assert len(server.asked) == math.floor(cap / 0.003 + 1e-9)
        assert reward.spent().startswith(f"{len(server.asked)} requests, {100 * len(server.asked)} + ")


def test_the_first_reply_teaches_the_price() -> None:
    """The guess is a hundredth of the truth: were it believed for long, 32 would go at once and pass the limit."""
    with told(yes) as server, pytest.raises(Spent):
        judge(server, max_spend=0.01, price=(20.0, 1000.0), input_tokens=1, max_tokens=1)(pictures(50), ["x"] * 50)
    assert len(server.asked) == 3


def test_the_key_is_seen_by_the_server_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in texts, pickles, copies, files or logs, and not in errors of a server that repeats it."""

    def play(n: int, asked: Asked) -> Answer:
        echo = json.dumps({"error": {"message": f"bad key: {asked.headers['Authorization']}"}}).encode()
        if n < 1:
            return Answer(echo, 500)
        return yes(n, asked) if n < 3 else Answer(echo, 401) if n < 4 else completion(KEY, {KEY: -0.1})

    caplog.set_level(logging.DEBUG)
    with told(play) as server:
        reward = judge(server, tmp_path, retries=1)
        reward(pictures(2), ["x"] * 2)
        errors = []
        for i in (3, 4):
            with pytest.raises(OSError) as error:
                reward(pictures(5)[i : i + 1], ["x"])
            errors.append(f"{error.value} {error.value!r} {vars(error.value)} {error.value.__cause__}")
    assert "bad key: Bearer ***" in errors[0] and "again in" in caplog.text
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\n{KEY}")
    with pytest.raises(ValueError, match="OPENAI_API_KEY holds characters") as error:
        reward(pictures(6)[5:], ["x"])
    files = b"".join(f.read_bytes() for f in tmp_path.rglob("*") if f.is_file())
    texts = [*errors, str(error.value), caplog.text, repr(reward), str(reward), reward.spent(), str(vars(reward))]
    assert all(KEY not in text for text in texts)
    assert all(KEY.encode() not in data for data in (pickle.dumps(reward), files)) and b"score" in files


def test_copies_and_pickles_work_and_have_spent_nothing() -> None:
    with told(yes) as server:
        reward = judge(server, max_requests=2, extra={"seed": 1})
        reward(pictures(2), ["x"] * 2)
        for other in (copy.deepcopy(reward), pickle.loads(pickle.dumps(reward))):
            assert other == reward and hash(other) == hash(reward)
            other(pictures(2), ["x"] * 2)
        with pytest.raises(Spent):
            reward(pictures(1), ["x"])


def test_extra_keys_are_added_and_taken_away() -> None:
    with told(yes) as server:
        judge(server, extra={"max_tokens": None, "max_completion_tokens": 5, "seed": 1})(pictures(1), ["x"])
    body = server.asked[0].json
    assert "max_tokens" not in body and (body["max_completion_tokens"], body["seed"]) == (5, 1)


def test_inside_a_running_loop_and_from_several_threads() -> None:
    async def inside(reward: rewards.VlmJudge) -> Tensor:
        return reward(pictures(3), ["x"] * 3)

    with told(yes) as server:
        reward = judge(server)
        torch.testing.assert_close(asyncio.run(inside(reward)), torch.arange(1, 4) / 300)
        found: dict[int, Tensor] = {}
        work = [lambda i=i: found.update({i: reward(pictures(4), ["x"] * 4)}) for i in range(3)]
        threads = [threading.Thread(target=w) for w in work]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 3 and all(torch.equal(r, found[0]) for r in found.values())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ask": "maybe"}, "ask='maybe' is unknown; known: auto, logprobs, graded"),
        ({"on_failure": "zero"}, "on_failure='zero'"),
        ({"base_url": "localhost:8000"}, "base_url='localhost:8000' is no address"),
        ({"concurrency": 0}, "concurrency=0 must be at least 1"),
        ({"timeout": 0.0}, "timeout=0.0 must be positive"),
        ({"retries": -1}, "retries=-1"),
        ({"wait": (2.0, 1.0)}, r"wait=\(2.0, 1.0\)"),
        ({"max_spend": 1.0}, "max_spend=1.0 needs price="),
        ({"max_requests": -1}, "max_requests=-1"),
        ({"grades": (5, 5)}, r"grades=\(5, 5\)"),
    ],
)
def test_settings_that_can_be_none(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rewards.VlmJudge(**settings)


def test_a_url_with_a_password_is_refused_without_repeating_it() -> None:
    for url in ("https://me:sesame@host/v1", "https://host/v1?key=sesame"):
        with pytest.raises(ValueError, match="base_url for https://host/v1 holds more") as error:
            rewards.VlmJudge(url)
        assert "sesame" not in str(error.value)
