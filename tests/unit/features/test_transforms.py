"""Every kind of feature against values worked out by hand."""

import datetime
import math
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest

from twotower.features.spec import Feature
from twotower.features.transforms import Numeric, Tags, Time, Vector, as_lists, fit_transform

NAN, INF = float("nan"), float("inf")


def fit(kind, values, **options):
    return fit_transform(Feature(name="x", side="item", kind=kind, **options), values)


# categorical


def test_categorical_by_hand():
    transform = fit("categorical", pa.array(["red", "blue", "red", "green", None]), min_count=2)
    assert transform.apply(pa.array(["red", "blue", None, "new"])).tolist() == [1, 0, 0, 0]
    assert (transform.num_rows, transform.width) == (2, 0)


# tags


def test_tags_as_text_and_as_lists_by_hand():
    lists = [["a", "b"], [], None, ["b", "c", "b"], ["d"]]
    text = ["a|b", "", None, "b|c|b", "d"]
    for values in (pa.array(lists), pa.array(lists, pa.large_list(pa.string())), pa.array(text)):
        transform = fit("tags", values)  # b three times, then a, c, d
        assert transform.num_rows == 5
        assert transform.width == 3
        assert transform.apply(values).tolist() == [
            [2, 1, 0],
            [0, 0, 0],
            [0, 0, 0],
            [1, 3, 1],
            [4, 0, 0],
        ]


def test_tags_that_are_unknown_leave_room_for_the_others():
    transform = fit("tags", pa.array([["a", "b"], ["a"]]))
    asked = pa.array([["x", "a", None, "y", "b", "a"], ["x"], ["b"]])
    assert transform.apply(asked).tolist() == [[1, 2], [0, 0], [2, 0]]


def test_tags_beyond_the_limit_are_cut():
    transform = fit("tags", pa.array(["a,b,c", "a,b", "a"]), separator=",", max_tags=2)
    assert transform.width == 2
    assert transform.apply(pa.array(["c,b,a", "b"])).tolist() == [[3, 2], [2, 0]]


def test_rare_tags_are_unknown():
    transform = fit("tags", pa.array([["a", "b"], ["a"]]), min_count=2)
    assert transform.apply(pa.array([["b", "a"]])).tolist() == [[1, 0]]


def test_empty_text_is_no_tag():
    transform = fit("tags", pa.array(["", "", "", "a|", "|"]))
    assert transform.num_rows == 2
    assert transform.apply(pa.array(["", "|a", "a"])).tolist() == [[0, 0], [1, 0], [1, 0]]


def test_tags_of_numbers():
    transform = fit("tags", pa.array([[7, 8], [7]], pa.list_(pa.int32())))
    assert transform.apply(pa.array([[8, 9, 7]])).tolist() == [[2, 1]]
    assert transform.apply(pa.array([["7"]])).tolist() == [[1, 0]]


def test_tags_of_a_slice():
    values = pa.array([["z"], ["a", "b"], ["b"]])
    transform = fit("tags", values.slice(1))
    assert transform.num_rows == 3
    assert transform.apply(values.slice(1, 1)).tolist() == [[2, 1]]
    assert transform.apply(pa.chunked_array([values.slice(2), values.slice(0, 2)])).tolist() == [
        [1, 0],
        [0, 0],
        [2, 1],
    ]


def test_tags_that_nobody_has():
    transform = fit("tags", pa.nulls(3))
    assert (transform.num_rows, transform.width) == (1, 1)
    assert transform.apply(pa.array([["a"], None])).tolist() == [[0], [0]]


def test_tags_refuse_other_columns():
    with pytest.raises(ValueError, match=r"needs lists or text with separators, got .* double"):
        fit("tags", pa.array([1.5]))
    with pytest.raises(ValueError, match="needs lists, got a column of type string"):
        fit("tags", pa.array(["a"]), separator="")
    with pytest.raises(ValueError, match="needs one value a row, got a column of type struct"):
        fit("tags", pa.array([[{"a": 1}]]))


# numeric


def test_numeric_by_hand():
    values = pa.array([1.0, 3.0, None, NAN, INF])  # mean 2, deviation 1
    transform = fit("numeric", values)
    expected = [[-1, 0], [1, 0], [0, 1], [0, 1], [0, 1]]
    assert transform.apply(values).tolist() == expected
    assert transform.apply(pa.array([5.0])).tolist() == [[3, 0]]
    assert transform.apply(values).dtype == np.float32
    assert (transform.num_rows, transform.width) == (0, 2)


@pytest.mark.parametrize("lacking", [None, NAN, INF])
def test_whether_a_number_was_missing_in_training(lacking):
    assert not fit("numeric", pa.array([1.0, 3.0])).has_missing
    assert not fit("numeric", pa.chunked_array([[1.0], [], [3.0]])).has_missing
    assert fit("numeric", pa.array([1.0, lacking, 3.0])).has_missing
    assert fit("numeric", pa.chunked_array([[1.0, 3.0], [lacking]], pa.float64())).has_missing


def test_numeric_logarithm_by_hand():
    values = pa.array([0.0, math.e**2 - 1])  # logarithms 0 and 2
    transform = fit("numeric", values, log=True)
    assert transform.apply(values) == pytest.approx(np.array([[-1, 0], [1, 0]]))
    # values below 0 count as 0
    assert transform.apply(pa.array([math.e - 1, -5.0])) == pytest.approx(
        np.array([[0, 0], [-1, 0]]), abs=1e-7
    )


@pytest.mark.parametrize("constant", [0.0, 7.0, 0.1, -1e9 / 3])
def test_a_constant_has_scale_one(constant):
    values = pa.array([constant] * 1001)  # the rounded deviation of 1001 times 0.1 is not 0
    transform = fit("numeric", values)
    assert transform.scale == 1.0
    assert transform.apply(values)[:, 0] == pytest.approx(np.zeros(1001), abs=1e-6)
    assert transform.apply(pa.array([constant + 2]))[0, 0] == pytest.approx(2, rel=1e-6)


def test_a_column_without_numbers():
    for values in (pa.nulls(2), pa.array([NAN, None]), pa.array([None], pa.int64())):
        transform = fit("numeric", values)
        assert transform == Numeric(mean=0.0, scale=1.0, log=False)
        assert transform.apply(values).tolist() == [[0, 1]] * len(values)


@pytest.mark.parametrize(
    "values",
    [
        pa.array([0, 2], pa.int8()),
        pa.array([0, 2], pa.uint64()),
        pa.array([0, 2], pa.float16()),
        pa.array([Decimal("0.0"), Decimal("2.0")]),
        pa.array([False, True]),
        pa.array([0, 2]).dictionary_encode(),
        pa.array([0, 2], pa.duration("s")),
        pa.array([0, 2], pa.time32("s")),
        pa.array([0, 2], pa.time64("us")),
        pa.array([0, 2], pa.date32()),
        pa.array([0, 2 * 86_400_000], pa.date64()),
        pa.array([0, 2_000_000], pa.timestamp("us", "Asia/Tokyo")),
        pa.array([0, 2_000_000_000], pa.timestamp("ns")),
        pa.array([2**60, 2**61]),  # beyond what a float can tell apart
        pa.chunked_array([[0.0], [2.0]]),
    ],
    ids=lambda values: str(values.type),
)
def test_numeric_columns_of_every_type(values):
    assert fit("numeric", values).apply(values).tolist() == [[-1, 0], [1, 0]]


def test_instants_are_equal_in_every_type():
    moment = datetime.datetime(2024, 5, 1, 12, tzinfo=datetime.UTC)
    transform = Numeric(mean=0.0, scale=1.0, log=False)
    for kind in (pa.timestamp("s"), pa.timestamp("ns", "UTC"), pa.timestamp("ms", "Asia/Tokyo")):
        assert transform.apply(pa.array([moment], kind))[0, 0] == np.float32(moment.timestamp())


def test_numeric_refuses_other_columns():
    for values in (pa.array(["abc"]), pa.array([[1.0]]), pa.array([b"a"])):
        with pytest.raises(ValueError, match=f"needs numbers, got a column of type {values.type}"):
            fit("numeric", values)


# vector


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.float32()),
        pa.list_(pa.float64()),
        pa.large_list(pa.float32()),
        pa.list_(pa.float16(), 2),
        pa.list_(pa.float32(), 2),
        pa.list_(pa.int64()),
    ],
    ids=str,
)
def test_vectors_come_out_with_length_one(kind):
    values = pa.array([[3, 4], None, [0, 0], [0, -2]], kind)
    transform = fit("vector", values)
    assert (transform.width, transform.num_rows) == (2, 0)
    expected = np.array([[0.6, 0.8], [0, 0], [0, 0], [0, -1]])
    for asked in (values, pa.chunked_array([values.slice(0, 1), values.slice(1)])):
        assert transform.apply(asked) == pytest.approx(expected)
    assert transform.apply(values.slice(3)) == pytest.approx(expected[3:])
    assert transform.apply(values).dtype == np.float32


def test_numbers_that_are_missing_in_a_vector_count_as_zero():
    values = pa.array([[3.0, None, 4.0], [NAN, 0.0, 2.0], [INF, 1.0, 0.0]])
    expected = np.array([[0.6, 0, 0.8], [0, 0, 1], [0, 1, 0]])
    assert fit("vector", values).apply(values) == pytest.approx(expected)


def test_an_empty_vector_is_missing():
    assert Vector(width=2).apply(pa.array([[], [1.0, 0.0]])).tolist() == [[0, 0], [1, 0]]
    assert Vector(width=2).apply(pa.nulls(1)).tolist() == [[0, 0]]
    assert Vector(width=2).apply(pa.array([], pa.list_(pa.float32()))).shape == (0, 2)


def test_vectors_of_another_width_are_named():
    values = pa.array([[1.0, 2.0], None, [1.0], [1.0, 2.0, 3.0]])
    message = r"must have 2 numbers, as in the training part; row 3 has 1 \(2 such rows\)"
    with pytest.raises(ValueError, match=message):
        Vector(width=2).apply(values)


def test_vectors_refuse_other_columns():
    with pytest.raises(ValueError, match="needs lists, got a column of type string"):
        fit("vector", pa.array(["0.1|0.2"]))
    with pytest.raises(ValueError, match="there is no vector in the training part"):
        fit("vector", pa.array([None, []], pa.list_(pa.float32())))


# time


def waves(hours, days):
    """Sine of the day and the week, then cosine, from hours since midnight, days since Monday."""
    day, week = hours / 24 * 2 * math.pi, (days + hours / 24) / 7 * 2 * math.pi
    return [math.sin(day), math.sin(week), math.cos(day), math.cos(week)]


@pytest.mark.parametrize(
    ("moment", "hours", "days"),
    [
        (datetime.datetime(1970, 1, 1), 0, 3),  # a Thursday
        (datetime.datetime(2024, 1, 1), 0, 0),  # a Monday
        (datetime.datetime(2024, 1, 1, 6), 6, 0),
        (datetime.datetime(2024, 2, 29, 18, 30), 18.5, 3),  # a Thursday
        (datetime.datetime(2023, 12, 31, 12), 12, 6),  # a Sunday
    ],
)
def test_times_by_hand(moment, hours, days):
    assert moment.weekday() == days
    expected = np.array([waves(hours, days)])
    seconds = int(moment.replace(tzinfo=datetime.UTC).timestamp())
    for values in (
        pa.array([seconds * 1_000_000]),
        pa.array([moment], pa.timestamp("us")),
        pa.array([moment], pa.timestamp("s")),
        pa.array([seconds * 10**9], pa.timestamp("ns", "America/New_York")),
    ):
        assert Time().apply(values) == pytest.approx(expected, abs=1e-5)


def test_days_are_their_midnight():
    expected = np.array([waves(0, 1)])
    day = datetime.date(2024, 1, 2)
    assert Time().apply(pa.array([day])) == pytest.approx(expected, abs=1e-5)
    assert Time().apply(pa.array([day], pa.date64())) == pytest.approx(expected, abs=1e-5)


def test_missing_times_are_zeros():
    for values in (pa.nulls(1), pa.array([None], pa.int64()), pa.array([None], pa.timestamp("s"))):
        assert Time().apply(values).tolist() == [[0, 0, 0, 0]]
    assert Time().apply(pa.nulls(1)).dtype == np.float32


@pytest.mark.parametrize("values", [pa.array(["2024-01-01"]), pa.array([1.5]), pa.array([[1]])])
def test_times_refuse_other_columns(values):
    with pytest.raises(ValueError, match="needs timestamps, dates or integer microseconds"):
        fit("time", values)


def test_lists_of_lists():
    assert as_lists(pa.nulls(2)).to_pylist() == [None, None]
    assert as_lists(pa.array(["a|b"]).dictionary_encode(), "|").to_pylist() == [["a", "b"]]
    assert isinstance(fit("tags", pa.array(["a|b"]).dictionary_encode()), Tags)
