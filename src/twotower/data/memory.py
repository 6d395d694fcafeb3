"""Tables that are in memory already: what a source of your own reads from wherever you keep it.

A source is a class with a `name`, a `fingerprint` and `read`; see `twotower.data.schema.Source`. In
`read` it hands its tables to `canonical_tables`, which does what is done with files: columns are
renamed, converted and checked. What a source returns is held against the canonical form again by
`check_tables`, before anything is prepared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa

from twotower.data.files import plain
from twotower.data.naming import INTERACTIONS, ITEMS, USERS, OnBadRows, Reading, required_columns
from twotower.data.raw_table import RawTable
from twotower.data.schema import (
    ITEM_ID,
    LABEL,
    SPLIT,
    TIMESTAMP,
    USER_ID,
    WEIGHT,
    DataError,
    Label,
    Source,
    Tables,
)
from twotower.data.validate import build_tables

ID_TYPES = (pa.int64(), pa.string())
TYPES: dict[str, tuple[pa.DataType, ...]] = {
    USER_ID: ID_TYPES,
    ITEM_ID: ID_TYPES,
    TIMESTAMP: (pa.int64(),),
    LABEL: (pa.float32(),),
    WEIGHT: (pa.float32(),),
    SPLIT: (pa.int8(),),
}
MEMBERS = ("name", "fingerprint", "read")


def canonical_tables(
    *,
    interactions: pa.Table,
    users: pa.Table | None = None,
    items: pa.Table | None = None,
    columns: Mapping[str, str] | None = None,
    label: Label | None = None,
    context: Sequence[str] = (),
    on_bad_rows: OnBadRows = "fail",
) -> Tables:
    """Rename, convert and check tables that are in memory.

    Args:
        interactions: One row an event or impression; `pa.Table.from_pandas` and
            `pa.Table.from_pylist` make one of what you have.
        users: One row a user.
        items: One row an item.
        columns: Canonical name to the name in the tables, e.g. ``{"user_id": "visitor"}``.
        label: Which column says how an impression ended; None when every row is a positive.
        context: Columns of the interactions that are known at request time.
        on_bad_rows: ``fail``, or ``quarantine`` to go on without rows that cannot be used.

    Returns:
        The tables in canonical form.

    Raises:
        DataError: Lists everything that is wrong with any of the tables.
    """
    given = {INTERACTIONS: interactions, USERS: users, ITEMS: items}
    raw = {
        kind: RawTable(
            location=kind, data=plain(table), text=frozenset(), parts=((kind, len(table)),)
        )
        for kind, table in given.items()
        if table is not None
    }
    reading = Reading(
        columns={name: own for name, own in (columns or {}).items() if own != name},
        label=label,
        context=tuple(context),
        on_bad_rows=on_bad_rows,
    )
    return build_tables(raw, reading)


def check_source(source: object) -> None:
    """Refuse an object that is no source.

    Args:
        source: What `data` in the config has built.

    Raises:
        DataError: When it lacks a member.
    """
    lacking = [name for name in MEMBERS if not hasattr(source, name)]
    if lacking:
        raise DataError(
            [
                f"data: {_called(source)} is no source, it has no {', '.join(lacking)}; needed: a "
                "property or field `name` and methods `fingerprint` and `read`, see "
                "twotower.data.schema.Source"
            ]
        )


def check_tables(tables: object, source: Source) -> Tables:
    """Refuse tables that are not in canonical form.

    Args:
        tables: What `source` has read.
        source: For messages.

    Returns:
        The tables as they are.

    Raises:
        DataError: Lists every column that is missing or of a wrong type, or has nulls.
    """
    remedy = "; twotower.data.memory.canonical_tables brings tables into the right form"
    where = f"data: {_called(source)}.read"
    if not isinstance(tables, Tables):
        got = f"{type(tables).__module__}.{type(tables).__qualname__}"
        raise DataError([f"{where} returned {got}, not twotower.data.schema.Tables{remedy}"])
    problems = [f"{where}: {problem}{remedy}" for problem in _problems(tables)]
    if problems:
        raise DataError(problems)
    return tables


def _problems(tables: Tables) -> Iterator[str]:
    kinds = {INTERACTIONS: tables.interactions, USERS: tables.users, ITEMS: tables.items}
    there = {kind: table for kind, table in kinds.items() if table is not None}
    reading = Reading(columns={}, label=tables.label, context=tables.context, on_bad_rows="fail")
    for kind, table in there.items():
        names = set(table.column_names)
        needed = required_columns(kind, frozenset(there), reading)
        for name in (*TYPES, *(tables.context if kind == INTERACTIONS else ())):
            is_needed = name in needed and not (name == TIMESTAMP and SPLIT in names)
            if name not in names:
                if is_needed or name in tables.context:
                    yield f"the {kind} have no column `{name}`"
                continue
            column = table.column(name)
            own = name in TYPES and (kind == INTERACTIONS or name in needed)
            if own and column.type not in TYPES[name]:
                allowed = " or ".join(map(str, TYPES[name]))
                unit = ", microseconds since 1970" if name == TIMESTAMP else ""
                yield f"`{name}` of the {kind} is {column.type}, must be {allowed}{unit}"
            elif own and column.null_count:
                yield f"`{name}` of the {kind} has {column.null_count} nulls"


def _called(source: object) -> str:
    return f"{type(source).__module__}.{type(source).__qualname__}"
