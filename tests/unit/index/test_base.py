"""Values shared by all indexes, against hand-made tables."""

import numpy as np
import pytest

from twotower.index.base import (
    check_k,
    checked_vectors,
    index_recall,
    padded,
)


def test_padded_fills_up_to_k():
    rows = np.array([[4, 2], [7, -1]])
    scores = np.array([[0.5, 0.25], [1.0, -3.0e38]], dtype=np.float32)
    result = padded(rows, scores, 3)
    assert result.rows.tolist() == [[4, 2, -1], [7, -1, -1]]
    assert result.scores.tolist() == [[0.5, 0.25, -np.inf], [1.0, -np.inf, -np.inf]]
    assert result.rows.dtype == np.int64
    assert result.scores.dtype == np.float32


def test_index_recall_by_hand():
    exact = np.array([[1, 2, 3, 4], [5, 6, -1, -1], [-1, -1, -1, -1], [0, 1, 2, 3]])
    found = np.array([[4, 9, 1, 8, 3], [6, -1, -1, -1, -1], [1, 2, 3, 4, 5], [5, 6, 7, 8, 9]])
    np.testing.assert_array_equal(index_recall(found, exact), [0.75, 0.5, np.nan, 0.0])


def test_index_recall_does_not_mix_queries():
    found = np.array([[1, 2], [3, 4]])
    exact = np.array([[3, 4], [1, 2]])
    assert index_recall(found, exact).tolist() == [0.0, 0.0]


def test_index_recall_of_no_queries():
    empty = np.empty((0, 3), dtype=np.int64)
    assert index_recall(empty, empty).shape == (0,)


def test_index_recall_refuses_other_queries():
    with pytest.raises(ValueError, match="same queries, got 2 and 3"):
        index_recall(np.zeros((2, 1), dtype=np.int64), np.zeros((3, 1), dtype=np.int64))


def test_vectors_become_contiguous_float32():
    vectors = checked_vectors("item vectors", np.eye(4)[:, ::2])
    assert vectors.dtype == np.float32
    assert vectors.flags.c_contiguous
    assert vectors.tolist() == [[1, 0], [0, 0], [0, 1], [0, 0]]


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.zeros(3), r"queries must have shape \(n, 2\), got \(3,\)"),
        (np.zeros((3, 4)), r"queries must have shape \(n, 2\), got \(3, 4\)"),
        (np.zeros((3, 2), dtype=np.int64), "queries must be floating point numbers, got int64"),
        (np.array([[0, 1], [np.nan, 1], [1, np.inf]]), r"in 2 rows, first \[1 2\]"),
    ],
)
def test_vectors_are_refused(vectors, message):
    with pytest.raises(ValueError, match=message):
        checked_vectors("queries", vectors, dim=2)


def test_vectors_of_any_width_still_need_a_width():
    with pytest.raises(ValueError, match=r"item vectors must have shape \(n, D\), got \(3, 0\)"):
        checked_vectors("item vectors", np.zeros((3, 0)))


def test_k_must_be_positive():
    check_k(1)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        check_k(0)
