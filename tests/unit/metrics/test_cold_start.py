import numpy as np
import pytest

from twotower.data.item_lists import ItemLists
from twotower.metrics.cold_start import cold_start

# Items 1 and 3 have no training event; item 5 is not in the catalogue of five.
COUNTS = np.array([4, 0, 2, 0, 1])
RELEVANT = ItemLists(offsets=np.array([0, 3, 4, 6, 6]), item_rows=np.array([0, 1, 3, 2, 1, 5]))
RANKED = np.array([[1, 2, 0], [0, 4, 2], [4, 1, -1], [0, 1, 2]])


def test_by_hand():
    figures = cold_start(RANKED, RELEVANT, COUNTS, [1, 3], num_resamples=100)
    counts = {"cold_items": 2, "cold_positives": 4, "warm_items": 3, "warm_positives": 2}
    assert {name: figures[name] for name in counts} == counts
    # Query 0 finds one of {1, 3}, query 2 one of {1, 5}; queries 1 and 3 have no cold answer.
    assert figures["cold_recall@1"] == (1 / 2 + 0) / 2
    assert figures["cold_recall@3"] == (1 / 2 + 1 / 2) / 2
    # Query 0 finds its warm item 0 in third place, query 1 its item 2.
    assert figures["warm_recall@1"] == 0
    assert figures["warm_recall@3"] == 1
    assert figures["cold_recall@1/low"] == 0
    assert figures["cold_recall@1/high"] == 1 / 2
    assert len(figures) == 4 + 2 * 2 * 3


def test_nothing_where_no_answer_is_cold():
    warm = ItemLists(offsets=np.array([0, 1, 1, 1, 2]), item_rows=np.array([0, 4]))
    assert cold_start(RANKED, warm, COUNTS, [3]) == {}


def test_all_answers_are_cold():
    figures = cold_start(RANKED, RELEVANT, np.zeros(5, np.int64), [3], num_resamples=10)
    assert figures["cold_positives"] == 6
    assert figures["warm_positives"] == figures["warm_items"] == 0
    assert "warm_recall@3" not in figures
    # Two of three, one of one, one of two.
    assert figures["cold_recall@3"] == pytest.approx((2 / 3 + 1 + 1 / 2) / 3)
