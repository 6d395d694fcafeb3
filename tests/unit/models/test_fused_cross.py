"""The stack with a gradient of its own against layers that torch differentiates."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from twotower.models.cross import full_rank, full_rank_cross
from twotower.models.fused_cross import full_rank_stack


def drawn(*shape: int, seed: int) -> Tensor:
    state = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=state, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("num_rows", [0, 1, 5])
@pytest.mark.parametrize("width", [1, 4, 15, 16, 17])
def test_values_and_gradients(num_layers: int, num_rows: int, width: int) -> None:
    x0 = drawn(num_rows, width, seed=0)
    weights = [drawn(width, width, seed=1 + k) for k in range(num_layers)]
    biases = [drawn(width, seed=10 + k) for k in range(num_layers)]
    x = x0
    for weight, bias in zip(weights, biases, strict=True):
        x = x + full_rank_cross(x0, x, weight, bias)
    found = full_rank_stack(x0, weights, biases)
    torch.testing.assert_close(found, x)
    wanted = drawn(num_rows, width, seed=20).detach()
    given = [x0, *weights, *biases]
    for own, other in zip(
        torch.autograd.grad((found * wanted).sum(), given),
        torch.autograd.grad((x * wanted).sum(), given),
        strict=True,
    ):
        torch.testing.assert_close(own, other)


def test_numeric_derivative() -> None:
    given = [drawn(3, 2, seed=0), *(drawn(2, 2, seed=k) for k in (1, 2))]
    given += [drawn(2, seed=3), drawn(2, seed=4)]
    assert torch.autograd.gradcheck(lambda x, *p: full_rank_stack(x, p[:2], p[2:]), given)


def test_a_gradient_that_belongs_to_others_is_left_as_it_was() -> None:
    """Addition hands the same gradient to both of its terms."""
    x0, weight, bias = drawn(3, 2, seed=0), drawn(2, 2, seed=1), drawn(2, seed=2)
    other = drawn(3, 2, seed=3)
    (full_rank_stack(x0, [weight], [bias]) + other).sum().backward()
    assert other.grad is not None
    assert torch.equal(other.grad, torch.ones_like(other))


def test_trained_and_evaluated_say_the_same_in_any_precision() -> None:
    network = full_rank(4, num_layers=2)
    x0 = drawn(5, 4, seed=0).detach().float()
    with torch.no_grad():
        evaluated = network(x0)
    torch.testing.assert_close(network(x0), evaluated)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = network(x0)
    mixed.sum().backward()
    torch.testing.assert_close(mixed, evaluated, rtol=0.05, atol=0.05)
    assert all(p.grad is not None for p in network.parameters())


def test_gradients_lie_as_their_parameters_do() -> None:
    """Optimizers and what averages gradients over processes go through both side by side."""
    network = full_rank(5, num_layers=2)
    x0 = drawn(7, 5, seed=0).detach().float()
    for pieces in ([x0], x0.split(3)):
        network.zero_grad()
        torch.cat([network(piece) for piece in pieces]).sum().backward()
        for parameter in network.parameters():
            assert parameter.grad is not None
            assert parameter.grad.stride() == parameter.stride()
