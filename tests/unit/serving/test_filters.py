"""Candidates that a filter lets through, against brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twotower.data.item_lists import ItemLists
from twotower.index.allowed import AllowedRows
from twotower.index.base import SearchResult, index_recall
from twotower.index.filtered import FilteredIndex
from twotower.index.flat import Flat
from twotower.index.graph import HNSW
from twotower.index.inverted_file import IVFFlat
from twotower.serving.filters import first_allowed, search_allowed, search_filtered


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

    def search(
        self, queries: np.ndarray, k: int, allowed: AllowedRows | None = None
    ) -> SearchResult:
        self.calls.append((len(queries), k))
        hidden = set(self.hidden)
        if allowed is not None:
            hidden |= set(range(self.num_items)) - set(allowed.rows.tolist())
        rows = np.full((len(queries), k), -1, np.int64)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        for number, query in enumerate(queries):
            products = self.items @ query
            order = [row for row in np.argsort(-products, kind="stable") if row not in hidden]
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


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.data())
def test_every_query_with_its_own_filter_and_its_own_seen_items(data: st.DataObject) -> None:
    num_items, k = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 40))
    masks = st.lists(st.booleans(), min_size=num_items, max_size=num_items)
    sets = [None, *(AllowedRows(np.array(data.draw(masks))) for _ in range(2))]
    one = st.lists(st.integers(0, num_items - 1), max_size=45)
    lists = data.draw(st.lists(one, min_size=1, max_size=6))
    allowed = [data.draw(st.sampled_from(sets)) for _ in lists]
    index, vectors = world(len(lists), num_items, data.draw(st.integers(0, 5)))
    banned = [
        [*left_out, *(set(range(num_items)) - set(among.rows.tolist()) if among else ())]
        for left_out, among in zip(lists, allowed, strict=True)
    ]
    expected = brute_force(index, vectors, k, banned)
    result = search_filtered(index, vectors, k, excluding(*lists), allowed)
    groups = len({id(among) for among in allowed})
    assert groups <= len(index.calls)
    assert result.rows.tolist() == [rows + [-1] * (k - len(rows)) for rows in expected]
    if not any(lists):
        assert len(index.calls) == groups  # those who share a set are searched for together
        alone = search_filtered(index, vectors, k, None, allowed)
        assert alone.rows.tolist() == result.rows.tolist()


def test_seen_items_that_the_filter_removes_anyway_do_not_count() -> None:
    """The best twenty allowed items are seen by the second query; the first has seen others."""
    index, vectors = world(2, 1000)
    mask = np.arange(1000) % 2 == 0
    best = [row for row in np.argsort(-(index.items @ vectors[1])).tolist() if mask[row]]
    odd = np.flatnonzero(~mask).tolist()
    lists = [[], [*best[:20], *odd]]
    among = AllowedRows(mask)
    result = search_filtered(index, vectors, 10, excluding(*lists), [among, among])
    expected = brute_force(index, vectors, 10, [odd, [*best[:20], *odd]])
    assert result.rows.tolist() == expected


@pytest.mark.parametrize(
    "builder",
    [Flat(device="cpu"), IVFFlat(device="cpu", num_probes=32), HNSW(device="cpu", num_links=16)],
)
def test_99_of_100_of_the_best_items_are_filtered(builder) -> None:
    """Of the best 500 items of a user one in a hundred may be shown, of the others half.

    Users have seen thirty of those that are left. The list is full, and it is the right one.
    """
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(80, 16))
    points = centres[rng.integers(0, 80, 10_020)] + 0.8 * rng.normal(size=(10_020, 16))
    points = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
    items, users = points[:10_000], points[10_000:]
    index = FilteredIndex(builder.build(items), items)
    k, allowed, lists = 50, [], []
    for user in users:
        mask = rng.random(10_000) < 0.5
        best = np.argsort(-(items @ user))
        mask[best[:500]] = rng.random(500) < 0.01
        allowed.append(AllowedRows(mask))
        left = best[mask[best]]
        lists.append(left[rng.permutation(100)[:30]].tolist())
    found = search_filtered(index, users, k, excluding(*lists), allowed)
    exact = np.array(
        [
            [row for row in np.argsort(-(items @ user)) if among.mask[row] and row not in seen][:k]
            for user, among, seen in zip(users, allowed, lists, strict=True)
        ]
    )
    assert (found.rows >= 0).all()  # k results come back
    assert all(among.contains(rows).all() for among, rows in zip(allowed, found.rows, strict=True))
    assert not any(set(rows) & set(seen) for rows, seen in zip(found.rows, lists, strict=True))
    assert index_recall(found.rows, exact).mean() >= 0.95
    unaware = index.search(users, k).rows  # what a filter after the search would have left
    kept = [among.contains(rows).mean() for among, rows in zip(allowed, unaware, strict=True)]
    assert np.mean(kept) < 0.05


def test_the_first_rows_that_are_allowed() -> None:
    rng = np.random.default_rng(0)
    rows = rng.permutation(20_000)
    mask = rng.random(20_000) < 0.001
    expected = [row for row in rows.tolist() if mask[row]]
    for k in (1, 5, 1_000):
        assert first_allowed(rows, k, AllowedRows(mask)).tolist() == expected[:k]
    assert first_allowed(rows, 3, None).tolist() == rows[:3].tolist()
    assert first_allowed(rows[:0], 3, AllowedRows(mask)).tolist() == []


def item_lists(parts: list[np.ndarray]) -> ItemLists:
    return ItemLists(
        offsets=np.cumsum([0, *map(len, parts)]), item_rows=np.concatenate(parts).astype(np.int64)
    )


@pytest.mark.parametrize("k", [1, 5, 40, 60])
def test_one_query_is_answered_as_it_is_among_others(k: int) -> None:
    """One query that has enough at once goes a shorter way."""
    rng = np.random.default_rng(k)
    index = Flat(device="cpu").build(rng.normal(size=(60, 8)).astype(np.float32))
    vectors = rng.normal(size=(12, 8)).astype(np.float32)
    seen = [rng.integers(60, size=n) for n in (0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 59, 60)]
    together = search_allowed(index, vectors, k, item_lists(seen))
    for query, own in enumerate(seen):
        alone = search_allowed(index, vectors[query : query + 1], k, item_lists([own]))
        assert alone.rows.tolist() == together.rows[query : query + 1].tolist()
        np.testing.assert_allclose(alone.scores[0], together.scores[query], rtol=1e-5)
        assert not np.isin(alone.rows, own).any()
