"""One raw column to its canonical form."""

import calendar
import datetime
import decimal

import pyarrow as pa
import pytest

from twotower.data.columns import decode, to_ids, to_numbers, to_splits, to_timestamps
from twotower.data.text_kind import infer, text_kind

TOP = 2**63 - 1


def chunked(values, kind=None):
    """Two chunks, so that nothing depends on how a column is cut."""
    array = pa.array(values, kind)
    half = len(array) // 2
    return pa.chunked_array([array[:half], array[half:]], array.type)


def found(converted):
    return [
        (fault.what, None if fault.rows is None else fault.rows.tolist(), fault.fatal)
        for fault in converted.faults
    ]


# Ids


@pytest.mark.parametrize(
    "kind", [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint32(), pa.uint64()]
)
def test_integer_ids_become_int64(kind):
    converted = to_ids(chunked([3, 1, 2], kind), text=False)
    assert converted.values.type == pa.int64()
    assert converted.values.to_pylist() == [3, 1, 2]
    assert converted.faults == ()


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
def test_text_ids_become_strings_as_they_came(kind):
    converted = to_ids(chunked([" a", "007", "NA"], kind), text=False)
    assert converted.values.type == pa.string()
    assert converted.values.to_pylist() == [" a", "007", "NA"]


def test_unsigned_ids_beyond_int64_are_named():
    converted = to_ids(chunked([5, None, 2**63, 2**64 - 1], pa.uint64()), text=False)
    assert converted.values.to_pylist() == [5, None, None, None]
    assert found(converted) == [
        ("without an id", [1], False),
        ("with an id above 2^63 - 1", [2, 3], True),
    ]


def test_the_largest_int64_survives_as_unsigned_and_as_text():
    assert to_ids(chunked([TOP], pa.uint64()), text=False).values.to_pylist() == [TOP]
    assert to_ids(chunked([str(TOP), "-1"]), text=True).values.to_pylist() == [TOP, -1]


def test_null_and_empty_ids_are_missing():
    assert found(to_ids(chunked(["a", "", None]), text=False)) == [("without an id", [1, 2], False)]
    assert found(to_ids(chunked([None, None]), text=False)) == [("without an id", [0, 1], False)]


def test_null_words_between_integers_are_missing_ids():
    converted = to_ids(chunked(["1", "NaN", "3"]), text=True)
    assert converted.values.to_pylist() == [1, None, 3]
    assert found(converted) == [("without an id", [1], False)]


@pytest.mark.parametrize(
    "values", [["007", "8"], ["0x1F", "2"], ["1033501218.1368477899"], ["9" * 20, "1"], ["a", "1"]]
)
def test_ids_that_are_no_plain_integers_stay_text(values):
    converted = to_ids(chunked(values), text=True)
    assert converted.values.to_pylist() == values
    assert converted.faults == ()


def test_float_ids_are_refused():
    [fault] = to_ids(chunked([1.0, 2.0]), text=False).faults
    assert (fault.what, fault.rows) == ("has type double, which rounds ids above 2^53", None)
    [fault] = to_ids(chunked(["1.0", "2", None]), text=True).faults
    assert (fault.what, fault.fatal) == ("holds numbers with a decimal point", True)


@pytest.mark.parametrize("kind", [pa.bool_(), pa.date32(), pa.list_(pa.int64())])
def test_other_types_are_no_ids(kind):
    [fault] = to_ids(pa.chunked_array([pa.nulls(1, kind)]), text=False).faults
    assert fault.what.startswith("has type")


# Times


def micros(*arguments):
    moment = datetime.datetime(*arguments, tzinfo=datetime.UTC)
    delta = moment - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    return delta // datetime.timedelta(microseconds=1)


@pytest.mark.parametrize("kind", [pa.int32(), pa.int64(), pa.uint64()])
def test_integers_are_seconds(kind):
    assert to_timestamps(chunked([0, 5], kind)).values.to_pylist() == [0, 5_000_000]


@pytest.mark.parametrize(
    ("unit", "per_second"), [("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9)]
)
@pytest.mark.parametrize("zone", [None, "UTC", "America/New_York"])
def test_timestamps_of_any_unit_and_zone_count_from_1970_utc(unit, per_second, zone):
    values = chunked([1_600_000_000 * per_second, None], pa.timestamp(unit, zone))
    converted = to_timestamps(values)
    assert converted.values.to_pylist() == [1_600_000_000_000_000, None]
    assert found(converted) == [("without a time", [1], False)]


def test_dates_are_midnight():
    expected = [micros(2020, 2, 29)]
    assert to_timestamps(chunked([datetime.date(2020, 2, 29)])).values.to_pylist() == expected
    as_milliseconds = chunked([datetime.date(2020, 2, 29)], pa.date64())
    assert to_timestamps(as_milliseconds).values.to_pylist() == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2021-03-04", micros(2021, 3, 4)),
        ("2021-03-04T05:06", micros(2021, 3, 4, 5, 6)),
        (" 2021-03-04 05:06:07 ", micros(2021, 3, 4, 5, 6, 7)),
        ("2021-03-04 05:06:07.5", micros(2021, 3, 4, 5, 6, 7, 500_000)),
        ("2021-03-04 05:06:07.123456789", micros(2021, 3, 4, 5, 6, 7, 123_456)),
        ("2021-03-04T05:06:07Z", micros(2021, 3, 4, 5, 6, 7)),
        ("2021-03-04 05:06:07 UTC", micros(2021, 3, 4, 5, 6, 7)),
        ("2021-03-04T05:06:07+02:00", micros(2021, 3, 4, 3, 6, 7)),
        ("2021-03-04T05:06:07.25-0330", micros(2021, 3, 4, 8, 36, 7, 250_000)),
        ("2021-03-04T05:06+02", micros(2021, 3, 4, 3, 6)),
        ("1614834367", micros(2021, 3, 4, 5, 6, 7)),
    ],
)
def test_text_is_read_as_iso_time_or_seconds(text, expected):
    converted = to_timestamps(chunked([text, "2021-01-01"]))
    assert converted.values.to_pylist() == [expected, micros(2021, 1, 1)]
    assert converted.faults == ()


def test_every_day_of_the_calendar_is_a_day_and_no_other():
    years = (1970, 1972, 1999, 2000, 2023, 2024, 2096, 2100)
    days = [(y, m, d) for y in years for m in range(14) for d in range(33)]
    real = [
        1 <= m <= 12 and 1 <= d <= (calendar.monthrange(y, m)[1] if 1 <= m <= 12 else 0)
        for y, m, d in days
    ]
    values = to_timestamps(chunked([f"{y}-{m:02}-{d:02}" for y, m, d in days])).values.to_pylist()
    assert values == [
        micros(*day) if is_real else None for day, is_real in zip(days, real, strict=True)
    ]


def test_bad_times_are_told_apart():
    converted = to_timestamps(
        chunked(["", "noon", "2021-02-30", "-1", "1969-12-31", "1600000000000", "1600000000", None])
    )
    assert converted.values.to_pylist() == [*[None] * 6, 1_600_000_000_000_000, None]
    assert found(converted) == [
        ("without a time", [0, 7], False),
        ("with a time that cannot be read", [1, 2], False),
        ("with a time before 1970", [3, 4], False),
        ("beyond the year 2100, which looks like milliseconds", [5], False),
    ]


def test_the_last_second_of_2100_is_the_latest_integer():
    last = calendar.timegm((2100, 12, 31, 23, 59, 59))
    converted = to_timestamps(chunked([last, last + 1, 2**64 - 1], pa.uint64()))
    assert converted.values.to_pylist() == [last * 10**6, None, None]


@pytest.mark.parametrize("kind", [pa.timestamp("s"), pa.timestamp("ms"), pa.int64()])
def test_far_off_times_do_not_overflow(kind):
    converted = to_timestamps(chunked([2**62, -(2**62), 1], kind))
    assert converted.values.to_pylist()[:2] == [None, None]
    assert sorted(row for fault in converted.faults for row in fault.rows) == [0, 1]


def test_a_nanosecond_before_1970_is_before_1970():
    assert found(to_timestamps(chunked([-1, 0], pa.timestamp("ns")))) == [
        ("with a time before 1970", [0], False)
    ]


def test_a_column_of_nulls_has_no_times():
    assert found(to_timestamps(chunked([None, None]))) == [("without a time", [0, 1], False)]


@pytest.mark.parametrize("kind", [pa.float64(), pa.bool_(), pa.time32("s")])
def test_other_types_are_no_times(kind):
    [fault] = to_timestamps(pa.chunked_array([pa.nulls(1, kind)])).faults
    assert fault.what == f"has type {kind}"


# Numbers


def numbers(values, kind=None, *, text=False):
    column = chunked(values, kind)
    return to_numbers(column, text=text, minimum=0.0, maximum=5.0, allowed="0 to 5")


@pytest.mark.parametrize(
    "values", [[0, 5], [0.0, 5.0], [decimal.Decimal("0.0"), decimal.Decimal("5.0")]]
)
def test_both_bounds_are_allowed(values):
    converted = numbers(values)
    assert converted.values.type == pa.float32()
    assert converted.values.to_pylist() == [0.0, 5.0]
    assert converted.faults == ()


def test_booleans_count_as_0_and_1():
    assert numbers([True, False]).values.to_pylist() == [1.0, 0.0]
    assert numbers(["True", "false", "1"], text=True).values.to_pylist() == [1.0, 0.0, 1.0]


def test_bad_numbers_are_told_apart():
    nan, inf = float("nan"), float("inf")
    assert found(numbers([nan, None, -0.5, inf, 5.5, 1.0])) == [
        ("without a value", [0, 1], False),
        ("outside the range", [2, 3, 4], False),
    ]
    assert found(numbers(["NaN", "", "-0.5", "five", "1e1", " 2.5 "], text=True)) == [
        ("without a value", [0, 1], False),
        ("that are no number", [3], False),
        ("outside the range", [2, 4], False),
    ]


def test_large_integers_are_compared_not_refused():
    assert found(numbers([2**60, 1])) == [("outside the range", [0], False)]


def test_typed_text_is_no_number():
    [fault] = numbers(["1"]).faults
    assert fault.what == "has type string"
    assert found(numbers([None])) == [("without a value", [0], False)]


# Splits


def test_splits_have_codes():
    converted = to_splits(chunked(["train", "validation", "valid", "val", "test"]))
    assert converted.values.type == pa.int8()
    assert converted.values.to_pylist() == [0, 1, 1, 1, 2]


def test_unknown_splits_are_fatal():
    converted = to_splits(chunked(["train", "dev", None]))
    assert found(converted) == [("with an unknown split", [1, 2], True)]
    assert "train, validation, valid, val, test" in converted.faults[0].allowed


def test_numbers_are_no_splits():
    [fault] = to_splits(chunked([0, 1])).faults
    assert fault.what == "has type int64"


# Types of text


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        (["1", " 2", "NA"], pa.int64(), [1, 2, None]),
        (["1.5", "2", ""], pa.float64(), [1.5, 2.0, None]),
        (["02138", "10001"], pa.string(), ["02138", "10001"]),
        (["red", "NA"], pa.string(), ["red", "NA"]),
        (["2020-01-01", "2020-01-32"], pa.string(), ["2020-01-01", "2020-01-32"]),
    ],
)
def test_the_type_of_text_is_read_off_all_values(values, kind, expected):
    column = infer(chunked(values))
    assert column.type == kind
    assert column.to_pylist() == expected


def test_times_in_text_are_times():
    column = infer(chunked(["2020-01-01", None, "2020-01-02T00:00Z"]))
    assert column.type == pa.timestamp("us", "UTC")
    assert column.cast(pa.int64()).to_pylist() == [micros(2020, 1, 1), None, micros(2020, 1, 2)]


def test_a_late_odd_value_keeps_a_column_text():
    assert infer(chunked(["2020-01-01"] * 1500 + ["soon"])).type == pa.string()


def test_dictionary_encoding_is_undone():
    column = pa.chunked_array([pa.array(["a", "b", "a"]).dictionary_encode()])
    assert decode(column).type == pa.string()
    assert decode(column).to_pylist() == ["a", "b", "a"]


def test_empty_columns_have_no_faults():
    empty = pa.chunked_array([], pa.string())
    for converted in (
        to_ids(empty, text=True),
        to_timestamps(empty),
        to_splits(empty),
        to_numbers(empty, text=True, minimum=0.0, maximum=1.0, allowed=""),
    ):
        assert len(converted.values) == 0
        assert converted.faults == ()


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["[0.5, -1.25]", "[ 1,2e-1 ]"], [[0.5, -1.25], [1.0, 0.2]]),
        (["[0.5 -1.]", "[ 1.  .25]", "[1.\n 2.]"], [[0.5, -1.0], [1.0, 0.25], [1.0, 2.0]]),
        (["[2e3, 4]", "[1E-1]"], [[2000.0, 4.0], [0.1]]),
        (["[0.5]", None, "", "nan", "[2]"], [[0.5], None, None, None, [2.0]]),
    ],
)
def test_numbers_in_brackets_are_vectors(texts, expected):
    column = infer(chunked(texts))
    assert column.type == pa.list_(pa.float64())
    assert column.to_pylist() == expected


def test_whole_numbers_in_brackets_are_lists_of_integers():
    column = infer(chunked(["[3, 17]", "[4]", "[9007199254740993]"]))
    assert column.type == pa.list_(pa.int64())
    assert column.to_pylist() == [[3, 17], [4], [2**53 + 1]]


@pytest.mark.parametrize(
    "odd", ["[0.1, x]", "0.1, 0.2", "[]", "[0.1", "[0.1, 0.2] a", "[0.1,, 0.2]", "[0.1, NaN]"]
)
def test_a_column_with_one_value_that_is_no_list_stays_text(odd):
    texts = ["[0.1, 0.2]"] * 1200 + [odd]
    column = infer(chunked(texts))
    assert column.type == pa.string()
    assert column.to_pylist() == texts


def test_lists_are_told_from_all_blocks():
    """One block has a point and one has none; together they are vectors."""
    whole, dotted = chunked(["[1, 2]"]), chunked(["[0.5, 2]"])
    kind = text_kind(whole) | text_kind(dotted)
    assert infer(whole, kind).to_pylist() == [[1.0, 2.0]]
    assert infer(whole, kind).type == infer(dotted, kind).type
    assert infer(whole, text_kind(whole) | text_kind(chunked(["a"]))).type == pa.string()
