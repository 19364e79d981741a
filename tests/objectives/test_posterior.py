"""Posterior maps: what their objective is told, and the map of a Gaussian's posterior, which is known."""

from dataclasses import dataclass, field

import pytest
import torch
from conftest import z_score
from torch import Tensor

from steer.analytic import GaussianMixture
from steer.draws import Rng, Shard
from steer.flow_map import Cond, velocity
from steer.interpolants import Interpolant, Linear, Time, like
from steer.objectives import Batch, Derivative, GlassVelocity, PosteriorMap, SelfDistillation, Student, Teacher, Times
from steer.objectives.base import Loss, Rows, draw_rows
from steer.objectives.distillation import lagrangian
from steer.posterior import Learned

MEAN, STD = 0.7, 0.6
LAW = GaussianMixture(torch.ones(1).double(), torch.full((1, 1), MEAN).double(), torch.full((1, 1, 1), STD**2).double())


@dataclass(frozen=True)
class ExactPosterior:
    """v_{s,t}(z | x_u, u) of the linear path from N(0, 1) to the posterior N(mu, var) of N(MEAN, STD^2)."""

    path: Interpolant = Linear()

    def __call__(self, z: Tensor, s: Time, t: Time, cond: Cond = None) -> Tensor:
        """With S_r = (1-r)^2 + r^2 var: X = t mu + (z - s mu) sqrt(S_t / S_s), divided by t - s without a loss."""
        assert cond is not None
        s, t = (like(u, z) for u in (s, t))
        alpha, beta = (like(f(cond["t"]), z) for f in (self.path.alpha, self.path.beta))
        spread = alpha**2 + beta**2 * STD**2
        var = STD**2 * alpha**2 / spread
        mu = MEAN + beta * STD**2 / spread * (cond["x_t"] - beta * MEAN)
        std_s, std_t = (((1 - r) ** 2 + r**2 * var).sqrt() for r in (s, t))
        return mu + (z - s * mu) / std_s * ((s + t) * var - (2 - s - t)) / (std_s + std_t)


@dataclass
class Listening:
    """An objective that keeps what it is given."""

    heard: list[Batch] = field(default_factory=list)

    def __call__(self, model: Student, batch: Batch, rng: Rng) -> Loss:
        self.heard.append(batch)
        return batch.x1.sum(), {}


def context(batch: Batch) -> tuple[Tensor, Tensor]:
    """x_u and u."""
    assert batch.cond is not None
    return batch.cond["x_t"], batch.cond["t"]


def rows_of(n: int, rng: torch.Generator, path: Interpolant) -> Rows:
    """Pairs of inner times with contexts."""
    heard = Listening()
    PosteriorMap(heard)(Student(ExactPosterior(path), path), Batch(LAW.sample(n, rng=rng)), rng)
    s, t, _ = Times(diagonal=0.0)(heard.heard[0].x1, rng)
    return draw_rows(Linear(), heard.heard[0], s, t, rng)


def test_the_context_is_a_noisier_view_of_the_same_data(path: Interpolant, rng: torch.Generator) -> None:
    """x_u - beta x1 is noise of size alpha, independent of x1, of u, and of what a map starts from."""
    heard, x1 = Listening(), LAW.sample(20_000, rng=rng)
    PosteriorMap(heard)(Student(ExactPosterior(path), path), Batch(x1, {"c": x1[:, 0]}), rng)
    x_u, u = context(heard.heard[0])
    assert heard.heard[0].cond is not None and torch.equal(heard.heard[0].cond["c"], x1[:, 0])
    noise = (x_u - path.beta(u)[:, None] * x1) / path.alpha(u)[:, None]
    assert z_score(torch.cat([noise, noise**2 - 1, noise * (x1 - MEAN), noise * u[:, None]], 1), 0.0) < 4
    inner = draw_rows(Linear(), heard.heard[0], 0 * u, u, rng).x
    assert z_score(inner * noise, 0.0) < 4


def test_a_share_of_contexts_says_nothing(rng: torch.Generator) -> None:
    heard = Listening()
    objective = PosteriorMap(heard, zeros=0.3, power=2.0)
    objective(Student(ExactPosterior()), Batch(torch.zeros(40_000, 1).double()), rng)
    u = context(heard.heard[0])[1]
    assert z_score((u == 0).double()[:, None], 0.3) < 4
    assert z_score(u[u > 0].sqrt()[:, None] / objective.largest**0.5, 0.5) < 4
    for bad in ({"zeros": 1.5}, {"power": 0.0}, {"largest": 0.0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            PosteriorMap(**bad)


def test_two_processes_tell_what_one_would(rng: torch.Generator) -> None:
    heard, x1 = Listening(), LAW.sample(32, rng=rng)
    for rank, world, part in ((0, 1, x1), (0, 2, x1[:16]), (1, 2, x1[16:])):
        PosteriorMap(heard)(
            Student(ExactPosterior()), Batch(part), Shard(torch.Generator().manual_seed(5), rank, world)
        )
    whole, *parts = (torch.cat([x, u[:, None]], 1) for x, u in map(context, heard.heard))
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("identity", ["lagrangian", "eulerian", "midpoint"])
def test_the_map_of_the_posterior_leaves_no_residual(identity: str, path: Interpolant, rng: torch.Generator) -> None:
    rows, model = rows_of(64, rng, path), Student(ExactPosterior(path), path)
    objective = SelfDistillation(identity, derivative=Derivative("forward"))  # type: ignore[arg-type]
    assert objective.residual(model, rows, torch.zeros_like(rows.s)).abs().max() < 1e-9


def test_its_diagonal_is_the_mean_slope_given_the_context(path: Interpolant, rng: torch.Generator) -> None:
    rows, flow = rows_of(40_000, rng, path), ExactPosterior(path)
    assert rows.cond is not None
    error = rows.slope - flow(rows.x, rows.s, rows.s, rows.cond)
    known = torch.cat([torch.ones_like(error), rows.x, rows.cond["x_t"], rows.s[:, None]], 1)
    assert z_score(error * known, 0.0) < 4


def test_the_glass_teacher_is_the_velocity_of_that_map(path: Interpolant, rng: torch.Generator) -> None:
    """And so the map of the posterior leaves no residual of the distillation; all contexts, u = 0 among them."""
    rows, flow, glass = rows_of(200, rng, path), ExactPosterior(path), GlassVelocity(LAW.flow(path), path)
    s = rows.s.clamp(max=0.98)
    assert rows.cond is not None and (rows.cond["t"] == 0).any()
    assert torch.allclose(glass(rows.x, s, s, rows.cond), flow(rows.x, s, s, rows.cond), atol=1e-7)
    early = rows[rows.t < 0.98]
    residual = lagrangian(Student(flow, path), early, Teacher(glass), Derivative("forward"))
    assert residual.abs().max() < 1e-6


def test_the_glass_teacher_reads_the_rest_of_the_condition(rng: torch.Generator) -> None:
    def flow(x: Tensor, s: Time, t: Time, cond: Cond = None) -> Tensor:
        assert cond is not None and set(cond) == {"c"}
        return velocity(LAW.flow(), x, t)

    glass, x, half = GlassVelocity(flow), torch.zeros(3, 1).double(), torch.full((3,), 0.5).double()
    assert glass(x, half, half, {"c": half, "x_t": x, "t": half}).isfinite().all()
    with pytest.raises(ValueError, match="x_t"):
        glass(x, half, half, {"c": half})


def test_the_map_of_the_posterior_is_drawn_from_by_the_look_ahead(path: Interpolant, rng: torch.Generator) -> None:
    """The keys of the condition are those that `Learned` gives."""
    x, t = torch.tensor([[0.9]]).double(), 0.4
    draws = Learned(k=20_000)(ExactPosterior(path), path, x, t, rng=rng)[:, 0]
    law = LAW.posterior(x, t, path)
    mean, var = law.mean[0], law.cov[0, 0]
    assert z_score(torch.cat([draws, (draws - mean) ** 2], 1), torch.cat([mean, var])) < 4
