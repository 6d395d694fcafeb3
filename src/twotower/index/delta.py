"""Items that were added, changed or removed since an index was built: a small index beside it.

The index itself is not touched. Rows of it that were changed or removed are hidden, the vectors of
changed and added items are searched exactly, and the two lists are merged. A changed item keeps its
row, an added one has a row behind those of the index.

Letters: ``Q`` queries, ``N`` items of the main index, ``A`` items beside it, ``D`` dimensions.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

import numpy as np

from twotower.index.allowed import AllowedRows, BoolArray
from twotower.index.base import NO_ITEM, FloatArray, IntArray, SearchResult
from twotower.index.filtered import FilteredIndex
from twotower.index.row_search import search_rows


class DeltaIndex:
    """A main index and what has changed since it was built.

    Args:
        main: The index that was built.
        rows: (A,) rows of the items beside it that may be returned, ascending: of changed items
            those that they have in the main index, of added ones rows from ``N`` on.
        vectors: Their vectors (A, D).
        hidden: Rows of the main index that it may not return any more.
        num_items: Number of rows, those of the main index and all that were added since.
    """

    def __init__(
        self,
        main: FilteredIndex,
        *,
        rows: IntArray,
        vectors: FloatArray,
        hidden: IntArray,
        num_items: int,
    ) -> None:
        self.main = main
        self.rows = rows
        self.vectors = vectors
        self.hidden = hidden
        self.num_items = num_items
        self._left = self._without_hidden(np.ones(main.num_items, bool)) if len(hidden) else None
        self._parts: WeakKeyDictionary[AllowedRows, AllowedRows] = WeakKeyDictionary()

    @property
    def dim(self) -> int:
        """Width of the vectors, ``D``."""
        return self.main.dim

    @property
    def description(self) -> str:
        """The main index, and how much lies beside it."""
        return (
            f"{self.main.description}; {len(self.rows):,} items beside it, {len(self.hidden):,} "
            "hidden"
        )

    def search(
        self, queries: FloatArray, k: int, allowed: AllowedRows | None = None
    ) -> SearchResult:
        """Find the allowed items with the largest inner products.

        Args:
            queries: Query vectors (Q, D).
            k: How many items are wanted.
            allowed: The rows that may be returned, of main index and additions; None for all that
                are not hidden.

        Returns:
            Exactly ``k`` columns, padded; equal scores are ordered by row.
        """
        found = self.main.search(queries, k, self.in_main(allowed))
        beside = np.arange(len(self.rows))
        if allowed is not None:
            beside = beside[allowed.contains(self.rows)]
        if not len(beside):
            return found
        part = search_rows(self.vectors, beside, queries, k)
        part = SearchResult(
            rows=np.where(part.rows == NO_ITEM, NO_ITEM, self.rows[part.rows]), scores=part.scores
        )
        return merged(found, part, k)

    def in_main(self, allowed: AllowedRows | None) -> AllowedRows | None:
        """What the main index may return of some rows; None for all that it has."""
        if allowed is None:
            return self._left
        part = self._parts.get(allowed)
        if part is None:
            part = self._without_hidden(allowed.mask[: self.main.num_items])
            self._parts[allowed] = part
        return part

    def _without_hidden(self, mask: BoolArray) -> AllowedRows:
        mask[self.hidden] = False
        return AllowedRows(mask)


def merged(first: SearchResult, second: SearchResult, k: int) -> SearchResult:
    """The best `k` of two lists a query that have no item in common.

    Args:
        first: Rows and scores (Q, i), padded.
        second: Rows and scores (Q, j), padded; i + j must be at least `k`.
        k: Length of the new lists.
    """
    rows = np.concatenate([first.rows, second.rows], axis=1)  # (Q, i + j)
    scores = np.concatenate([first.scores, second.scores], axis=1)
    # Padding has a score of minus infinity and comes last.
    order = np.lexsort((rows, -scores), axis=-1)[:, :k]
    return SearchResult(
        rows=np.take_along_axis(rows, order, axis=1),
        scores=np.take_along_axis(scores, order, axis=1),
    )
