"""A table as its files gave it, and how its rows are named in messages and in the rejected rows.

A table is read in pieces. What is wrong in a piece is summed up as `Found`; the sums of all pieces
are joined, so that a message counts all rows of a table and names the first five.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import pyarrow as pa

from twotower.data.columns import Fault, Rows
from twotower.data.schema import REJECTED_REASON

REJECTED_FILE = "file"
REJECTED_ROW = "row"
NUM_EXAMPLES = 5


class Piece(Protocol):
    """Rows of a table that are read alone."""

    def read(self) -> RawTable:
        """The rows.

        Raises:
            DataError: When the file is damaged.
        """


@dataclass(frozen=True, kw_only=True)
class RawTable:
    """A table, or a piece of one, as its files gave it.

    Args:
        location: What the user wrote, for messages.
        data: The columns under the names of the files, not dictionary-encoded.
        text: Columns from a source without types, whose type is read off the values.
        parts: Name and number of rows of every file, in the order of the rows.
        first: Rows of the first file that stand before these.
    """

    location: str
    data: pa.Table
    text: frozenset[str]
    parts: tuple[tuple[str, int], ...]
    first: int = 0

    @property
    def pieces(self) -> Sequence[Piece]:
        """The table itself."""
        return (self,)

    def read(self) -> RawTable:
        """See `Piece`."""
        return self


@dataclass(frozen=True, kw_only=True)
class RawPieces:
    """A table that is too long to be read at once.

    Args:
        location: What the user wrote, for messages.
        data: The columns without any rows.
        text: Columns from a source without types, whose type is read off the values.
        parts: Name and number of rows of every file, in the order of the rows.
        pieces: The rows, in order.
    """

    location: str
    data: pa.Table
    text: frozenset[str]
    parts: tuple[tuple[str, int], ...]
    pieces: Sequence[Piece]


@dataclass(frozen=True, kw_only=True)
class ColumnFault:
    """A fault and the column it is in.

    Args:
        name: Canonical name of the column.
        source: Its name in the files.
        fault: What is wrong.
    """

    name: str
    source: str
    fault: Fault


@dataclass(frozen=True, kw_only=True)
class Found:
    """A fault of a column, summed up over rows.

    Args:
        name: Canonical name of the column.
        source: Its name in the files.
        fault: What is wrong; without the rows.
        count: How many rows; None for the column as a whole.
        places: File and row from 1 of the first five.
        examples: What was received there, as text.
    """

    name: str
    source: str
    fault: Fault
    count: int | None
    places: tuple[tuple[str, int], ...] = ()
    examples: tuple[str, ...] = ()


def sum_up(raw: RawTable, found: ColumnFault) -> Found:
    """The fault with its first rows and what was received there."""
    rows, fault = found.fault.rows, replace(found.fault, rows=None)
    if rows is None:
        return Found(name=found.name, source=found.source, fault=fault, count=None)
    first = rows[:NUM_EXAMPLES]
    files, numbers = _locate(raw, first)
    names = [raw.parts[file][0] for file in files]
    return Found(
        name=found.name,
        source=found.source,
        fault=fault,
        count=len(rows),
        places=tuple(zip(names, numbers.tolist(), strict=True)),
        examples=_examples(raw.data.column(found.source).take(pa.array(first))),
    )


def join(found: Iterable[Found], columns: Sequence[str]) -> list[Found]:
    """One summary a fault.

    Args:
        found: The summaries of all pieces, in the order of their rows.
        columns: Canonical names in the order of the messages.
    """
    joined: dict[tuple[str, str], Found] = {}
    for one in found:
        before = joined.setdefault((one.name, one.fault.what), one)
        if before is not one and before.count is not None and one.count is not None:
            joined[one.name, one.fault.what] = replace(
                before,
                count=before.count + one.count,
                places=(before.places + one.places)[:NUM_EXAMPLES],
                examples=(before.examples + one.examples)[:NUM_EXAMPLES],
            )
    return sorted(joined.values(), key=lambda one: (columns.index(one.name), one.fault.rank))


def describe(raw: RawTable | RawPieces, found: Found) -> str:
    """One sentence: file, column, number of rows, what was received where, what is allowed."""
    name, source, fault = found.name, found.source, found.fault
    column = f"column `{source}`" if name == source else f"column `{source}` (`{name}`)"
    if found.count is None:
        return f"{raw.location}: {column} {fault.what}; allowed: {fault.allowed}"
    what = fault.what.replace("that are ", "that is ") if found.count == 1 else fault.what
    return (
        f"{raw.location}: {column}: {count_rows(found.count)} {what}, at data row "
        f"{_places(raw, found.places)} (from 1, header not counted): received "
        f"{', '.join(dict.fromkeys(found.examples))}; allowed: {fault.allowed}"
    )


def count_rows(count: int) -> str:
    """A number of rows in words.

    >>> count_rows(1), count_rows(3)
    ('1 row', '3 rows')
    """
    return f"{count} row" if count == 1 else f"{count} rows"


def rejected_rows(raw: RawTable, faults: Sequence[ColumnFault], rows: Rows) -> pa.Table:
    """The rows at fault as they came, as text, with file, row number from 1, and reason.

    Args:
        raw: The table.
        faults: Why rows are rejected.
        rows: All rows at fault, ascending.
    """
    reasons = np.full(len(rows), "", dtype=object)
    for found in faults:
        if found.fault.rows is not None:
            at = np.searchsorted(rows, found.fault.rows)
            reasons[at] += f"`{found.source}` {found.fault.what}; "
    files, numbers = _locate(raw, rows)
    columns = {
        REJECTED_FILE: pa.array([name for name, _ in raw.parts]).take(pa.array(files)),
        REJECTED_ROW: pa.array(numbers),
        REJECTED_REASON: pa.array([reason.removesuffix("; ") for reason in reasons], pa.string()),
    }
    for name in raw.data.column_names:
        free = f"{name}_original" if name in columns else name
        columns[free] = _as_text(raw.data.column(name).take(pa.array(rows)))
    return pa.table(columns)


def _places(raw: RawTable | RawPieces, places: Sequence[tuple[str, int]]) -> str:
    by_file: dict[str, list[str]] = {}
    for name, number in places:
        by_file.setdefault(name, []).append(str(number))
    if len(raw.parts) == 1:
        return ", ".join(str(number) for _, number in places)
    return "; ".join(f"{', '.join(numbers)} of {name}" for name, numbers in by_file.items())


def _locate(raw: RawTable, rows: Rows) -> tuple[Rows, Rows]:
    """Which file each row is in, and its number there from 1."""
    ends = np.cumsum([count for _, count in raw.parts])
    files = np.searchsorted(ends, rows, side="right").astype(np.int64)
    starts = np.concatenate([[-raw.first], ends[:-1]])
    return files, rows - starts[files] + 1


def _examples(values: pa.ChunkedArray) -> tuple[str, ...]:
    quoted = values.type in (pa.string(), pa.large_string())
    shown = (repr(v) if quoted else v for v in _as_text(values).to_pylist())
    return tuple("null" if v in (None, "None") else v for v in shown)


def _as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    try:
        return column.cast(pa.string())
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):  # lists and the like
        values = column.to_pylist()
        return pa.chunked_array([pa.array([None if v is None else str(v) for v in values])])
