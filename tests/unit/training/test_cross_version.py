"""Which vectors of two versions may be compared."""

import numpy as np
import pytest
import torch

from twotower.data.item_lists import ItemLists
from twotower.data.queries import Queries
from twotower.losses.alignment import FrozenItems
from twotower.training.cross_version import (
    OldVersion,
    Space,
    cross_version_recall,
    new_space,
    space_of,
)

NUM_ITEMS, NUM_QUERIES, DIM = 200, 80, 8


def lists(counts, rows):
    return ItemLists(offsets=np.concatenate([[0], np.cumsum(counts)]), item_rows=np.array(rows))


def unit(*shape, seed):
    vectors = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(vectors, dim=-1)


@pytest.fixture
def items():
    return unit(NUM_ITEMS, DIM, seed=0)


@pytest.fixture
def queries():
    rows = np.arange(NUM_QUERIES)
    return Queries(
        part=1,
        user_rows=rows,
        interactions=rows,
        history_end=rows,
        seen=lists([1] * NUM_QUERIES, rows + 100),
        truth=lists([1] * NUM_QUERIES, rows),
    )


def old(items, vectors, known=None):
    known = torch.ones(NUM_ITEMS, dtype=torch.bool) if known is None else known
    return OldVersion(items=FrozenItems(vectors=items, known=known), queries=vectors)


def recall(before, items, vectors, queries, k=5):
    return cross_version_recall(
        before, items=items, vectors=vectors, queries=queries, k=k, remove_seen=True
    )


def test_the_same_vectors_find_each_other(items, queries):
    found = recall(old(items, items[:NUM_QUERIES]), items, items[:NUM_QUERIES], queries)
    assert set(found.values()) == {1.0}


def test_a_turned_space_does_not_fit_the_old_one(items, queries):
    """Both versions are perfect by themselves, and nothing across them is left."""
    turn = torch.linalg.qr(torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(4))).Q
    turned = items @ turn
    found = recall(old(items, items[:NUM_QUERIES]), turned, turned[:NUM_QUERIES], queries)
    assert found["old_queries_old_items"] == found["new_queries_new_items"] == 1.0
    assert found["old_queries_new_items"] < 0.3
    assert found["new_queries_old_items"] < 0.3


def test_only_items_that_both_know_count(items, queries):
    """Ten items: 0 to 4 are new, so queries 0 to 4 have no right answer and are left out."""
    known = torch.arange(NUM_ITEMS) >= 5
    scrambled = items.clone()
    scrambled[:5] = items[50:55]  # would stand before the right answers of queries 50 to 54
    found = recall(
        old(items, items[:NUM_QUERIES], known), scrambled, items[:NUM_QUERIES], queries, 1
    )
    assert set(found.values()) == {1.0}


def test_seen_items_are_left_out(items, queries):
    crowded = items.clone()
    crowded[100 : 100 + NUM_QUERIES] = items[:NUM_QUERIES]  # what was seen looks like the answer
    vectors = items[:NUM_QUERIES]
    assert recall(old(crowded, vectors), crowded, vectors, queries, 1)["old_queries_old_items"] == 1


def test_without_a_common_item_nothing_was_measured(items, queries):
    none = torch.zeros(NUM_ITEMS, dtype=torch.bool)
    found = recall(old(items, items[:NUM_QUERIES], none), items, items[:NUM_QUERIES], queries)
    assert all(np.isnan(value) for value in found.values())
    before = Space(space="a", inherited=False, kept=1.0, recall={}, k=0)
    assert not space_of(torch.nn.Linear(1, 1), before, found, 5).inherited


def pairs(old_old, old_new, new_old):
    return {
        "old_queries_old_items": old_old,
        "old_queries_new_items": old_new,
        "new_queries_old_items": new_old,
        "new_queries_new_items": 0.9,
    }


class TestSpace:
    before = Space(space="a", inherited=False, kept=1.0, recall={}, k=0)

    def test_is_kept_only_when_both_directions_hold(self):
        model = torch.nn.Linear(2, 2)
        kept = space_of(model, self.before, pairs(0.5, 0.49, 0.6), 5)
        assert (kept.space, kept.inherited) == ("a", True)
        assert kept.kept == pytest.approx(0.98)
        for crossed in ((0.47, 0.6), (0.6, 0.47)):
            own = space_of(model, self.before, pairs(0.5, *crossed), 5)
            assert (own.space, own.kept) == (new_space(model).space, 1.0)

    def test_small_losses_add_up_over_versions(self):
        model, space = torch.nn.Linear(2, 2), self.before
        held = []
        for _ in range(4):
            space = space_of(model, space, pairs(1.0, 0.98, 1.0), 5)
            held.append(space.inherited)
        # 0.98, 0.9604; 0.9412 is below 0.95 and begins anew.
        assert held == [True, True, False, True]

    def test_a_run_that_does_not_say_its_space_passes_none_on(self):
        assert not space_of(torch.nn.Linear(2, 2), None, pairs(1, 1, 1), 5).inherited

    def test_a_new_one_is_named_by_the_weights(self):
        first, second = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
        assert new_space(first).space != new_space(second).space
        second.load_state_dict(first.state_dict())
        assert new_space(first) == new_space(second)

    def test_round_trip(self, tmp_path):
        assert Space.load(tmp_path) is None
        space = space_of(torch.nn.Linear(2, 2), self.before, pairs(0.5, 0.5, 0.5), 7)
        space.save(tmp_path)
        assert Space.load(tmp_path) == space
