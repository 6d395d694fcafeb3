"""What holds of every split of every log."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from twotower.data.schema import TEST, TRAIN, VALIDATION, DataError
from twotower.data.split import GivenSplit, LeaveOneOut, RandomSplit, TemporalSplit


@dataclass(frozen=True, kw_only=True)
class Rows:
    num_rows: int
    positive: np.ndarray
    user_rows: np.ndarray
    timestamps: np.ndarray
    given: np.ndarray


@st.composite
def logs(draw: st.DrawFn) -> Rows:
    """Small logs, with many ties of time and few users."""
    num_rows = draw(st.integers(1, 60))

    def column(values: st.SearchStrategy[int]) -> np.ndarray:
        return np.array(draw(st.lists(values, min_size=num_rows, max_size=num_rows)), np.int64)

    return Rows(
        num_rows=num_rows,
        positive=column(st.integers(0, 1)).astype(bool),
        user_rows=column(st.integers(0, 5)),
        timestamps=column(st.integers(0, 20) | st.integers(0, 2**60)),
        given=column(st.integers(0, 2)).astype(np.int8),
    )


def assign(splitter, rows: Rows) -> np.ndarray | None:
    """Parts of all rows, or None where a part would be empty, which must be said."""
    said = ""
    try:
        codes = np.concatenate(list(splitter.assign([rows])))
    except DataError as error:
        said = str(error)
    if said:
        assert "part is empty" in said
        return None
    assert codes.shape == (rows.num_rows,)
    assert {TRAIN, VALIDATION, TEST} == set(codes.tolist())
    return codes


def permuted(rows: Rows, order: np.ndarray) -> Rows:
    columns = {name: value for name, value in vars(rows).items() if name != "num_rows"}
    return Rows(num_rows=rows.num_rows, **{name: value[order] for name, value in columns.items()})


@given(logs(), st.floats(0.05, 0.4), st.floats(0.05, 0.4), st.randoms())
def test_a_temporal_split_never_trains_on_what_came_later(rows, validation, test, chance) -> None:
    splitter = TemporalSplit(validation_share=validation, test_share=test)
    codes = assign(splitter, rows)
    if codes is None:
        return
    times = rows.timestamps
    assert times[codes == TRAIN].max() < times[codes == VALIDATION].min()
    assert times[codes == VALIDATION].max() < times[codes == TEST].min()
    order = np.array(chance.sample(range(rows.num_rows), rows.num_rows))
    again = assign(splitter, permuted(rows, order))
    assert again is not None
    assert again.tolist() == codes[order].tolist()


@given(logs())
def test_leave_one_out_takes_the_last_two_positives_of_a_user(rows) -> None:
    codes = assign(LeaveOneOut(), rows)
    if codes is None:
        return
    for user in np.unique(rows.user_rows):
        of_user = np.flatnonzero((rows.user_rows == user) & rows.positive)
        in_order = of_user[np.lexsort((of_user, rows.timestamps[of_user]))]
        expected = [TRAIN] * len(in_order)
        if len(in_order) >= 3:
            expected[-2:] = [VALIDATION, TEST]
        assert codes[in_order].tolist() == expected


@given(logs())
def test_a_given_split_is_taken_as_it_is(rows) -> None:
    codes = assign(GivenSplit(), rows)
    if codes is not None and (rows.given == VALIDATION).any():
        assert codes.tolist() == rows.given.tolist()


@given(logs(), st.integers(0, 5))
def test_a_random_split_depends_on_its_seed_alone(rows, seed) -> None:
    splitter = RandomSplit(validation_share=0.2, test_share=0.2, seed=seed)
    first, second = assign(splitter, rows), assign(splitter, rows)
    assert (first is None) == (second is None)
    assert first is None or first.tolist() == second.tolist()
