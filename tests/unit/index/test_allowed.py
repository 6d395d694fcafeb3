"""A set of rows in all its forms, against a plain mask."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twotower.index.allowed import AllowedRows


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.booleans(), max_size=70))
def test_every_form_says_the_same(given_mask: list[bool]) -> None:
    mask = np.array(given_mask, bool)
    allowed = AllowedRows(mask)
    assert allowed.num_items == len(mask)
    assert allowed.count == sum(given_mask)
    assert allowed.mask.tolist() == given_mask
    expected = [row for row, passes in enumerate(given_mask) if passes]
    assert allowed.rows.tolist() == allowed.rows.tolist() == expected
    asked = np.arange(-2, len(mask) + 3)
    assert [int(row) for row in asked[allowed.contains(asked)]] == expected


def test_rows_of_any_shape() -> None:
    allowed = AllowedRows(np.arange(20) % 3 == 0)
    found = allowed.contains(np.array([[0, 1, 2], [18, -1, 20]]))
    assert found.tolist() == [[True, False, False], [True, False, False]]
    assert allowed.contains(np.empty((0, 4), np.int64)).shape == (0, 4)


def test_share() -> None:
    assert AllowedRows(np.array([True, False, False, False])).share == 0.25
    assert AllowedRows(np.array([], bool)).share == 0.0


@pytest.mark.parametrize("share", [0.02, 0.6])
def test_few_rows_are_kept_and_many_are_not(share: float) -> None:
    allowed = AllowedRows(np.random.default_rng(0).random(1000) < share)
    assert (allowed.rows is allowed.rows) == (share < 0.1)


def test_counts_by_group() -> None:
    allowed = AllowedRows(np.array([True, True, False, True, False, True]))
    groups = np.array([0, 2, 2, 2, 1, 0])
    assert allowed.counts_by(groups, 4).tolist() == [2, 0, 2, 0]
    assert allowed.counts_by(groups, 4) is allowed.counts_by(groups, 4)
    assert allowed.counts_by(np.zeros(6, np.int64), 1).tolist() == [4]
