"""Candidates that a filter lets through, against brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twotower.data.item_lists import ItemLists
from twotower.index.base import SearchResult
from twotower.index.flat import Flat
from twotower.serving.filters import search_allowed


class Counting:
    """Exact search in a loop over the queries, which remembers what it was asked for.

    Args:
        items: (N, D) item vectors.
        hidden: Items that it never returns, as an approximate index may not.
    """

    def __init__(self, items: np.ndarray, hidden: frozenset[int] = frozenset()) -> None:
        self.items, self.hidden = items, hidden
        self.calls: list[tuple[int, int]] = []
        self.num_items, self.dim = items.shape
        self.description = "a loop"

    def search(self, queries: np.ndarray, k: int) -> SearchResult:
        self.calls.append((len(queries), k))
        rows = np.full((len(queries), k), -1, np.int64)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        for number, query in enumerate(queries):
            products = self.items @ query
            order = [row for row in np.argsort(-products, kind="stable") if row not in self.hidden]
            best = order[:k]
            rows[number, : len(best)] = best
            scores[number, : len(best)] = products[best]
        return SearchResult(rows=rows, scores=scores)


def excluding(*lists: list[int]) -> ItemLists:
    offsets = np.cumsum([0, *map(len, lists)])
    return ItemLists(offsets=offsets, item_rows=np.array([i for some in lists for i in some], int))


def brute_force(index: Counting, vectors: np.ndarray, k: int, lists: list[list[int]]) -> list:
    found = []
    for query, left_out in zip(vectors, lists, strict=True):
        products = index.items @ query
        order = np.argsort(-products, kind="stable")
        banned = {*left_out, *index.hidden}
        found.append([int(row) for row in order if int(row) not in banned][:k])
    return found


def check(index: Counting, vectors: np.ndarray, k: int, lists: list[list[int]]) -> None:
    result = search_allowed(index, vectors, k, excluding(*lists))
    expected = brute_force(index, vectors, k, lists)
    assert result.rows.shape == result.scores.shape == (len(vectors), k)
    for query, rows, scores, wanted in zip(
        vectors, result.rows, result.scores, expected, strict=True
    ):
        assert rows.tolist() == wanted + [-1] * (k - len(wanted))
        np.testing.assert_allclose(scores[: len(wanted)], index.items[wanted] @ query, atol=1e-5)
        assert np.isneginf(scores[len(wanted) :]).all()


def world(num_queries: int, num_items: int, seed: int = 0) -> tuple[Counting, np.ndarray]:
    rng = np.random.default_rng(seed)
    items = rng.normal(size=(num_items, 4)).astype(np.float32)
    return Counting(items), rng.normal(size=(num_queries, 4)).astype(np.float32)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_equal_to_brute_force(data: st.DataObject) -> None:
    num_items, k = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 40))
    one = st.lists(st.integers(0, num_items - 1), max_size=45)  # an item may be named twice
    lists = data.draw(st.lists(one, min_size=1, max_size=6))
    index, vectors = world(len(lists), num_items, data.draw(st.integers(0, 5)))
    check(index, vectors, k, lists)


def test_lists_of_very_different_lengths() -> None:
    index, vectors = world(6, 500)
    rng = np.random.default_rng(1)
    lists = [rng.permutation(500)[:count].tolist() for count in (0, 1, 3, 250, 495, 500)]
    check(index, vectors, 10, lists)


def test_the_best_items_are_the_excluded_ones() -> None:
    index, vectors = world(2, 200)
    best = np.argsort(-(index.items @ vectors.T), axis=0)[:150].T  # (2, 150)
    check(index, vectors, 20, [best[0].tolist(), []])


def test_items_that_are_named_often_count_once() -> None:
    index, vectors = world(3, 100)
    best = np.argsort(-(index.items @ vectors[0]))
    check(index, vectors, 8, [[int(best[0])] * 95, [], []])


def test_everything_is_excluded() -> None:
    index, vectors = world(2, 9)
    check(index, vectors, 4, [list(range(9)), [0]])


@pytest.mark.parametrize("k", [5, 30])
def test_nothing_is_excluded(k: int) -> None:
    index, vectors = world(3, 9)
    expected = index.search(vectors, k)
    for excluded in (None, excluding([], [], [])):
        result = search_allowed(index, vectors, k, excluded)
        np.testing.assert_array_equal(result.rows, expected.rows)
        np.testing.assert_array_equal(result.scores, expected.scores)


def test_only_short_queries_ask_again_and_it_comes_to_an_end() -> None:
    index, vectors = world(50, 1000)
    best = np.argsort(-(index.items @ vectors[7]))[:900].tolist()
    lists = [best if query == 7 else [] for query in range(50)]
    check(index, vectors, 10, lists)
    asked, depths = zip(*index.calls, strict=True)
    assert asked == (50, *[1] * (len(asked) - 1))
    assert len(index.calls) <= 2 + math.log2(1000 / 10)
    assert list(depths) == sorted(depths)


def test_an_index_that_has_no_more_to_give_is_not_asked_for_ever() -> None:
    index, vectors = world(2, 60)
    index.hidden = frozenset(range(0, 60, 2))
    check(index, vectors, 40, [[1, 3], [5]])
    assert len(index.calls) <= 3


def test_with_faiss() -> None:
    index, vectors = world(20, 300)
    rng = np.random.default_rng(3)
    lists = [rng.permutation(300)[: 14 * query].tolist() for query in range(20)]
    result = search_allowed(Flat(device="cpu").build(index.items), vectors, 10, excluding(*lists))
    assert result.rows.tolist() == [
        rows + [-1] * (10 - len(rows)) for rows in brute_force(index, vectors, 10, lists)
    ]
