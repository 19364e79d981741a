"""Bounded parts: how they are asked for, the scores and gradients they keep, and what is said when memory runs out."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from steer.chunks import AtOnce, Chunks, OutOfMemory, Within, slices


@pytest.mark.parametrize(
    "given, chunks",
    [
        (None, Chunks(1024, 128, 128)),
        (7, Chunks(7, 7, 7)),
        ({"decoder": 3}, Chunks(1024, 3, 128)),
        ({"network": 1, "decoder": 2, "reward": 4}, Chunks(1, 2, 4)),
        (Chunks(5), Chunks(5)),
    ],
)
def test_ways_to_ask(given: object, chunks: Chunks) -> None:
    assert Chunks.of(given) == chunks


@pytest.mark.parametrize(
    "given, message",
    [
        (0, "chunk=0 must be a whole number, at least 1, or a dict of network, decoder, reward"),
        (True, "chunk=True must be"),
        (2.0, r"chunk=2\.0 must be"),
        ({"netwrok": 3}, "names 'netwrok'; known: network, decoder, reward"),
        ({"reward": 0}, "chunk={'reward': 0} must be a whole number of rows, at least 1"),
        ({"decoder": "many"}, "chunk={'decoder': 'many'} must be"),
    ],
)
def test_bad_ways(given: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Chunks.of(given)


@pytest.mark.parametrize("rows, size", [(1, 1), (7, 3), (6, 3), (2, 100)])
def test_slices_hold_each_row_once_and_no_more_than_asked(rows: int, size: int) -> None:
    parts = [range(rows)[part] for part in slices(rows, size)]
    assert [i for part in parts for i in part] == list(range(rows))
    assert max(map(len, parts)) <= size and len(parts) == math.ceil(rows / size)


def cpu_allocator() -> RuntimeError:
    return RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("cuda"), MemoryError(), cpu_allocator()])
def test_out_of_memory_names_the_chunk(error: BaseException) -> None:
    with pytest.raises(
        torch.OutOfMemoryError, match="the decoder, 8 rows at once; lower chunk={'decoder': 4}"
    ) as caught:
        with Within("decoder", 8):
            raise error
    assert caught.value.__cause__ is error


def test_the_innermost_part_is_to_blame_and_one_row_is_the_end() -> None:
    with pytest.raises(OutOfMemory, match="in the reward, 1 rows at once; not even one row fits"):
        with Within("network", 8), Within("reward", 1):
            raise MemoryError


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("mine"), KeyboardInterrupt()])
def test_other_errors_pass_as_they_are(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught:
        with Within("network", 8):
            raise error
    assert caught.value is error


def test_a_gradient_taken_at_once_is_autograd_s() -> None:
    """Of scores with weights from above, and through what comes before."""

    def scores(x: Tensor) -> Tensor:
        return x.square().sum((1, 2)) + x[:, 0, 0].sin()

    def of(x: Tensor) -> tuple[Tensor, Tensor]:
        assert not x.requires_grad and not torch.is_grad_enabled()
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            r = scores(leaf)
            return r.detach(), torch.autograd.grad(r.sum(), leaf)[0]

    x = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    weights = torch.arange(5).double()
    ours, truth = (
        torch.autograd.grad((weights * f(x.exp())).sum(), x)[0] for f in (lambda y: AtOnce.apply(y, of), scores)
    )
    assert_close(ours, truth)


def test_scores_without_a_gradient_say_so() -> None:
    x = torch.ones(3, 2, requires_grad=True)
    assert not AtOnce.apply(x, lambda x: (x.sum(1), None)).requires_grad
