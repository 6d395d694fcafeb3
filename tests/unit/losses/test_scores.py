"""Scores are dot products in full precision."""

from __future__ import annotations

import torch

from twotower.losses.scores import dot_products, paired_products

QUERIES = torch.tensor([[1.0, 2.0], [0.0, -1.0]])


def test_hand_tables() -> None:
    candidates = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 1.0]])
    assert dot_products(QUERIES, candidates).tolist() == [[1, 2, 1], [0, -1, -1]]
    targets = torch.tensor([[3.0, 1.0], [5.0, 5.0]])
    assert paired_products(QUERIES, targets).tolist() == [5, -5]
    own = torch.stack([targets, 2 * targets], dim=1)  # two of each query
    assert paired_products(QUERIES, own).tolist() == [[5, 10], [-5, -10]]


def test_bfloat16_vectors_are_multiplied_in_float32_under_autocast_too() -> None:
    torch.manual_seed(0)
    one, other = torch.randn(2, 40, 32).bfloat16()
    exact = one.double() @ other.double().T
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            scores, paired = dot_products(one, other), paired_products(one, other)
        assert scores.dtype == paired.dtype == torch.float32
        torch.testing.assert_close(scores.double(), exact, atol=1e-5, rtol=0)
        torch.testing.assert_close(paired.double(), exact.diagonal(), atol=1e-5, rtol=0)


def test_float64_stays() -> None:
    vectors = torch.ones(2, 2).double()
    assert dot_products(vectors, vectors).dtype == torch.float64
    assert paired_products(vectors, vectors).dtype == torch.float64
