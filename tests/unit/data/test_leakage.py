"""What was fitted on other rows than the training part is named."""

import numpy as np
import pytest

from twotower.data.leakage import FittedOn, LeakError, check_leaks
from twotower.data.schema import DataError

TRAINING = FittedOn.rows(np.array([4, 0, 2]), np.array([30, 10, 20]))


def test_a_record_knows_rows_and_the_latest_time():
    assert TRAINING.num_rows == 3
    assert TRAINING.last_timestamp == 30


def test_the_order_of_rows_does_not_matter():
    assert FittedOn.rows(np.array([0, 2, 4]), np.array([10, 20, 30])) == TRAINING
    assert FittedOn.rows(np.array([0, 2, 4], np.int32), np.array([10, 20, 30])) == TRAINING


def test_without_times():
    assert FittedOn.rows(np.array([1]), None).last_timestamp is None
    assert FittedOn.rows(np.array([], np.int64), np.array([], np.int64)).last_timestamp is None


def test_nothing_is_said_when_all_saw_the_training_part():
    check_leaks({"a": TRAINING, "b": TRAINING}, TRAINING)


def test_every_leak_is_named():
    others = {
        "popularity": FittedOn.rows(np.array([0, 2, 4, 5]), np.array([10, 20, 30, 77])),
        "scales": FittedOn.rows(np.array([0, 2, 3]), np.array([10, 20, 30])),
        "honest": TRAINING,
        "vocabulary": FittedOn.rows(np.array([0]), None),
    }
    with pytest.raises(LeakError) as caught:
        check_leaks(others, TRAINING)
    assert caught.value.problems == (
        "leak: popularity was fitted on 4 rows instead of the 3 of the training part; its latest "
        "is from 77, after the last training row at 30",
        "leak: scales was fitted on as many rows as the training part has, but not the same ones",
        "leak: vocabulary was fitted on 1 rows instead of the 3 of the training part",
    )


def test_a_leak_is_an_error_of_the_data():
    with pytest.raises(DataError, match="leak: x"):
        check_leaks({"x": FittedOn.rows(np.array([9]), None)}, TRAINING)
