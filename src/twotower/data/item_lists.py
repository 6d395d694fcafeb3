"""One list of items for every query: histories, seen items, right answers.

Letters: ``Q`` lists, ``E`` entries of all lists together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class ItemLists:
    """Lists of different lengths, one behind the other (CSR).

    Args:
        offsets: (Q + 1,) int64; list ``q`` is ``item_rows[offsets[q]:offsets[q + 1]]``.
        item_rows: (E,) item rows in any order; an item may be named twice.

    Raises:
        ValueError: When the offsets do not describe `item_rows`.

    Example:
        >>> lists = ItemLists(offsets=np.array([0, 2, 2]), item_rows=np.array([7, 8]))
        >>> [lists[q].tolist() for q in range(len(lists))]
        [[7, 8], []]
    """

    offsets: Array
    item_rows: Array

    def __post_init__(self) -> None:
        offsets, num_rows = self.offsets, len(self.item_rows)
        if (
            offsets.ndim != 1
            or len(offsets) == 0
            or offsets[0] != 0
            or offsets[-1] != num_rows
            or bool((np.diff(offsets) < 0).any())
        ):
            raise ValueError(
                f"item lists: `offsets` must rise from 0 to {num_rows}, the number of `item_rows`, "
                f"got {np.array2string(offsets, threshold=6)}"
            )

    @classmethod
    def cut(cls, item_rows: Array, starts: Array, ends: Array) -> Self:
        """Copy the slices ``item_rows[start:end]`` out of a longer array.

        Args:
            item_rows: Item rows of many lists, such as the events of all users.
            starts: (Q,) where each slice begins.
            ends: (Q,) where it ends, at least its start.
        """
        counts = ends - starts
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        places = np.arange(offsets[-1]) - np.repeat(offsets[:-1] - starts, counts)
        return cls(offsets=offsets, item_rows=np.asarray(item_rows[places], np.int64))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, query: int) -> Array:
        return self.item_rows[self.offsets[query] : self.offsets[query + 1]]

    @property
    def counts(self) -> Array:
        """(Q,) length of each list."""
        return np.diff(self.offsets)

    @property
    def query_index(self) -> Array:
        """(E,) list that every entry belongs to."""
        return np.repeat(np.arange(len(self), dtype=np.int64), self.counts)

    def between(self, start: int, stop: int) -> ItemLists:
        """The lists `start` to `stop` - 1, without a copy of their items."""
        offsets = self.offsets[start : stop + 1]
        rows = self.item_rows[offsets[0] : offsets[-1]]
        return ItemLists(offsets=offsets - offsets[0], item_rows=rows)

    def take(self, queries: Array) -> ItemLists:
        """The lists of some queries (P,), in that order."""
        return ItemLists.cut(self.item_rows, self.offsets[:-1][queries], self.offsets[1:][queries])

    def below(self, num_items: int) -> ItemLists:
        """The lists without item rows at or above `num_items`, such as those of no catalogue."""
        return self.where(self.item_rows < num_items)

    def where(self, kept: Array) -> ItemLists:
        """The lists without the entries whose `kept` (E,) is False."""
        before = np.concatenate([[0], np.cumsum(kept)])
        return ItemLists(offsets=before[self.offsets], item_rows=self.item_rows[kept])
