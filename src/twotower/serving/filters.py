"""Candidates that a filter lets through: the index is asked for more until there are enough.

How many items of a list a filter will remove is not known before the search, so the first request
has a margin and the queries that came out short ask again with twice as many, until they have
enough or the index has no more to give.

Shape letters: Q queries, K candidates, N items of the index.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from twotower.data.item_lists import ItemLists
from twotower.index.base import NO_ITEM, Index, SearchResult

Array = npt.NDArray[Any]

FIRST_MARGIN = 1.5


def search_allowed(
    index: Index, vectors: npt.NDArray[np.float32], k: int, excluded: ItemLists | None
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
    if excluded is None or not len(excluded.item_rows):
        return index.search(vectors, k)
    rows = np.full((len(vectors), k), NO_ITEM, np.int64)
    scores = np.full((len(vectors), k), -np.inf, np.float32)
    keys = _keys(excluded, index.num_items)
    removed = np.bincount(keys // index.num_items, minlength=len(vectors))  # (Q,)
    pending = np.arange(len(vectors))
    fetch = int(k + FIRST_MARGIN * np.median(removed))
    while len(pending):
        fetch = min(fetch, index.num_items)
        found = index.search(vectors[pending], fetch)
        allowed = _allowed(found.rows, pending, keys, index.num_items)
        order = np.argsort(~allowed, axis=1, kind="stable")[:, :k]
        kept = np.take_along_axis(allowed, order, 1)
        width = order.shape[1]
        rows[pending, :width] = np.where(kept, np.take_along_axis(found.rows, order, 1), NO_ITEM)
        scores[pending, :width] = np.where(
            kept, np.take_along_axis(found.scores, order, 1), -np.inf
        )
        if fetch >= index.num_items:
            break
        short = kept.sum(axis=1) < np.minimum(k, index.num_items - removed[pending])
        pending, fetch = pending[short], fetch * 2
    return SearchResult(rows=rows, scores=scores)


def _keys(excluded: ItemLists, num_items: int) -> Array:
    return np.unique(excluded.query_index * num_items + excluded.item_rows)


def _allowed(rows: Array, queries: Array, keys: Array, num_items: int) -> Array:
    """(Q, k') bool: an item was found and is not excluded for its query."""
    wanted = queries[:, None] * num_items + rows
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.asarray((rows != NO_ITEM) & (keys[places] != wanted))
