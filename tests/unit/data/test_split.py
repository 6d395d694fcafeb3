"""Splits by hand and against slow oracles."""

import logging
from dataclasses import dataclass, fields, replace

import numpy as np
import pytest

from twotower.data.schema import TEST, TRAIN, VALIDATION, DataError
from twotower.data.split import (
    GivenSplit,
    LeaveOneOut,
    RandomSplit,
    TemporalSplit,
)

SECOND = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows of a log as a splitter sees them."""

    num_rows: int
    positive: np.ndarray
    user_rows: np.ndarray | None = None
    timestamps: np.ndarray | None = None
    given: np.ndarray | None = None

    def cut(self, starts):
        """The rows in blocks."""
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        for start, end in zip(starts, [*starts[1:], self.num_rows], strict=True):
            part = {k: v[start:end] for k, v in columns.items() if isinstance(v, np.ndarray)}
            yield replace(self, **part, num_rows=end - start)


def assign(splitter, rows):
    """Parts of all rows, which must not depend on the blocks."""
    codes = np.concatenate(list(splitter.assign([rows])))
    rng = np.random.default_rng(0)
    for num_blocks in (2, 3, 7):
        starts = [0, *np.sort(rng.integers(0, rows.num_rows + 1, num_blocks)).tolist()]
        again = np.concatenate(list(splitter.assign(list(rows.cut(starts)))))
        assert again.dtype == np.int8
        assert again.tolist() == codes.tolist()
    return codes


NEW_YEAR = 1_704_067_200 * SECOND  # 2024-01-01 00:00 UTC


def rows_at(times):
    times = np.asarray(times, np.int64)
    return Rows(num_rows=len(times), positive=np.ones(len(times), bool), timestamps=times)


def rows_of(users, *, times=None, positive=None):
    count = len(users)
    return Rows(
        num_rows=count,
        positive=np.ones(count, bool) if positive is None else np.asarray(positive, bool),
        user_rows=np.asarray(users, np.int64),
        timestamps=None if times is None else np.asarray(times, np.int64),
    )


def rows_with(codes):
    codes = np.asarray(codes, np.int8)
    return Rows(num_rows=len(codes), positive=np.ones(len(codes), bool), given=codes)


def test_temporal_cuts_by_shares_of_the_rows():
    times = [7, 0, 9, 3, 5, 1, 8, 2, 6, 4]
    codes = assign(TemporalSplit(validation_share=0.2, test_share=0.3), rows_at(times))
    by_time = dict(zip(times, codes.tolist(), strict=True))
    assert [by_time[t] for t in range(10)] == [0, 0, 0, 0, 0, 1, 1, 2, 2, 2]


def test_temporal_keeps_an_instant_on_one_side():
    # sorted: 0 0 1 1 1 1 2 2 3 3; the cuts fall on rows 4 and 7, within the 1s and the 2s
    times = [1, 3, 0, 1, 2, 1, 0, 2, 1, 3]
    codes = assign(TemporalSplit(validation_share=0.3, test_share=0.3), rows_at(times))
    assert codes.tolist() == [1, 2, 0, 1, 2, 1, 0, 2, 1, 2]


def test_temporal_given_times_begin_their_part_to_the_microsecond():
    split = TemporalSplit(
        validation_from="2024-01-01T00:00:00.000001", test_from="2024-01-01T02:00+01:00"
    )
    hour = 3600 * SECOND
    times = [NEW_YEAR, NEW_YEAR + 1, NEW_YEAR + hour - 1, NEW_YEAR + hour]
    assert assign(split, rows_at(times)).tolist() == [TRAIN, VALIDATION, VALIDATION, TEST]


def test_temporal_given_day_is_midnight_utc():
    split = TemporalSplit(validation_from="2024-01-01", test_from="2024-01-02")
    day = 86_400 * SECOND
    times = [NEW_YEAR - 1, NEW_YEAR, NEW_YEAR + day - 1, NEW_YEAR + day]
    assert assign(split, rows_at(times)).tolist() == [TRAIN, VALIDATION, VALIDATION, TEST]


@pytest.mark.parametrize("split", [TemporalSplit(), LeaveOneOut()])
def test_the_order_of_the_table_does_not_matter(split):
    rng = np.random.default_rng(0)
    users, times = rng.integers(0, 20, 300), rng.permutation(300)
    positive = rng.random(300) < 0.6
    codes = assign(split, rows_of(users, times=times, positive=positive))
    shuffled = rng.permutation(300)
    again = assign(
        split, rows_of(users[shuffled], times=times[shuffled], positive=positive[shuffled])
    )
    assert again.tolist() == codes[shuffled].tolist()


def test_temporal_tells_which_part_is_empty():
    with pytest.raises(DataError) as caught:
        assign(TemporalSplit(), rows_at([5, 5, 5]))
    assert caught.value.problems == (
        "split=temporal: the train part is empty (3 rows in all, 0 train, 0 validation, 3 test); "
        "every part needs at least one row",
        "split=temporal: the validation part is empty (3 rows in all, 0 train, 0 validation, "
        "3 test); every part needs at least one row",
    )


def test_temporal_needs_times():
    with pytest.raises(DataError, match=r"needs a `timestamp` column.*given, random"):
        assign(TemporalSplit(), rows_of([0, 1]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation_share": 0.0}, r"above 0 .* got validation_share=0.0, test_share=0.1"),
        ({"test_share": 0.0}, r"above 0 .* test_share=0.0"),
        ({"validation_share": 0.5, "test_share": 0.5}, "leave something to train on"),
        ({"validation_share": float("nan")}, "above 0"),
        (
            {"test_from": "2024-01-01"},
            r"both `validation_from` and `test_from`.*got None and '2024",
        ),
        ({"validation_from": "2024-01-01"}, "both `validation_from` and `test_from` or neither"),
        ({"validation_from": "2024-01-02", "test_from": "2024-01-01"}, "must lie before"),
        ({"validation_from": "2024-01-01", "test_from": "2024-01-01T01:00+01:00"}, "lie before"),
        ({"validation_from": "soon", "test_from": "2024-01-01"}, "'soon' is no ISO 8601 time"),
    ],
)
def test_temporal_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        TemporalSplit(**options)


def leave_one_out_slowly(users, times, positive):
    """Walk through every user's rows from the last to the first."""
    codes = [TRAIN] * len(users)
    for user in set(users):
        mine = sorted((times[r], r) for r in range(len(users)) if users[r] == user)
        if sum(positive[r] for _, r in mine) < 3:
            continue
        behind = 0  # positives that were passed
        for _, row in reversed(mine):
            behind += positive[row]
            codes[row] = TEST if behind <= 1 else VALIDATION if behind == 2 else TRAIN
    return codes


@pytest.mark.parametrize("with_times", [True, False])
def test_leave_one_out_against_a_slow_walk(with_times):
    rng = np.random.default_rng(1)
    users = rng.integers(0, 25, 200)
    times = rng.integers(0, 6, 200) if with_times else np.zeros(200, int)  # many ties
    positive = rng.random(200) < 0.5
    codes = assign(
        LeaveOneOut(), rows_of(users, times=times if with_times else None, positive=positive)
    )
    expected = leave_one_out_slowly(users.tolist(), times.tolist(), positive.tolist())
    assert codes.tolist() == expected
    assert set(expected) == {TRAIN, VALIDATION, TEST}


def test_leave_one_out_takes_table_order_where_times_tie():
    assert assign(LeaveOneOut(), rows_of([7, 7, 7, 7], times=[5, 5, 5, 5])).tolist() == [0, 0, 1, 2]


def test_leave_one_out_users_with_two_positives_train():
    users = [0, 1, 0, 1, 1]
    assert assign(LeaveOneOut(), rows_of(users)).tolist() == [0, 0, 0, 1, 2]


def test_leave_one_out_impressions_follow_the_positive_after_them():
    positive = [0, 1, 0, 1, 0, 0, 1, 0]
    codes = assign(LeaveOneOut(), rows_of([3] * 8, times=range(8), positive=positive))
    assert codes.tolist() == [0, 0, 1, 1, 2, 2, 2, 2]


def test_leave_one_out_refuses():
    with pytest.raises(DataError, match="needs a `user_id` column"):
        assign(LeaveOneOut(), rows_at([1, 2, 3]))
    with pytest.raises(DataError, match=r"validation part is empty \(4 rows in all, 4 train, 0 v"):
        assign(LeaveOneOut(), rows_of([0, 0, 1, 1]))


def test_given_is_taken_as_it_is():
    given = [2, 0, 1, 0]
    rows = rows_with(given)
    assert assign(GivenSplit(), rows).tolist() == given


def test_given_without_validation_holds_out_training_rows_only():
    given = np.array([0, 2] * 1000, np.int8)
    rows = rows_with(given)
    codes = assign(GivenSplit(validation_share=0.25, seed=1), rows)
    assert (codes[given == TEST] == TEST).all()
    held_out = (codes[given == TRAIN] == VALIDATION).mean()
    assert 0.2 < held_out < 0.3  # 1000 draws: 0.25 within 3.6 standard deviations
    assert rows.given.tolist() == given.tolist()  # the caller's array stays as it was
    again = assign(GivenSplit(validation_share=0.25, seed=1), rows)
    assert again.tolist() == codes.tolist()
    other = assign(GivenSplit(validation_share=0.25, seed=2), rows)
    assert other.tolist() != codes.tolist()


def test_given_refuses():
    with pytest.raises(DataError, match=r"needs a `split` column.*data.columns.split=<name>"):
        assign(GivenSplit(), rows_at([1, 2, 3]))
    with pytest.raises(DataError, match=r"test part is empty \(2 rows in all, 1 train, 1 val"):
        assign(GivenSplit(), rows_with([0, 1]))
    with pytest.raises(ValueError, match="got validation_share=1"):
        GivenSplit(validation_share=1.0)


def test_random_draws_the_shares_and_warns(caplog):
    split = RandomSplit(validation_share=0.2, test_share=0.3, seed=4)
    with caplog.at_level(logging.WARNING):
        codes = assign(split, rows_of(np.zeros(10_000)))
    assert "future of every user" in caplog.text
    shares = np.bincount(codes) / 10_000
    assert shares == pytest.approx([0.5, 0.2, 0.3], abs=0.02)  # 4 standard deviations
    assert assign(split, rows_of(np.zeros(10_000))).tolist() == codes.tolist()


def test_random_refuses():
    with pytest.raises(ValueError, match=r"validation_share=0.1, test_share=0.0"):
        RandomSplit(test_share=0.0)
    with pytest.raises(DataError, match=r"split=random: the .* part is empty"):
        assign(RandomSplit(), rows_of([0]))
