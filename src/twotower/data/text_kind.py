"""Columns of text from a format without types, and what their values could be.

The type of a column is read off all its values. A long column is looked at block by block: what
every block could be is a `TextKind`, and the kinds of all blocks are joined.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

Column: TypeAlias = pa.ChunkedArray

NULL_WORDS = ("", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "-nan", "null", "NULL", "None")

_KEEP_AS_TEXT = r"^\s*[+-]?0[0-9xX]"  # leading zeros carry meaning: 007, 02138, 0x1F
_WHOLE_FLOAT = r"^-?\d+(\.0*)?$"
_DATE = (
    r"(\d{4}-((0[13578]|1[02])-(0[1-9]|[12]\d|3[01])|(0[469]|11)-(0[1-9]|[12]\d|30)"
    r"|02-(0[1-9]|1\d|2[0-8]))"
    r"|(\d\d(0[48]|[2468][048]|[13579][26])|([02468][048]|[13579][26])00)-02-29)"
)
_NUMBER = r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"
_LIST = rf"^\[\s*{_NUMBER}(\s*[,\s]\s*{_NUMBER})*\s*\]$"
_ZONE = r"( UTC|Z|[+-]([01]\d|2[0-3])(:?[0-5]\d)?)"
ISO = rf"^{_DATE}([T ]([01]\d|2[0-3]):[0-5]\d(:[0-5]\d(\.\d{{1,9}})?)?{_ZONE}?)?$"


@dataclass(frozen=True, kw_only=True)
class TextKind:
    """What the text of a column could be; that of two blocks of a column is joined by ``|``.

    Args:
        keeps: Whether a value must stay text: leading zeros carry meaning.
        integers: Whether all values are 64-bit integers.
        numbers: Whether all values are numbers.
        instants: Whether all values are ISO 8601 times.
        whole: Whether all values are whole numbers, with or without a decimal point.
        dotted: Whether a value has a decimal point, or in a list an exponent.
        lists: Whether all values are numbers in brackets, ``[0.5, -1e-3]`` or ``[0.5 -1e-3]``.
    """

    keeps: bool = False
    integers: bool = True
    numbers: bool = True
    instants: bool = True
    whole: bool = True
    dotted: bool = False
    lists: bool = True

    def __or__(self, other: TextKind) -> TextKind:
        return TextKind(
            keeps=self.keeps or other.keeps,
            integers=self.integers and other.integers,
            numbers=self.numbers and other.numbers,
            instants=self.instants and other.instants,
            whole=self.whole and other.whole,
            dotted=self.dotted or other.dotted,
            lists=self.lists and other.lists,
        )


def text_kind(column: Column) -> TextKind:
    """What a column of text could be. Words such as ``NA`` count as nothing."""
    if pc.any(pc.match_substring_regex(column, _KEEP_AS_TEXT)).as_py():
        return TextKind(keeps=True)
    plain = plain_text(column)
    numbers = _is_castable(plain, pa.float64())
    parts = (plain.slice(0, 1000), plain)  # the first rows spare most columns the long look
    lists = all(_all_match(part, _LIST) for part in parts)
    return TextKind(
        integers=numbers and _is_castable(plain, pa.int64()),
        numbers=numbers,
        instants=all(_all_match(part, ISO) for part in parts),
        whole=numbers and _all_match(plain, _WHOLE_FLOAT),
        dotted=(numbers and _any_match(plain, r"\.")) or (lists and _any_match(plain, r"[.eE]")),
        lists=lists,
    )


def infer(column: Column, kind: TextKind | None = None) -> Column:
    """A column of text as integers, numbers, ISO times, lists of numbers, or else as it is.

    Words such as ``NA`` are null in numbers, times and lists and stay as they are in text. Text
    with leading zeros is no number. Lists are of integers where no number has a decimal point.

    Args:
        column: Text.
        kind: What the whole column could be, where this is a part of it.
    """
    kind = text_kind(column) if kind is None else kind
    if kind.keeps:
        return column
    if kind.integers or kind.numbers:
        return plain_text(column).cast(pa.int64() if kind.integers else pa.float64())
    if kind.instants:
        return parse_iso(plain_text(column)).cast(pa.timestamp("us", "UTC"))
    if kind.lists:
        return _parse_lists(plain_text(column), pa.float64() if kind.dotted else pa.int64())
    return column


def plain_text(text: Column) -> Column:
    """Text without space around it, and null where a word says that nothing is there."""
    trimmed = pc.utf8_trim_whitespace(text)
    absent = pc.is_in(trimmed, value_set=pa.array(NULL_WORDS))
    return pc.if_else(absent, pa.scalar(None, trimmed.type), trimmed)


def parse_iso(text: Column) -> Column:
    """Microseconds since 1970 of text that matches `ISO`, or null."""
    text = pc.replace_substring_regex(text, r"(\.\d{6})\d+", r"\1")
    text = pc.replace_substring_regex(text, r" UTC$", "Z")
    offset = r"[T ].*(Z|[+-]\d{2}(:?\d{2})?)$"
    zoned = pc.fill_null(pc.match_substring_regex(text, offset), False)
    nothing = pa.scalar(None, text.type)
    with_zone = pc.if_else(zoned, text, nothing).cast(pa.timestamp("us", "UTC"))
    without = pc.if_else(zoned, nothing, text).cast(pa.timestamp("us"))
    return pc.coalesce(with_zone.cast(pa.int64()), without.cast(pa.int64()))


def _parse_lists(text: Column, values: pa.DataType) -> Column:
    """Lists of text that matches `_LIST`, or null."""
    inner = pc.utf8_trim(text, characters="[] \t\r\n")
    return pc.split_pattern_regex(inner, r"\s*[,\s]\s*").cast(pa.list_(values))


def _is_castable(plain: Column, kind: pa.DataType) -> bool:
    try:
        plain.cast(kind)
    except pa.ArrowInvalid:
        return False
    return True


def _all_match(plain: Column, pattern: str) -> bool:
    return not pc.any(pc.invert(pc.match_substring_regex(plain, pattern))).as_py()


def _any_match(plain: Column, pattern: str) -> bool:
    return bool(pc.any(pc.match_substring_regex(plain, pattern)).as_py())
