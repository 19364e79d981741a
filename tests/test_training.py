"""The loop: exact resumption, order of rows, accumulation, the plainest loop beside it, mixed precision."""

# ruff: noqa: ANN401 (settings of any kind)

import json
import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import Killed, Network, Rows, everything, losses, objective, same, trainer
from torch import Tensor, nn

from steer.objectives import SelfDistillation, Student, Uniform
from steer.objectives.base import Batch
from steer.training import ENDLESS, Settings, Stopped, Trainer

STEPS = 14


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[float], dict[str, Tensor], list[int]]:
    """Losses, state and rows of a run that nothing disturbed."""
    data = Rows()
    run = trainer(tmp_path_factory.mktemp("whole"), data=data, steps=STEPS, flow=Network(dropout=0.2))
    return losses(run), everything(run), data.asked


@pytest.mark.parametrize("kill", [3, 4, 7, 13])
def test_a_killed_run_ends_as_one_that_was_not(whole: Any, kill: int, tmp_path: Path) -> None:
    torch.manual_seed(kill)  # what the world's own generator holds is no matter
    first = losses(trainer(tmp_path, steps=STEPS, flow=Network(dropout=0.2)), kill)
    again = trainer(tmp_path, steps=STEPS, flow=Network(seed=kill if kill > 4 else 0, dropout=0.2))
    rest = losses(again)
    done = STEPS - len(rest)
    assert done == (kill - 1) // 4 * 4  # killed before the checkpoint of its last step
    assert first == whole[0][:kill] and rest == whole[0][done:]
    assert same(everything(again), whole[1])


def test_killed_twice_and_stopped_once(whole: Any, tmp_path: Path) -> None:
    flow = Network(dropout=0.2)
    for kill in (6, 7):
        losses(trainer(tmp_path, steps=STEPS, flow=flow, save_every=3), kill)
    stopped = trainer(tmp_path, steps=STEPS, flow=flow, save_every=5)
    update = stopped.update

    def ask() -> dict[str, Any]:
        row = update()
        stopped.signals.asked = signal.SIGTERM if stopped.step == 9 else 0
        return row

    stopped.update = ask  # type: ignore[method-assign]
    with pytest.raises(Stopped, match="after step 9 of 14; the same command goes on") as error:
        stopped.run()
    assert error.value.status == 143
    last = trainer(tmp_path, steps=STEPS, flow=flow, accumulate=1)
    assert losses(last) == whole[0][9:] and same(everything(last), whole[1])


def test_the_world_draws_on_undisturbed(tmp_path: Path) -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    trainer(tmp_path, flow=Network(dropout=0.2), steps=2).run()
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_weight_that_had_no_gradient_yet_resumes_exactly(tmp_path: Path) -> None:
    def goal(model: Student, batch: Batch, rng: Any) -> Any:
        flow: Any = model.flow
        loss, more = objective("fm")(model, batch, rng)
        return (loss + flow.late.square().sum() if model.progress >= 0.5 else loss), more

    def run(folder: str, kill: int | None = None) -> Trainer:
        flow = Network()
        flow.late = nn.Parameter(torch.ones(3))
        made = trainer(tmp_path / folder, flow=flow, goal=goal)
        losses(made, kill)
        return made

    assert everything(run("a"))["state.flow.late|step"] == 6
    run("b", kill=5)
    assert same(everything(run("b")), everything(run("a")))


def test_every_epoch_is_a_permutation(tmp_path: Path) -> None:
    run = trainer(tmp_path, data=Rows(10), batch=4)
    rows = [i for step in range(10) for i in run.order(step)]
    epochs = [rows[k : k + 10] for k in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs) and len(set(map(tuple, epochs))) == 4
    assert [run.order(step) for step in (7, 2)] == [rows[28:32], rows[8:12]]
    assert trainer(tmp_path, data=Rows(10), batch=4, seed=1).order(0) != rows[:4]
    assert sorted(trainer(tmp_path, data=Rows(3), batch=6).order(5)) == [0, 0, 1, 1, 2, 2]


def test_endless_rows_come_in_order(tmp_path: Path) -> None:
    class Endless(Rows):
        def __len__(self) -> int:
            return ENDLESS

    assert trainer(tmp_path, data=Endless(), batch=4).order(3) == [12, 13, 14, 15]


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_parts_add_up_to_the_batch(parts: int, dtype: torch.dtype, tolerance: float, tmp_path: Path) -> None:
    seen = []
    for count in (1, parts):
        goal = SelfDistillation(weighting=Uniform())  # whose own weights are float32
        flow, data = Network().to(dtype), Rows(dtype=dtype)
        run = trainer(tmp_path / str(count), flow=flow, data=data, goal=goal, accumulate=count, lr=1e-3)
        seen.append((losses(run), torch.cat([p.flatten() for p in run.plain.flow.parameters()])))
    (one, a), (several, b) = seen
    assert one == pytest.approx(several, rel=tolerance)
    moved = a - torch.cat([p.flatten() for p in Network().parameters()])
    assert (a - b).abs().max() < tolerance < 0.01 < moved.norm()


def bare(flow: nn.Module, settings: Settings, steps: int, rows: Trainer) -> list[Tensor]:
    """The weights after each step of the plainest loop there is, on the batches of a trainer."""
    optimiser = torch.optim.AdamW(flow.parameters(), betas=settings.betas, weight_decay=settings.weight_decay)
    after = []
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = settings.rate(step)
        rows.step = step
        loss, _ = rows._part(rows.order(step), 0)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), settings.clip)
        optimiser.step()
        after.append(torch.cat([p.detach().flatten() for p in flow.parameters()]))
    return after


@pytest.mark.parametrize("clip", [1e-3, 100.0])
def test_weights_and_averages_are_those_of_the_plainest_loop(clip: float, tmp_path: Path) -> None:
    decays, more = (0.5, 0.9, 0.0), {"clip": clip, "weight_decay": 0.1, "drop": 0.3}
    run = trainer(tmp_path / "a", goal=objective("fm"), steps=6, ema=decays, **more)
    start = torch.cat([p.detach().flatten().clone() for p in run.plain.flow.parameters()])
    run.run()
    other = trainer(tmp_path / "b", goal=objective("fm"), steps=6, ema=decays, **more)
    weights = bare(other.plain.flow, other.settings, 6, other)
    ends = torch.cat([p.detach().flatten() for p in run.plain.flow.parameters()])
    torch.testing.assert_close(ends, weights[-1], atol=1e-6, rtol=1e-5)
    for decay, net in zip(decays, run.averages.nets, strict=True):
        mean = start
        for k, w in enumerate(weights):
            d = min(decay, (1 + k) / (10 + k))
            mean = d * mean + (1 - d) * w
        torch.testing.assert_close(torch.cat([p.flatten() for p in net.parameters()]), mean, atol=1e-6, rtol=1e-5)


def test_the_gradient_is_clipped(tmp_path: Path) -> None:
    """Adam forgets the gradient's size, so it is looked at where it is handed over."""
    run, norms = trainer(tmp_path, clip=0.05, steps=3), []

    def told(*_: Any) -> None:
        norms.append(
            float(torch.cat([p.grad.flatten() for p in run.learner.parameters() if p.grad is not None]).norm())
        )

    run.optimiser.optimizer.register_step_pre_hook(told)
    rows = [run.update() for _ in range(3)]
    assert norms == pytest.approx([0.05] * 3, rel=1e-4) and all(row["norm"] > 0.05 for row in rows)


def test_rows_lose_their_labels_at_the_rate_asked(tmp_path: Path) -> None:
    told: list[Tensor] = []

    def goal(model: Student, batch: Batch, rng: Any) -> Any:
        assert batch.cond is not None and batch.dropped is not None
        assert torch.equal(batch.dropped, batch.cond["label"].sum(1) == 0)
        told.append(batch.dropped.float())
        return objective("fm")(model, batch, rng)

    trainer(tmp_path, goal=goal, drop=0.25, batch=200, steps=20).run()
    share = torch.cat(told)
    assert abs(float(share.mean()) - 0.25) < 4 * math.sqrt(0.25 * 0.75 / len(share))


def test_a_complete_run_is_left_as_it_is(tmp_path: Path) -> None:
    done = trainer(tmp_path)
    done.run()
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "checkpoints").rglob("*")}
    again = trainer(tmp_path)
    assert losses(again) == [] and same(everything(again), everything(done))
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "checkpoints").rglob("*")}


def test_the_model_is_never_older_than_the_checkpoint(tmp_path: Path) -> None:
    """A run killed between the two would else be complete with a model of before."""

    def save(flow: nn.Module, folder: Path) -> None:
        saved.append(flow.net[0].weight.detach().clone())  # type: ignore[index, union-attr]
        if len(saved) == 3:
            raise Killed

    saved: list[Tensor] = []
    first = trainer(tmp_path, save=save)
    losses(first)
    assert first.step == 12 and [p.name for p in (tmp_path / "checkpoints").iterdir()] == [
        "step-00000004",
        "step-00000008",
    ]
    last = trainer(tmp_path, save=save)
    assert len(losses(last)) == 4
    assert torch.equal(saved[3], saved[2]) and torch.equal(saved[3], last.averages.first.net[0].weight)  # type: ignore[index, union-attr]


def test_judgements_happen_once_each_and_are_made_up_for(tmp_path: Path) -> None:
    judged: list[int] = []

    def judge(flow: nn.Module, folder: Path, step: int) -> dict[str, float]:
        judged.append(step)
        if len(judged) == 2:
            raise Killed
        return {"score": 1.0}

    for _ in range(3):
        losses(trainer(tmp_path, judge=judge, sample_every=4))
    assert judged == [4, 8, 8, 12]
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "score" in line] == [4, 8, 12]


def test_in_bf16_the_derivative_is_in_float32(tmp_path: Path) -> None:
    seen: set[tuple[bool, bool, torch.dtype]] = set()

    class Watched(Network):
        def forward(self, x: Tensor, s: Any, t: Any, cond: Any = None) -> Tensor:
            v = super().forward(x, s, t, cond)
            inside = torch._C._functorch.maybe_get_level(t) > 0 if isinstance(t, Tensor) else False
            seen.add((inside, torch.is_autocast_enabled("cpu"), v.dtype))
            return v

    run = trainer(tmp_path / "a", flow=Watched(), precision="bf16", steps=20)
    half = losses(run)
    assert seen == {(True, False, torch.float32), (False, True, torch.bfloat16)}
    assert {p.dtype for p in run.plain.parameters()} == {torch.float32}
    full = losses(trainer(tmp_path / "b", precision="no", steps=20))  # another precision in the same process
    assert half != full and half == pytest.approx(full, abs=0.05)


def test_no_gradient_is_lost_in_bf16_after_a_call_without(tmp_path: Path) -> None:
    """Autocast keeps its copies of weights; one made without a gradient must not serve a call that wants one."""

    def goal(model: Student, batch: Batch, rng: Any) -> Any:
        zeros = torch.zeros(len(batch))
        with torch.no_grad():
            model.flow(batch.x1, zeros, zeros, batch.cond)
        return model.flow(batch.x1, zeros, zeros, batch.cond).float().square().mean(), {}

    assert trainer(tmp_path, goal=goal, precision="bf16").update()["norm"] > 0


def test_tensorboard_holds_the_loss_once_a_step(tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    more = {"tracker": "tensorboard", "log_every": 1, "steps": 8}
    losses(trainer(tmp_path, **more), 7)
    seen = losses(trainer(tmp_path, **more))
    events = event_accumulator.EventAccumulator(str(tmp_path / "steer"))
    events.Reload()
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    scalars = events.Scalars("loss")
    assert [s.step for s in scalars] == list(range(1, 9))
    assert [s.value for s in scalars] == pytest.approx([row["loss"] for row in rows], rel=1e-5)
    assert [s.value for s in scalars[4:]] == pytest.approx(seen, rel=1e-5)
