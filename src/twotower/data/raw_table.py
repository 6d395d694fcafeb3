"""A table as its files gave it, and how its rows are named in messages and in the rejected rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from twotower.data.columns import Fault, Rows
from twotower.data.schema import REJECTED_REASON

REJECTED_FILE = "file"
REJECTED_ROW = "row"
NUM_EXAMPLES = 5


@dataclass(frozen=True, kw_only=True)
class RawTable:
    """A table as its files gave it.

    Args:
        location: What the user wrote, for messages.
        data: The columns under the names of the files, not dictionary-encoded.
        text: Columns from a source without types, whose type is read off the values.
        parts: Name and number of rows of every file, in the order of the rows.
    """

    location: str
    data: pa.Table
    text: frozenset[str]
    parts: tuple[tuple[str, int], ...]


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


def describe(raw: RawTable, found: ColumnFault) -> str:
    """One sentence: file, column, number of rows, what was received where, what is allowed."""
    name, source, fault = found.name, found.source, found.fault
    column = f"column `{source}`" if name == source else f"column `{source}` (`{name}`)"
    if fault.rows is None:
        return f"{raw.location}: {column} {fault.what}; allowed: {fault.allowed}"
    first = fault.rows[:NUM_EXAMPLES]
    return (
        f"{raw.location}: {column}: {count_rows(len(fault.rows))} {fault.what}, at data row "
        f"{_places(raw, first)} (from 1, header not counted): received "
        f"{_examples(raw.data.column(source).take(pa.array(first)))}; allowed: {fault.allowed}"
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


def _places(raw: RawTable, rows: Rows) -> str:
    files, numbers = _locate(raw, rows)
    if len(raw.parts) == 1:
        return ", ".join(str(number) for number in numbers)
    return "; ".join(
        f"{', '.join(str(number) for number in numbers[files == file])} of {raw.parts[file][0]}"
        for file in np.unique(files)
    )


def _locate(raw: RawTable, rows: Rows) -> tuple[Rows, Rows]:
    """Which file each row is in, and its number there from 1."""
    ends = np.cumsum([count for _, count in raw.parts])
    files = np.searchsorted(ends, rows, side="right").astype(np.int64)
    starts = np.concatenate([[0], ends[:-1]])
    return files, rows - starts[files] + 1


def _examples(values: pa.ChunkedArray) -> str:
    quoted = values.type in (pa.string(), pa.large_string())
    shown = (repr(v) if quoted else v for v in _as_text(values).to_pylist())
    return ", ".join(dict.fromkeys("null" if v in (None, "None") else v for v in shown))


def _as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    try:
        return column.cast(pa.string())
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):  # lists and the like
        values = column.to_pylist()
        return pa.chunked_array([pa.array([None if v is None else str(v) for v in values])])
