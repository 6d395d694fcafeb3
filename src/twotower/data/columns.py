"""One raw column to its canonical form, and which of its rows cannot be used.

Every function takes a column as a file gave it and returns the values together with the `Fault`s it
found; rows at fault are null in the values. ``text=True`` says that the column comes from a format
without types (CSV), where numbers and times are spelled out; all work is vectorised.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from twotower.data.schema import MICROSECONDS, TEST, TRAIN, VALIDATION

Column: TypeAlias = pa.ChunkedArray
Rows = npt.NDArray[np.int64]

MAX_INT64 = 2**63 - 1
LATEST_SECONDS = 4_133_980_800  # 2101-01-01
LATEST_MICROSECONDS = 253_402_300_800 * MICROSECONDS  # year 10000
SPLIT_WORDS = dict(train=TRAIN, validation=VALIDATION, valid=VALIDATION, val=VALIDATION, test=TEST)
NULL_WORDS = ("", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "-nan", "null", "NULL", "None")

ALLOWED_IDS = "64-bit integers or text"
ALLOWED_TIMES = "integer seconds since 1970, timestamps, dates or ISO 8601 text"

_KEEP_AS_TEXT = r"^\s*[+-]?0[0-9xX]"  # leading zeros carry meaning: 007, 02138, 0x1F
_WHOLE = r"^-?\d{1,18}$"
_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
_WHOLE_FLOAT = r"^-?\d+(\.0*)?$"
_DATE = (
    r"(\d{4}-((0[13578]|1[02])-(0[1-9]|[12]\d|3[01])|(0[469]|11)-(0[1-9]|[12]\d|30)"
    r"|02-(0[1-9]|1\d|2[0-8]))"
    r"|(\d\d(0[48]|[2468][048]|[13579][26])|([02468][048]|[13579][26])00)-02-29)"
)
_ZONE = r"( UTC|Z|[+-]([01]\d|2[0-3])(:?[0-5]\d)?)"
_ISO = rf"^{_DATE}([T ]([01]\d|2[0-3]):[0-5]\d(:[0-5]\d(\.\d{{1,9}})?)?{_ZONE}?)?$"


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Why a column, or some of its rows, cannot be used.

    Args:
        what: What is wrong, to be read after "3 rows ".
        allowed: What would be right.
        rows: Row numbers from 0, ascending; None for the column as a whole.
        fatal: Whether reading must stop even where bad rows may be set aside.
    """

    what: str
    allowed: str
    rows: Rows | None = None
    fatal: bool = False


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


def infer(column: Column) -> Column:
    """Type of a column of text: integers, numbers, ISO times, or else the text itself.

    Words such as ``NA`` are null in numbers and times and stay as they are in text. Text with
    leading zeros is no number.
    """
    if pc.any(pc.match_substring_regex(column, _KEEP_AS_TEXT)).as_py():
        return column
    plain = _plain(column)
    for kind in (pa.int64(), pa.float64()):
        try:
            return plain.cast(kind)
        except pa.ArrowInvalid:
            continue
    for part in (plain.slice(0, 1000), plain):  # the first rows spare most columns the long look
        if pc.any(pc.invert(pc.match_substring_regex(part, _ISO))).as_py():
            return column
    return _parse_iso(plain).cast(pa.timestamp("us", "UTC"))


def to_ids(column: Column, *, text: bool) -> Converted:
    """Ids as int64 or string, exactly as they came.

    Args:
        column: Integers or text; floats are refused, because they round above 2^53.
        text: Whether the type must be read off the values.
    """
    if text:
        inferred = infer(column)
        if pa.types.is_integer(inferred.type):
            column = inferred
        elif pa.types.is_floating(inferred.type) and _looks_whole(column):
            return _wrong_type(column, "holds numbers with a decimal point", ALLOWED_IDS)
    kind = column.type
    large = _none(column)
    if _is_text(kind):
        values = column.cast(pa.string())
        values = pc.if_else(pc.equal(values, ""), pa.scalar(None, pa.string()), values)
    elif kind == pa.uint64():
        large = _true(pc.greater(column, pa.scalar(MAX_INT64, kind)))
        values = pc.if_else(large, pa.scalar(None, kind), column).cast(pa.int64())
    elif pa.types.is_integer(kind) or pa.types.is_null(kind):
        values = column.cast(pa.int64())
    else:
        hint = ", which rounds ids above 2^53" if pa.types.is_floating(kind) else ""
        return _wrong_type(column, f"has type {kind}{hint}", ALLOWED_IDS)
    missing = pc.and_not(pc.is_null(values), large)
    faults = (
        *_faults("without an id", ALLOWED_IDS, missing),
        *_faults("with an id above 2^63 - 1", ALLOWED_IDS, large, fatal=True),
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
        column = _plain(column.cast(pa.string()))
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
    faults = (
        *_faults("without a time", ALLOWED_TIMES, pc.is_null(column)),
        *_faults("with a time that cannot be read", ALLOWED_TIMES, unreadable),
        *_faults("with a time before 1970", ALLOWED_TIMES, early),
        *_faults("beyond the year 2100, which looks like milliseconds", ALLOWED_TIMES, late),
    )
    return Converted(values=values, faults=faults)


def to_numbers(
    column: Column, *, text: bool, minimum: float, maximum: float, allowed: str
) -> Converted:
    """Numbers as float32 between two bounds, both included.

    Args:
        column: Integers, floats, decimals or booleans.
        text: Whether the numbers are spelled out.
        minimum: Smallest allowed value.
        maximum: Largest allowed value.
        allowed: Both bounds in words.
    """
    unreadable = _none(column)
    kind = column.type
    if text:
        plain = _plain(column)
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
    faults = (
        *_faults("without a value", allowed, missing),
        *_faults("that are no number", allowed, unreadable),
        *_faults("outside the range", allowed, outside),
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


def _plain(text: Column) -> Column:
    """Text without space around it, and null where a word says that nothing is there."""
    trimmed = pc.utf8_trim_whitespace(text)
    absent = pc.is_in(trimmed, value_set=pa.array(NULL_WORDS))
    return pc.if_else(absent, pa.scalar(None, trimmed.type), trimmed)


def _looks_whole(text: Column) -> bool:
    plain = _plain(text)
    whole = pc.all(pc.match_substring_regex(plain, _WHOLE_FLOAT)).as_py()
    return bool(whole and pc.any(pc.match_substring(plain, ".")).as_py())


def _none(column: Column) -> Column:
    return pa.chunked_array([pa.array(np.zeros(len(column), dtype=bool))])


def _true(mask: Column) -> Column:
    return pc.fill_null(mask, False)


def _faults(what: str, allowed: str, mask: Column, fatal: bool = False) -> tuple[Fault, ...]:
    rows = np.flatnonzero(_true(mask).to_numpy()).astype(np.int64)
    return (Fault(what=what, allowed=allowed, rows=rows, fatal=fatal),) if len(rows) else ()


def _wrong_type(column: Column, what: str, allowed: str) -> Converted:
    return Converted(values=column, faults=(Fault(what=what, allowed=allowed, fatal=True),))


def _from_text(
    plain: Column,
) -> tuple[Column, Column, Column]:
    nothing = pa.scalar(None, pa.string())
    whole = _true(pc.match_substring_regex(plain, _WHOLE))
    iso = _true(pc.match_substring_regex(plain, _ISO))
    seconds, late = _from_seconds(pc.if_else(whole, plain, nothing).cast(pa.int64()))
    values = pc.coalesce(seconds, _parse_iso(pc.if_else(iso, plain, nothing)))
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


def _parse_iso(text: Column) -> Column:
    """Microseconds since 1970 of text that matches `_ISO`, or null."""
    text = pc.replace_substring_regex(text, r"(\.\d{6})\d+", r"\1")
    text = pc.replace_substring_regex(text, r" UTC$", "Z")
    zoned = _true(pc.match_substring_regex(text, r"[T ].*(Z|[+-]\d{2}(:?\d{2})?)$"))
    nothing = pa.scalar(None, text.type)
    with_zone = pc.if_else(zoned, text, nothing).cast(pa.timestamp("us", "UTC"))
    without = pc.if_else(zoned, nothing, text).cast(pa.timestamp("us"))
    return pc.coalesce(with_zone.cast(pa.int64()), without.cast(pa.int64()))


def _parse_numbers(text: Column) -> tuple[Column, Column]:
    lower = pc.utf8_lower(text)
    text = pc.if_else(pc.equal(lower, "true"), "1", pc.if_else(pc.equal(lower, "false"), "0", text))
    unreadable = _true(pc.invert(pc.match_substring_regex(text, _NUMBER)))
    numbers = pc.if_else(unreadable, pa.scalar(None, text.type), text).cast(pa.float64())
    return numbers, unreadable
