"""Plain values to columns: what is taken, and what is refused by name."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from twotower.serving.values import to_column

NEW_YEAR = datetime(2024, 1, 1)


@pytest.mark.parametrize(
    ("kind", "given", "expected"),
    [
        (pa.string(), ["a", "", None], ["a", "", None]),
        (pa.large_string(), ["é"], ["é"]),
        (pa.int64(), [1, -(2**63), 2.0, None], [1, -(2**63), 2, None]),
        (pa.int8(), [127], [127]),
        (pa.float64(), [1, 0.5, None], [1.0, 0.5, None]),
        (pa.float32(), [0.5], [0.5]),
        (pa.bool_(), [True, False, None], [True, False, None]),
        (pa.decimal128(5, 2), [1], [Decimal("1.00")]),
        (pa.dictionary(pa.int32(), pa.string()), ["x"], ["x"]),
        (pa.list_(pa.string()), [["a", "b"], [], None], [["a", "b"], [], None]),
        (pa.list_(pa.float32(), 2), [[1, 2.5]], [[1.0, 2.5]]),
        (pa.large_list(pa.int64()), [(1, None)], [[1, None]]),
        (pa.timestamp("us"), ["2024-01-01", 1_704_067_200, NEW_YEAR], [NEW_YEAR] * 3),
        (pa.timestamp("s", "UTC"), ["2024-01-01T01:00+01:00"], [NEW_YEAR.replace(tzinfo=UTC)]),
        (pa.date32(), ["2024-01-01", date(2024, 1, 1)], [date(2024, 1, 1)] * 2),
        (pa.null(), [None], [None]),
    ],
)
def test_what_a_column_holds(kind: pa.DataType, given: list, expected: list) -> None:
    assert to_column(given, kind).to_pylist() == expected


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        (pa.string(), 5, "must be text, got 5"),
        (pa.string(), ["a"], "must be text, got ['a']"),
        (pa.int64(), "5", "must be a whole number, got '5'"),
        (pa.int64(), 1.5, "must be a whole number, got 1.5"),
        (pa.int64(), True, "must be a whole number, got True"),
        (pa.int64(), 2**63, "must fit a column of type int64: "),
        (pa.int8(), 128, "must fit a column of type int8: Value 128 too large"),
        (pa.float32(), "x", "must be a finite number, got 'x'"),
        (pa.float64(), float("nan"), "must be a finite number, got nan"),
        (pa.float64(), float("inf"), "must be a finite number, got inf"),
        (pa.float64(), 10**400, "must fit a column of type double: int too large"),
        (pa.int64(), 10**400, "must fit a column of type int64: "),
        (pa.timestamp("us"), 10**400, "must be ISO 8601 text or seconds since 1970, got 1000"),
        (pa.float64(), True, "must be a finite number, got True"),
        (pa.bool_(), 1, "must be true or false, got 1"),
        (pa.timestamp("us"), "soon", "must be ISO 8601 text or seconds since 1970, got 'soon'"),
        (pa.timestamp("us"), 1e300, "must be ISO 8601 text or seconds since 1970, got 1e+300"),
        (pa.list_(pa.string()), "ab", "must be a list, got 'ab'"),
        (pa.list_(pa.string()), [1], "must be text, got 1"),
        (pa.list_(pa.float32(), 2), [1.0], "must be a list of 2 values, got 1"),
        (pa.null(), 1, "must be null, as the whole column is, got 1"),
        (pa.binary(), b"x", "cannot be given: columns of type binary hold no plain values"),
        (pa.string(), {"a": "b" * 100}, "must be text, got {'a': '" + "b" * 53 + "..."),
    ],
)
def test_what_it_does_not_hold(kind: pa.DataType, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        to_column([None, value], kind)
