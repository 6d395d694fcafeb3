"""Search among some of the items, by whichever way is the cheapest.

- Exact: the vectors of the allowed rows are read and multiplied. Cheapest where few rows are
  allowed, and as cheap for one filter as for another.
- In cells: an inverted file on the CPU leaves out the other rows on its way and looks into more
  cells (`twotower.index.cell_search`).
- Over-fetching: any other index is asked for more, and what is not allowed is dropped. Where the
  best items of a query are those that are not allowed this is hopeless; the share that passed shows
  it, and the exact way takes over.

What a way costs is estimated from what it looks at.

Letters: ``Q`` queries, ``N`` items, ``D`` dimensions, ``k`` wanted items a query.
"""

from __future__ import annotations

import math

import numpy as np

from twotower.index.allowed import AllowedRows
from twotower.index.base import (
    NO_ITEM,
    FloatArray,
    IntArray,
    SearchResult,
    check_k,
    checked_vectors,
)
from twotower.index.cell_search import CellSearch, search_cells
from twotower.index.cells import Cells
from twotower.index.faiss_index import FaissIndex
from twotower.index.gpu_index import MAX_GPU_SELECTION
from twotower.index.row_search import Rows, search_rows

# Nanoseconds on one core with vectors of width 64, by `benchmarks/serving/filters.py`.
READ_NS = 50.0  # a row that is read out of its order, once for all queries of a search
MULTIPLY_NS = 20.0  # a row with a query
CELLS_NS = 300_000.0  # a search in cells, whatever it looks at
LOOK_NS, SCATTERED_LOOK_NS = 50.0, 200.0  # at a row of a cell: its neighbours too, or it alone
TEST_NS = 8.0  # whether a row is allowed
SCAN_NS = 15.0  # a row of a flat index
FETCH_NS = 400.0  # an item that is asked for and looked at afterwards
BEAM_NS = 2000.0  # an item of a graph's beam, which holds what is asked for

# What is fetched beyond what the share of allowed rows asks for. A graph finds the last of the
# items in its beam less surely than the first.
MARGIN, GRAPH_MARGIN, MORE = 1.3, 2.5, 16
GRAPHS = ("hnsw", "cagra")


class FilteredIndex:
    """An index with its vectors, which can search among some of its items.

    Args:
        index: The index.
        vectors: The vectors (N, D) that it was built of; a memory map will do.
    """

    def __init__(self, index: FaissIndex, vectors: Rows) -> None:
        self.index = index
        self.vectors = vectors

    @property
    def num_items(self) -> int:
        """Number of items, ``N``."""
        return self.index.num_items

    @property
    def dim(self) -> int:
        """Width of the vectors, ``D``."""
        return self.index.dim

    @property
    def description(self) -> str:
        """That of the index."""
        return self.index.description

    def search(
        self, queries: FloatArray, k: int, allowed: AllowedRows | None = None
    ) -> SearchResult:
        """Find the allowed items with the largest inner products.

        Args:
            queries: Query vectors (Q, D); Q may be 0.
            k: How many items are wanted, at least 1; may exceed what is allowed.
            allowed: The items that may be returned; None for all.

        Returns:
            Exactly ``k`` columns, padded where fewer items are allowed; an inverted file finds `k`
            items wherever so many are allowed, a graph may miss some of them.

        Raises:
            ValueError: When the queries do not fit or `k` is not allowed.
        """
        check_k(k)
        if allowed is None or allowed.count == self.num_items:
            if k <= self.index.max_k or self.index.max_k == self.num_items:
                return self.index.search(queries, k)
            allowed = AllowedRows(np.ones(self.num_items, bool))
        queries = checked_vectors("queries", queries, dim=self.dim)
        if not len(queries) or self._exact_is_cheaper(len(queries), k, allowed):
            return search_rows(self.vectors, allowed.rows, queries, k)
        if self.index.cells is not None:
            return self._search_cells(self.index.cells, queries, k, allowed)
        return self._over_fetch(queries, k, allowed)

    def num_probes(self, queries: FloatArray, k: int, allowed: AllowedRows | None) -> IntArray:
        """How many cells of an inverted file the search looks into, by query (Q,).

        Raises:
            ValueError: When the index has no cells.
        """
        cells = self.index.cells
        if cells is None:
            raise ValueError(f"{self.description} has no cells; an inverted file has")
        if allowed is None or allowed.count == self.num_items:
            return np.full(len(queries), cells.num_probes)
        if self._exact_is_cheaper(len(queries), k, allowed):
            return np.full(len(queries), cells.num_cells)
        return self._in_cells(cells, queries, k, allowed).num_probes

    def _exact_is_cheaper(self, num_queries: int, k: int, allowed: AllowedRows) -> bool:
        return self._exact_ns(num_queries, allowed) <= num_queries * self._index_ns(k, allowed)

    def _exact_ns(self, num_queries: int, allowed: AllowedRows) -> float:
        return allowed.count * (READ_NS + num_queries * MULTIPLY_NS)

    def _index_ns(self, k: int, allowed: AllowedRows) -> float:
        """Cost of one query."""
        cells = self.index.cells
        if cells is None:
            return self._fetch_ns(self._first_fetch(k, allowed))
        looks = min(_least_looks(cells, k), allowed.count)
        tests = min(looks / max(allowed.share, 1e-9), self.num_items)
        look_ns = SCATTERED_LOOK_NS + (LOOK_NS - SCATTERED_LOOK_NS) * allowed.share
        return CELLS_NS + looks * look_ns + tests * TEST_NS

    def _fetch_ns(self, fetch: int) -> float:
        if fetch > self.index.max_k:
            return math.inf
        if self.index.device == "gpu":
            return fetch * FETCH_NS
        if self.index.kind == "flat":
            return self.num_items * SCAN_NS + fetch * FETCH_NS
        return fetch * BEAM_NS

    def _search_cells(
        self, cells: Cells, queries: FloatArray, k: int, allowed: AllowedRows
    ) -> SearchResult:
        found = self._in_cells(cells, queries, k, allowed).found
        rows, scores = found.rows, found.scores
        if self.index.refine > 1:  # what was found by codes gets its true score
            read = np.asarray(self.vectors[np.maximum(rows, 0).ravel()], np.float32)
            true = np.einsum("qkd,qd->qk", read.reshape(*rows.shape, -1), queries)
            scores = np.where(rows == NO_ITEM, -np.inf, true).astype(np.float32)
        order = np.lexsort((rows, -scores), axis=-1)[:, :k]
        return SearchResult(
            rows=np.take_along_axis(rows, order, 1), scores=np.take_along_axis(scores, order, 1)
        )

    def _in_cells(
        self, cells: Cells, queries: FloatArray, k: int, allowed: AllowedRows
    ) -> CellSearch:
        """The best `k`, and the further ones that a refined index scores again."""
        least = _least_looks(cells, k)
        return search_cells(cells, queries, k * self.index.refine, allowed, least)

    def _over_fetch(self, queries: FloatArray, k: int, allowed: AllowedRows) -> SearchResult:
        found = _nothing(len(queries), k)
        pending, fetch = np.arange(len(queries)), self._first_fetch(k, allowed)
        while len(pending):
            if self._exact_ns(len(pending), allowed) <= len(pending) * self._fetch_ns(fetch):
                part = search_rows(self.vectors, allowed.rows, queries[pending], k)
                found.rows[pending], found.scores[pending] = part.rows, part.scores
                break
            part = self.index.search(queries[pending], fetch, num_probes=self._more_probes(allowed))
            passes = allowed.contains(part.rows)  # (q, fetch)
            order = np.argsort(~passes, axis=1, kind="stable")[:, :k]
            kept, width = np.take_along_axis(passes, order, 1), order.shape[1]
            rows = np.take_along_axis(part.rows, order, 1)
            scores = np.take_along_axis(part.scores, order, 1)
            found.rows[pending, :width] = np.where(kept, rows, NO_ITEM)
            found.scores[pending, :width] = np.where(kept, scores, -np.inf)
            num_passed = passes.sum(axis=1)  # (q,)
            short = num_passed < min(k, allowed.count)
            if fetch >= self.num_items or not short.any():
                break
            passed = max(int(np.median(num_passed[short])), 1)
            pending = pending[short]
            fetch = min(max(2 * fetch, round(self._margin * fetch * k / passed)), self.num_items)
        return found

    @property
    def _margin(self) -> float:
        return GRAPH_MARGIN if self.index.kind in GRAPHS else MARGIN

    def _first_fetch(self, k: int, allowed: AllowedRows) -> int:
        wish = math.ceil(self._margin * k / max(allowed.share, 1e-9)) + MORE
        return min(wish, allowed.num_items)

    def _more_probes(self, allowed: AllowedRows) -> int:
        """Cells of an inverted file that cannot leave rows out: as many more as fewer pass."""
        wish = math.ceil(self.index.num_probes / max(allowed.share, 1e-9))
        return min(wish, MAX_GPU_SELECTION)


def _least_looks(cells: Cells, k: int) -> int:
    """How many allowed items a query of an inverted file should look at."""
    return max(cells.expected_looks, 4 * k)


def _nothing(num_queries: int, k: int) -> SearchResult:
    return SearchResult(
        rows=np.full((num_queries, k), NO_ITEM, np.int64),
        scores=np.full((num_queries, k), -np.inf, np.float32),
    )
