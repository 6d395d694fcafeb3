"""Candidates that may be shown: not what the user has taken, and only what filters let through.

What a user has taken is a short list of his own: the index is asked for more until there are
enough. How many of them a search will meet is not known before, so the first request has a margin
and the queries that came out short ask again for twice as many, until they have enough or the index
has no more to give. What filters let through is one set for all who ask with the same filters; the
index is told of it, and those who share a set are searched for together.

Shape letters: Q queries, K candidates, N items of the index.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from twotower.data.item_lists import ItemLists
from twotower.index.allowed import AllowedRows
from twotower.index.base import NO_ITEM, FloatArray, SearchResult

Array = npt.NDArray[Any]

Search: TypeAlias = Callable[[FloatArray, int], SearchResult]

FIRST_MARGIN = 1.5
ROWS_OF_A_BLOCK = 4096


class SearchableIndex(Protocol):
    """An index; see `twotower.index.base.Index`."""

    @property
    def num_items(self) -> int:
        """Number of rows, ``N``."""

    def search(self, queries: FloatArray, k: int) -> SearchResult:
        """Find the k items with the largest inner products for queries (Q, D)."""


class SelectiveIndex(Protocol):
    """An index that can search among some of its items."""

    @property
    def num_items(self) -> int:
        """Number of rows, ``N``."""

    def search(
        self, queries: FloatArray, k: int, allowed: AllowedRows | None = None
    ) -> SearchResult:
        """Find the k allowed items with the largest inner products for queries (Q, D)."""


def search_filtered(
    index: SelectiveIndex,
    vectors: FloatArray,
    k: int,
    excluded: ItemLists | None,
    allowed: Sequence[AllowedRows | None],
) -> SearchResult:
    """The best `k` items of every query that are allowed and not excluded.

    Args:
        index: The index.
        vectors: (Q, D) query vectors.
        k: Candidates wanted.
        excluded: Items that a query may not return, or None.
        allowed: (Q,) the items that a query may return, the same object where it is the same set;
            None for all.

    Returns:
        Rows and scores (Q, k), padded with -1 and minus infinity.
    """
    groups: dict[int, list[int]] = {}
    for query, of_query in enumerate(allowed):
        groups.setdefault(id(of_query), []).append(query)
    if len(groups) == 1:
        return _search_among(index, vectors, k, excluded, allowed[0])
    found = _nothing(len(vectors), k)
    for members in groups.values():
        group = np.array(members)
        left_out = None if excluded is None else excluded.take(group)
        part = _search_among(index, vectors[group], k, left_out, allowed[members[0]])
        found.rows[group], found.scores[group] = part.rows, part.scores
    return found


def _search_among(
    index: SelectiveIndex,
    vectors: FloatArray,
    k: int,
    excluded: ItemLists | None,
    allowed: AllowedRows | None,
) -> SearchResult:
    """`search_filtered` for queries that share a set."""
    if allowed is None:
        return search_allowed(index, vectors, k, excluded)
    if excluded is not None:
        excluded = excluded.where(allowed.contains(excluded.item_rows))
    search = _among(index, allowed)
    return _search(search, vectors, k, excluded, allowed.num_items, allowed.count)


def first_allowed(rows: Array, k: int, allowed: AllowedRows | None) -> Array:
    """The first `k` of some rows (n,), in their order, that are allowed; None allows all."""
    if allowed is None:
        return rows[:k]
    parts: list[Array] = [rows[:0]]
    for start in range(0, len(rows), ROWS_OF_A_BLOCK):
        block = rows[start : start + ROWS_OF_A_BLOCK]
        parts.append(block[allowed.contains(block)])
        if sum(map(len, parts)) >= k:
            break
    return np.concatenate(parts)[:k]


def _among(index: SelectiveIndex, allowed: AllowedRows) -> Search:
    return lambda queries, k: index.search(queries, k, allowed)


def search_allowed(
    index: SearchableIndex, vectors: FloatArray, k: int, excluded: ItemLists | None
) -> SearchResult:
    """The best `k` items of every query that are not excluded.

    Args:
        index: The index.
        vectors: (Q, D) query vectors.
        k: Candidates wanted.
        excluded: Items that a query may not return, or None.

    Returns:
        Rows and scores (Q, k), padded with -1 and minus infinity.
    """
    return _search(index.search, vectors, k, excluded, index.num_items, index.num_items)


def _search(
    search: Search,
    vectors: FloatArray,
    k: int,
    excluded: ItemLists | None,
    num_items: int,
    num_allowed: int,
) -> SearchResult:
    """Search again for those who have too few; rows lie below `num_items`."""
    if excluded is None or not len(excluded.item_rows):
        return search(vectors, k)
    if len(vectors) == 1:
        at_once = _search_one(search, vectors, k, np.unique(excluded.item_rows), num_allowed)
        if at_once is not None:
            return at_once
    found = _nothing(len(vectors), k)
    keys = _keys(excluded, num_items)
    removed = np.bincount(keys // num_items, minlength=len(vectors))  # (Q,)
    pending = np.arange(len(vectors))
    fetch = int(k + FIRST_MARGIN * np.sort(removed)[len(removed) // 2])
    while len(pending):
        fetch = min(fetch, num_allowed)
        part = search(vectors[pending], max(fetch, 1))
        allowed = _allowed(part.rows, pending, keys, num_items)
        count = allowed.cumsum(axis=1)  # (q, fetch)
        kept = allowed & (count <= k)
        query, slot = np.nonzero(kept)[0], count[kept] - 1
        found.rows[pending[query], slot] = part.rows[kept]
        found.scores[pending[query], slot] = part.scores[kept]
        if fetch >= num_allowed:
            break
        short = count[:, -1] < np.minimum(k, num_allowed - removed[pending])
        pending, fetch = pending[short], fetch * 2
        found.rows[pending], found.scores[pending] = NO_ITEM, -np.inf
    return found


def _search_one(
    search: Search, vectors: FloatArray, k: int, excluded: Array, num_allowed: int
) -> SearchResult | None:
    """What most requests need and `_search` does with more ado; None where one is not enough.

    Args:
        search: The search.
        vectors: (1, D) the query vector.
        k: Candidates wanted.
        excluded: (E,) item rows in order, at least one.
        num_allowed: How many rows there are to be found.
    """
    fetch = min(int(k + FIRST_MARGIN * len(excluded)), num_allowed)
    if fetch < k:
        return None
    part = search(vectors, fetch)
    rows = part.rows[0]
    is_own = excluded.take(excluded.searchsorted(rows), mode="clip") == rows
    kept = np.flatnonzero(~is_own)[:k]
    if len(kept) < k or rows[kept[-1]] == NO_ITEM:
        return None
    return SearchResult(rows=rows[None, kept], scores=part.scores[:, kept])


def _nothing(num_queries: int, k: int) -> SearchResult:
    return SearchResult(
        rows=np.full((num_queries, k), NO_ITEM, np.int64),
        scores=np.full((num_queries, k), -np.inf, np.float32),
    )


def _keys(excluded: ItemLists, num_items: int) -> Array:
    return np.unique(excluded.query_index * num_items + excluded.item_rows)


def _allowed(rows: Array, queries: Array, keys: Array, num_items: int) -> Array:
    """(Q, k') bool: an item was found and is not excluded for its query."""
    wanted = queries[:, None] * num_items + rows
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.asarray((rows != NO_ITEM) & (keys[places] != wanted))
