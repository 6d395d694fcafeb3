"""Exact search among some items, and exact ranks, by blocked products in numpy.

For serving, where there is no torch: the vectors may be a memory map, of which the wanted rows
alone are read, some thousand at a time.

Letters: ``Q`` queries, ``N`` items, ``D`` dimensions, ``k`` wanted items a query.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from twotower.index.base import NO_ITEM, FloatArray, IntArray, SearchResult

BLOCK = 4096  # a megabyte of vectors of width 64: stays in a core's cache


class Rows(Protocol):
    """Vectors (N, D) of which some rows can be taken: an array, a memory map or the like."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: IntArray, /) -> FloatArray: ...


def search_rows(vectors: Rows, rows: IntArray, queries: FloatArray, k: int) -> SearchResult:
    """The best `k` of some rows for every query.

    Args:
        vectors: Item vectors (N, D).
        rows: (n,) the rows that may be returned, ascending.
        queries: Query vectors (Q, D).
        k: How many items are wanted.

    Returns:
        Exactly ``k`` columns, padded where there are fewer rows; equal scores are ordered by row.
    """
    best = [_Best(k) for _ in queries]
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK]
        scores = queries @ np.asarray(vectors[block], np.float32).T  # (Q, b)
        for list_, of_query in zip(best, scores, strict=True):
            list_.add(block, of_query)
    found = SearchResult(
        rows=np.full((len(queries), k), NO_ITEM, np.int64),
        scores=np.full((len(queries), k), -np.inf, np.float32),
    )
    for query, list_ in enumerate(best):
        order = np.lexsort((list_.rows, -list_.scores))[:k]
        found.rows[query, : len(order)] = list_.rows[order]
        found.scores[query, : len(order)] = list_.scores[order]
    return found


class _Best:
    """The best so far, and those that tie with the last of them.

    Args:
        k: How many are wanted.
    """

    def __init__(self, k: int) -> None:
        self._k = k
        self._least = -np.inf
        self.rows = np.empty(0, np.int64)
        self.scores = np.empty(0, np.float32)

    def add(self, rows: IntArray, scores: FloatArray) -> None:
        """Look at some more rows (b,) with their scores (b,)."""
        kept = np.flatnonzero(scores >= self._least)
        if not len(kept):
            return
        self.rows = np.concatenate([self.rows, rows[kept]])
        self.scores = np.concatenate([self.scores, scores[kept]])
        if len(self.rows) > 2 * self._k:
            self._least = -np.partition(-self.scores, self._k - 1)[self._k - 1]
            kept = np.flatnonzero(self.scores >= self._least)
            self.rows, self.scores = self.rows[kept], self.scores[kept]


def num_before(vectors: Rows, rows: IntArray, query: FloatArray, row: int) -> int:
    """How many of some rows stand before a row: with a higher score, or the same and a lower row.

    Args:
        vectors: Item vectors (N, D).
        rows: (n,) the rows that are compared, ascending.
        query: One query vector (D,).
        row: The item's row; need not be one of `rows`.
    """
    of_item = np.array([row])
    before = 0
    for start in range(0, len(rows), BLOCK):
        block = np.concatenate([of_item, rows[start : start + BLOCK]])
        # Every sum in the same order, so that equal vectors have equal scores.
        scores = np.einsum("nd,d->n", np.asarray(vectors[block], np.float32), query)  # (1 + b,)
        others = block[1:]
        ahead = (scores[1:] > scores[0]) & (others != row)
        level = (scores[1:] == scores[0]) & (others < row)
        before += int(np.count_nonzero(ahead | level))
    return before
