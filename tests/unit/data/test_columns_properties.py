"""What holds of every column of ids, times and labels, and of every label."""

from __future__ import annotations

import csv
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twotower.data.columns import to_ids, to_numbers, to_timestamps
from twotower.data.files import read_raw
from twotower.data.schema import MICROSECONDS, Label

integers = st.integers(-(2**63), 2**63 - 1)
texts = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=12)


def column(values, kind=None) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(values, kind)])


@given(st.lists(integers | st.none(), min_size=1))
def test_integer_ids_are_kept_exactly_and_nulls_named(values) -> None:
    converted = to_ids(column(values, pa.int64()), text=False)
    assert converted.values.to_pylist() == values
    missing = [row for row, value in enumerate(values) if value is None]
    assert [list(fault.rows) for fault in converted.faults] == ([missing] if missing else [])


@given(st.lists(texts, min_size=1))
def test_text_ids_of_typed_files_are_kept_exactly(values) -> None:
    converted = to_ids(column(values, pa.string()), text=False)
    assert converted.values.to_pylist() == values
    assert not converted.faults


@given(st.lists(integers, min_size=1))
def test_integers_of_csv_stay_the_same_ids(values) -> None:
    converted = to_ids(column([str(value) for value in values]), text=True)
    assert [int(value) for value in converted.values.to_pylist()] == values


@given(st.lists(st.integers(0, 4_000_000_000), min_size=1), st.booleans())
def test_times_are_the_same_in_every_form(seconds, as_text) -> None:
    moments = [datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=one) for one in seconds]
    form = [one.isoformat() for one in moments] if as_text else moments
    of_integers, of_moments = to_timestamps(column(seconds)), to_timestamps(column(form))
    assert of_integers.values.to_pylist() == [one * MICROSECONDS for one in seconds]
    assert of_moments.values.to_pylist() == of_integers.values.to_pylist()
    assert not of_moments.faults


@given(st.lists(st.floats(width=32, allow_nan=False) | st.none(), min_size=1), st.integers(-5, 5))
def test_numbers_out_of_range_are_named_and_the_others_kept(values, minimum) -> None:
    converted = to_numbers(
        column(values, pa.float64()), text=False, minimum=minimum, maximum=9.0, allowed="numbers"
    )
    bad = {row for row, one in enumerate(values) if one is None or not minimum <= one <= 9.0}
    assert {int(row) for fault in converted.faults for row in fault.rows} == bad
    kept = converted.values.to_pylist()
    assert [kept[row] for row in range(len(values)) if row not in bad] == [
        one for row, one in enumerate(values) if row not in bad
    ]


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=20))
def test_csv_is_read_as_it_was_written(tmp_path_factory, rows) -> None:
    """Quotes, commas, line breaks and every letter."""
    path = tmp_path_factory.mktemp("csv") / "t.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([("a", "b"), *rows])
    assert read_raw(str(path)).data.to_pydict() == {
        "a": [one for one, _ in rows],
        "b": [other for _, other in rows],
    }


@given(st.floats(-10, 10), st.floats(-10, 10), st.floats(-10, 10))
def test_a_label_has_room_for_both_outcomes_or_is_refused(minimum, positive_from, maximum) -> None:
    if minimum < positive_from <= maximum:
        label = Label(minimum=minimum, positive_from=positive_from, maximum=maximum)
        assert label.positive_from == positive_from
    else:
        with pytest.raises(ValueError, match="`positive_from` must lie above `minimum`"):
            Label(minimum=minimum, positive_from=positive_from, maximum=maximum)
