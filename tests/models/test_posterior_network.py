"""A posterior map grown on a network: its diagonal is that of GLASS, and it is saved beside the model's flow."""

import math
from pathlib import Path

import pytest
import torch

from steer.flow_map import denoise, jump
from steer.interpolants import Linear
from steer.models import Model, load_model, save_model
from steer.models.growing import grow
from steer.models.network import FlowNetwork
from steer.models.posterior_network import BACK, PosteriorNetwork
from steer.posterior import Learned

D = 12


@pytest.fixture
def base() -> FlowNetwork:
    """A small network with random weights."""
    torch.manual_seed(0)
    net = FlowNetwork(D, 8, width=32, depth=2, condition=16, queries=2)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return net.eval()


@pytest.fixture
def grown(base: FlowNetwork) -> PosteriorNetwork:
    """With trained-like weights beside the base's."""
    net = PosteriorNetwork(base, rank=4)
    for p in (*net.adapters.parameters(), *net.noise.parameters()):
        torch.nn.init.normal_(p, std=0.2)
    return net


def told(rng: torch.Generator, b: int = 6) -> dict[str, torch.Tensor]:
    """Words for b rows."""
    return {"words": torch.randn(b, 16, generator=rng)}


@pytest.mark.parametrize("s", [0.0, 0.3, 0.8])
def test_the_diagonal_is_that_of_glass(s: float, grown: PosteriorNetwork, rng: torch.Generator) -> None:
    z, x, u, cond = torch.randn(6, D, generator=rng), torch.randn(6, D, generator=rng), 0.4, told(rng)
    precision = (s / (1 - s)) ** 2 + (u / (1 - u)) ** 2
    when = math.sqrt(precision) / (1 + math.sqrt(precision))
    view = (s * z / (1 - s) ** 2 + u * x / (1 - u) ** 2) / precision
    expected = (denoise(grown.base, Linear(), when * view, when, cond) - z) / (1 - s)
    context = {"x_t": x, "t": torch.full((6,), u)}
    assert torch.allclose(grown(z, s, s, {**cond, **context}), expected, atol=1e-5)


def test_before_training_it_renoises_and_jumps(base: FlowNetwork, rng: torch.Generator) -> None:
    z, x, cond, u = torch.randn(6, D, generator=rng), torch.randn(6, D, generator=rng), told(rng), 0.4
    end = jump(PosteriorNetwork(base), z, 0.0, 1.0, {**cond, "x_t": x, "t": torch.full((6,), u)})
    back = u * (1 - BACK)
    kappa = math.sqrt((1 - back) ** 2 - (back / u * (1 - u)) ** 2)
    assert torch.allclose(end, jump(base, back / u * x + kappa * z, back, 1.0, cond), atol=1e-5)


def test_without_a_context_it_is_the_base(grown: PosteriorNetwork, rng: torch.Generator) -> None:
    x, cond = torch.randn(6, D, generator=rng), told(rng)
    assert torch.equal(grown(x, 0.2, 0.7, cond), grown.base(x, 0.2, 0.7, cond))


def test_at_context_time_zero_the_context_does_not_matter(grown: PosteriorNetwork, rng: torch.Generator) -> None:
    z, cond = torch.randn(6, D, generator=rng), told(rng)
    ends = [
        jump(grown, z, 0.0, 1.0, {**cond, "x_t": torch.randn(6, D, generator=rng), "t": torch.zeros(6)})
        for _ in range(2)
    ]
    assert torch.allclose(*ends, atol=1e-6)


def test_only_what_has_grown_is_trained(grown: PosteriorNetwork, rng: torch.Generator) -> None:
    cond = {**told(rng), "x_t": torch.randn(6, D, generator=rng), "t": torch.full((6,), 0.4)}
    grown(torch.randn(6, D, generator=rng), 0.0, 1.0, cond).sum().backward()
    assert all(p.grad is None for p in grown.base.parameters())
    assert all(p.grad is not None for p in (*grown.noise.parameters(), *grown.adapters.parameters()))


def test_a_model_with_a_posterior_map_is_saved_and_read_back(tmp_path: Path, rng: torch.Generator) -> None:
    model = grow(load_model("emoji"), rank=2)
    assert isinstance(model.flow, PosteriorNetwork)
    if model.flow.rank == 2:  # grown here, not shipped
        for p in (*model.flow.noise.parameters(), *model.flow.adapters.parameters()):
            torch.nn.init.normal_(p, std=0.05)
    save_model(model, tmp_path)
    back = load_model(tmp_path)
    cond, x = model.encode(["a red heart"]), torch.randn(1, *model.shape, generator=rng)
    ends = [Learned(3)(m.flow, m.path, x, 0.5, cond=cond, noise=torch.ones(3, *x.shape)) for m in (model, back)]
    assert torch.allclose(*ends, atol=1e-5)


def test_only_a_flow_network_grows() -> None:
    model = Model(lambda x, s, t, cond: x, Linear(), lambda p: {}, lambda x: x, (2,), "mine")
    with pytest.raises(ValueError, match="model='mine' has a flow of type function"):
        grow(model)
