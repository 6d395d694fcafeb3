"""Both baselines on the queries of a run: fitted on lists that the test cuts out of the log."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from twotower.data.item_lists import ItemLists
from twotower.data.queries import evaluation_queries
from twotower.data.schema import TEST, TRAIN, VALIDATION
from twotower.models.baselines import ItemKNN, Popularity
from twotower.training.baselines import ITEM_KNN, POPULARITY, rank_baselines

K = 6


def lists_before(prepared, part):
    """Items of every user before the part, one interaction at a time."""
    log = prepared.interactions
    parts = (TRAIN,) if part == VALIDATION else (TRAIN, VALIDATION)
    lists = [[] for _ in range(len(prepared.users))]
    for i in range(len(log.rows)):
        if log.positive[i] and log.split[i] in parts:
            lists[log.user_rows[i]].append(int(log.item_rows[i]))
    return lists


def flat(lists):
    offsets = np.cumsum([0, *map(len, lists)])
    return ItemLists(
        offsets=offsets, item_rows=np.array([i for one in lists for i in one], np.int64)
    )


@pytest.mark.parametrize("part", [VALIDATION, TEST])
@pytest.mark.parametrize("remove_seen", [True, False])
def test_popularity_by_counting(part, remove_seen, world):
    prepared = world.prepared
    queries = evaluation_queries(prepared, part, remove_seen=remove_seen)
    ranked = rank_baselines(prepared, queries, k=K, remove_seen=remove_seen)[POPULARITY]
    lists = lists_before(prepared, part)
    counts = np.bincount([i for one in lists for i in one], minlength=prepared.num_catalogue)
    for q, user in enumerate(queries.user_rows):
        left_out = set(lists[user]) if remove_seen else set()
        items = [item for item in np.flatnonzero(counts) if item not in left_out]
        best = sorted(items, key=lambda item: (-counts[item], -item))[:K]  # ties: the newer item
        assert ranked[q].tolist() == best


@pytest.mark.parametrize("part", [VALIDATION, TEST])
@pytest.mark.parametrize("remove_seen", [True, False])
def test_both_equal_the_models_on_lists_cut_out_by_hand(part, remove_seen, world):
    prepared = world.prepared
    queries = evaluation_queries(prepared, part, remove_seen=remove_seen)
    ranked = rank_baselines(prepared, queries, k=K, remove_seen=remove_seen, num_neighbours=5)
    lists = lists_before(prepared, part)
    training = flat(lists)
    histories = flat([lists[user] for user in queries.user_rows])
    for name, model in ((POPULARITY, Popularity()), (ITEM_KNN, ItemKNN(num_neighbours=5))):
        model.fit(training, prepared.num_catalogue)
        expected = model.rank(histories, K, histories if remove_seen else None)
        assert ranked[name].tolist() == expected.tolist(), name
    assert ranked[POPULARITY].tolist() != ranked[ITEM_KNN].tolist()


def test_items_outside_the_catalogue_do_not_exist(world):
    """15 of 40 items are the catalogue: what was taken beyond is no history and no neighbour."""
    prepared = world.prepared
    counts = dict(prepared.manifest["counts"]) | {"catalogue": 15}
    small = replace(prepared, manifest=dict(prepared.manifest) | {"counts": counts})
    queries = evaluation_queries(small, TEST, remove_seen=True)
    ranked = rank_baselines(small, queries, k=K, remove_seen=True)
    lists = [[item for item in one if item < 15] for one in lists_before(prepared, TEST)]
    training = flat(lists)
    histories = flat([lists[user] for user in queries.user_rows])
    model = ItemKNN(num_neighbours=100)
    model.fit(training, 15)
    assert ranked[ITEM_KNN].tolist() == model.rank(histories, K, histories).tolist()
    assert max(rows.max() for rows in ranked.values()) < 15
