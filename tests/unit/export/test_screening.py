"""Screening by hand: who passes, who is shown, and when the lists are the same."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twotower.export import screening as module
from twotower.export.screening import best, finalists, num_finalists, same_lists

NAN = np.nan


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAST_FINALISTS", 3)


def test_as_many_pass_as_two_lists_hold() -> None:
    assert [num_finalists(k) for k in (1, 2, 10)] == [3, 4, 20]


def test_the_highest_pass_in_the_order_of_their_places() -> None:
    estimates = np.array([[0.1, 0.9, NAN, 0.5, 0.7], [0.2, 0.2, 0.2, 0.2, 0.1]])
    assert finalists(estimates, 1).tolist() == [[1, 3, 4], [0, 1, 2]]
    assert finalists(estimates, 9).tolist() == [[0, 1, 2, 3, 4]] * 2


def test_the_best_are_shown_and_of_equal_ones_the_first() -> None:
    probabilities = np.array([[0.3, 0.5, 0.5, NAN], [NAN, NAN, 0.0, NAN]])
    assert best(probabilities, 3).tolist() == [[1, 2, 0], [2, 0, 1]]


def test_same_lists_by_hand() -> None:
    exact = np.array([[0.9, 0.8, 0.2, 0.1, 0.0]] * 4)
    estimates = np.array(
        [
            [0.7, 0.8, 0.3, 0.1, 0.0],  # the two best change places
            [0.7, 0.3, 0.4, 0.1, 0.0],  # the second is third, which passes
            [0.7, 0.2, 0.3, 0.1, 0.4],  # the second is fourth: four pass
            [0.7, 0.1, 0.3, 0.2, 0.4],  # the second is last and does not
        ]
    )
    same, alone = same_lists(exact, estimates, 2)
    assert same.tolist() == [True, True, True, False]
    assert alone.tolist() == [True, False, False, False]


@settings(max_examples=200, deadline=None)
@given(
    exact=st.lists(st.integers(0, 5), min_size=1, max_size=12),
    k=st.integers(1, 12),
    padded=st.integers(0, 3),
)
def test_exact_estimates_change_nothing(exact: list[int], k: int, padded: int) -> None:
    """Ties and padding included."""
    scores = np.array([[float(n) for n in exact] + [NAN] * padded])
    passed = finalists(scores, k)
    among = best(np.take_along_axis(scores, passed, axis=1), k)
    shown = np.take_along_axis(passed, among, axis=1)
    assert shown.tolist() == best(scores, k).tolist()
    assert all(share.all() for share in same_lists(scores, scores, k))
