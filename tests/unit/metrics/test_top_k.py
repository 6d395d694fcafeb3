import math

import numpy as np
import pytest

from twotower.metrics import top_k
from twotower.metrics.top_k import (
    Relevant,
    contains,
    mean_over_queries,
    metrics_of_ranks,
    top_k_metrics,
)

NAMES = ("recall", "precision", "hit_rate", "ndcg", "mrr", "map")


def relevant_of(*lists):
    queries = np.repeat(np.arange(len(lists)), [len(one) for one in lists])
    rows = np.array([row for one in lists for row in one], np.int64)
    return Relevant.from_pairs(queries, rows, len(lists))


def slow_metrics(ranked, wanted, k):
    """The definitions, one query and one place at a time."""
    top = [row for row in ranked[:k] if row != -1]
    if not wanted:
        return dict.fromkeys(NAMES, math.nan)
    hits = [row in wanted for row in top]
    gain = sum(1 / math.log2(place + 1) for place, hit in enumerate(hits, 1) if hit)
    best = sum(1 / math.log2(place + 1) for place in range(1, min(k, len(wanted)) + 1))
    precisions = [sum(hits[:place]) / place for place, hit in enumerate(hits, 1) if hit]
    places = [place for place, hit in enumerate(hits, 1) if hit]
    return {
        "recall": sum(hits) / len(wanted),
        "precision": sum(hits) / k,
        "hit_rate": float(any(hits)),
        "ndcg": gain / best,
        "mrr": 1 / places[0] if places else 0.0,
        "map": sum(precisions) / min(k, len(wanted)),
    }


def random_case(seed, num_queries=40, width=8, num_items=15):
    rng = np.random.default_rng(seed)
    ranked = np.stack([rng.permutation(num_items)[:width] for _ in range(num_queries)])
    lengths = rng.integers(0, width + 1, num_queries)
    ranked[np.arange(width)[None] >= lengths[:, None]] = -1
    lists = [rng.permutation(num_items)[: rng.integers(0, 6)].tolist() for _ in range(num_queries)]
    return ranked, lists


def test_hand_table():
    ranked = np.array(
        [
            [7, 3, 5, 1],  # relevant 3 and 1: places 2 and 4
            [2, 9, -1, -1],  # relevant 2, 4, 6: place 1 of a short list
            [8, 6, 4, 2],  # relevant 1: nowhere
            [-1, -1, -1, -1],  # an empty list, relevant 5
            [1, 2, 3, 4],  # nothing is relevant
        ]
    )
    relevant = relevant_of([1, 3], [6, 2, 4], [1], [5], [])
    metrics = top_k_metrics(ranked, relevant, ks=(2, 4))

    def column(name):
        return metrics[name].tolist()

    nan = pytest.approx(math.nan, nan_ok=True)
    assert column("recall@2") == [1 / 2, 1 / 3, 0, 0, nan]
    assert column("recall@4") == [1, 1 / 3, 0, 0, nan]
    assert column("precision@2") == [1 / 2, 1 / 2, 0, 0, nan]
    assert column("precision@4") == [1 / 2, 1 / 4, 0, 0, nan]
    assert column("hit_rate@2") == [1, 1, 0, 0, nan]
    assert column("mrr@4") == [1 / 2, 1, 0, 0, nan]
    assert column("map@2") == [pytest.approx(1 / 4), pytest.approx(1 / 2), 0, 0, nan]
    assert column("map@4") == [pytest.approx((1 / 2 + 2 / 4) / 2), pytest.approx(1 / 3), 0, 0, nan]
    # discounts 1, 0.6309298, 0.5, 0.4306766
    ndcg_2 = [0.6309298 / 1.6309298, 1 / 1.6309298, 0, 0]
    ndcg_4 = [(0.6309298 + 0.4306766) / 1.6309298, 1 / 2.1309298, 0, 0]
    assert column("ndcg@2")[:4] == pytest.approx(ndcg_2, abs=1e-6)
    assert column("ndcg@4")[:4] == pytest.approx(ndcg_4, abs=1e-6)
    assert math.isnan(column("ndcg@4")[4])
    assert set(metrics) == {f"{name}@{k}" for name in NAMES for k in (2, 4)}


def test_more_relevant_items_than_places_can_be_perfect():
    metrics = top_k_metrics(np.array([[4, 0]]), relevant_of([0, 1, 2, 3, 4]), ks=[2])
    assert metrics["ndcg@2"].tolist() == [pytest.approx(1)]
    assert metrics["map@2"].tolist() == [1]
    assert metrics["precision@2"].tolist() == [1]
    assert metrics["recall@2"].tolist() == [2 / 5]


@pytest.mark.parametrize("seed", range(5))
def test_equals_the_definitions(seed):
    ranked, lists = random_case(seed)
    metrics = top_k_metrics(ranked, relevant_of(*lists), ks=[1, 3, 8])
    for k in (1, 3, 8):
        slow = [slow_metrics(row, set(one), k) for row, one in zip(ranked, lists, strict=True)]
        for name in NAMES:
            expected = [values[name] for values in slow]
            np.testing.assert_allclose(metrics[f"{name}@{k}"], expected, rtol=1e-12)


def test_does_not_depend_on_blocks_query_order_type_or_wider_lists(monkeypatch):
    ranked, lists = random_case(9)
    whole = top_k_metrics(ranked, relevant_of(*lists), ks=[3])
    monkeypatch.setattr(top_k, "BLOCK_PLACES", 7 * ranked.shape[1] + 1)
    blocked = top_k_metrics(ranked.astype(np.int32), relevant_of(*lists), ks=[3])
    narrow = top_k_metrics(ranked[:, :3], relevant_of(*lists), ks=[3])
    order = np.random.default_rng(0).permutation(len(ranked))
    shuffled = top_k_metrics(ranked[order], relevant_of(*[lists[q] for q in order]), ks=[3])
    for name, values in whole.items():
        np.testing.assert_array_equal(values, blocked[name])
        np.testing.assert_array_equal(values, narrow[name])
        np.testing.assert_array_equal(values[order], shuffled[name])


def test_rows_beyond_32_bits_are_told_apart():
    far = 2**33
    metrics = top_k_metrics(np.array([[far, 0], [0, far]]), relevant_of([far], [far + 1]), ks=[2])
    assert metrics["hit_rate@2"].tolist() == [1, 0]


def test_contains_tells_each_relevant_item_apart(monkeypatch):
    ranked = np.array([[7, 3, 5], [2, -1, -1], [0, 1, 2]])
    relevant = relevant_of([3, 4, 7], [], [2])
    assert relevant.item_rows.tolist() == [3, 4, 7, 2]
    assert contains(ranked, relevant).tolist() == [True, False, True, True]
    monkeypatch.setattr(top_k, "BLOCK_PLACES", 1)
    assert contains(ranked, relevant).tolist() == [True, False, True, True]


def test_contains_agrees_with_recall():
    ranked, lists = random_case(3)
    relevant = relevant_of(*lists)
    hits = np.bincount(relevant.query_index, contains(ranked, relevant), len(ranked))
    recall = top_k_metrics(ranked, relevant, ks=[8])["recall@8"]
    asked = relevant.counts > 0
    np.testing.assert_allclose((hits / np.maximum(relevant.counts, 1))[asked], recall[asked])


def test_no_queries_and_nothing_relevant():
    nothing = np.zeros((0, 3), np.int64)
    assert top_k_metrics(nothing, relevant_of(), ks=[3])["recall@3"].shape == (0,)
    assert contains(np.array([[1, 2]]), relevant_of([])).shape == (0,)


def test_pairs_are_sorted_and_deduplicated():
    relevant = Relevant.from_pairs(np.array([2, 0, 2, 2, 0]), np.array([5, 9, 1, 5, 3]), 4)
    assert relevant.offsets.tolist() == [0, 2, 2, 4, 4]
    assert relevant.item_rows.tolist() == [3, 9, 1, 5]
    assert relevant.counts.tolist() == [2, 0, 2, 0]
    assert relevant.query_index.tolist() == [0, 0, 2, 2]
    assert len(relevant) == 4


def test_means_leave_out_queries_without_relevant_items():
    means = mean_over_queries({"a": np.array([1.0, np.nan, 0.0, 0.5]), "b": np.array([2.0])})
    assert means == {"a": 0.5, "b": 2.0}


def test_means_need_a_query_that_counts():
    with pytest.raises(ValueError, match=r"no query has relevant items, so recall@5, mrr@5 cannot"):
        mean_over_queries({"recall@5": np.full(3, np.nan), "mrr@5": np.zeros(0)})


@pytest.mark.parametrize(
    ("ranked", "message"),
    [
        ([[1, 2, 3], [4, 4, 5]], r"an item stands twice in 1 lists, first in queries \[1\]"),
        (
            [[1, -1, 3], [4, 6, 5]],
            r"an item follows the padding in 1 lists, first in queries \[0\]",
        ),
        ([[1, 2, 3], [4, 6, -2]], r"rows below -1 in 1 lists, first in queries \[1\]"),
        ([1, 2, 3], r"integers of shape \(Q, K\), got int64 of shape \(3,\)"),
        ([[1.0, 2.0]], r"integers of shape \(Q, K\), got float64"),
        ([[1, 2, 3]], r"the same queries, got 1 and 2"),
    ],
)
def test_bad_lists_are_refused(ranked, message):
    for call in (lambda r, w: top_k_metrics(r, w, [1]), contains):
        with pytest.raises(ValueError, match=message):
            call(np.array(ranked), relevant_of([1], [2]))


def test_all_problems_of_the_lists_are_told_at_once_with_the_query(monkeypatch):
    monkeypatch.setattr(top_k, "BLOCK_PLACES", 6)  # two lists a block
    ranked = np.array([[1, 2, 3], [1, 2, 3], [4, 4, 5], [-1, 1, 2]])
    with pytest.raises(ValueError, match=r"twice in 1 lists, first in queries \[2\](.|\n)*\[3\]"):
        top_k_metrics(ranked, relevant_of([1], [1], [1], [1]), ks=[1])


@pytest.mark.parametrize("ks", [[], [0], [1, 4]])
def test_list_lengths_must_be_covered_by_the_lists(ks):
    with pytest.raises(ValueError, match=r"at least 1 and at most 3, the columns, got"):
        top_k_metrics(np.array([[1, 2, 3]]), relevant_of([1]), ks=ks)


@pytest.mark.parametrize("offsets", [[], [1, 2], [0, 1], [0, 3, 2], [[0, 2]]])
def test_offsets_must_describe_the_rows(offsets):
    with pytest.raises(ValueError, match="`offsets` must rise from 0 to 2"):
        Relevant(offsets=np.array(offsets, np.int64), item_rows=np.array([1, 2]))


@pytest.mark.parametrize("rows", [[2, 2, 1], [2, 1, 5], [-1, 1, 5]])
def test_relevant_rows_must_rise_within_a_query(rows):
    with pytest.raises(ValueError, match="at least 0 and rise strictly within a query"):
        Relevant(offsets=np.array([0, 2, 3]), item_rows=np.array(rows))


def test_relevant_rows_may_fall_between_queries():
    assert len(Relevant(offsets=np.array([0, 1, 2]), item_rows=np.array([5, 1]))) == 2


def test_pairs_must_fit():
    with pytest.raises(ValueError, match=r"same shape \(P,\), got \(2,\) and \(1,\)"):
        Relevant.from_pairs(np.array([0, 1]), np.array([0]), 2)
    with pytest.raises(ValueError, match=r"`query_index` must be 0..1, got 0..2"):
        Relevant.from_pairs(np.array([0, 2]), np.array([0, 1]), 2)


def test_metrics_of_ranks_are_those_of_the_lists():
    """Queries without right answers, with some out of reach, and with all at the top."""
    rng = np.random.default_rng(0)
    ranked = np.stack([rng.permutation(30) for _ in range(40)])
    pairs = [(q, item) for q in range(0, 40, 2) for item in rng.permutation(30)[: 1 + q % 7]]
    relevant = Relevant.from_pairs(*np.array(pairs).T, 40)
    places = np.argsort(ranked, axis=1)[relevant.query_index, relevant.item_rows]
    assert 0 < (places >= 20).sum() < len(places)
    found = metrics_of_ranks(places, relevant, (1, 5, 20))
    for name, values in top_k_metrics(ranked[:, :20], relevant, (1, 5, 20)).items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_ranks_that_do_not_fit():
    relevant = Relevant.from_pairs(np.array([0]), np.array([3]), 1)
    with pytest.raises(ValueError, match=r"ranks must have shape \(1,\).*got \(2,\)"):
        metrics_of_ranks(np.array([0, 1]), relevant, (1,))
    with pytest.raises(ValueError, match=r"ks must be at least 1, got \[0\]"):
        metrics_of_ranks(np.array([0]), relevant, (0,))
