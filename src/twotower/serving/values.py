"""Plain values, as JSON has them, to Arrow columns of a given type; nothing is rounded or guessed.

=============================  ============================================================
column                         values
=============================  ============================================================
text                           text
integers                       whole numbers
floating point and decimals    finite numbers
booleans                       true and false
times and dates                ISO 8601 text (UTC without a zone), or seconds since 1970 UTC
lists                          lists of such values
=============================  ============================================================
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import Any

import pyarrow as pa


def to_column(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Values as a column of an Arrow type.

    Args:
        values: Plain values; None stays null.
        kind: The type; of a dictionary, that of its values.

    Raises:
        ValueError: When a value is none of this type.
    """
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    try:
        plain = [None if value is None else _plain(value, kind) for value in values]
        return pa.array(plain, kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
        raise ValueError(f"must fit a column of type {kind}: {error}") from error


def _plain(value: Any, kind: pa.DataType) -> Any:  # noqa: ANN401 - whatever JSON holds
    types = pa.types
    if types.is_null(kind):
        raise ValueError(f"must be null, as the whole column is, got {_shown(value)}")
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _list(value, kind)
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return _only(value, str, "text")
    if types.is_boolean(kind):
        return _only(value, bool, "true or false")
    if types.is_integer(kind):
        return _whole(value)
    if types.is_floating(kind) or types.is_decimal(kind):
        return _finite(value)
    if types.is_timestamp(kind) or types.is_date(kind):
        return _instant(value, kind)
    raise ValueError(f"cannot be given: columns of type {kind} hold no plain values")


def _only(value: Any, kind: type, words: str) -> Any:  # noqa: ANN401
    if not isinstance(value, kind):
        raise ValueError(f"must be {words}, got {_shown(value)}")
    return value


def _whole(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    raise ValueError(f"must be a whole number, got {_shown(value)}")


def _finite(value: object) -> int | float:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return value
    raise ValueError(f"must be a finite number, got {_shown(value)}")


def _instant(value: object, kind: pa.DataType) -> datetime | date:
    try:
        if isinstance(value, str):
            instant = datetime.fromisoformat(value)
        elif isinstance(value, datetime):
            instant = value
        elif isinstance(value, date):
            instant = datetime(value.year, value.month, value.day, tzinfo=UTC)
        else:
            instant = datetime.fromtimestamp(_finite(value), UTC)
        instant = instant.replace(tzinfo=UTC) if instant.tzinfo is None else instant.astimezone(UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise ValueError(
            f"must be ISO 8601 text or seconds since 1970, got {_shown(value)}"
        ) from error
    if pa.types.is_date(kind):
        return instant.date()
    return instant if kind.tz is not None else instant.replace(tzinfo=None)


def _list(value: object, kind: pa.DataType) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"must be a list, got {_shown(value)}")
    if pa.types.is_fixed_size_list(kind) and len(value) != kind.list_size:
        raise ValueError(f"must be a list of {kind.list_size} values, got {len(value)}")
    return [None if part is None else _plain(part, kind.value_type) for part in value]


def _shown(value: object) -> str:
    text = repr(value)
    return f"{text[:60]}..." if len(text) > 60 else text
