"""Rows of embedding tables for values of every type."""

import datetime

import numpy as np
import pyarrow as pa
import pytest

from twotower.features.vocabulary import Vocabulary, as_array, as_key

BIG = 2**53 + 1


def fitted(values, min_count=1):
    return Vocabulary.fit(pa.array(values), min_count=min_count)


def test_most_frequent_first_ties_by_value():
    vocabulary = fitted(["b", "c", "a", "c", None, "b", "d", "c"])
    assert vocabulary.values.to_pylist() == ["c", "b", "a", "d"]
    assert vocabulary.num_rows == 5


def test_the_order_of_the_column_does_not_matter():
    rng = np.random.default_rng(0)
    values = rng.integers(0, 40, 500)
    for _ in range(3):
        assert fitted(rng.permutation(values)).digest() == fitted(values).digest()


def test_rare_values_share_row_zero():
    vocabulary = fitted([5, 5, 5, 6, 6, 7], min_count=2)
    assert vocabulary.rows(pa.array([7, 6, 5, 8, None])).tolist() == [0, 2, 1, 0, 0]
    assert vocabulary.rows(pa.array([7, 6, 5])).dtype == np.int32


def test_large_integers_stay_apart():
    vocabulary = fitted([BIG, BIG + 1, BIG])
    assert vocabulary.rows(pa.array([BIG + 1, BIG, BIG - 1])).tolist() == [2, 1, 0]


def test_several_chunks_and_none():
    chunks = pa.chunked_array([["a"], [], ["b", "a"]])
    vocabulary = Vocabulary.fit(chunks, min_count=1)
    assert vocabulary.rows(chunks).tolist() == [1, 2, 1]
    empty = Vocabulary.fit(pa.chunked_array([], pa.string()), min_count=1)
    assert empty.num_rows == 1
    assert empty.rows(chunks).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("values", "same"),
    [
        (pa.array([True, False, True]), pa.array(["true", "false", "true"])),
        (pa.array([1, 2, 1], pa.int8()), pa.array([1, 2, 1], pa.uint64())),
        (pa.array([1, 2, 1]), pa.array(["1", "2", "1"])),
        (pa.array([1.0, 2.0, 1.0]), pa.array([1, 2, 1])),
        (pa.array(["x", "y", "x"]).dictionary_encode(), pa.array(["x", "y", "x"])),
        (pa.array([7, 8, 7]).dictionary_encode(), pa.array([7, 8, 7], pa.int32())),
        (pa.array(["x", "y", "x"], pa.large_string()), pa.array(["x", "y", "x"], pa.string_view())),
        (
            pa.array([datetime.date(2024, 1, day) for day in (1, 2, 1)]),
            pa.array(["2024-01-01", "2024-01-02", "2024-01-01"]),
        ),
    ],
)
def test_one_value_in_two_types_is_one_value(values, same):
    for trained, asked in ((values, values), (values, same), (same, values)):
        vocabulary = Vocabulary.fit(trained, min_count=1)
        assert vocabulary.rows(asked).tolist() == [1, 2, 1]


def test_what_is_no_number_is_missing():
    for kind in (pa.float16(), pa.float32(), pa.float64()):
        values = pa.array([1.0, float("nan"), None, 1.0], kind)
        vocabulary = Vocabulary.fit(values, min_count=1)
        assert vocabulary.num_rows == 2
        assert vocabulary.rows(values).tolist() == [1, 0, 0, 1]


def test_nothing_is_known_of_a_column_of_nulls():
    vocabulary = Vocabulary.fit(pa.nulls(3), min_count=1)
    assert vocabulary.num_rows == 1
    assert vocabulary.rows(pa.array(["a"])).tolist() == [0]
    assert fitted([1]).rows(pa.nulls(2)).tolist() == [0, 0]


def test_digests_tell_values_types_and_order_apart():
    columns = [["a", "b"], ["ab"], ["ab", ""], ["b", "a", "b"], ["a", "\x1fb"], ["a\x1fb"]]
    columns += [[1, 2], ["1", "2"], [1], [], [2, 1, 2]]
    digests = [Vocabulary.fit(pa.array(c), min_count=1).digest() for c in columns]
    assert len(set(digests)) == len(columns)
    assert fitted(["a", "b", "a"]).digest() == fitted(["b", "a", "a"]).digest()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (pa.array([[1, 2]]), "needs one value a row, got a column of type list<"),
        (pa.array([{"a": 1}]), "needs one value a row, got a column of type struct<"),
        (pa.array([(1, 2, 3)], pa.month_day_nano_interval()), "one value a row, .* month_day_nano"),
        (pa.array([2**63], pa.uint64()), "9223372036854775808 not in range"),
        (pa.array([b"\xff"]), "UTF8"),
    ],
)
def test_values_that_cannot_be_compared(values, message):
    with pytest.raises(ValueError, match=message):
        as_key(values)


def test_text_where_integers_were_trained():
    with pytest.raises(ValueError, match="'abc'"):
        fitted([1, 2]).rows(pa.array(["abc"]))


def test_a_column_in_one_piece():
    column = pa.chunked_array([pa.array(["a"]).dictionary_encode()] * 2)
    assert as_array(column).equals(pa.array(["a", "a"]))


class TestGrown:
    def test_ids_keep_their_rows_and_new_ones_come_last(self):
        grown = fitted(["b", "b", "a"]).grown(fitted(["c", "a"]))
        assert grown.rows(pa.array(["b", "a", "c"])).tolist() == [1, 2, 3]

    def test_an_evicted_row_is_reused_and_nobody_else_moves(self):
        old = Vocabulary(pa.array([10, 20, 30, 40]))
        grown = old.grown(Vocabulary(pa.array([50, 20, 40])), evict=True)
        assert grown.values.to_pylist() == [50, 20, None, 40]
        assert grown.rows(pa.array([10, 20, 30, 40, 50, None])).tolist() == [0, 2, 0, 4, 1, 0]
        again = grown.grown(Vocabulary(pa.array([60, 10, 70])))
        assert again.values.to_pylist() == [50, 20, 60, 40, 10, 70]

    @pytest.mark.parametrize("evict", [False, True])
    @pytest.mark.parametrize("kind", [str, int])
    def test_many_windows(self, kind, evict):
        """No id that stays ever changes its row, whatever comes and goes."""
        rng = np.random.default_rng(0)
        known = Vocabulary(pa.array([kind(n) for n in range(20)]))
        for _ in range(20):
            window = pa.array([kind(n) for n in rng.choice(60, 15, replace=False)])
            later = known.grown(Vocabulary(window), evict=evict)
            before, after = known.rows(known.values), later.rows(known.values)
            stays = np.isin(known.values.to_pylist(), window.to_pylist() if evict else None)
            stays = stays if evict else before > 0
            assert (after[stays] == before[stays]).all()
            assert (later.rows(window) > 0).all()
            values = later.values.drop_null().to_pylist()
            assert len(set(values)) == len(values)
            known = later

    def test_carried_rows(self):
        old = Vocabulary(pa.array(["a", "b", "c"]))
        later = old.grown(Vocabulary(pa.array(["x", "b", "y", "z"])), evict=True)
        assert later.values.to_pylist() == ["x", "b", "y", "z"]
        assert old.carried(later).tolist() == [True, False, True, False, False]

    def test_the_digest_tells_empty_rows_apart(self):
        values = (["a", None, "b"], [None, "a", "b"], ["a", "", "b"], ["a", "b"])
        digests = {Vocabulary(pa.array(v)).digest() for v in values}
        assert len(digests) == len(values)
        numbers = ([1, None], [None, 1], [1, 0], [1])
        assert len({Vocabulary(pa.array(v, pa.int64())).digest() for v in numbers}) == 4

    def test_values_of_another_type_are_refused(self):
        with pytest.raises(ValueError, match="values of type int64, got string"):
            fitted([1]).grown(fitted(["1"]))


@pytest.mark.parametrize("kind", [pa.string(), pa.int64()])
def test_few_values_among_many(kind):
    """They are looked up one by one; nobody has the row of a value that was given up."""
    known = np.random.default_rng(0).permutation(10_000)
    values = pa.array(known, mask=known % 7 == 0).cast(kind)
    vocabulary = Vocabulary(values)
    wanted = [14, 15, 9_999, 10_000, None, 15, -3]
    rows = {value: row for row, value in enumerate(known.tolist(), start=1) if value % 7}
    column = pa.array(wanted).cast(kind)
    assert vocabulary.rows(column).tolist() == [rows.get(value, 0) for value in wanted]
    assert vocabulary.rows(column).dtype == np.int32
    for value in (14, 15, 10_000):
        asked = str(value) if kind == pa.string() else value
        assert vocabulary.row(asked) == rows.get(value, 0)
    assert vocabulary.rows(pa.array([], kind)).tolist() == []
