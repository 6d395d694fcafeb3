"""Search among some items of an inverted file: look into more cells until nothing much is found.

A search that may return few of the items must look into more cells than one that may return all:
the best of those few lie further away. It begins with as many cells as hold as many allowed items
as an unfiltered search looks at. That does where the filter knows nothing of the query. Where the
items near the query are those that are not allowed, the answer lies further away still, and shows
itself by coming out of the latest cells: as long as the latest half of the cells that were looked
into gave more than a few of the items, as many cells again are looked into.

Letters: ``Q`` queries, ``D`` dimensions, ``C`` cells, ``k`` wanted items a query.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from twotower.index.allowed import AllowedRows, BoolArray
from twotower.index.base import NO_ITEM, FloatArray, IntArray, SearchResult
from twotower.index.cells import Cells

# Share of a list that the latest half of the cells may give when the search ends. At 0.06 the
# recall is that of the unfiltered search or better; see `benchmarks/serving/filters.py`.
SETTLED = 0.06


@dataclass(frozen=True, kw_only=True)
class CellSearch:
    """What was found, and where.

    Args:
        found: The best allowed items in the cells that were looked into; equal scores are in no
            order.
        num_probes: (Q,) how many cells that were.
    """

    found: SearchResult
    num_probes: IntArray


def search_cells(
    cells: Cells, queries: FloatArray, k: int, allowed: AllowedRows, least: int
) -> CellSearch:
    """Find the allowed items with the largest inner products.

    Args:
        cells: The cells.
        queries: Query vectors (Q, D).
        k: How many items are wanted.
        allowed: The items that may be returned.
        least: How many of them a query should look at before it can end.
    """
    rows = np.full((len(queries), k), NO_ITEM, np.int64)
    scores = np.full((len(queries), k), -np.inf, np.float32)
    needed = cells.needed(queries, allowed, least)  # (Q,)
    order, closeness = cells.nearest(queries, min(2 * int(needed.max(initial=1)), cells.num_cells))
    starts, ends = np.zeros_like(needed), np.maximum(needed // 2, 1)
    pending = np.arange(len(queries))
    while len(pending):
        if ends[pending].max() > order.shape[1]:
            order, closeness = cells.nearest(queries, cells.num_cells)
        chosen, near = _between(order, closeness, pending, starts, ends)  # (q, p)
        part = cells.search(queries[pending], k, chosen, near, allowed)
        rows[pending], scores[pending], is_new = _best(rows[pending], scores[pending], *part)
        is_item = rows[pending] != NO_ITEM
        num_found = is_item.sum(axis=1)  # (q,)
        settled = (is_new & is_item).sum(axis=1) <= SETTLED * num_found
        settled &= (ends[pending] >= needed[pending]) & (num_found >= min(k, allowed.count))
        pending = pending[~settled & (ends[pending] < cells.num_cells)]
        starts[pending] = ends[pending]
        wider = np.where(ends < needed, needed, 2 * ends)[pending]
        ends[pending] = np.minimum(wider, cells.num_cells)
    return CellSearch(found=SearchResult(rows=rows, scores=scores), num_probes=ends)


def _between(
    order: IntArray, closeness: FloatArray, queries: IntArray, starts: IntArray, ends: IntArray
) -> tuple[IntArray, FloatArray]:
    """The cells (q, p) of some queries from a place on to another, padded with -1."""
    counts = (ends - starts)[queries]
    places = starts[queries][:, None] + np.arange(counts.max())  # (q, p)
    inside = np.arange(counts.max()) < counts[:, None]
    places = np.where(inside, places, 0)
    chosen = np.take_along_axis(order[queries], places, axis=1)
    near = np.take_along_axis(closeness[queries], places, axis=1)
    return np.where(inside, chosen, -1), near


def _best(
    rows: IntArray, scores: FloatArray, new_rows: IntArray, new_scores: FloatArray
) -> tuple[IntArray, FloatArray, BoolArray]:
    """The best k of what was found before and now (q, k) each, and which of them are new."""
    new_scores = np.where(new_rows == NO_ITEM, -np.inf, new_scores)
    both_rows = np.concatenate([rows, new_rows], axis=1)  # (q, 2 k)
    both = np.concatenate([scores, new_scores], axis=1)
    best = np.argsort(-both, axis=1, kind="stable")[:, : rows.shape[1]]
    best_rows = np.take_along_axis(both_rows, best, axis=1)
    best_scores = np.take_along_axis(both, best, axis=1).astype(np.float32)
    return best_rows, best_scores, best >= rows.shape[1]
