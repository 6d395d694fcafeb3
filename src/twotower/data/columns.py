"""One raw column to its canonical form, and which of its rows cannot be used.

Every function takes a column as a file gave it and returns the values together with the `Fault`s it
found; rows at fault are null in the values. ``text=True`` says that the column comes from a format
without types (CSV), where numbers and times are spelled out; all work is vectorised.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from twotower.data.schema import MICROSECONDS, TEST, TRAIN, VALIDATION
from twotower.data.text_kind import ISO, TextKind, infer, parse_iso, plain_text, text_kind

Column: TypeAlias = pa.ChunkedArray
Rows = npt.NDArray[np.int64]

MAX_INT64 = 2**63 - 1
LATEST_SECONDS = 4_133_980_800  # 2101-01-01
LATEST_MICROSECONDS = 253_402_300_800 * MICROSECONDS  # year 10000
SPLIT_WORDS = dict(train=TRAIN, validation=VALIDATION, valid=VALIDATION, val=VALIDATION, test=TEST)

ALLOWED_IDS = "64-bit integers or text"
ALLOWED_TIMES = "integer seconds since 1970, timestamps, dates or ISO 8601 text"

_WHOLE = r"^-?\d{1,18}$"
_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Why a column, or some of its rows, cannot be used.

    Args:
        what: What is wrong, to be read after "3 rows ".
        allowed: What would be right.
        rows: Row numbers from 0, ascending; None for the column as a whole.
        fatal: Whether reading must stop even where bad rows may be set aside.
        rank: Place among the faults of a column in messages.
    """

    what: str
    allowed: str
    rows: Rows | None = None
    fatal: bool = False
    rank: int = 0


@dataclass(frozen=True, kw_only=True)
class Converted:
    """A column in canonical form.

    Args:
        values: Chunked array with null where a row is at fault.
        faults: What was found; only faults that concern a row or more.
    """

    values: Column
    faults: tuple[Fault, ...] = ()


def decode(column: Column) -> Column:
    """The column without dictionary encoding."""
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def to_ids(column: Column, *, text: bool, kind: TextKind | None = None) -> Converted:
    """Ids as int64 or string, exactly as they came.

    Args:
        column: Integers or text; floats are refused, because they round above 2^53.
        text: Whether the type must be read off the values.
        kind: What the whole column could be, where this is a part of it.
    """
    if text:
        kind = text_kind(column) if kind is None else kind
        if not kind.keeps and kind.integers:
            column = infer(column, kind)
        elif not kind.keeps and kind.numbers and kind.whole and kind.dotted:
            return _wrong_type(column, "holds numbers with a decimal point", ALLOWED_IDS)
    stored = column.type
    large = _none(column)
    if _is_text(stored):
        values = column.cast(pa.string())
        values = pc.if_else(pc.equal(values, ""), pa.scalar(None, pa.string()), values)
    elif stored == pa.uint64():
        large = _true(pc.greater(column, pa.scalar(MAX_INT64, stored)))
        values = pc.if_else(large, pa.scalar(None, stored), column).cast(pa.int64())
    elif pa.types.is_integer(stored) or pa.types.is_null(stored):
        values = column.cast(pa.int64())
    else:
        hint = ", which rounds ids above 2^53" if pa.types.is_floating(stored) else ""
        return _wrong_type(column, f"has type {stored}{hint}", ALLOWED_IDS)
    missing = pc.and_not(pc.is_null(values), large)
    faults = _in_order(
        _faults("without an id", ALLOWED_IDS, missing),
        _faults("with an id above 2^63 - 1", ALLOWED_IDS, large, fatal=True),
    )
    return Converted(values=values, faults=faults)


def to_timestamps(column: Column) -> Converted:
    """Times as int64 microseconds since 1970 UTC; times without a zone are read as UTC.

    Args:
        column: Integer seconds, timestamps of any unit and zone, dates, or ISO 8601 text.
    """
    kind = column.type
    unreadable = late = _none(column)
    if _is_text(kind):
        column = plain_text(column.cast(pa.string()))
        values, unreadable, late = _from_text(column)
    elif pa.types.is_integer(kind):
        values, late = _from_seconds(column)
    elif pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        values, unreadable = _from_timestamp(column)
    elif pa.types.is_null(kind):
        values = column.cast(pa.int64())
    else:
        return _wrong_type(column, f"has type {kind}", ALLOWED_TIMES)
    early = _true(pc.less(values, 0))
    values = pc.if_else(early, pa.scalar(None, pa.int64()), values)
    faults = _in_order(
        _faults("without a time", ALLOWED_TIMES, pc.is_null(column)),
        _faults("with a time that cannot be read", ALLOWED_TIMES, unreadable),
        _faults("with a time before 1970", ALLOWED_TIMES, early),
        _faults("beyond the year 2100, which looks like milliseconds", ALLOWED_TIMES, late),
    )
    return Converted(values=values, faults=faults)


def to_numbers(
    column: Column,
    *,
    text: bool,
    minimum: float,
    maximum: float,
    allowed: str,
    may_lack: bool = False,
) -> Converted:
    """Numbers as float32 between two bounds, both included.

    Args:
        column: Integers, floats, decimals or booleans.
        text: Whether the numbers are spelled out.
        minimum: Smallest allowed value.
        maximum: Largest allowed value.
        allowed: Both bounds in words.
        may_lack: Whether a row without a value is right.
    """
    unreadable = _none(column)
    kind = column.type
    if text:
        plain = plain_text(column)
        missing = pc.is_null(plain)
        numbers, unreadable = _parse_numbers(plain)
    elif _is_number(kind):
        numbers = column.cast(pa.float64(), safe=False)
        missing = _true(pc.or_kleene(pc.is_null(numbers), pc.is_nan(numbers)))
    else:
        return _wrong_type(column, f"has type {kind}", allowed)
    outside = _true(pc.or_(pc.less(numbers, minimum), pc.greater(numbers, maximum)))
    bad = pc.or_(outside, missing)
    values = pc.if_else(bad, pa.scalar(None, pa.float64()), numbers).cast(pa.float32())
    faults = _in_order(
        () if may_lack else _faults("without a value", allowed, missing),
        _faults("that are no number", allowed, unreadable),
        _faults("outside the range", allowed, outside),
    )
    return Converted(values=values, faults=faults)


def to_splits(column: Column) -> Converted:
    """Names of splits as int8: ``train``, ``validation`` (``valid``, ``val``), ``test``."""
    allowed = ", ".join(SPLIT_WORDS)
    if not (_is_text(column.type) or pa.types.is_null(column.type)):
        return _wrong_type(column, f"has type {column.type}", f"the text {allowed}")
    found = pc.index_in(column.cast(pa.string()), value_set=pa.array(SPLIT_WORDS))
    codes = pa.array(SPLIT_WORDS.values(), pa.int8())
    faults = _faults("with an unknown split", allowed, pc.is_null(found), fatal=True)
    return Converted(values=pc.take(codes, found), faults=faults)


def _is_text(kind: pa.DataType) -> bool:
    return kind in (pa.string(), pa.large_string(), pa.string_view())


def _is_number(kind: pa.DataType) -> bool:
    checks = ("integer", "floating", "decimal", "boolean", "null")
    return any(getattr(pa.types, f"is_{check}")(kind) for check in checks)


def _none(column: Column) -> Column:
    return pa.chunked_array([pa.array(np.zeros(len(column), dtype=bool))])


def _true(mask: Column) -> Column:
    return pc.fill_null(mask, False)


def _faults(what: str, allowed: str, mask: Column, fatal: bool = False) -> tuple[Fault, ...]:
    rows = np.flatnonzero(_true(mask).to_numpy()).astype(np.int64)
    return (Fault(what=what, allowed=allowed, rows=rows, fatal=fatal),) if len(rows) else ()


def _in_order(*faults: tuple[Fault, ...]) -> tuple[Fault, ...]:
    return tuple(replace(f, rank=rank) for rank, found in enumerate(faults) for f in found)


def _wrong_type(column: Column, what: str, allowed: str) -> Converted:
    return Converted(values=column, faults=(Fault(what=what, allowed=allowed, fatal=True),))


def _from_text(
    plain: Column,
) -> tuple[Column, Column, Column]:
    nothing = pa.scalar(None, pa.string())
    whole = _true(pc.match_substring_regex(plain, _WHOLE))
    iso = _true(pc.match_substring_regex(plain, ISO))
    seconds, late = _from_seconds(pc.if_else(whole, plain, nothing).cast(pa.int64()))
    values = pc.coalesce(seconds, parse_iso(pc.if_else(iso, plain, nothing)))
    return values, pc.and_not(pc.is_valid(plain), pc.or_(whole, iso)), late


def _from_seconds(column: Column) -> tuple[Column, Column]:
    if column.type == pa.uint64():
        top = pa.scalar(MAX_INT64, pa.uint64())
        column = pc.min_element_wise(column, top, skip_nulls=False)
    seconds = column.cast(pa.int64())
    late = _true(pc.greater_equal(seconds, LATEST_SECONDS))
    out_of_reach = pc.or_(late, _true(pc.less(seconds, -LATEST_SECONDS)))
    clipped = pc.if_else(out_of_reach, -1, seconds)  # -1 is before 1970, hence a fault below
    values = pc.multiply(clipped, MICROSECONDS)
    return pc.if_else(late, pa.scalar(None, pa.int64()), values), late


def _from_timestamp(column: Column) -> tuple[Column, Column]:
    if pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("s" if column.type == pa.date32() else "ms"))
    raw = column.cast(pa.int64())
    if column.type.unit == "ns":
        early = _true(pc.less(raw, 0))  # division would round -1 ns up to 1970
        return pc.if_else(early, -1, pc.divide(raw, 1000)), _none(column)
    factor = {"s": MICROSECONDS, "ms": 1000, "us": 1}[column.type.unit]
    limit = LATEST_MICROSECONDS // factor
    far = _true(pc.or_(pc.greater_equal(raw, limit), pc.less(raw, -limit)))
    return pc.multiply(pc.if_else(far, pa.scalar(None, pa.int64()), raw), factor), far


def _parse_numbers(text: Column) -> tuple[Column, Column]:
    lower = pc.utf8_lower(text)
    text = pc.if_else(pc.equal(lower, "true"), "1", pc.if_else(pc.equal(lower, "false"), "0", text))
    unreadable = _true(pc.invert(pc.match_substring_regex(text, _NUMBER)))
    numbers = pc.if_else(unreadable, pa.scalar(None, text.type), text).cast(pa.float64())
    return numbers, unreadable
