"""One row is encoded as a column of it is: every kind, every type of value, to the last bit."""

from __future__ import annotations

import datetime
import math
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from twotower.features import one_row as module
from twotower.features.one_row import one_value
from twotower.features.spec import Feature
from twotower.features.transforms import Transform, fit_transform
from twotower.features.vocabulary import Vocabulary

TEXTS = ["red", "", "7", "-7", "07", " 7", "1e5", "true", "a|b", "ü", "9223372036854775807"]
NUMBERS = [7, 0, -7, 2**53 + 1, 2**63 - 1, -(2**63) + 1, -(2**63)]


def fitted(kind: str, values: pa.Array, **options: Any) -> Transform:
    return fit_transform(Feature(name="x", side="user", kind=kind, **options), values)


TRANSFORMS = {
    "id, text": fitted("id", pa.array(TEXTS)),
    "id, integers": fitted("id", pa.array(NUMBERS)),
    "categorical, floats": fitted("categorical", pa.array([1.5, 7.0, math.nan])),
    "categorical, booleans": fitted("categorical", pa.array([True, False])),
    "categorical, nothing known": fitted("categorical", pa.nulls(3)),
    "tags, text": fitted("tags", pa.array([TEXTS, ["red", "7"]]), max_tags=3),
    "tags, integers": fitted("tags", pa.array([NUMBERS[:3], [7, 2**53 + 1]]), max_tags=2),
    "tags, no separator": fitted("tags", pa.array([["red"], ["7"]]), separator=""),
    "numeric": fitted("numeric", pa.array([1.0, 2.5, None, -4.0])),
    "numeric, log": fitted("numeric", pa.array([1.0, 2.5, None, 400.0]), log=True),
    "numeric, constant": fitted("numeric", pa.array([0.1, 0.1])),
    "vector": fitted("vector", pa.array([[1.0, 2.0], [3.0, 4.0]])),
    "time": fitted("time", pa.array([0, 1])),
}

plain = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(TEXTS),
    st.text(max_size=5),
    st.sampled_from([*NUMBERS, 2**63, 2**64, -(2**70)]),
    st.integers(-(2**70), 2**70),
    st.integers().map(str),
    st.floats(),
    st.binary(max_size=3),
    st.datetimes(),
    st.dates(),
    st.decimals(-999, 999, allow_nan=False, places=3),
)
values = st.one_of(
    plain,
    st.lists(plain, max_size=4),
    st.lists(st.sampled_from(TEXTS), max_size=5),
    st.lists(st.one_of(st.none(), st.sampled_from(NUMBERS)), max_size=5),
    st.lists(st.floats(), min_size=2, max_size=2),
    st.lists(st.sampled_from(TEXTS), max_size=3).map("|".join),
    st.lists(st.integers(-9, 9), max_size=3).map(tuple),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
)


def outcome(encode: Any, value: Any) -> np.ndarray | str:
    """What comes out, or that it is refused."""
    try:
        return encode(value)
    except (ValueError, TypeError, OverflowError, pa.ArrowException):
        return "refused"


@pytest.mark.parametrize("name", TRANSFORMS)
@settings(max_examples=300, deadline=None)
@given(value=values)
@example(value=None)
@example(value=[])
@example(value=[None, "red", None, "unknown", "7", "7"])
@example(value="red|unknown||7")
@example(value=1e300)
@example(value=np.int64(7))
@example(value=np.float32(2.5))
@example(value=np.array([3.0, 4.0]))
@example(value=datetime.datetime(2024, 1, 15, 12, tzinfo=datetime.UTC))
@example(value=Decimal("7"))
@example(value=object())
def test_a_value_is_encoded_as_a_column_of_it(name: str, value: Any) -> None:
    transform = TRANSFORMS[name]
    with np.errstate(all="ignore"):
        expected = outcome(lambda one: transform.apply(pa.array([one])), value)
        found = outcome(one_value(transform), value)
    if isinstance(expected, str) or isinstance(found, str):
        assert isinstance(found, str)
        assert isinstance(expected, str)
        return
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found, expected)


def test_usual_values_go_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the property is about would hold, too, if all values went the long way."""
    usual = {
        "id, text": [None, "red", "new", 7],
        "id, integers": [None, 7, 8, "7", "-7"],
        "tags, text": [None, [], ["red", None], [7, 8], "red|7"],
        "tags, integers": [[7, 9], ["7"], "7|9"],
        "numeric": [None, 1.5, 2, math.nan],
        "numeric, log": [3.5, -1.0],
        "time": [None, 1_700_000_000_000_000],
    }
    monkeypatch.setattr(module, "column_of", lambda value: pytest.fail(f"the long way: {value}"))
    for name, some in usual.items():
        encode = one_value(TRANSFORMS[name])
        for value in some:
            encode(value)


@pytest.mark.parametrize("kind", ["text", "integers"])
def test_a_long_vocabulary_is_no_dict(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = [str(n) for n in range(50)] if kind == "text" else list(range(50))
    vocabulary = Vocabulary(pa.array(known))
    monkeypatch.setattr(module, "SMALL_VOCABULARY", 49)
    long = module._lookup(vocabulary)
    monkeypatch.setattr(module, "SMALL_VOCABULARY", 50)
    short = module._lookup(vocabulary)
    asked = [None, "0", "49", "50", "x", 0, 49, 50, -1, True, 1.0, 2**70, "\ud800"]
    assert [long(value) for value in asked] == [short(value) for value in asked]
    assert [short(value) for value in asked[:4]] == [0, 1, 50, 0]


def test_what_is_no_value_at_all_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match="cannot be a value of a column: "):
        one_value(TRANSFORMS["numeric"])(object())
    with pytest.raises(ValueError, match="cannot be a value of a column: "):
        one_value(TRANSFORMS["id, text"])(2**70)
    with pytest.raises(ValueError, match="vectors must have 2 numbers"):
        one_value(TRANSFORMS["vector"])([1.0])
