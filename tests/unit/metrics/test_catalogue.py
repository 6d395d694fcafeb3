import math

import numpy as np
import pytest

from twotower.metrics.catalogue import (
    catalogue_coverage,
    novelty,
    popularity_deciles,
    popularity_lift,
)
from twotower.metrics.top_k import Relevant


def test_coverage_counts_each_item_once_and_no_padding():
    ranked = np.array([[0, 3, -1], [3, 0, -1], [-1, -1, -1]])
    assert catalogue_coverage(ranked, num_items=4) == 2 / 4
    assert catalogue_coverage(np.full((2, 3), -1), num_items=4) == 0
    assert catalogue_coverage(np.array([[0, 1], [2, 3]]), num_items=4) == 1


def test_novelty_by_hand():
    # with one added: 8, 4, 2, 1 and 1 of 16, that is 1, 2, 3, 4 and 4 bits
    counts = np.array([7, 3, 1, 0, 0])
    ranked = np.array([[0, 1], [2, -1], [3, 4], [-1, -1]])
    values = novelty(ranked, counts)
    assert values[:3].tolist() == [1.5, 3, 4]
    assert math.isnan(values[3])


def test_popularity_lift_by_hand():
    counts = np.array([10, 20, 30, 0])
    ranked = np.array([[2, 2], [0, -1], [3, -1], [1, 2], [-1, -1], [1, 2]])
    chosen = Relevant.from_pairs(
        np.array([0, 0, 1, 2, 4, 5]), np.array([0, 1, 1, 1, 0, 3]), num_queries=6
    )
    lift = popularity_lift(ranked, chosen, counts)
    assert lift[:3].tolist() == [30 / 15 - 1, 10 / 20 - 1, -1]
    assert np.isnan(lift[3:]).all()  # nothing chosen, empty list, chosen item without a count


def test_novelty_and_lift_do_not_depend_on_the_order_within_a_list():
    counts = np.array([5, 1, 9, 2])
    chosen = Relevant.from_pairs(np.array([0]), np.array([0]), 1)
    one, other = np.array([[0, 2, 3]]), np.array([[3, 0, 2]])
    assert novelty(one, counts)[0] == pytest.approx(novelty(other, counts)[0])
    lifts = [popularity_lift(ranked, chosen, counts)[0] for ranked in (one, other)]
    assert lifts[0] == pytest.approx(lifts[1])


@pytest.mark.parametrize("ranked", [[[0, 4]], [[-2, 0]]])
def test_rows_outside_the_catalogue_are_refused(ranked):
    ranked, counts = np.array(ranked), np.ones(4, np.int64)
    chosen = Relevant.from_pairs(np.array([0]), np.array([0]), 1)
    for call in (
        lambda: catalogue_coverage(ranked, 4),
        lambda: novelty(ranked, counts),
        lambda: popularity_lift(ranked, chosen, counts),
    ):
        with pytest.raises(ValueError, match=r"ranked must hold item rows 0..3, or -1 as padding"):
            call()


def test_other_mistakes_are_refused():
    one = np.array([[0]])
    with pytest.raises(ValueError, match="num_items must be at least 1, got 0"):
        catalogue_coverage(one, 0)
    with pytest.raises(ValueError, match=r"item_counts must have shape \(N,\) and be at least 0"):
        novelty(one, np.array([1, -1]))
    far = Relevant.from_pairs(np.array([0]), np.array([7]), 1)
    with pytest.raises(ValueError, match=r"chosen must hold item rows 0..1, .*got 7..7"):
        popularity_lift(one, far, np.array([1, 1]))
    two = Relevant.from_pairs(np.array([0]), np.array([0]), 2)
    with pytest.raises(ValueError, match="the same queries, got 1 and 2"):
        popularity_lift(one, two, np.array([1, 1]))


def test_popularity_deciles_hold_as_many_items_each_whatever_their_counts():
    counts = np.random.default_rng(0).integers(0, 4, 203)
    deciles = popularity_deciles(counts)
    assert np.ptp(np.bincount(deciles)) == 1
    assert all(counts[deciles == n].max() <= counts[deciles == n + 1].min() for n in range(9))
    assert popularity_deciles(np.zeros(20, int)).tolist() == [row // 2 for row in range(20)]
    assert popularity_deciles(np.zeros(0, int)).tolist() == []
