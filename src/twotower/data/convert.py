"""A piece of a table to canonical form, given the piece and a plan for the whole table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from twotower.data.columns import (
    Converted,
    Fault,
    Rows,
    to_ids,
    to_numbers,
    to_splits,
    to_timestamps,
)
from twotower.data.naming import INTERACTIONS, Reading
from twotower.data.raw_table import ColumnFault, Found, Piece, RawTable, rejected_rows, sum_up
from twotower.data.schema import (
    ITEM_ID,
    LABEL,
    POSITION,
    SPLIT,
    TIMESTAMP,
    TITLE,
    USER_ID,
    WEIGHT,
    DataError,
)
from twotower.data.text_kind import TextKind, infer, text_kind

MAX_FLOAT32 = float(np.finfo(np.float32).max)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How the pieces of a table are brought into canonical form.

    Args:
        kind: interactions, users or items.
        sources: Canonical name to the name in the files.
        reading: Names, label, context, and what happens to bad rows.
        names: Columns in canonical form, in the order of messages.
        kinds: What the columns of text could be whose type is read off the values.
        problems: What the names of the columns tell already.
        label_may_lack: Whether a row may have no label yet; such a log can be watched, not learned.
    """

    kind: str
    sources: Mapping[str, str]
    reading: Reading
    names: tuple[str, ...]
    kinds: Mapping[str, TextKind]
    problems: tuple[str, ...]
    label_may_lack: bool = False


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A piece of a table in canonical form.

    Args:
        table: The rows that can be used; none where they were handed on to a sink.
        num_rows: Rows of the piece.
        num_kept: Rows that can be used.
        found: What is wrong.
        rejected: Rows that were set aside, with the reasons.
        problems: Why the piece could not be read at all.
    """

    table: pa.Table
    num_rows: int
    num_kept: int
    found: tuple[Found, ...] = ()
    rejected: pa.Table | None = None
    problems: tuple[str, ...] = ()


Sink = Callable[[int, pa.Table], None]  # is given the number of a piece and its canonical rows


def check_piece(plan: Plan, sink: Sink | None, numbered: tuple[int, Piece]) -> Checked:
    """One piece in canonical form, with its faults and the rows that were set aside.

    Args:
        plan: How the table is read.
        sink: Takes the rows, unless something is wrong with the table.
        numbered: The number of the piece and the piece.
    """
    number, piece = numbered
    try:
        raw = piece.read()
    except DataError as error:
        return Checked(table=pa.table({}), num_rows=0, num_kept=0, problems=error.problems)
    table, faults = _convert_all(plan, raw)
    strict = plan.reading.on_bad_rows == "fail"
    aside = [f for f in faults if not (strict or f.fault.fatal)]
    bad = np.unique(np.concatenate([np.empty(0, np.int64), *(_rows(f) for f in aside)]))
    rejected = None
    if len(bad):
        keep = np.ones(raw.data.num_rows, dtype=bool)
        keep[bad] = False
        table = table.filter(pa.array(keep))
        rejected = rejected_rows(raw, aside, bad)
    num_kept = table.num_rows
    if sink is not None:
        if not plan.problems and len(aside) == len(faults):
            sink(number, table)
        table = table.schema.empty_table()
    return Checked(
        table=table,
        num_rows=raw.data.num_rows,
        num_kept=num_kept,
        found=tuple(sum_up(raw, found) for found in faults),
        rejected=rejected,
    )


def kinds_of_piece(names: Sequence[str], piece: Piece) -> dict[str, TextKind]:
    """What some columns of text could be, as far as one piece tells."""
    data = piece.read().data
    return {name: text_kind(data.column(name)) for name in names}


def _convert_all(plan: Plan, raw: RawTable) -> tuple[pa.Table, list[ColumnFault]]:
    """Canonical columns first, then all others under their own names."""
    columns: dict[str, pa.ChunkedArray] = {}
    faults: list[ColumnFault] = []
    for name in plan.names:
        source = plan.sources.get(name, name)
        converted = _convert(name, raw, source, plan)
        columns[name] = converted.values
        found = [*converted.faults]
        is_key = plan.kind != INTERACTIONS and name in plan.sources and name != TITLE
        if is_key and all(fault.rows is not None for fault in found):
            found += _repeated(converted.values)
        faults += [ColumnFault(name=name, source=source, fault=fault) for fault in found]
    return pa.table(columns) if columns else raw.data.select([]), faults


def _convert(name: str, raw: RawTable, source: str, plan: Plan) -> Converted:
    column, text, label = raw.data.column(source), source in raw.text, plan.reading.label
    if name not in plan.sources or name == POSITION:
        if plan.kind == INTERACTIONS and name in plan.reading.tasks:
            low, high = -MAX_FLOAT32, MAX_FLOAT32
            return to_numbers(
                column, text=text, minimum=low, maximum=high, allowed="finite numbers"
            )
        return Converted(values=infer(column, plan.kinds[source]) if text else column)
    if name in (USER_ID, ITEM_ID):
        return to_ids(column, text=text, kind=plan.kinds.get(source))
    if name == TIMESTAMP:
        return to_timestamps(column)
    if name == SPLIT:
        return to_splits(column)
    if name == WEIGHT:
        allowed = "finite numbers of at least 0"
        return to_numbers(column, text=text, minimum=0.0, maximum=MAX_FLOAT32, allowed=allowed)
    if name == LABEL and label is not None:
        low, high = label.minimum, label.maximum
        allowed = f"numbers from {low:g} to {high:g} (data.label.minimum, data.label.maximum)"
        return to_numbers(
            column,
            text=text,
            minimum=low,
            maximum=high,
            allowed=allowed,
            may_lack=plan.label_may_lack,
        )
    return Converted(values=column)


def _repeated(ids: pa.ChunkedArray) -> list[Fault]:
    """Rows whose id an earlier row has already; nulls do not count."""
    codes = ids.combine_chunks().dictionary_encode().indices
    filled = np.flatnonzero(codes.is_valid().to_numpy(zero_copy_only=False))
    again = np.ones(len(filled), dtype=bool)
    again[np.unique(codes.drop_null().to_numpy(), return_index=True)[1]] = False
    rows = filled[again].astype(np.int64)
    what = "with an id that an earlier row has already"
    return [Fault(what=what, allowed="one row an id", rows=rows, fatal=True)] if len(rows) else []


def _rows(found: ColumnFault) -> Rows:
    return np.empty(0, np.int64) if found.fault.rows is None else found.fault.rows
