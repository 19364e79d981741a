"""The network's parametrisation, and that forward mode gives the slope that self-distillation needs."""

import pytest
import torch

from steer.models.network import FlowNetwork


def network(**changes: int) -> FlowNetwork:
    torch.manual_seed(0)
    net = FlowNetwork(size=20, token_size=8, width=32, depth=2, condition=16, queries=2, **changes).double()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return net


def words(net: FlowNetwork, b: int) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(1)
    tokens = torch.randn(b, 5, 8, generator=rng, dtype=torch.float64)
    return {"words": net.describe(tokens, torch.ones(b, 5, dtype=torch.bool))}


def test_the_output_is_where_the_chord_ends() -> None:
    """x + (1 - s) v is the network's output, whatever x is added: at the start of training 0, for all s up to .95."""
    net = FlowNetwork(size=20, token_size=8, width=32, depth=2, condition=16, queries=2).double()
    x = torch.randn(3, 20, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for s in (0.0, 0.3, 0.95):
        assert torch.allclose(x + (1 - s) * net(x, s, 1.0, words(net, 3)), torch.zeros_like(x), atol=1e-12)
    assert torch.allclose(net(x, 1.0, 1.0, words(net, 3)), -x / 0.05)  # finite at the end of the path


def test_padding_is_not_read() -> None:
    net, rng = network(), torch.Generator().manual_seed(3)
    tokens = torch.randn(2, 5, 8, generator=rng, dtype=torch.float64)
    mask = torch.tensor([[True, True, True, False, False]] * 2)
    changed = tokens.clone()
    changed[:, 3:] = 7
    assert torch.allclose(net.describe(tokens, mask), net.describe(changed, mask))
    assert not torch.allclose(net.describe(tokens, mask), net.describe(changed, torch.ones_like(mask)))


def test_forward_mode_slope_matches_differences() -> None:
    net = network()
    x, cond = torch.randn(4, 20, generator=torch.Generator().manual_seed(4), dtype=torch.float64), words(net, 4)
    s, t = torch.tensor([0.0, 0.2, 0.5, 0.9]).double(), torch.tensor([0.1, 0.6, 0.7, 1.0]).double()
    _, slope = torch.func.jvp(lambda u: net(x, s, u, cond), (t,), (torch.ones_like(t),))
    difference = (net(x, s, t + 1e-6, cond) - net(x, s, t - 1e-6, cond)) / 2e-6
    assert torch.allclose(slope, difference, atol=1e-5) and slope.abs().max() > 1e-2


def test_rows_do_not_mix() -> None:
    net = network()
    x, cond = torch.randn(4, 20, generator=torch.Generator().manual_seed(5), dtype=torch.float64), words(net, 4)
    one = net(x[2:3], 0.2, 0.8, {"words": cond["words"][2:3]})
    assert torch.allclose(net(x, 0.2, 0.8, cond)[2:3], one)


def test_without_prompts_it_says_so() -> None:
    net = network()
    with pytest.raises(ValueError, match="cond"):
        net(torch.zeros(1, 20).double(), 0.0, 1.0, None)
