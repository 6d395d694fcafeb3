"""Which items a search may return, in the forms that searches want.

Letters: ``N`` item rows, ``n`` of them that are allowed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from twotower.index.base import IntArray

BoolArray = NDArray[np.bool_]

FEW = 8  # one row in so many: with 8 bytes a row they take at most a byte an item


class AllowedRows:
    """A set of item rows; a bit an item, the rest is made when it is asked for.

    Args:
        mask: (N,) True for a row that may be returned.

    Example:
        >>> even = AllowedRows(np.array([True, False, True, False]))
        >>> even.count, even.share, even.rows.tolist()
        (2, 0.5, [0, 2])
        >>> even.contains(np.array([[2, 3, -1]])).tolist()
        [[True, False, False]]
    """

    def __init__(self, mask: BoolArray) -> None:
        self.num_items = len(mask)
        self.count = int(np.count_nonzero(mask))
        self.bits = np.packbits(mask, bitorder="little")  # as FAISS' bitmaps
        self._counted: tuple[IntArray, IntArray] | None = None
        self._rows: IntArray | None = None

    @property
    def share(self) -> float:
        """Share of the rows that are allowed, 0 where there are no rows."""
        return self.count / max(self.num_items, 1)

    @property
    def mask(self) -> BoolArray:
        """(N,) bool, made anew."""
        bits = np.unpackbits(self.bits, count=self.num_items, bitorder="little")
        return bits.view(np.bool_)

    @property
    def rows(self) -> IntArray:
        """(n,) the allowed rows, ascending; kept where they are few."""
        if self._rows is not None:
            return self._rows
        rows = np.flatnonzero(self.mask).astype(np.int64)
        if self.count * FEW < self.num_items:
            self._rows = rows
        return rows

    def contains(self, rows: IntArray) -> BoolArray:
        """Whether rows of any shape are allowed; -1 and rows beyond the last are not."""
        inside = (rows >= 0) & (rows < self.num_items)
        if not self.num_items:
            return inside
        safe = np.where(inside, rows, 0)
        return np.asarray(inside & ((self.bits[safe >> 3] >> (safe & 7)) & 1 == 1))

    def counts_by(self, groups: IntArray, num_groups: int) -> IntArray:
        """How many allowed rows every group holds; the latest answer is kept.

        Args:
            groups: (N,) group of every row, the same array whenever it is the same grouping.
            num_groups: Number of groups, G.

        Returns:
            (G,) int64.
        """
        counted = self._counted
        if counted is None or counted[0] is not groups:
            counts = np.bincount(groups[self.mask], minlength=num_groups)
            self._counted = counted = (groups, counts)
        return counted[1]
