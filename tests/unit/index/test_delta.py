"""Main index and what lies beside it, against exact search over the union."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twotower.index.allowed import AllowedRows
from twotower.index.base import SearchResult, index_recall
from twotower.index.delta import DeltaIndex, merged
from twotower.index.filtered import FilteredIndex
from twotower.index.flat import Flat
from twotower.index.graph import HNSW
from twotower.index.inverted_file import IVFFlat

NUM_MAIN, DIM = 12, 3


@dataclass(frozen=True)
class World:
    """Vectors of all rows as they are now, and which of them live.

    Args:
        old: Vectors that the main index was built of.
        now: (C + added, D) the vectors now.
        live: (C + added,) rows that may be returned.
        changed: Rows of the main index that were changed.
    """

    old: np.ndarray
    now: np.ndarray
    live: np.ndarray
    changed: np.ndarray

    def index(self, main: FilteredIndex) -> DeltaIndex:
        added = np.arange(len(self.old), len(self.now))
        beside = np.concatenate([self.changed, added])
        beside = beside[self.live[beside]]
        removed = np.flatnonzero(~self.live[: len(self.old)])
        return DeltaIndex(
            main,
            rows=beside,
            vectors=self.now[beside],
            hidden=np.union1d(self.changed, removed),
            num_items=len(self.now),
        )

    def best(self, query: np.ndarray, allowed: np.ndarray, k: int) -> list[int]:
        scores = self.now @ query
        rows = [row for row in range(len(self.now)) if self.live[row] and allowed[row]]
        return sorted(rows, key=lambda row: (-scores[row], row))[:k]


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Small whole numbers, so that scores are exact and ties abound."""
    vectors = st.lists(st.integers(-2, 2), min_size=DIM, max_size=DIM)
    num_added = draw(st.integers(0, 5))
    size = NUM_MAIN + num_added
    old = np.array(draw(st.lists(vectors, min_size=NUM_MAIN, max_size=NUM_MAIN)), np.float32)
    changed = np.array(sorted(draw(st.sets(st.integers(0, NUM_MAIN - 1), max_size=5))), np.int64)
    fresh = np.array(draw(st.lists(vectors, min_size=size, max_size=size)), np.float32)
    now = np.concatenate([old, fresh[NUM_MAIN:]])
    now[changed] = fresh[changed]
    live = np.array(draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    return World(old=old, now=now, live=live, changed=changed)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.data(), worlds())
def test_equal_to_exact_search_over_the_union(data: st.DataObject, world: World) -> None:
    index = world.index(FilteredIndex(Flat(device="cpu").build(world.old), world.old))
    size = len(world.now)
    assert index.num_items == size
    k = data.draw(st.integers(1, 20))
    vectors = st.lists(st.integers(-2, 2), min_size=DIM, max_size=DIM)
    queries = np.array(data.draw(st.lists(vectors, min_size=1, max_size=3)), np.float32)
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    for allowed in (None, AllowedRows(mask)):
        found = index.search(queries, k, allowed)
        passes = np.ones(size, bool) if allowed is None else mask
        for number, query in enumerate(queries):
            expected = world.best(query, passes, size)
            rows = found.rows[number]
            rows = rows[rows >= 0].tolist()
            assert len(rows) == min(k, len(expected))
            scores = [float(world.now[row] @ query) for row in rows]
            # Which of those that tie for the last place is FAISS' choice.
            assert scores == [float(world.now[row] @ query) for row in expected[:k]]
            assert set(rows) <= set(expected)
            assert rows == sorted(rows, key=lambda row: (-float(world.now[row] @ query), row))
            assert np.isneginf(found.scores[number, len(rows) :]).all()
            assert found.scores[number, : len(rows)].tolist() == scores


@pytest.mark.parametrize("builder", [IVFFlat(device="cpu", num_probes=16), HNSW(device="cpu")])
def test_beside_an_approximate_index(builder, clustered) -> None:
    """A tenth of the items changed, a tenth added, a tenth removed; half of all filtered."""
    items, queries = clustered
    rng = np.random.default_rng(0)
    changed = np.sort(rng.permutation(2_700)[:300])
    old = items[:2_700]
    now = np.array(items)
    now[changed] = now[changed] + rng.normal(size=(300, 16)) * 0.3
    now = (now / np.linalg.norm(now, axis=1, keepdims=True)).astype(np.float32)
    world = World(old=old, now=now, live=rng.random(3_000) < 0.9, changed=changed)
    index = world.index(FilteredIndex(builder.build(old), old))
    half = rng.random(3_000) < 0.5
    for allowed, passes in ((None, np.ones(3_000, bool)), (AllowedRows(half), half)):
        found = index.search(queries, 20, allowed)
        expected = np.array([world.best(query, passes, 20) for query in queries])
        assert (world.live & passes)[found.rows].all()
        assert index_recall(found.rows, expected).mean() > 0.95
        scores = np.einsum("qkd,qd->qk", now[found.rows], queries)
        np.testing.assert_allclose(found.scores, scores, atol=1e-5)  # of the vectors as they are


def test_a_set_of_rows_is_cut_to_the_main_index_once(clustered) -> None:
    items, _ = clustered
    main = FilteredIndex(Flat(device="cpu").build(items[:100]), items[:100])
    index = DeltaIndex(
        main,
        rows=np.array([100]),
        vectors=items[100:101],
        hidden=np.array([3, 4]),
        num_items=101,
    )
    allowed = AllowedRows(np.arange(101) % 2 == 0)
    part = index.in_main(allowed)
    assert index.in_main(allowed) is part
    assert part.rows.tolist() == [row for row in range(0, 100, 2) if row != 4]
    assert index.in_main(None).rows.tolist() == [row for row in range(100) if row not in (3, 4)]
    assert index.description == (
        "flat (exact) on cpu: 100 items x 16, inner product; 1 items beside it, 2 hidden"
    )
    assert index.dim == 16


def test_nothing_has_changed(clustered) -> None:
    items, queries = clustered
    main = FilteredIndex(Flat(device="cpu").build(items), items)
    nothing = np.empty(0, np.int64)
    index = DeltaIndex(main, rows=nothing, vectors=items[:0], hidden=nothing, num_items=len(items))
    assert index.in_main(None) is None
    assert index.search(queries, 7).rows.tolist() == main.search(queries, 7).rows.tolist()


def test_two_lists() -> None:
    first = SearchResult(rows=np.array([[5, 2, -1]]), scores=np.array([[3.0, 1.0, -np.inf]]))
    second = SearchResult(rows=np.array([[9, 1, 7]]), scores=np.array([[4.0, 1.0, 0.5]]))
    found = merged(first, second, 4)
    assert found.rows.tolist() == [[9, 5, 1, 2]]
    assert found.scores.tolist() == [[4.0, 3.0, 1.0, 1.0]]
