"""The studio's server and its page: HTTP requests, sessions, and a click-through in a real browser."""

# ruff: noqa: ANN401 (what a browser and a server hand over)

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from colours import redness
from studio_parts import ASKED, TABLE, colours, own_reward
from torch import Tensor

import steer
from steer.studio import Limits, Shelf, shelf, started
from steer.studio.offers import MIX

pytest.importorskip("gradio", reason="gradio is not installed; pip install 'steer[studio]'")
pytest.importorskip("matplotlib", reason="matplotlib is not installed; pip install 'steer[studio]'")


# the server


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with started(shelf()) as address:
        yield address


def ask(address: str, path: str, method: str = "GET", body: bytes | None = None, **headers: str) -> tuple[int, str]:
    """Status and text of a raw request, whose path nothing tidies up."""
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=20)
    try:
        connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.read().decode("utf8", "replace")
    finally:
        connection.close()


def test_the_page_is_for_this_machine_alone_and_loads_nothing_from_elsewhere(address: str) -> None:
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", address)
    status, page = ask(address, "/")
    assert status == 200 and "steer studio" in page
    loaded = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?:[^"]+)', page)
    assert loaded == []
    assert ask(address, "/", Host="evil.example")[0] == 403
    assert ask(address, "/", Host="localhost:80")[0] == 200


@pytest.mark.parametrize(
    "path",
    ["/gradio_api/file=/etc/passwd", "/gradio_api/file=../../../../etc/passwd", "/gradio_api/file/etc/passwd",
     "/file=/etc/passwd", "/gradio_api/file=pyproject.toml", "/assets/../../../../../etc/passwd",
     "/static/..%2f..%2f..%2f..%2fetc%2fpasswd", "/gradio_api/proxy=http://127.0.0.1:1/", "/svelte/../../routes.py",
     "/gradio_api/stream/x/y/z/playlist.m3u8", "/gradio_api/runs", "/gradio_api/custom_component/1/client/x/..%2f.."],
)  # fmt: skip
def test_no_file_is_served(path: str, address: str) -> None:
    status, text = ask(address, path)
    assert status in (400, 403, 404, 405, 422) and "root:" not in text and "[project]" not in text


def test_nothing_can_be_uploaded_and_no_request_is_long(address: str) -> None:
    assert ask(address, "/gradio_api/upload", "POST", b"x", Content_Type="multipart/form-data; boundary=x")[0] == 403
    assert ask(address, "/gradio_api/queue/join", "POST", b"x" * 70_000)[0] == 403
    assert ask(address, "/gradio_api/queue/join", "POST", None, Transfer_Encoding="chunked")[0] == 403


def client(address: str) -> Any:
    import gradio_client

    return gradio_client.Client(address, verbose=False, analytics_enabled=False)


def given(**changed: object) -> list[object]:
    table = {"headers": ["reward", "weight"], "data": TABLE, "metadata": None}
    return list((ASKED | {"mix": table} | changed).values())


def told(outputs: Any, key: str) -> str:
    """One of the views of an answer."""
    place = ("status", "live", "plots", "result", "command", "python", "earlier").index(key)
    value = outputs[place]
    return value if isinstance(value, str) else ""


def test_two_sessions_do_not_mix(address: str) -> None:
    """They ask at once, wait for each other, and each has its own result and its own history; a third only looks."""
    first, second = client(address), client(address)
    jobs = [first.submit(*given(prompt="a red heart"), api_name="/run"),
            second.submit(*given(prompt="a blue fox", reward=MIX), api_name="/run")]  # fmt: skip
    client(address).predict(api_name="/stop")
    answers = [job.result(timeout=120) for job in jobs]
    for answer, own, other in zip(answers, ("a red heart", "a blue fox"), ("a blue fox", "a red heart"), strict=True):
        assert told(answer, "status") == '<p class="status">done</p>'
        assert own in told(answer, "command") and own in told(answer, "earlier")
        assert other not in "".join(told(answer, key) for key in ("command", "python", "earlier"))
        assert told(answer, "earlier").count("<button") == 1
    assert "{clip: 1.0, redness: 20.0}" in told(answers[1], "command")
    again = first.predict(*given(prompt="a red heart", seed="8"), api_name="/run")
    assert told(again, "earlier").count("<button") == 2


def test_a_bad_request_of_a_program_is_refused_with_words(address: str) -> None:
    with pytest.raises(Exception, match="out of range; give 0 to 4294967295"):
        client(address).predict(*given(seed="-3"), api_name="/run")


def test_the_queue_is_bounded() -> None:
    """One runs, one waits, and the next is told so."""
    go, begun = threading.Event(), threading.Event()

    def waits(images: Tensor) -> Tensor:
        begun.set()
        go.wait(60)
        return redness(images)

    made = colours(reward=waits)
    with started(Shelf(made.models, made.rewards, limits=Limits(queue=1), _loaded=made._loaded)) as address:
        ours = given(model="colours", reward="mine", temperature="1")
        one, two, three = (client(address) for _ in range(3))
        running = one.submit(*ours, api_name="/run")
        assert begun.wait(60)
        waiting = two.submit(*ours, api_name="/run")
        while waiting.status().rank is None and not waiting.done():
            time.sleep(0.05)
        with pytest.raises(Exception, match="(?i)queue is full|try again"):
            three.submit(*ours, api_name="/run").result(timeout=20)
        go.set()
        for job in (running, waiting):
            assert "done" in told(job.result(timeout=60), "status")


# the command

AUDITED = """\
import sys

def heard(event, given):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        place = given[1][0] if event == "socket.connect" else given[0]
        print("asked for", place, file=sys.stderr, flush=True)

sys.addaudithook(heard)
from steer.cli import main
sys.exit(main(sys.argv[1:]))
"""
"""The command line in a process that tells with whom it speaks."""


def test_the_command_serves_a_reward_of_a_file_until_it_is_told_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And speaks to no other machine, whatever the environment asks of gradio."""
    monkeypatch.chdir(tmp_path)
    own_reward(tmp_path)
    root, folder = str(Path(steer.__file__).resolve().parents[1]), tmp_path / "temporary"
    folder.mkdir()
    environment = os.environ | {"PYTHONPATH": root, "TMPDIR": str(folder), "GRADIO_SHARE": "True",
                                "GRADIO_SERVER_NAME": "0.0.0.0", "GRADIO_ALLOWED_PATHS": "/"}  # fmt: skip
    command = [sys.executable, "-c", AUDITED, "studio", "reward=mine.py:score", "port=0", "limits.n=5"]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True) as process:  # fmt: skip
        try:
            assert process.stdout
            line = process.stdout.readline()
            found = re.search(r"steer studio is at (http://127\.0\.0\.1:\d+) for this machine alone", line)
            assert found, line + process.communicate()[1]
            served = client(found[1])
            answer = served.predict(*given(reward="mine.py:score", n=3), api_name="/run")
            assert "reward=mine.py:score" in told(answer, "command")
            assert "reward='mine.py:score'" in told(answer, "python")
            with pytest.raises(Exception, match="reward='other.py:f' is unknown|not in the list of choices"):
                served.predict(*given(reward="other.py:f"), api_name="/run")
            props = [part["props"] for part in json.loads(ask(found[1], "/config")[1])["components"]]
            assert [p["maximum"] for p in props if p.get("label") == "n"] == [5]
            assert ask(found[1], "/gradio_api/file=/etc/passwd")[0] == 403
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=30)
            assert process.returncode == 0 and out == "stopped\n"
            hosts = set(re.findall(r"^asked for (\S+)$", err, re.MULTILINE))
            assert "127.0.0.1" in hosts and hosts <= {"127.0.0.1", "localhost", "None"}
        finally:
            process.kill()
    assert not list(folder.glob("steer-studio-*"))


# a real browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Headless Chromium, which notes every request of its pages."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    programs = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    if lacking := [name for name, path in programs.items() if path is None]:
        pytest.skip(f"no {lacking[0]} here; apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = programs["chromium"]
    for flag in ("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync",
                 "disable-background-networking", "disable-component-update", "window-size=1280,900",
                 f"user-data-dir={tmp_path_factory.mktemp('browser')}"):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    service = webdriver.ChromeService(programs["chromedriver"])
    driver = webdriver.Chrome(options=options, service=service)
    try:
        yield driver
    finally:
        driver.quit()


class Page:
    """The page in a browser, as a user has it before him."""

    def __init__(self, driver: Any, address: str, width: int = 1280) -> None:
        self.driver = driver
        device = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", device)
        driver.get(address)
        self.until(lambda: self.all("#run") and self.status() == "ready")

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements("css selector", selector)

    def status(self) -> str:
        return self.driver.execute_script("return document.querySelector('#status .status')?.textContent ?? ''")

    def until(self, true: Callable[[], object], seconds: float = 60) -> Any:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := true():
                return found
            time.sleep(0.02)
        raise AssertionError(f"not within {seconds} s; the status is {self.status()!r}")

    def click(self, selector: str) -> None:
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", self.all(selector)[0])
        self.all(selector)[0].click()

    def tab(self, name: str) -> None:
        next(tab for tab in self.all("button[role=tab]") if tab.text == name).click()

    def fill(self, place: str, text: str) -> None:
        (field,) = self.all(f"#{place} input:not([type=range]), #{place} textarea")
        field.send_keys("\ue009a\ue000" + (text or "\ue017"))  # control and a, then delete

    def run(self) -> list[str]:
        """What the status said until the run was done."""
        said: list[str] = []
        self.click("#run")

        def done() -> bool:
            if (now := self.status()) not in said[-1:]:
                said.append(now)
            return now == "done" and len(said) > 1

        self.until(done, 120)
        return said

    def requests(self) -> set[str]:
        """Addresses that were asked for since the last look, but for the browser's own pages."""
        sent = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        urls = {m["params"]["request"]["url"] for m in sent if m["method"] == "Network.requestWillBeSent"}
        return {url for url in urls if not url.startswith(("data:", "blob:", "chrome"))}


def test_a_click_through(browser: Any, address: str) -> None:
    """Run and watch it, look at the result, change something, go back, repeat it elsewhere; all of it stays here."""
    page = Page(browser, address)
    page.fill("prompt", "a {{7}} ${1+1} <b>heart</b>")
    page.fill("budget", "512")
    said = page.run()
    steps = [int(text.split()[1]) for text in said if text.startswith("step ")]
    assert len(steps) >= 2 and steps == sorted(steps)  # more than one update came before the end
    assert len(page.all("#result .card img")) == 32 and page.all("#result .tree path")
    assert [row.text.split()[0] for row in page.all("#result .scores tbody tr")] == ["clip", "judge:"]
    assert "a {{7}} ${1+1} <b>heart</b>" in page.all("#history button")[0].text
    page.tab("Live")
    page.until(lambda: len([i for i in page.all("#plots img") if i.is_displayed() and i.size["width"] > 100]) == 3)
    assert len(page.all("#live .card")) == 16
    page.fill("prompt", "a house")
    page.fill("seed", "3")
    page.run()
    page.until(lambda: len(page.all("#history button")) == 2)
    page.tab("Reproduce")
    page.until(lambda: "seed=3" in page.all("#command .cm-content")[0].text)
    page.click("#history button[data-run='1']")
    page.until(lambda: page.status() == "an earlier run")
    assert page.all("#prompt textarea, #prompt input")[0].get_property("value") == "a {{7}} ${1+1} <b>heart</b>"
    assert page.all("#seed textarea, #seed input")[0].get_property("value") == "0"
    page.tab("Reproduce")
    page.until(lambda: "seed=0" in page.all("#command .cm-content")[0].text)
    assert "steer.sample(" in page.all("#python .cm-content")[0].text
    assert {url[: len(address) + 1] for url in page.requests()} == {f"{address}/"}
    severe = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert severe == []


def test_stop_ends_a_run_within_a_step(browser: Any, address: str) -> None:
    page = Page(browser, address)
    page.fill("budget", "4096")
    page.fill("n", "64")
    page.click("#run")
    page.until(lambda: page.status().startswith("step "))
    page.click("#stop")
    begun = time.monotonic()
    page.until(lambda: page.status().startswith("stopped"))
    assert time.monotonic() - begun < 10 and not page.all("#history button")
    page.fill("n", "2")
    page.fill("budget", "32")
    assert page.run()[-1] == "done"  # and the next one is free to go


@pytest.mark.parametrize(
    ("place", "text", "message"),
    [("temperature", "-1", "temperature=-1.0 must be above 0; leave it empty to have it measured."),
     ("seed", "<b>x</b>", "seed='<b>x</b>' is no number; give one."),
     ("prompt", "", "The prompt has 0 characters; write 1 to 300.")],
)  # fmt: skip
def test_what_is_wrong_is_said_in_the_page(place: str, text: str, message: str, browser: Any, address: str) -> None:
    page = Page(browser, address)
    page.fill(place, text)
    page.click("#run")
    shown = page.until(lambda: " ".join(toast.text for toast in page.all(".toast-body")))
    assert message in shown


def test_a_mix_is_a_table(browser: Any, address: str) -> None:
    page = Page(browser, address)
    assert not [m for m in page.all("#mix") if m.is_displayed()]
    page.click("#reward input")
    page.until(lambda: page.all("ul[role=listbox] li"))
    next(o for o in page.all("ul[role=listbox] li") if o.text.strip().removeprefix("✓").strip() == MIX).click()
    page.until(lambda: [m for m in page.all("#mix") if m.is_displayed()])
    page.fill("n", "2")
    page.fill("budget", "16")
    page.run()
    page.tab("Reproduce")
    page.until(lambda: "{clip: 1.0, redness: 20.0}" in page.all("#command .cm-content")[0].text)


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits(width: int, browser: Any, address: str) -> None:
    """Nothing hangs over the side, whichever tab is open; on a phone the views come before the settings."""
    page = Page(browser, address, width)
    page.fill("n", "8")
    page.fill("budget", "64")
    page.run()
    for tab in ("Live", "Result", "Reproduce"):
        page.tab(tab)
        time.sleep(0.3)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width, tab
    places = SimpleNamespace(**{name: page.all(f"#{name}")[0].rect for name in ("settings", "views")})
    if width == 390:
        assert places.settings["y"] > places.views["y"] + places.views["height"] - 1
    else:
        assert places.settings["x"] + places.settings["width"] <= places.views["x"]
