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
        dotted: Whether a value has a decimal point.
    """

    keeps: bool = False
    integers: bool = True
    numbers: bool = True
    instants: bool = True
    whole: bool = True
    dotted: bool = False

    def __or__(self, other: TextKind) -> TextKind:
        return TextKind(
            keeps=self.keeps or other.keeps,
            integers=self.integers and other.integers,
            numbers=self.numbers and other.numbers,
            instants=self.instants and other.instants,
            whole=self.whole and other.whole,
            dotted=self.dotted or other.dotted,
        )


def text_kind(column: Column) -> TextKind:
    """What a column of text could be. Words such as ``NA`` count as nothing."""
    if pc.any(pc.match_substring_regex(column, _KEEP_AS_TEXT)).as_py():
        return TextKind(keeps=True)
    plain = plain_text(column)
    numbers = _is_castable(plain, pa.float64())
    parts = (plain.slice(0, 1000), plain)  # the first rows spare most columns the long look
    return TextKind(
        integers=numbers and _is_castable(plain, pa.int64()),
        numbers=numbers,
        instants=all(_all_match(part, ISO) for part in parts),
        whole=numbers and _all_match(plain, _WHOLE_FLOAT),
        dotted=numbers and bool(pc.any(pc.match_substring(plain, ".")).as_py()),
    )


def infer(column: Column, kind: TextKind | None = None) -> Column:
    """A column of text as integers, numbers, ISO times, or else as the text itself.

    Words such as ``NA`` are null in numbers and times and stay as they are in text. Text with
    leading zeros is no number.

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


def _is_castable(plain: Column, kind: pa.DataType) -> bool:
    try:
        plain.cast(kind)
    except pa.ArrowInvalid:
        return False
    return True


def _all_match(plain: Column, pattern: str) -> bool:
    return not pc.any(pc.invert(pc.match_substring_regex(plain, pattern))).as_py()
