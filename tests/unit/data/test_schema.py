"""Contracts of the data schema."""

import pyarrow as pa
import pytest

from twotower.data.schema import SPLIT_NAMES, TEST, TRAIN, VALIDATION, DataError, Label, Tables


def test_a_data_error_lists_all_its_problems():
    error = DataError(["first", "second"])
    assert error.problems == ("first", "second")
    assert str(error) == "first\nsecond"
    assert isinstance(error, ValueError)


@pytest.mark.parametrize("positive_from", [1.0, 5.5, float("nan")])
def test_a_positive_lies_above_the_minimum_and_not_above_the_maximum(positive_from):
    with pytest.raises(ValueError, match="`positive_from` must lie above `minimum`"):
        Label(column="rating", minimum=1.0, maximum=5.0, positive_from=positive_from)


def test_the_maximum_itself_may_be_the_only_positive():
    assert Label(minimum=1.0, maximum=5.0, positive_from=5.0).positive_from == 5.0


def test_tables_know_their_columns():
    tables = Tables(interactions=pa.table({"user_id": [1]}))
    assert tables.has("user_id")
    assert not tables.has("item_id")


def test_split_codes_follow_their_names():
    assert [SPLIT_NAMES[code] for code in (TRAIN, VALIDATION, TEST)] == [
        "train",
        "validation",
        "test",
    ]
