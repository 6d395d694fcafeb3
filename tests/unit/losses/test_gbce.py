"""Generalised binary cross-entropy by hand, and where its expectation is least, by enumeration."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from twotower.losses.gbce import GBCE
from twotower.losses.negatives import MixedNegatives, Pool, WholeCatalogue

QUERIES = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
TARGETS = torch.tensor([[2.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
CANDIDATES = torch.tensor([[1.0, 3.0], [0.0, -1.0], [9.0, 9.0]], dtype=torch.float64)
# Scores of the targets: 2, 1. Of the candidates: query 0: 1, 0, 9; query 1: 3, -1, 9.
MASKED = torch.tensor([[False, False, True], [False, True, True]])


def pool_of(vectors: Tensor, rate: float) -> Pool:
    count = vectors.shape[0]
    log_count = torch.full((count,), math.log(rate), dtype=torch.float64)
    return Pool(vectors=vectors, rows=torch.arange(count), log_expected_count=log_count)


def softplus(x: float) -> float:
    return math.log(1 + math.exp(x))


def test_by_hand() -> None:
    # r = 0.2, t = 0.75: beta = 0.2 * (0.75 * (1 - 5) + 5) = 0.4.
    loss = GBCE(calibration=0.75)(QUERIES, TARGETS, pool_of(CANDIDATES, 0.2), MASKED)
    first = (0.4 * softplus(-2) + softplus(1) + softplus(0)) / 3
    second = (0.4 * softplus(-1) + softplus(3)) / 2
    assert loss.item() == pytest.approx((first + second) / 2, rel=1e-12)


def test_temperature_and_weights() -> None:
    loss = GBCE(calibration=1, temperature=0.5)(
        QUERIES, TARGETS, pool_of(CANDIDATES, 0.1), MASKED, torch.tensor([1.0, 3.0])
    )
    first = (0.1 * softplus(-4) + softplus(2) + softplus(0)) / 3
    second = (0.1 * softplus(-2) + softplus(6)) / 2
    assert loss.item() == pytest.approx((first + 3 * second) / 4, rel=1e-12)


@pytest.mark.parametrize("rate", [0.01, 1.0, 3.0])
def test_without_calibration_it_is_binary_cross_entropy_at_every_rate(rate: float) -> None:
    loss = GBCE(calibration=0)(QUERIES[:1], TARGETS[:1], pool_of(CANDIDATES, rate), MASKED[:1])
    logits, labels = torch.tensor([2.0, 1.0, 0.0]), torch.tensor([1.0, 0.0, 0.0])
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def expected_gradient(calibration: float, probability: Tensor, scores: Tensor) -> Tensor:
    """Gradient of the expected loss over all targets and all pairs of uniform draws.

    One query that is always 1 and items of width 1, so that an item's vector is its score. Losses
    are weighted with the number of their terms, k + 1, which the mean over terms divides by.
    """
    num_items = len(probability)
    items = scores.clone().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for target, *draws in itertools.product(range(num_items), repeat=3):
        rows = torch.tensor(draws)
        masked = (rows == target).unsqueeze(0)
        log_count = torch.full((2,), math.log(2 / num_items), dtype=torch.float64)
        pool = Pool(vectors=items[rows, None], rows=rows, log_expected_count=log_count)
        query = torch.ones(1, 1, dtype=torch.float64)
        loss = GBCE(calibration=calibration)(query, items[[target], None], pool, masked)
        num_terms = 1 + int((~masked).sum())
        total = total + probability[target] * num_terms * loss / num_items**2
    return torch.autograd.grad(total, items)[0]


PROBABILITY = torch.tensor([0.55, 0.25, 0.15, 0.05], dtype=torch.float64)


def test_calibrated_it_is_least_at_the_true_probabilities() -> None:
    gradient = expected_gradient(1, PROBABILITY, PROBABILITY.logit())
    assert gradient.abs().max() < 1e-12
    assert expected_gradient(1, PROBABILITY, PROBABILITY.logit() + 0.1).min() > 1e-3


@pytest.mark.parametrize("calibration", [0.0, 0.5])
def test_else_it_is_least_at_what_the_module_states(calibration: float) -> None:
    rate = 2 / 4
    beta = rate * (calibration * (1 - 1 / rate) + 1 / rate)
    share = beta * PROBABILITY / (beta * PROBABILITY + rate * (1 - PROBABILITY))
    assert expected_gradient(calibration, PROBABILITY, share.logit()).abs().max() < 1e-12
    assert (share > PROBABILITY).all()  # overconfident


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masked_pairs_have_no_gradient(dtype: torch.dtype) -> None:
    candidates = CANDIDATES.to(dtype).requires_grad_()
    loss = GBCE(calibration=0.75)
    loss(QUERIES.to(dtype), TARGETS.to(dtype), pool_of(candidates, 0.2), MASKED).backward()
    assert candidates.grad is not None
    assert candidates.grad[2].tolist() == [0, 0]
    assert candidates.grad[1, 1] == 0  # only query 1 looks that way, and it is masked there
    assert candidates.grad[1, 0] > 0


def test_a_query_without_candidates_has_its_target() -> None:
    masked = torch.ones(2, 3, dtype=torch.bool)
    loss = GBCE(calibration=0.75)(QUERIES, TARGETS, pool_of(CANDIDATES, 0.2), masked)
    assert loss.item() == pytest.approx((0.4 * softplus(-2) + 0.4 * softplus(-1)) / 2, rel=1e-12)


def test_what_uniform_draws_and_the_catalogue_give_is_taken() -> None:
    targets, probability = torch.tensor([1, 3]), PROBABILITY
    for negatives in (MixedNegatives(in_batch=False, num_uniform=3), WholeCatalogue()):
        drawn = negatives.draw(targets, probability, None)
        pool = Pool(
            vectors=torch.zeros(len(drawn.rows), 2, dtype=torch.float64),
            rows=drawn.rows,
            log_expected_count=drawn.log_expected_count,
        )
        masked = drawn.rows == targets[:, None]
        assert GBCE(calibration=0.75)(QUERIES, TARGETS, pool, masked).isfinite()


def test_targets_of_the_batch_as_candidates_are_refused() -> None:
    targets = torch.tensor([0, 3])
    drawn = MixedNegatives(in_batch=True, num_uniform=2).draw(targets, PROBABILITY, None)
    pool = Pool(
        vectors=torch.zeros(4, 2, dtype=torch.float64),
        rows=drawn.rows,
        log_expected_count=drawn.log_expected_count,
    )
    # 2 / 4 of the uniform draws beside 0.55 and 0.05 of the one other target.
    with pytest.raises(ValueError, match=r"all expected equally often .* from 0\.55 to 1\.05"):
        GBCE(calibration=1)(QUERIES, TARGETS, pool, drawn.rows == targets[:, None])


@pytest.mark.parametrize("calibration", [-0.1, 1.1, math.nan])
def test_calibration_out_of_range(calibration: float) -> None:
    with pytest.raises(ValueError, match=rf"`calibration` must lie in \[0, 1\], got {calibration}"):
        GBCE(calibration=calibration)


def test_temperature_must_be_positive() -> None:
    with pytest.raises(ValueError, match="`temperature` must be a number above 0, got 0"):
        GBCE(calibration=1, temperature=0)
