import pytest
import torch

from steer.draws import draws_like, rand_like, randn_like


def seeds(*numbers: int) -> list[torch.Generator]:
    """Generators."""
    return [torch.Generator().manual_seed(i) for i in numbers]


def test_a_generator_draws_in_the_dtype_of_x(dtype: torch.dtype) -> None:
    x = torch.zeros(7, 2, dtype=dtype)
    a, b = (randn_like(x, seeds(1)[0]) for _ in range(2))
    assert a.dtype == dtype and a.shape == x.shape and torch.equal(a, b) and a.std() > 0
    u = rand_like(x, seeds(1)[0])
    assert u.dtype == dtype and ((u >= 0) & (u < 1)).all()


@pytest.mark.parametrize("draw", [randn_like, rand_like, lambda x, rng: draws_like(x, 4, rng).movedim(0, 1)])
def test_a_prompt_with_its_own_generator_gets_what_it_gets_alone(draw) -> None:  # noqa: ANN001
    x = torch.zeros(3, 5, 2)
    together = draw(x, seeds(7, 8, 9))
    for i, seed in enumerate((7, 8, 9)):
        assert torch.equal(together[i], draw(x[:1], seeds(seed))[0])


def test_the_wrong_number_of_generators_raises() -> None:
    with pytest.raises(ValueError, match="rng holds 2 generators for 3 prompts"):
        randn_like(torch.zeros(3, 5, 2), seeds(1, 2))
