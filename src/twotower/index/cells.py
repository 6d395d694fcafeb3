"""The cells of an inverted file: which one an item lies in, and which ones a query looks into.

The search itself is in `twotower.index.cell_search`.

Letters: ``Q`` queries, ``N`` items, ``D`` dimensions, ``C`` cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from twotower.index.allowed import AllowedRows
from twotower.index.base import NO_ITEM, FloatArray, IntArray
from twotower.index.faiss_library import Handle, faiss


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Where an item stands in the cells of a query.

    Args:
        cell: The item's cell.
        place: How many cells are nearer to the query, plus 1.
        num_probes: How many cells the search looks into.
    """

    cell: int
    place: int
    num_probes: int

    @property
    def looked_into(self) -> bool:
        """Whether the search looked into the item's cell."""
        return self.place <= self.num_probes


class Cells:
    """The cells of a filled inverted file on the CPU.

    Args:
        shards: FAISS' inverted file, or those that it is divided into, which have the same cells.
    """

    def __init__(self, shards: Sequence[Handle]) -> None:
        self._shards = shards
        self.num_cells = int(shards[0].nlist)
        self.num_probes = int(shards[0].nprobe)
        self.of_row = _cell_of_every_row(shards)  # (N,) int32

    @property
    def expected_looks(self) -> int:
        """How many items an unfiltered search looks at, if cells are of one size."""
        return -(-self.num_probes * len(self.of_row) // self.num_cells)

    def nearest(self, queries: FloatArray, count: int) -> tuple[IntArray, FloatArray]:
        """The cells (Q, count) nearest to every query and their scores, nearest first."""
        scores, cells = self._shards[0].quantizer.search(queries, count)
        return np.asarray(cells, np.int64), scores

    def search(
        self, queries: FloatArray, k: int, cells: IntArray, scores: FloatArray, allowed: AllowedRows
    ) -> tuple[IntArray, FloatArray]:
        """The best allowed items in some cells, as FAISS returns them: rows and scores (Q, k).

        Args:
            queries: Query vectors (Q, D).
            k: How many items.
            cells: (Q, p) cells to look into, padded with -1.
            scores: (Q, p) their scores.
            allowed: The items that may be returned.
        """
        params = faiss.SearchParametersIVF(
            sel=faiss.IDSelectorBitmap(allowed.bits), nprobe=cells.shape[1]
        )
        arrays = [np.ascontiguousarray(a) for a in (queries, cells, scores)]
        query_pointer, *assigned = (faiss.swig_ptr(array) for array in arrays)
        num_columns = len(self._shards) * k
        rows = np.full((len(queries), num_columns), NO_ITEM, np.int64)
        found = np.full((len(queries), num_columns), -np.inf, np.float32)
        for number, shard in enumerate(self._shards):
            part_rows = np.empty((len(queries), k), np.int64)
            part = np.empty((len(queries), k), np.float32)
            # The method without `_c` takes no parameters.
            shard.search_preassigned_c(
                *(len(queries), query_pointer, k, *assigned),
                *(faiss.swig_ptr(part), faiss.swig_ptr(part_rows), False, params),
            )
            columns = slice(number * k, (number + 1) * k)
            rows[:, columns], found[:, columns] = part_rows, part
        if len(self._shards) == 1:
            return rows, found
        best = np.argsort(-np.where(rows == NO_ITEM, -np.inf, found), axis=1, kind="stable")[:, :k]
        return np.take_along_axis(rows, best, axis=1), np.take_along_axis(found, best, axis=1)

    def needed(self, queries: FloatArray, allowed: AllowedRows, least: int) -> IntArray:
        """How many cells every query (Q, D) must look into to look at `least` allowed items.

        Args:
            queries: Query vectors.
            allowed: The items that may be returned.
            least: Wanted number; all cells are needed where fewer items are allowed.

        Returns:
            (Q,) int64, at least the number of an unfiltered search.
        """
        counts = allowed.counts_by(self.of_row, self.num_cells)
        needed = np.full(len(queries), self.num_cells, np.int64)
        if allowed.count < least:
            return needed
        pending = np.arange(len(queries))
        reach = min(self.num_cells, 2 * round(self.num_probes / allowed.share))
        while len(pending):
            cells, _ = self.nearest(queries[pending], reach)
            looked_at = np.cumsum(np.where(cells < 0, 0, counts[cells]), axis=1)  # (q, reach)
            enough = looked_at[:, -1] >= least
            first = (looked_at < least).sum(axis=1) + 1
            needed[pending[enough]] = first[enough]
            if reach == self.num_cells:
                break
            pending, reach = pending[~enough], min(self.num_cells, 4 * reach)
        return np.maximum(needed, self.num_probes)

    def probe(self, query: FloatArray, row: int, num_probes: int) -> Probe:
        """Where an item stands in the cells of one query (1, D)."""
        cell = int(self.of_row[row])
        order = self.nearest(query, self.num_cells)[0][0]
        place = int(np.flatnonzero(order == cell)[0]) + 1
        return Probe(cell=cell, place=place, num_probes=num_probes)


def _cell_of_every_row(shards: Sequence[Handle]) -> IntArray:
    cells = np.empty(sum(shard.ntotal for shard in shards), np.int32)
    for shard in shards:
        for cell in range(shard.nlist):
            size = shard.invlists.list_size(cell)
            if size:
                cells[faiss.rev_swig_ptr(shard.invlists.get_ids(cell), size)] = cell
    return cells
