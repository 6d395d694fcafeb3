"""Exact search among some rows, and exact ranks, against a sort in Python."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twotower.index import row_search
from twotower.index.row_search import num_before, search_rows


def order_of(vectors: np.ndarray, rows: list[int], query: np.ndarray) -> list[int]:
    """Rows by falling score and rising row; whole numbers, so that every sum is exact."""
    scores = {
        row: int(sum(a * b for a, b in zip(vectors[row], query, strict=True))) for row in rows
    }
    return sorted(rows, key=lambda row: (-scores[row], row))


@st.composite
def worlds(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Vectors and queries of small whole numbers, full of ties, and some rows."""
    num_items = draw(st.integers(1, 40))
    numbers = st.lists(st.integers(-2, 2), min_size=3, max_size=3)
    vectors = draw(st.lists(numbers, min_size=num_items, max_size=num_items))
    queries = draw(st.lists(numbers, min_size=1, max_size=4))
    rows = draw(st.sets(st.integers(0, num_items - 1)))
    return np.array(vectors, np.float32), np.array(queries, np.float32), sorted(rows)


@pytest.fixture(autouse=True, params=[3, 4096])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that cut the rows in the middle, and one that holds them all."""
    monkeypatch.setattr(row_search, "BLOCK", request.param)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(worlds(), st.integers(1, 45))
def test_best_rows(world: tuple[np.ndarray, np.ndarray, list[int]], k: int) -> None:
    vectors, queries, rows = world
    found = search_rows(vectors, np.array(rows, np.int64), queries, k)
    assert found.rows.shape == found.scores.shape == (len(queries), k)
    assert (found.rows.dtype, found.scores.dtype) == (np.int64, np.float32)
    for number, query in enumerate(queries):
        expected = order_of(vectors, rows, query)[:k]
        padding = k - len(expected)
        assert found.rows[number].tolist() == expected + [-1] * padding
        scores = [float(vectors[row] @ query) for row in expected]
        assert found.scores[number].tolist() == scores + [-np.inf] * padding


@settings(max_examples=80, deadline=None, derandomize=True)
@given(worlds(), st.data())
def test_exact_rank(world: tuple[np.ndarray, np.ndarray, list[int]], data: st.DataObject) -> None:
    vectors, queries, rows = world
    row = data.draw(st.integers(0, len(vectors) - 1))
    expected = order_of(vectors, sorted({*rows, row}), queries[0]).index(row)
    assert num_before(vectors, np.array(rows, np.int64), queries[0], row) == expected


def test_equal_vectors_tie_wherever_they_stand() -> None:
    vectors = np.tile(np.random.default_rng(0).normal(size=(1, 64)), (50, 1)).astype(np.float32)
    query = np.random.default_rng(1).normal(size=64).astype(np.float32)
    assert [num_before(vectors, np.arange(50), query, row) for row in range(50)] == [*range(50)]


def test_a_memory_map_will_do(tmp_path) -> None:
    vectors = np.random.default_rng(0).normal(size=(500, 8)).astype(np.float32)
    np.save(tmp_path / "v.npy", vectors)
    mapped = np.load(tmp_path / "v.npy", mmap_mode="r")
    rows, queries = np.arange(0, 500, 7), vectors[:3]
    found, expected = (search_rows(v, rows, queries, 9).rows for v in (mapped, vectors))
    assert found.tolist() == expected.tolist()
