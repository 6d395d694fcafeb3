"""The catalogue ranked exactly: against a sort of all scores, whatever the blocks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from twotower.data.item_lists import ItemLists
from twotower.data.queries import evaluation_queries
from twotower.data.schema import TEST, TRAIN, VALIDATION
from twotower.training import evaluation
from twotower.training.evaluation import (
    catalogue_metrics,
    embed_queries,
    excluded,
    mean_metrics,
    query_batch,
    rank_catalogue,
    relevant,
)


@pytest.fixture
def model(world):
    return world.towers(dropout=0.5)


def brute_force(world, model, queries, *, num_catalogue, k, remove_seen):
    """Every query and item on its own; the history of a query cut out of the log by hand."""
    columns, log = world.columns("retrieval"), world.prepared.interactions
    model.eval()
    ranked = []
    with torch.no_grad():
        for q in range(len(queries)):
            query = model.embed_queries(query_batch(columns, queries, np.array([q]), 4))[0].double()
            parts = (TRAIN,) if queries.part == VALIDATION else (TRAIN, VALIDATION)
            seen = {
                int(log.item_rows[i])
                for i in range(len(log.rows))
                if log.user_rows[i] == queries.user_rows[q]
                and log.positive[i]
                and log.split[i] in parts
            }
            scores = []
            for item in range(num_catalogue):
                if remove_seen and item in seen:
                    continue
                vector = model.embed_items(columns.items(torch.tensor([item])))[0].double()
                scores.append((-float(query @ vector), item))
            best = [item for _, item in sorted(scores)[:k]]
            ranked.append(best + [-1] * (k - len(best)))
    return np.array(ranked)


@pytest.mark.parametrize("part", [VALIDATION, TEST])
@pytest.mark.parametrize(
    ("remove_seen", "k", "left_out"), [(True, 6, 0), (False, 6, 3), (True, 40, 0)]
)
def test_equals_a_sort_of_all_scores(part, remove_seen, k, left_out, world, model):
    queries = evaluation_queries(world.prepared, part, remove_seen=remove_seen, max_users=12)
    options = {
        "num_catalogue": world.prepared.num_catalogue - left_out,
        "k": k,
        "remove_seen": remove_seen,
    }
    ranked = rank_catalogue(model, world.columns("retrieval"), queries, **options)
    assert ranked.tolist() == brute_force(world, model, queries, **options).tolist()
    assert (ranked[:, -1] == -1).any() == (k == 40)


@pytest.mark.parametrize("remove_seen", [True, False])
@pytest.mark.parametrize("most_targets", [0, 1000])
@pytest.mark.parametrize("left_out", [0, 5])
def test_metrics_without_lists_are_those_of_a_sort(
    remove_seen, most_targets, left_out, world, model, monkeypatch
):
    """Lists longer than the catalogue and right answers outside of it included."""
    monkeypatch.setattr(evaluation, "MOST_TARGETS", most_targets)
    queries = evaluation_queries(world.prepared, TEST, remove_seen=remove_seen)
    options = {"num_catalogue": world.prepared.num_catalogue - left_out, "remove_seen": remove_seen}
    columns = world.columns("retrieval")
    found = catalogue_metrics(model, columns, queries, (3, 10, 60), **options)
    ranked = brute_force(world, model, queries, k=60, **options)
    assert found == pytest.approx(mean_metrics(ranked, queries, (3, 10, 60)))


def test_blocks_do_not_matter(world, model, monkeypatch):
    queries = evaluation_queries(world.prepared, TEST, remove_seen=True)
    columns = world.columns("retrieval")
    whole = embed_queries(model, columns, queries)
    assert whole.shape == (len(queries), 8)
    for block in (1, 5, len(queries)):
        monkeypatch.setattr(evaluation, "QUERY_BLOCK", block)
        torch.testing.assert_close(embed_queries(model, columns, queries), whole)


def test_mode_of_the_model_is_restored(world, model):
    model.train()
    queries = evaluation_queries(world.prepared, TEST, remove_seen=True, max_users=3)
    first = embed_queries(model, world.columns("retrieval"), queries)
    assert model.training
    assert torch.equal(first, embed_queries(model, world.columns("retrieval"), queries))


def test_history_ends_at_the_cut(world):
    """The history is what stands before the part: the last events before it, oldest first."""
    prepared, columns = world.prepared, world.columns("retrieval")
    queries = evaluation_queries(prepared, TEST, remove_seen=True)
    batch = query_batch(columns, queries, np.arange(len(queries)), 4)
    log, encoded = prepared.interactions, prepared.items.columns["item_id"]
    for q, user in enumerate(queries.user_rows):
        before = [
            int(encoded[log.item_rows[i]])
            for i in range(len(log.rows))
            if log.user_rows[i] == user and log.positive[i] and log.split[i] < TEST
        ][-4:]
        shown = batch["history.item_id"][q][batch["history.mask"][q]].tolist()
        assert shown == before


def test_seen_items_outside_the_catalogue_are_no_candidates(world):
    queries = evaluation_queries(world.prepared, TEST, remove_seen=True)
    left_out = excluded(queries, remove_seen=True, num_catalogue=10)
    for q in range(len(queries)):
        seen = queries.seen[q]
        assert sorted(left_out[q]) == sorted(item for item in seen if item < 10)
    assert excluded(queries, remove_seen=False, num_catalogue=10) is None


def test_means_by_hand(world):
    queries = evaluation_queries(world.prepared, TEST, remove_seen=True, max_users=2)
    truth = ItemLists(offsets=np.array([0, 2, 3]), item_rows=np.array([4, 7, 5]))
    two = replace(queries, truth=truth)
    assert relevant(two).counts.tolist() == [2, 1]
    means = mean_metrics(np.array([[7, 1, 4], [0, 1, 2]]), two, [1, 3])
    assert means["recall@1"] == pytest.approx((1 / 2 + 0) / 2)
    assert means["recall@3"] == pytest.approx((1 + 0) / 2)
    assert means["hit_rate@1"] == pytest.approx(1 / 2)
    ideal = 1 + 1 / np.log2(3)
    assert means["ndcg@3"] == pytest.approx((1 + 1 / 2) / ideal / 2)
