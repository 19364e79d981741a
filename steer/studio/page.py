"""The page: controls, what a run shows while it goes on, its result, how to repeat it, and the runs before."""

import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from threading import Lock
from types import SimpleNamespace
from typing import Any

import gradio as gr

import rewards
from steer.settings import says
from steer.studio import drawing
from steer.studio.offers import AUTOMATIC, METHODS, MIX, Asked, Shelf
from steer.studio.running import Run, Sight, Stopped

LOGGER = logging.getLogger("steer.studio")
SYSTEM = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
MONO = ("ui-monospace", "Consolas", "monospace")
EMPTY = '<p class="empty">Press Run: what each particle is heading for appears here, step by step.</p>'
CHOOSE = """element.addEventListener('click', event => {
  const card = event.target.closest('button[data-run]');
  if (card) trigger('click', {run: Number(card.dataset.run)});
})"""
NOTHING = '<p class="empty">The pictures of the last run appear here, beside those without steering.</p>'


def looks() -> dict[str, Any]:
    """Theme and style sheet, for `launch`: fonts of the system, so that none is fetched."""
    theme = gr.themes.Default(  # pyright: ignore[reportPrivateImportUsage]
        primary_hue="blue", neutral_hue="slate", font=SYSTEM, font_mono=MONO
    )
    return {"theme": theme, "css": (Path(__file__).parent / "page.css").read_text(encoding="utf8")}


@dataclass(frozen=True)
class Past:
    """A run of this session: what was asked for, and all that is shown of it."""

    values: tuple[Any, ...]
    steps: tuple[Any, ...] = field(repr=False)
    result: str = field(repr=False)
    command: str
    python: str
    thumbnail: str = field(repr=False)
    caption: str


class Sessions:
    """Which run each session has under way, so that another request of it can stop that one and no other."""

    def __init__(self) -> None:
        self._runs: dict[str | None, Run] = {}
        self._turn = Lock()

    @contextmanager
    def busy(self, session: str | None, run: Run) -> Iterator[None]:
        """Within the block it is the run that `stop` ends."""
        with self._turn:
            self._runs[session] = run
        try:
            yield
        finally:
            with self._turn:
                del self._runs[session]

    def stop(self, session: str | None) -> None:
        """End the run of a session, if it has one."""
        with self._turn:
            if session in self._runs:
                self._runs[session].stop()


def page(shelf: Shelf) -> gr.Blocks:
    """The whole page, to be launched; requests wait in one line."""
    with gr.Blocks(title="steer studio", analytics_enabled=False, fill_width=True, delete_cache=(3600, 3600)) as blocks:
        gr.HTML("<header><h1>steer studio</h1><p>Steer a flow map with a reward, and watch it happen.</p></header>")
        with gr.Row(elem_id="ask", equal_height=True):
            prompt = gr.Textbox("a red heart", label="prompt", info="what the pictures show", scale=6, elem_id="prompt",
                                max_length=shelf.limits.prompt, lines=1, max_lines=1)  # fmt: skip
            with gr.Column(scale=1, min_width=200, elem_id="buttons"), gr.Row():
                go = gr.Button("Run", variant="primary", elem_id="run", min_width=80)
                stop = gr.Button("Stop", variant="stop", elem_id="stop", min_width=80)
        with gr.Row(elem_id="main"):
            with gr.Column(scale=2, min_width=300, elem_id="settings"):
                inputs = [prompt, *_settings(shelf)]
                _examples(shelf, inputs)
            with gr.Column(scale=5, min_width=320, elem_id="views"):
                views = _views()
        _wire(shelf, SimpleNamespace(inputs=inputs, go=go, stop=stop, prompt=prompt, **views))
        gr.HTML(_lacking(shelf))
    blocks.queue(max_size=shelf.limits.queue, default_concurrency_limit=1)
    return blocks


def _settings(shelf: Shelf) -> list[Any]:
    """The controls in the order in which `Asked.of` takes them."""
    most, offered = shelf.limits, list(shelf.rewards)
    model = gr.Dropdown(list(shelf.models), value=next(iter(shelf.models)), label="model", elem_id="model",
                        info="emoji draws single things, shapes scenes of up to four")  # fmt: skip
    reward = gr.Dropdown([*offered, MIX], value=offered[0], label="reward", elem_id="reward",
                         info="the score that pictures shall raise; clip asks for the prompt")  # fmt: skip
    mix = gr.Dataframe([["clip", 1.0], ["redness", 20.0]], headers=["reward", "weight"], datatype=["str", "number"],
                       label="the mix: names as above, and how much each counts", type="array", column_count=2,
                       row_count=2, visible=False, interactive=True, elem_id="mix")  # fmt: skip
    method = gr.Dropdown(list(METHODS), value=AUTOMATIC, label="method", elem_id="method", info=_says(AUTOMATIC))
    budget = gr.Slider(0, most.budget, min(256, most.budget), step=1, label="budget", elem_id="budget",
                       info="network calls at most; 0 leaves it to the method")  # fmt: skip
    n = gr.Slider(1, most.n, min(16, most.n), step=1, label="n", info="particles, and pictures in the end", elem_id="n")
    with gr.Row():
        temperature = gr.Textbox("", label="temperature", placeholder="measured", min_width=120, elem_id="temperature",
                                 info="lower steers harder", max_length=20)  # fmt: skip
        seed = gr.Textbox("0", label="seed", placeholder="drawn", min_width=120, elem_id="seed",
                          info="same seed, same pictures", max_length=20)  # fmt: skip
    reward.change(lambda name: gr.update(visible=name == MIX), reward, mix, queue=False, show_progress="hidden",
                  api_visibility="private")  # fmt: skip
    method.change(lambda name: gr.update(info=_says(name)), method, method, queue=False, show_progress="hidden",
                  api_visibility="private")  # fmt: skip
    return [model, reward, mix, method, budget, n, temperature, seed]


def _says(method: str) -> str:
    """The line under the choice of a method."""
    if method in METHODS[:2]:
        return "one that suits reward and budget"
    return says("method", method) or "see the table of methods in the README"


def _examples(shelf: Shelf, inputs: list[Any]) -> None:
    rows = [
        ["a red heart", "emoji", "clip", AUTOMATIC],
        ["a house", "emoji", "redness", "smc_sde"],
        ["a smiling cat", "emoji", "jpeg-size", "beam"],
        ["a red circle left of a blue square", "shapes", "shapes", "tree_search"],
    ]
    known = [row for row in rows if row[1] in shelf.models and row[2] in shelf.rewards]
    prompt, model, reward, _, method = inputs[:5]
    labels = [f"{row[0]}, {row[2]}" for row in known]
    gr.Examples(known, [prompt, model, reward, method], label="examples", example_labels=labels,
                api_visibility="private")  # fmt: skip


def _views() -> dict[str, Any]:
    """Status, the run as it goes, its result, how to repeat it, and the runs before."""
    status = gr.HTML('<p class="status">ready</p>', elem_id="status")
    with gr.Tabs(selected="live") as tabs:
        with gr.Tab("Live", id="live"):
            live = gr.HTML(EMPTY, elem_id="live")
            plots = gr.HTML("", elem_id="plots")
        with gr.Tab("Result", id="result"):
            result = gr.HTML(NOTHING, elem_id="result")
        with gr.Tab("Reproduce", id="again"):
            gr.Markdown("The same pictures, bit for bit on the same kind of device:")
            command = gr.Code(language="shell", label="command", interactive=False, wrap_lines=True, lines=1,
                              elem_id="command")  # fmt: skip
            python = gr.Code(language="python", label="Python", interactive=False, wrap_lines=True, lines=1,
                             elem_id="python")  # fmt: skip
    earlier = gr.HTML("", elem_id="history", js_on_load=CHOOSE)
    history = gr.State([], time_to_live=6 * 3600)
    return {"status": status, "tabs": tabs, "live": live, "plots": plots, "result": result, "command": command,
            "python": python, "earlier": earlier, "history": history}  # fmt: skip


def _wire(shelf: Shelf, at: SimpleNamespace) -> None:
    sessions = Sessions()
    shown = [at.status, at.tabs, at.live, at.plots, at.result, at.command, at.python, at.earlier, at.history]

    def run(request: gr.Request, history: list[Past], *values: Any) -> Iterator[dict[Any, Any]]:  # noqa: ANN401
        """Every sight of a run, then its result; errors as a message that says what to change."""
        try:
            asked = Asked.of(shelf, *values)
            if lacking := rewards.missing(rewards.to_reward(asked.given()["reward"], compare=False)):
                raise ValueError(lacking)
            going = Run(asked)
            with sessions.busy(request.session_hash, going), closing(going.sights()) as sights:
                yield {at.status: _status("started"), at.tabs: gr.Tabs(selected="live"), at.live: EMPTY, at.plots: ""}
                for sight in sights:
                    yield _under_way(at, sight, asked)
        except Stopped:
            yield {at.status: _status("stopped; nothing is kept of it")}
            return
        except Exception as error:  # a user's reward may raise anything, and the page must go on
            raise _told(error) from error
        past = _past(asked, going, values)
        history = [past, *history][: shelf.limits.history]
        yield _shown(at, past) | {at.status: _status("done"), at.history: history, at.earlier: drawing.earlier(history)}

    def end(request: gr.Request) -> None:
        sessions.stop(request.session_hash)

    def back(history: list[Past], chosen: gr.EventData) -> dict[Any, Any]:
        """An earlier run, and its settings in the controls."""
        past = history[int(chosen.run)]
        controls = dict(zip(at.inputs, past.values, strict=True))
        return _shown(at, past) | controls | {at.status: _status("an earlier run")}

    gr.on([at.go.click, at.prompt.submit], run, [at.history, *at.inputs], shown, api_name="run", trigger_mode="once",
          concurrency_id="run", show_progress="minimal", show_progress_on=at.status)  # fmt: skip
    at.stop.click(end, None, None, api_name="stop", queue=False, show_progress="hidden")
    at.earlier.click(back, at.history, [*shown, *at.inputs], queue=False, show_progress="hidden",
                      api_visibility="private")  # fmt: skip


def _status(text: str) -> str:
    return f'<p class="status">{escape(text)}</p>'


def _under_way(at: SimpleNamespace, sight: Sight, asked: Asked) -> dict[Any, Any]:
    """What is shown of a run that goes on."""
    most, told = asked.shelf.limits, f"step {len(sight.steps)} · {sight.calls} network calls · {sight.seconds:.1f} s"
    return {at.status: _status(told), at.live: drawing.looks(sight, most.n, most.side),
            at.plots: drawing.plots(sight.steps, asked.n)}  # fmt: skip


def _told(error: Exception) -> gr.Error:
    """What the page says of an error; the log has the rest of what nobody foresaw."""
    if not isinstance(error, ValueError | OSError | ModuleNotFoundError):
        LOGGER.error("a run failed", exc_info=error)
    name = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    return gr.Error(escape(name + " ".join(str(error).split()))[:1000], title="not run", print_exception=False)


def _past(asked: Asked, run: Run, values: tuple[Any, ...]) -> Past:
    """What is kept of a run that is done."""
    samples = run.samples
    assert samples is not None
    side, score = asked.shelf.limits.side, samples.report["reward"]
    drawn = drawing.result(samples, samples.facts.judged, run.said, side)
    told = (*values[:-1], asked.seed)
    scored = f"{score['name']} {drawing.number(score['best'])}"
    caption = f"{asked.prompt}\n{samples.report['method']['name']} · {scored}"
    thumbnail = drawing.picture(samples.best[0], 128, "")
    return Past(told, tuple(run.steps), drawn, asked.command(), asked.python(), thumbnail, caption)


def _shown(at: SimpleNamespace, past: Past) -> dict[Any, Any]:
    """All views of a run that is done."""
    return {at.tabs: gr.Tabs(selected="result"), at.result: past.result, at.command: past.command,
            at.python: past.python, at.plots: drawing.plots(past.steps, int(past.values[6]))}  # fmt: skip


def _lacking(shelf: Shelf) -> str:
    """Why some built-in rewards are not offered."""
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(why)}</dd>" for name, why in shelf.lacking.items())
    summary = f"<summary>{len(shelf.lacking)} more rewards need something that is not here</summary>"
    return f"<details>{summary}<dl>{rows}</dl></details>" if rows else ""
