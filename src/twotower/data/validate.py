"""Tables as files gave them to canonical `Tables`: names, types, checks; all problems at once.

A problem names the file, the column, how many rows, the first five of them, what was received and
what is allowed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from twotower.data.columns import Fault
from twotower.data.convert import Checked, Plan, Sink, check_piece, kinds_of_piece
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
from twotower.data.raw_table import (
    ColumnFault,
    Found,
    RawPieces,
    RawTable,
    describe,
    join,
    sum_up,
)
from twotower.data.schema import ITEM_ID, POSITION, USER_ID, DataError, Tables
from twotower.data.text_kind import TextKind
from twotower.data.workers import Threads, Workers

log = logging.getLogger(__name__)


def build_tables(
    raw: Mapping[str, RawTable | RawPieces | DataError],
    reading: Reading,
    *,
    workers: Workers | None = None,
    sink: Sink | None = None,
    label_may_lack: bool = False,
) -> Tables:
    """Map, convert and check all tables of a data set.

    Args:
        raw: The tables asked for, of ``interactions``, ``users`` and ``items``; the
            error where a table could not be read, so that it is reported with all the others.
        reading: Names, label, context, and what happens to bad rows.
        workers: Who converts the pieces.
        sink: Takes the interactions piece by piece; they are left out of the result then.
        label_may_lack: Whether a row may have no label yet.

    Raises:
        DataError: Lists everything that is wrong with any of the tables.
    """
    workers = workers or Threads()
    problems = [text for t in raw.values() if isinstance(t, DataError) for text in t.problems]
    present = {kind: t for kind, t in raw.items() if not isinstance(t, DataError)}
    broken = broken_mappings(present, reading) if len(present) == len(raw) else {}
    problems += broken.values()
    checked = {}
    for kind, table in present.items():
        required = required_columns(kind, frozenset(raw), reading) - set(broken)
        plan = _plan(kind, table, required, reading, workers)
        plan = replace(plan, label_may_lack=label_may_lack)
        task = partial(check_piece, plan, sink if kind == INTERACTIONS else None)
        pieces = list(workers.map(task, [*enumerate(table.pieces)])) if plan.names else []
        checked[kind] = _Whole.of(plan, table, pieces)
        problems += checked[kind].problems
    problems += _id_type_problems(checked, present)
    if INTERACTIONS in checked and (names := checked[INTERACTIONS].table.column_names):
        problems += context_problems(present[INTERACTIONS].location, names, reading)
    if problems:
        raise DataError(list(dict.fromkeys(problems)))
    tables = {kind: table.table for kind, table in checked.items()}
    rejected = [one for table in checked.values() for one in table.rejected]
    return Tables(
        interactions=tables.get(INTERACTIONS, pa.table({})),
        users=tables.get(USERS),
        items=tables.get(ITEMS),
        label=reading.label,
        context=reading.context,
        rejected=pa.concat_tables(rejected, promote_options="default") if rejected else None,
    )


def _plan(
    kind: str,
    raw: RawTable | RawPieces,
    required: set[str],
    reading: Reading,
    workers: Workers,
) -> Plan:
    names = raw.data.column_names
    twice = sorted({name for name in names if names.count(name) > 1})
    problems = [f"{raw.location}: more than one column is called `{'`, `'.join(twice)}`"]
    if twice:
        return Plan(
            kind=kind, sources={}, reading=reading, names=(), kinds={}, problems=tuple(problems)
        )
    sources = find_columns(kind, names, reading)
    problems = [*missing_columns(kind, raw, required, reading)]
    if kind == INTERACTIONS:
        problems += task_problems(raw, reading)
    tasks = reading.tasks if kind == INTERACTIONS else {}
    others = [name for name in names if name not in sources.values() or name in tasks]
    for name in others:
        if name in sources and name not in tasks:
            why = f"because `{sources[name]}` is read as `{name}`"
            log.warning("%s: column `%s` is left out, %s", raw.location, name, why)
    free = [name for name in others if name not in sources]
    untyped = {sources[name] for name in (USER_ID, ITEM_ID, POSITION) if name in sources}
    untyped |= {name for name in free if name not in tasks}
    return Plan(
        kind=kind,
        sources=sources,
        reading=reading,
        names=(*sources, *free),
        kinds=_text_kinds(raw, sorted(untyped & raw.text), workers),
        problems=tuple(problems),
    )


def _text_kinds(
    raw: RawTable | RawPieces, names: Sequence[str], workers: Workers
) -> dict[str, TextKind]:
    """What whole columns of text could be."""
    kinds: dict[str, TextKind] = {}
    if names:
        for found in workers.map(partial(kinds_of_piece, names), raw.pieces):
            kinds = {name: kind | kinds.get(name, kind) for name, kind in found.items()}
    return kinds


@dataclass(frozen=True, kw_only=True)
class _Whole:
    """All pieces of a table in canonical form, and where the columns that were read came from."""

    table: pa.Table
    sources: Mapping[str, str]
    problems: tuple[str, ...]
    rejected: tuple[pa.Table, ...]
    num_rows: int

    @staticmethod
    def of(plan: Plan, raw: RawTable | RawPieces, pieces: Sequence[Checked]) -> _Whole:
        problems = [*plan.problems, *(text for piece in pieces for text in piece.problems)]
        num_rows = sum(piece.num_rows for piece in pieces)
        if num_rows == 0 and plan.names and not any(piece.problems for piece in pieces):
            problems.append(f"{raw.location}: the table is empty; at least one row is needed")
        found = join((one for piece in pieces for one in piece.found), plan.names)
        strict = plan.reading.on_bad_rows == "fail"
        fatal = [one for one in found if strict or one.fault.fatal]
        if num_rows and not any(piece.num_kept for piece in pieces):
            problems.append(f"{raw.location}: no row is left when the bad rows are set aside")
            fatal = found
        problems += [describe(raw, one) for one in fatal]
        failed = {one.name for one in found if one.count is None}
        return _Whole(
            table=pa.concat_tables(
                [p.table for p in pieces if not p.problems] or [raw.data.select([])]
            ),
            sources={name: own for name, own in plan.sources.items() if name not in failed},
            problems=tuple(problems),
            rejected=tuple(piece.rejected for piece in pieces if piece.rejected is not None),
            num_rows=num_rows,
        )


def _id_type_problems(
    checked: Mapping[str, _Whole], present: Mapping[str, RawTable | RawPieces]
) -> Iterator[str]:
    """Ids that are integers in the interactions and text in the other table, or the reverse."""
    for kind, name in ((USERS, USER_ID), (ITEMS, ITEM_ID)):
        tables = {k: checked[k] for k in (INTERACTIONS, kind) if k in checked}
        types = {
            k: t.table.schema.field(name).type
            for k, t in tables.items()
            if name in t.sources and t.num_rows
        }
        if set(types.values()) == {pa.int64(), pa.string()}:
            shown = " and ".join(f"{t} in {present[k].location}" for k, t in types.items())
            yield f"column `{name}` has different types: {shown}; allowed: the same type in both"
            text = next(k for k, t in types.items() if t == pa.string())
            yield from _not_integer(name, tables[text].sources[name], present[text])


def _not_integer(name: str, source: str, raw: RawTable | RawPieces) -> Iterator[str]:
    """The first values that make a column of ids text."""
    found: list[Found] = []
    for piece in raw.pieces:
        rows = piece.read()
        column = rows.data.column(source).cast(pa.string())
        whole = pc.match_substring_regex(column, r"^\s*(0|-?[1-9]\d*)?\s*$")
        odd = np.flatnonzero(~pc.fill_null(whole, True).to_numpy()).astype(np.int64)
        if len(odd):
            fault = Fault(what="with an id that is text", allowed="integers throughout", rows=odd)
            found.append(sum_up(rows, ColumnFault(name=name, source=source, fault=fault)))
    yield from (describe(raw, one) for one in join(found, [name]))
