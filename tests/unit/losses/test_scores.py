"""Scores are dot products in full precision."""

from __future__ import annotations

import torch

from twotower.losses.scores import pool_scores


def test_hand_table() -> None:
    scores = pool_scores(
        torch.tensor([[1.0, 2.0], [0.0, -1.0]]),
        torch.tensor([[3.0, 1.0], [5.0, 5.0]]),
        torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 1.0]]),
    )
    assert scores.targets.tolist() == [5, -5]
    assert scores.candidates.tolist() == [[1, 2, 1], [0, -1, -1]]


def test_bfloat16_vectors_are_multiplied_in_float32_under_autocast_too() -> None:
    torch.manual_seed(0)
    vectors = torch.randn(3, 40, 32).bfloat16()
    exact = vectors[0].double() @ vectors[2].double().T
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            scores = pool_scores(*vectors)
        assert scores.candidates.dtype == scores.targets.dtype == torch.float32
        torch.testing.assert_close(scores.candidates.double(), exact, atol=1e-5, rtol=0)


def test_float64_stays() -> None:
    assert pool_scores(*torch.ones(3, 2, 2).double()).candidates.dtype == torch.float64
