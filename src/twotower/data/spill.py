"""The interactions on disk, block by block in table order, so that their number does not matter.

A block is written by whoever converts it, with ids as codes among the ids of this block. When all
blocks are there, the ids are numbered over the whole log, and a small file a block says which row
of the users, or of the items, every code stands for.

Numbers stand in them without a header. Those of NumPy's format are parsed as source code, which two
threads must not do at once before CPython 3.11.8: now and then one of them fails, with "AST
constructor recursion depth mismatch" (python/cpython#106905).

Shape letters: R interactions, B rows of a block.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from twotower.data.prepared import read_arrow, write_arrow
from twotower.data.schema import ITEM_ID, LABEL, SPLIT, TIMESTAMP, USER_ID, Tables
from twotower.data.workers import Scratch

Array = npt.NDArray[Any]

IDS = (USER_ID, ITEM_ID)
MIN_NUMBERED = 1 << 20  # ids that are numbered at a time, at least


@runtime_checkable
class StreamedSource(Protocol):
    """A source that need not have the interactions in memory."""

    @property
    def name(self) -> str:
        """See `Source`."""

    def fingerprint(self) -> str:
        """See `Source`."""

    def stream(self, scratch: Scratch) -> Tables:
        """Read, map and check the tables.

        Returns:
            The tables; the interactions have their columns and no rows, these are in the scratch
            folder.

        Raises:
            DataError: When a table cannot be used.
        """


def write_block(folder: Path, number: int, table: pa.Table) -> None:
    """Set down a block of interactions.

    Args:
        folder: The scratch folder.
        number: Which block.
        table: Its rows in canonical form.
    """
    columns = {}
    for name in table.column_names:
        column = table.column(name).combine_chunks()
        if name in IDS:
            encoded = column.dictionary_encode()
            write_arrow(folder / f"{name}-{number:06}.arrow", pa.table({name: encoded.dictionary}))
            column = encoded.indices
        columns[name] = column
    write_arrow(folder / f"block-{number:06}.arrow", pa.table(columns))


def spill(tables: Tables, scratch: Scratch) -> Tables:
    """Set down interactions that are in memory; see `StreamedSource.stream`."""
    rows, size = tables.interactions, scratch.budget.rows_per_block
    starts = range(0, rows.num_rows, size)
    blocks = ((number, rows.slice(start, size)) for number, start in enumerate(starts))
    for _ in scratch.workers.map(partial(_write_numbered, scratch.folder), blocks):
        pass
    return replace(tables, interactions=rows.schema.empty_table())


def _write_numbered(folder: Path, numbered: tuple[int, pa.Table]) -> None:
    write_block(folder, *numbered)


def number_ids(folder: Path, name: str, num_blocks: int, listed: pa.Array) -> pa.Array:
    """All ids, those of the side table first, then as they appear in the log.

    What is read is numbered together with all ids known so far, as soon as it is as much as they
    are: every id is hashed a few times and not once a block.

    Args:
        folder: The scratch folder; the rows of the codes of every block are written there.
        name: Column of the ids.
        num_blocks: How many blocks there are.
        listed: (N,) ids of the side table, of the type of the column.
    """
    known, waiting, first = listed, [], 0
    for block in range(num_blocks):
        waiting.append(read_arrow(folder / f"{name}-{block:06}.arrow").column(0).combine_chunks())
        enough = sum(map(len, waiting)) >= max(MIN_NUMBERED, len(known))
        if not enough and block < num_blocks - 1:
            continue
        encoded = pa.concat_arrays([known, *waiting]).dictionary_encode()
        ends = [*accumulate(map(len, waiting), initial=len(known))]
        rows = encoded.indices.to_numpy()
        for place, (start, end) in enumerate(pairwise(ends)):
            _rows_file(folder, name, first + place).write_bytes(rows[start:end].data)
        known, waiting, first = encoded.dictionary, [], block + 1
    return known


@dataclass(frozen=True, kw_only=True)
class Log:
    """Spilled interactions whose ids are numbered.

    Args:
        folder: The scratch folder.
        tables: The tables; the interactions have their columns and no rows.
        lengths: Rows of every block.
        ids: Ids of all users and of all items, by the name of their column.
    """

    folder: Path
    tables: Tables
    lengths: tuple[int, ...]
    ids: Mapping[str, pa.Array]

    @staticmethod
    def of(tables: Tables, folder: Path) -> Log:
        """Number the ids of the blocks in a scratch folder.

        Args:
            tables: The tables; the interactions have their columns and no rows.
            folder: The scratch folder.
        """
        lengths = [len(read_arrow(path)) for path in sorted(folder.glob("block-*.arrow"))]
        ids = {}
        for name, side in ((USER_ID, tables.users), (ITEM_ID, tables.items)):
            if tables.has(name):
                kind = tables.interactions.schema.field(name).type
                listed = pa.array([], kind) if side is None else side.column(name).unique()
                ids[name] = number_ids(folder, name, len(lengths), listed.cast(kind))
        return Log(folder=folder, tables=tables, lengths=tuple(lengths), ids=ids)

    @property
    def num_rows(self) -> int:
        """Number of interactions, ``R``."""
        return sum(self.lengths)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Rows of the log that stand before each block."""
        return tuple(accumulate(self.lengths, initial=0))[:-1]

    def table(self, block: int) -> pa.Table:
        """The columns of a block; memory-mapped, with ids as codes."""
        return read_arrow(self.folder / f"block-{block:06}.arrow")

    def entity_rows(self, block: int, name: str) -> npt.NDArray[np.int32]:
        """(B,) rows of the users, or of the items."""
        rows = np.fromfile(_rows_file(self.folder, name, block), np.int32)
        found: npt.NDArray[np.int32] = rows[self.table(block).column(name).to_numpy()]
        return found

    def numbers(self, block: int, name: str, dtype: type) -> Array:
        """(B,) values of a column without nulls."""
        return column_numbers(self.table(block).column(name), dtype)

    def positive(self, block: int) -> npt.NDArray[np.bool_]:
        """(B,) which rows are positives."""
        if self.tables.label is None:
            return np.ones(self.lengths[block], bool)
        return self.numbers(block, LABEL, np.float32) >= self.tables.label.positive_from

    def write_parts(self, block: int, codes: npt.NDArray[np.int8]) -> None:
        """Say of which part each row of a block is, codes ``(B,)``."""
        self._parts_file(block).write_bytes(codes.astype(np.int8).data)

    def parts(self, block: int) -> npt.NDArray[np.int8]:
        """(B,) of which part each row is."""
        return np.fromfile(self._parts_file(block), np.int8)

    def _parts_file(self, block: int) -> Path:
        return self.folder / f"parts-{block:06}.int8"


@dataclass(frozen=True, kw_only=True)
class LogBlock:
    """What a splitter may look at in a block, read when it is looked at."""

    log: Log
    block: int

    @property
    def num_rows(self) -> int:
        """See `SplitInput`."""
        return self.log.lengths[self.block]

    @property
    def positive(self) -> npt.NDArray[np.bool_]:
        """See `SplitInput`."""
        return self.log.positive(self.block)

    @property
    def user_rows(self) -> npt.NDArray[np.int32] | None:
        """See `SplitInput`."""
        has = self.log.tables.has(USER_ID)
        return self.log.entity_rows(self.block, USER_ID) if has else None

    @property
    def timestamps(self) -> npt.NDArray[np.int64] | None:
        """See `SplitInput`."""
        has = self.log.tables.has(TIMESTAMP)
        return self.log.numbers(self.block, TIMESTAMP, np.int64) if has else None

    @property
    def given(self) -> npt.NDArray[np.int8] | None:
        """See `SplitInput`."""
        has = self.log.tables.has(SPLIT)
        return self.log.numbers(self.block, SPLIT, np.int8) if has else None


def _rows_file(folder: Path, name: str, block: int) -> Path:
    return folder / f"rows-{name}-{block:06}.int32"


def column_numbers(column: pa.ChunkedArray, dtype: type) -> Array:
    """A column without nulls as numbers ``(R,)``."""
    return np.asarray(column.to_numpy(), dtype)
