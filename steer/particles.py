"""Weights: particles, effective sample size, and what a method reports.

Log-weights everywhere. ``-inf`` means "reject" and is legal, also for most of a row; a row that is all ``-inf`` has
no distribution and raises, as does NaN. Every tensor here is [p n ...]: p prompts, n particles each.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

S = TypeVar("S")
Reward = Callable[[Tensor], Tensor]  # x1 [p m *d] -> [p m], higher is better
BY_STEP = ("ess", "resampled", "push", "log_w", "lines")  # of a trace: a row a step, a column a prompt, or None
BY_PROMPT = ("log_z", "forward", "backward", "reward_calls", "ancestors")  # of a trace: a row a prompt


@dataclass(frozen=True)
class Particles:
    """A weighted population for each prompt.

    Attributes:
        x: samples [p n *d].
        log_w: log-weights [p n], normalised (their exponentials sum to one in each row) in what a method returns.
        rewards: the raw reward of each x [p n], not divided by a temperature; None where unknown.
    """

    x: Tensor
    log_w: Tensor
    rewards: Tensor | None = None


@dataclass(frozen=True)
class Trace:
    """What happened in a run, and what it cost; one row a step, one column a prompt.

    Attributes:
        times: the times of the steps [steps].
        ess: effective sample size before any resampling, between 1 and n (0 where all are rejected) [steps p].
        resampled: whether the prompt was resampled at the step [steps p].
        log_z: estimate of log E[exp(reward / temperature)] under the model [p]; NaN from methods that make none.
        forward: rows put through the flow map [p].
        backward: rows sent back through it for a gradient [p].
        reward_calls: pictures scored [p].
        ancestors: index of the initial particle from which each returned one descends [p n].
        push: length of the guidance over that of the flow's own move, mean over particles [steps p]; None without a
            gradient.
        log_w: log-weights before any resampling [steps p n]; None from what keeps none.
        lines: index of the initial particle from which each descends, before any resampling [steps p n]; likewise.
    """

    times: Tensor
    ess: Tensor
    resampled: Tensor
    log_z: Tensor
    forward: Tensor
    backward: Tensor
    reward_calls: Tensor
    ancestors: Tensor
    push: Tensor | None = None
    log_w: Tensor | None = None
    lines: Tensor | None = None

    @property
    def calls(self) -> Tensor:
        """The cost in the unit of budgets [p]: a forward row counts one, a backward row two more."""
        return self.forward + 2 * self.backward

    def part(self, rows: slice) -> "Trace":
        """That of some of the prompts."""
        columns = {name: None if (x := getattr(self, name)) is None else x[:, rows] for name in BY_STEP}
        return dataclasses.replace(self, **columns, **{name: getattr(self, name)[rows] for name in BY_PROMPT})


def normalise(log_w: Tensor) -> Tensor:
    """Log-weights [p n] whose exponentials sum to one in each row; raises ValueError on a row of -inf alone or NaN."""
    if log_w.isnan().any() or (log_w == math.inf).any():
        raise ValueError(f"log-weights of prompt row {_rows(log_w.isnan() | (log_w == math.inf))} are NaN or +inf")
    dead = (log_w == -math.inf).all(-1)
    if dead.any():
        raise ValueError(
            f"every particle of prompt row {_rows(dead[:, None])} has weight zero: its rewards are all -inf; "
            "use more particles, or a large finite penalty in place of -inf"
        )
    return log_w.log_softmax(-1)


def ess(log_w: Tensor) -> Tensor:
    """Effective sample size ``(sum w)^2 / sum w^2`` [...] of log-weights [... n], in log space; 0 if all are -inf."""
    peak = log_w.amax(-1, keepdim=True)
    shifted = log_w - torch.where(peak == -math.inf, 0, peak)
    size = torch.exp(2 * shifted.logsumexp(-1) - (2 * shifted).logsumexp(-1))
    return torch.where(peak[..., 0] == -math.inf, 0, size)


def log_mean_exp(log_w: Tensor) -> Tensor:
    """``log (1/n) sum exp(log_w)`` [...] of log-weights [... n]."""
    return log_w.logsumexp(-1) - math.log(log_w.shape[-1])


def gather(state: S, index: Tensor) -> S:
    """Every per-particle tensor of `state` at index [p m], all together.

    state: a tensor [p n ...], or a dict, tuple, list or dataclass of such things (nested as one likes; None and plain
    numbers pass through). Raises ValueError on a tensor that does not begin with p, so that none is left behind.
    """
    return _gather(state, index, "state")


def check_settings(steps: int, temperature: float) -> None:
    """Raises ValueError unless steps >= 1 and temperature > 0."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}; math.inf ignores the reward")


def check_least(settings: object, **least: float) -> None:
    """Raises ValueError unless each of these fields is at least its number."""
    for name, number in least.items():
        if not getattr(settings, name) >= number:
            raise ValueError(f"{name} must be at least {number}, got {getattr(settings, name)}")


def check_between(settings: object, **ends: tuple[float, float]) -> None:
    """Raises ValueError unless each of these fields is between its two ends, and neither of them."""
    for name, (low, high) in ends.items():
        if not low < getattr(settings, name) < high:
            raise ValueError(f"{name} must be between {low} and {high}, got {getattr(settings, name)}")


def check_choice(settings: object, **known: tuple[str, ...]) -> None:
    """Raises ValueError unless each of these fields is one of its names."""
    for name, names in known.items():
        if getattr(settings, name) not in names:
            raise ValueError(f"{name} must be one of {', '.join(names)}, got {getattr(settings, name)!r}")


def steps_within(calls: int, n: int, *, a_step: int, besides: int = 0) -> int:
    """The most steps of n particles that `calls` pay for, where K steps cost ``(K a_step + besides)`` a particle.

    Raises ValueError, naming the least budget, when that is not even one.
    """
    steps = (calls // n - besides) // a_step
    if steps < 1:
        raise ValueError(
            f"budget of {calls} calls is too small for {n} particles of this method; the least is "
            f"{n * (a_step + besides)}"
        )
    return steps


def check_start(x0: Tensor) -> tuple[int, int]:
    """(p, n) of the starting noise x0 [p n *d]; raises ValueError when it is not that, or holds no particle."""
    if x0.ndim < 3 or not x0.is_floating_point() or 0 in x0.shape:
        raise ValueError(f"x0 must be floats [p n *d] with p, n >= 1, got {x0.dtype} of shape {tuple(x0.shape)}")
    return x0.shape[0], x0.shape[1]


def check_rewards(r: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """The rewards [p m] as `dtype`; raises TypeError or ValueError on anything but one real number or -inf a sample."""
    if not isinstance(r, Tensor):
        raise TypeError(f"reward must return a tensor, got {type(r).__name__}")
    if r.shape != shape:
        raise ValueError(f"reward must return one number a sample, shape {shape}, got {tuple(r.shape)}")
    if r.is_complex():
        raise TypeError(f"reward must return real numbers, got {r.dtype}")
    bad = r.isnan() | (r == math.inf)
    if bad.any():
        raise ValueError(
            f"reward is NaN or +inf for prompt row {_rows(bad)}; return a finite number, or -inf to reject"
        )
    return r.to(dtype)


def tempered(r: Tensor, temperature: float) -> Tensor:
    """``r / temperature``, with -inf kept at any temperature (inf makes all other rewards equal)."""
    return torch.where(r == -math.inf, r, r / temperature)


def length(x: Tensor) -> Tensor:
    """Euclidean norm of each particle of x [p n *d]: [p n 1 ... 1]."""
    return torch.linalg.vector_norm(x.flatten(2), dim=-1).reshape(x.shape[:2] + (1,) * (x.ndim - 2))


def bounded(x: Tensor, bound: Tensor) -> Tensor:
    """X [p n *d], each particle shortened to the length `bound` [p n 1 ... 1] where it is longer."""
    return x * (bound / length(x).clamp(min=torch.finfo(x.dtype).tiny)).clamp(max=1).nan_to_num(1.0)


def limited(push: Tensor, unit: Tensor, most: float) -> tuple[Tensor, Tensor]:
    """A push [p n *d] of at most `most` times the length `unit` [p n 1 ... 1], and the times it was before [p]."""
    unit = unit.clamp(min=torch.finfo(push.dtype).tiny)
    return bounded(push, most * unit), (length(push) / unit).flatten(1).mean(1)


def unit_length(x: Tensor) -> Tensor:
    """X [p n *d], each particle scaled to length one; zero stays zero."""
    return x / length(x).clamp(min=torch.finfo(x.dtype).tiny)


def _rows(bad: Tensor) -> str:
    return ", ".join(str(i) for i in bad.any(-1).nonzero().flatten().tolist())


def _gather(state: Any, index: Tensor, name: str) -> Any:  # noqa: ANN401 - the kinds are told apart below
    if isinstance(state, Tensor):
        if state.ndim < 2 or state.shape[0] != index.shape[0]:
            raise ValueError(f"{name} has shape {tuple(state.shape)}; per-particle tensors begin with [p n]")
        return state[torch.arange(index.shape[0], device=index.device)[:, None], index]
    if isinstance(state, Mapping):
        return type(state)((k, _gather(v, index, f"{name}[{k!r}]")) for k, v in state.items())  # pyright: ignore[reportCallIssue]
    if isinstance(state, list | tuple):
        return type(state)(_gather(v, index, f"{name}[{i}]") for i, v in enumerate(state))
    if dataclasses.is_dataclass(state) and not isinstance(state, type):
        fields = {f.name: _gather(getattr(state, f.name), index, f"{name}.{f.name}") for f in dataclasses.fields(state)}
        return dataclasses.replace(state, **fields)
    return state
