"""Bayesian personalised ranking by hand."""

from __future__ import annotations

import math

import pytest
import torch

from twotower.losses.negatives import Pool
from twotower.losses.pairwise import BPR


def pool_of(vectors: torch.Tensor) -> Pool:
    count = vectors.shape[0]
    return Pool(vectors=vectors, rows=torch.arange(count), log_expected_count=torch.zeros(count))


QUERIES = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
TARGETS = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
CANDIDATES = torch.tensor([[1.0, 3.0], [0.0, -1.0], [9.0, 9.0]])
# Gaps s_t - s_c: query 0: 1, 2, -7; query 1: -2, 2, -8.
MASKED = torch.tensor([[False, False, True], [False, True, True]])


def softplus(x: float) -> float:
    return math.log(1 + math.exp(x))


def test_mean_over_the_candidates_that_are_not_masked() -> None:
    loss = BPR()(QUERIES, TARGETS, pool_of(CANDIDATES), MASKED)
    by_hand = ((softplus(-1) + softplus(-2)) / 2 + softplus(2)) / 2
    assert loss.item() == pytest.approx(by_hand, rel=1e-6)


def test_weights_and_temperature() -> None:
    loss = BPR(temperature=0.5)(
        QUERIES, TARGETS, pool_of(CANDIDATES), MASKED, torch.tensor([1.0, 3.0])
    )
    by_hand = ((softplus(-2) + softplus(-4)) / 2 + 3 * softplus(4)) / 4
    assert loss.item() == pytest.approx(by_hand, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masked_pairs_have_no_gradient(dtype: torch.dtype) -> None:
    candidates = CANDIDATES.to(dtype).clone().requires_grad_()
    queries = QUERIES.to(dtype)
    BPR()(queries, TARGETS.to(dtype), pool_of(candidates), MASKED).backward()
    assert candidates.grad is not None
    assert candidates.grad[2].tolist() == [0, 0]
    assert candidates.grad[1, 1] == 0  # only query 1 looks that way, and it is masked there
    assert candidates.grad[1, 0] > 0


def test_a_query_without_candidates_costs_nothing() -> None:
    queries = QUERIES.clone().requires_grad_()
    loss = BPR()(queries, TARGETS, pool_of(CANDIDATES), torch.ones(2, 3, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert queries.grad is not None
    assert queries.grad.tolist() == [[0, 0], [0, 0]]


def test_the_order_of_candidates_does_not_matter() -> None:
    order = [2, 0, 1]
    loss = BPR()(QUERIES, TARGETS, pool_of(CANDIDATES), MASKED)
    other = BPR()(QUERIES, TARGETS, pool_of(CANDIDATES[order]), MASKED[:, order])
    torch.testing.assert_close(loss, other)


def test_temperature_must_be_positive() -> None:
    with pytest.raises(ValueError, match="`temperature` must be a number above 0, got 0"):
        BPR(temperature=0)
