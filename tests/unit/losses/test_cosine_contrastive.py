"""Cosine contrastive loss by hand and by a loop over pairs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from twotower.losses.cosine_contrastive import CosineContrastive
from twotower.losses.negatives import Pool


def pool_of(vectors: Tensor) -> Pool:
    count = vectors.shape[0]
    return Pool(vectors=vectors, rows=torch.arange(count), log_expected_count=torch.zeros(count))


# Unit vectors (cos, sin) = (0.6, 0.8), so that all cosines are known.
QUERIES = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
TARGETS = torch.tensor([[0.6, 0.8], [0.6, 0.8]], dtype=torch.float64)
CANDIDATES = torch.tensor([[1.0, 0.0], [0.6, 0.8], [-0.8, 0.6]], dtype=torch.float64)
# Cosines of the candidates: query 0: 1, 0.6, -0.8; query 1: 0, 0.8, 0.6. Of the targets: 0.6, 0.8.
NONE = torch.zeros(2, 3, dtype=torch.bool)
MASKED = torch.tensor([[False, False, False], [False, True, False]])


def test_the_mean_of_what_exceeds_the_margin_is_weighed_against_the_target() -> None:
    loss = CosineContrastive(weight=2, margin=0.5)(QUERIES, TARGETS, pool_of(CANDIDATES), MASKED)
    first = (1 - 0.6) + 2 * (0.5 + 0.1 + 0) / 3
    second = (1 - 0.8) + 2 * (0 + 0.1) / 2
    assert loss.item() == pytest.approx((first + second) / 2, rel=1e-12)


def test_weights_of_queries() -> None:
    loss = CosineContrastive(weight=1, margin=0)(
        QUERIES, TARGETS, pool_of(CANDIDATES), NONE, torch.tensor([1.0, 3.0])
    )
    first = 0.4 + (1 + 0.6 + 0) / 3
    second = 0.2 + (0 + 0.8 + 0.6) / 3
    assert loss.item() == pytest.approx((first + 3 * second) / 4, rel=1e-12)


def test_value_and_gradient_are_those_of_a_loop_over_pairs() -> None:
    state = torch.Generator().manual_seed(0)
    leaves = [
        torch.randn(n, 5, dtype=torch.float64, generator=state).requires_grad_() for n in (4, 4, 30)
    ]
    queries, targets, candidates = (functional.normalize(leaf, dim=1) for leaf in leaves)
    masked = torch.rand(4, 30, generator=state) < 0.3
    loss = CosineContrastive(weight=7, margin=0.2)(queries, targets, pool_of(candidates), masked)

    total = torch.zeros((), dtype=torch.float64)
    for b in range(4):
        against = [candidates[c] for c in range(30) if not masked[b, c]]
        excess = [torch.relu(queries[b].dot(vector) - 0.2) for vector in against]
        total = total + 1 - queries[b].dot(targets[b]) + 7 * sum(excess) / len(against)
    torch.testing.assert_close(loss, total / 4, rtol=1e-12, atol=0)
    ours = torch.autograd.grad(loss, leaves, retain_graph=True)
    theirs = torch.autograd.grad(total / 4, leaves)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_candidates_masked_or_below_the_margin_have_no_gradient(dtype: torch.dtype) -> None:
    candidates = CANDIDATES.to(dtype).requires_grad_()
    loss = CosineContrastive(weight=2, margin=0.7)
    loss(QUERIES.to(dtype), TARGETS.to(dtype), pool_of(candidates), MASKED).backward()
    assert candidates.grad is not None
    # Only candidate 0 stands above 0.7, for query 0: 2 * (1 / 3) * query 0, half of the batch.
    torch.testing.assert_close(
        candidates.grad.float(), torch.tensor([[1 / 3, 0], [0, 0], [0, 0]]), rtol=4e-3, atol=0
    )


def test_a_query_without_candidates_is_still_drawn_to_its_target() -> None:
    queries = QUERIES.clone().requires_grad_()
    loss = CosineContrastive(weight=150, margin=0.5)(
        queries, TARGETS, pool_of(CANDIDATES), torch.ones(2, 3, dtype=torch.bool)
    )
    loss.backward()
    assert loss.item() == pytest.approx((0.4 + 0.2) / 2, rel=1e-12)
    torch.testing.assert_close(queries.grad, -TARGETS / 2)


def test_the_order_of_candidates_does_not_matter() -> None:
    order = [2, 0, 1]
    loss = CosineContrastive(weight=3, margin=0.1)
    torch.testing.assert_close(
        loss(QUERIES, TARGETS, pool_of(CANDIDATES), MASKED),
        loss(QUERIES, TARGETS, pool_of(CANDIDATES[order]), MASKED[:, order]),
    )


@pytest.mark.parametrize("weight", [-1.0, math.inf, math.nan])
def test_weight_out_of_range(weight: float) -> None:
    with pytest.raises(ValueError, match=f"`weight` must be a number of at least 0, got {weight}"):
        CosineContrastive(weight=weight, margin=0.5)


@pytest.mark.parametrize("margin", [-1.5, 1.0, math.nan])
def test_margin_out_of_range(margin: float) -> None:
    with pytest.raises(ValueError, match=rf"`margin` must be a cosine in \[-1, 1\), got {margin}"):
        CosineContrastive(weight=1, margin=margin)
