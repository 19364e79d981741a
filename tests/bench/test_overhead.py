"""The bookkeeping of the benchmark; its times are for people to read."""

import pytest
import torch

from steer.bench import overhead
from steer.models import load_model


@pytest.mark.parametrize("name", overhead.METHODS)
def test_the_bare_calls_are_those_of_the_method(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same batches in the same order, network, decoder and reward, and gradients where it takes them."""
    problem, rng = overhead._problem(load_model("emoji", "cpu"), 2)
    x0 = problem.noise(3, rng)
    calls = overhead.record(problem, overhead.METHODS[name], x0)
    _, spent = problem.run(overhead.METHODS[name], x0, rng, lambda rows: None)
    assert sum(len(call.x) for call in calls) == int(spent.trace.forward.sum())
    assert sum(len(call.x) for call in calls if call.gradient) == int(spent.trace.backward.sum())
    scored = []
    monkeypatch.setattr(problem, "score", lambda images, prompts: scored.append(len(images)) or images.mean((1, 2, 3)))
    overhead.bare(problem, calls, every=name != "best_of_n")
    assert sum(scored) == int(spent.trace.reward_calls.sum())


def test_the_line_is_found() -> None:
    slope, start = overhead.line((1, 2, 4), [5.0, 7.0, 11.0])
    assert slope == pytest.approx(2) and start == pytest.approx(3)


def test_the_plot_is_a_picture() -> None:
    pytest.importorskip("matplotlib")
    rows = [{"axis": a, "value": v, "seconds": float(v), "of the line": 1.0} for a in overhead.SIZES for v in (1, 2)]
    assert overhead.plot({"growth": rows}).startswith(b"\x89PNG")
    assert torch.is_grad_enabled()
