"""Unit vectors and their gradient, against torch's own and against differences."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from twotower.models.unit_vectors import SMALLEST_NORM, unit_vectors


@pytest.mark.parametrize("shape", [(5, 3), (2, 4, 3), (0, 3)])
def test_vectors_and_gradients_are_those_of_torch(shape: tuple[int, ...]) -> None:
    state = torch.Generator().manual_seed(0)
    vectors = torch.randn(shape, generator=state, dtype=torch.float64)
    pulled, found = torch.randn(shape, generator=state, dtype=torch.float64), []
    for function in (unit_vectors, lambda v: functional.normalize(v, dim=-1, eps=SMALLEST_NORM)):
        given = vectors.clone().requires_grad_()
        unit = function(given)
        unit.backward(pulled)
        found.append((unit.detach(), given.grad))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("length", [0.0, 1e-9, 1e-7])
def test_a_vector_that_is_too_short_is_only_divided(length: float) -> None:
    vectors = torch.tensor([[length, 0.0]], requires_grad=True)
    unit = unit_vectors(vectors)
    unit.backward(torch.tensor([[2.0, -3.0]]))
    assert unit.tolist() == [[pytest.approx(length / SMALLEST_NORM), 0]]
    assert vectors.grad is not None
    assert vectors.grad.tolist() == [pytest.approx([2 / SMALLEST_NORM, -3 / SMALLEST_NORM])]


def test_the_gradient_is_that_of_differences_and_can_be_differentiated_again() -> None:
    state = torch.Generator().manual_seed(1)
    vectors = torch.randn(4, 3, generator=state, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(unit_vectors, (vectors,))
    assert torch.autograd.gradgradcheck(unit_vectors, (vectors,))


def test_half_precision_stays_so() -> None:
    vectors = torch.randn(4, 8, dtype=torch.bfloat16, requires_grad=True)
    unit = unit_vectors(vectors)
    unit.sum().backward()
    assert unit.dtype == torch.bfloat16
    assert vectors.grad is not None
    assert vectors.grad.dtype == torch.bfloat16
