"""Tables as files gave them to canonical `Tables`: names, types, checks; all problems at once.

A problem names the file, the column, how many rows, the first five of them, what was received and
what is allowed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from twotower.data.columns import (
    Converted,
    Fault,
    Rows,
    infer,
    to_ids,
    to_numbers,
    to_splits,
    to_timestamps,
)
from twotower.data.naming import (
    INTERACTIONS,
    ITEMS,
    USERS,
    Reading,
    broken_mappings,
    context_problems,
    find_columns,
    missing_columns,
    required_columns,
    task_problems,
)
from twotower.data.raw_table import ColumnFault, RawTable, describe, rejected_rows
from twotower.data.schema import (
    ITEM_ID,
    LABEL,
    SPLIT,
    TIMESTAMP,
    TITLE,
    USER_ID,
    WEIGHT,
    DataError,
    Tables,
)

log = logging.getLogger(__name__)

MAX_FLOAT32 = float(np.finfo(np.float32).max)


@dataclass(frozen=True, kw_only=True)
class _Checked:
    """A table in canonical form, and where the columns that could be read came from."""

    table: pa.Table
    sources: Mapping[str, str]
    problems: tuple[str, ...]
    rejected: pa.Table | None = None


def build_tables(raw: Mapping[str, RawTable | DataError], reading: Reading) -> Tables:
    """Map, convert and check all tables of a data set.

    Args:
        raw: The tables asked for: ``interactions`` and, optionally, ``users`` and ``items``; the
            error where a table could not be read, so that it is reported with all the others.
        reading: Names, label, context, and what happens to bad rows.

    Raises:
        DataError: Lists everything that is wrong with any of the tables.
    """
    problems = [text for t in raw.values() if isinstance(t, DataError) for text in t.problems]
    present = {kind: t for kind, t in raw.items() if isinstance(t, RawTable)}
    broken = broken_mappings(present, reading) if len(present) == len(raw) else {}
    problems += broken.values()
    checked = {}
    for kind, table in present.items():
        required = required_columns(kind, frozenset(raw), reading) - set(broken)
        checked[kind] = _check(kind, table, required, reading)
        problems += checked[kind].problems
    problems += _id_type_problems(checked, present)
    if INTERACTIONS in checked and (names := checked[INTERACTIONS].table.column_names):
        problems += context_problems(present[INTERACTIONS].location, names, reading)
    if problems:
        raise DataError(problems)
    tables = {kind: table.table for kind, table in checked.items()}
    rejected = [c.rejected for c in checked.values() if c.rejected is not None]
    return Tables(
        interactions=tables[INTERACTIONS],
        users=tables.get(USERS),
        items=tables.get(ITEMS),
        label=reading.label,
        context=reading.context,
        rejected=pa.concat_tables(rejected, promote_options="default") if rejected else None,
    )


def _check(kind: str, raw: RawTable, required: set[str], reading: Reading) -> _Checked:
    """One table in canonical form, with its problems and the rows that were set aside."""
    names = raw.data.column_names
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        problem = f"{raw.location}: more than one column is called `{'`, `'.join(twice)}`"
        return _Checked(table=raw.data.select([]), sources={}, problems=(problem,))
    sources = find_columns(kind, names, reading)
    problems = [*missing_columns(kind, raw, required, reading)]
    if kind == INTERACTIONS:
        problems += task_problems(raw, reading)
    if raw.data.num_rows == 0:
        problems.append(f"{raw.location}: the table is empty; at least one row is needed")
    table, faults = _convert_all(kind, raw, sources, reading)
    strict = reading.on_bad_rows == "fail"
    fatal = [f for f in faults if strict or f.fault.fatal]
    aside = [f for f in faults if not (strict or f.fault.fatal)]
    bad = np.unique(np.concatenate([np.empty(0, np.int64), *(_rows(f) for f in aside)]))
    if len(bad) and len(bad) == raw.data.num_rows:
        problems.append(f"{raw.location}: no row is left when the bad rows are set aside")
        fatal = faults
    problems += [describe(raw, found) for found in fatal]
    rejected = None
    if len(bad) and not problems:
        keep = np.ones(raw.data.num_rows, dtype=bool)
        keep[bad] = False
        table = table.filter(pa.array(keep))
        rejected = rejected_rows(raw, aside, bad)
    failed = {found.name for found in faults if found.fault.rows is None}
    read = {name: source for name, source in sources.items() if name not in failed}
    return _Checked(table=table, sources=read, problems=tuple(problems), rejected=rejected)


def _convert_all(
    kind: str, raw: RawTable, sources: Mapping[str, str], reading: Reading
) -> tuple[pa.Table, list[ColumnFault]]:
    """Canonical columns first, then all others under their own names."""
    columns: dict[str, pa.ChunkedArray] = {}
    faults: list[ColumnFault] = []
    for name, source in sources.items():
        converted = _convert(name, raw, source, reading)
        columns[name] = converted.values
        found = [*converted.faults]
        if kind != INTERACTIONS and name != TITLE and all(f.rows is not None for f in found):
            found += _repeated(converted.values)
        faults += [ColumnFault(name=name, source=source, fault=fault) for fault in found]
    tasks = reading.tasks if kind == INTERACTIONS else {}
    for name in raw.data.column_names:
        if name in sources.values() and name not in tasks:
            continue
        if name in tasks and name not in columns:
            converted = _to_outcomes(raw.data.column(name), text=name in raw.text)
            columns[name] = converted.values
            faults += [ColumnFault(name=name, source=name, fault=f) for f in converted.faults]
        elif name in columns:
            why = f"because `{sources[name]}` is read as `{name}`"
            log.warning("%s: column `%s` is left out, %s", raw.location, name, why)
        else:
            column = raw.data.column(name)
            columns[name] = infer(column) if name in raw.text else column
    return pa.table(columns), faults


def _convert(name: str, raw: RawTable, source: str, reading: Reading) -> Converted:
    column, text = raw.data.column(source), source in raw.text
    if name in (USER_ID, ITEM_ID):
        return to_ids(column, text=text)
    if name == TIMESTAMP:
        return to_timestamps(column)
    if name == SPLIT:
        return to_splits(column)
    if name == WEIGHT:
        allowed = "finite numbers of at least 0"
        return to_numbers(column, text=text, minimum=0.0, maximum=MAX_FLOAT32, allowed=allowed)
    if name == LABEL and reading.label is not None:
        low, high = reading.label.minimum, reading.label.maximum
        allowed = f"numbers from {low:g} to {high:g} (data.label.minimum, data.label.maximum)"
        return to_numbers(column, text=text, minimum=low, maximum=high, allowed=allowed)
    return Converted(values=column)


def _to_outcomes(column: pa.ChunkedArray, *, text: bool) -> Converted:
    low, high = -MAX_FLOAT32, MAX_FLOAT32
    return to_numbers(column, text=text, minimum=low, maximum=high, allowed="finite numbers")


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


def _id_type_problems(
    checked: Mapping[str, _Checked], present: Mapping[str, RawTable]
) -> Iterator[str]:
    """Ids that are integers in the interactions and text in the other table, or the reverse."""
    for kind, name in ((USERS, USER_ID), (ITEMS, ITEM_ID)):
        tables = {k: checked[k] for k in (INTERACTIONS, kind) if k in checked}
        types = {
            k: t.table.schema.field(name).type
            for k, t in tables.items()
            if name in t.sources and t.table.num_rows
        }
        if set(types.values()) == {pa.int64(), pa.string()}:
            shown = " and ".join(f"{t} in {present[k].location}" for k, t in types.items())
            yield f"column `{name}` has different types: {shown}; allowed: the same type in both"
            text = next(k for k, t in types.items() if t == pa.string())
            yield from _not_integer(name, tables[text].sources[name], present[text])


def _not_integer(name: str, source: str, raw: RawTable) -> Iterator[str]:
    """The first values that make a column of ids text."""
    column = raw.data.column(source).cast(pa.string())
    whole = pc.match_substring_regex(column, r"^\s*(0|-?[1-9]\d*)?\s*$")
    rows = np.flatnonzero(~pc.fill_null(whole, True).to_numpy()).astype(np.int64)
    if len(rows):
        fault = Fault(what="with an id that is text", allowed="integers throughout", rows=rows)
        yield describe(raw, ColumnFault(name=name, source=source, fault=fault))
