import math
import os
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from twotower.data.item_lists import ItemLists
from twotower.metrics.top_k import Relevant, mean_over_queries, top_k_metrics
from twotower.models import baselines
from twotower.models.baselines import ItemKNN, Popularity

DATA = Path(__file__).resolve().parents[3] / os.environ.get("TWOTOWER_DATA", "../shared/data")

# users 0 to 3; counts of items 0 to 4: 2, 3, 2, 1, 0
# cosines: (0, 1) and (1, 2) 2 / sqrt(6) = 0.816, (0, 2) 1 / 2
SMALL = [[0, 1], [0, 1, 2], [1, 2], [3]]


def lists_of(lists):
    offsets = np.cumsum([0, *(len(one) for one in lists)])
    rows = np.array([row for one in lists for row in one], np.int64)
    return ItemLists(offsets=offsets, item_rows=rows)


def fitted(model, lists, num_items):
    users = lists_of(lists)
    model.fit(users, num_items)
    return model


def random_lists(seed, num_lists=40, num_items=30, longest=12):
    rng = np.random.default_rng(seed)
    popularity = 1 / np.arange(1, num_items + 1)
    return [
        rng.choice(num_items, rng.integers(0, longest), p=popularity / popularity.sum()).tolist()
        for _ in range(num_lists)
    ]


def slow_knn_scores(lists, history, num_items, num_neighbours):
    """The formula with loops over sets, ordering neighbours by exact fractions."""
    users = [{u for u, one in enumerate(lists) if item in one} for item in range(num_items)]
    scores = []
    for i in range(num_items):
        squares = {
            j: Fraction(len(users[i] & users[j]) ** 2, len(users[i]) * len(users[j]))
            for j in range(num_items)
            if j != i and users[i] & users[j]
        }
        neighbours = sorted(squares, key=lambda j: (-squares[j], -j))[:num_neighbours]
        scores.append(math.fsum(math.sqrt(squares[j]) for j in neighbours if j in set(history)))
    return np.array(scores)


def test_popularity_by_hand():
    popularity = fitted(Popularity(), SMALL, num_items=5)
    anybody = lists_of([[], [4, 4]])
    # item 2 before 0: the higher row of a tie; item 4 was never had
    assert popularity.rank(anybody, k=5).tolist() == [[1, 2, 0, 3, -1]] * 2
    assert popularity.rank(anybody, k=2).tolist() == [[1, 2]] * 2


def test_popularity_without_excluded_items_by_hand():
    popularity = fitted(Popularity(), SMALL, num_items=5)
    excluded = lists_of([[], [1, 1], [3, 4, 2], [0, 1, 2, 3]])
    ranked = popularity.rank(lists_of([[]] * 4), 3, excluded)
    assert ranked.tolist() == [[1, 2, 0], [2, 0, 3], [1, 0, -1], [-1, -1, -1]]


def test_popularity_counts_repeated_interactions():
    popularity = fitted(Popularity(), [[0, 0, 0], [1], [1]], num_items=2)
    assert popularity.rank(lists_of([[]]), k=2).tolist() == [[0, 1]]


@pytest.mark.parametrize("block", [1, 60, 2**22])
def test_popularity_equals_filtering_one_list_at_a_time(monkeypatch, block):
    monkeypatch.setattr(baselines, "BLOCK_ENTRIES", block)
    lists, seen = random_lists(1), random_lists(2, longest=25)
    counts = np.bincount(np.concatenate(lists).astype(int), minlength=30)
    order = sorted(np.flatnonzero(counts), key=lambda row: (-counts[row], -row))
    ranked = fitted(Popularity(), lists, 30).rank(lists_of(seen), 8, lists_of(seen))
    for row, one in zip(ranked.tolist(), seen, strict=True):
        kept = [item for item in order if item not in one][:8]
        assert row == kept + [-1] * (8 - len(kept))


def test_knn_counts_neighbours_of_the_candidate_and_breaks_ties_upwards():
    knn = fitted(ItemKNN(num_neighbours=1), SMALL, num_items=5)
    # neighbours: 0 -> 1, 1 -> 2 (a tie with 0), 2 -> 1, 3 and 4 -> none
    histories = lists_of([[0], [1], [2], [3], [], [2, 1]])
    assert knn.rank(histories, k=3).tolist() == [
        [-1, -1, -1],  # 1 is the neighbour of 0, but 0 is not the neighbour of 1
        [2, 0, -1],
        [1, -1, -1],
        [-1, -1, -1],
        [-1, -1, -1],
        [2, 1, 0],
    ]


def test_knn_sums_cosines_and_leaves_out_excluded_items():
    knn = fitted(ItemKNN(), SMALL, num_items=5)
    histories = lists_of([[0, 2], [0], [0, 1, 2], [0, 2]])
    excluded = lists_of([[0, 2], [], [3, 4], [1, 0, 2, 3]])
    assert knn.rank(histories, 3, excluded).tolist() == [
        [1, -1, -1],
        [1, 2, -1],  # 0.816 before 0.5
        [1, 2, 0],  # 1.633, and 1.316 twice
        [-1, -1, -1],
    ]


@pytest.mark.parametrize("block", [1, 70, 2**22])
@pytest.mark.parametrize("num_neighbours", [3, 100])
def test_knn_equals_the_formula(monkeypatch, block, num_neighbours):
    monkeypatch.setattr(baselines, "BLOCK_ENTRIES", block)
    lists, histories, seen = (random_lists(seed) for seed in (1, 2, 3))
    knn = fitted(ItemKNN(num_neighbours=num_neighbours), lists, num_items=30)
    ranked = knn.rank(lists_of(histories), 6, lists_of(seen))
    assert (ranked >= 0).any()
    for row, history, gone in zip(ranked, histories, seen, strict=True):
        scores = slow_knn_scores(lists, history, 30, num_neighbours)
        scores[np.array(gone, int)] = 0
        kept = row[row >= 0]
        assert len(set(kept.tolist())) == len(kept)
        best = np.sort(scores[scores > 0])[::-1][:6]
        np.testing.assert_allclose(scores[kept], best, rtol=1e-12)


def test_knn_does_not_depend_on_blocks_order_repetition_or_type(monkeypatch):
    lists, histories = random_lists(1), random_lists(2)
    knn = fitted(ItemKNN(num_neighbours=5), lists, 30)
    ranked = knn.rank(lists_of(histories), 6)
    turned = fitted(ItemKNN(num_neighbours=5), [one[::-1] * 2 for one in lists[::-1]], 30)
    again = turned.rank(lists_of([one[::-1] * 2 for one in histories]), 6)
    np.testing.assert_array_equal(ranked, again)
    monkeypatch.setattr(baselines, "BLOCK_ENTRIES", 50)
    users, given = lists_of(lists), lists_of(histories)
    small = ItemKNN(num_neighbours=5)
    small.fit(replace(users, item_rows=users.item_rows.astype(np.int32)), 30)
    narrow = replace(given, item_rows=given.item_rows.astype(np.int32))
    np.testing.assert_array_equal(ranked, small.rank(narrow, 6))


def test_arguments_are_left_as_they_were():
    users = lists_of([[2, 0, 2], [1, 0]])
    before = users.item_rows.copy(), users.offsets.copy()
    users.item_rows.flags.writeable = users.offsets.flags.writeable = False
    for model in (Popularity(), ItemKNN()):
        model.fit(users, 3)
        model.rank(users, 2, users)
    np.testing.assert_array_equal(users.item_rows, before[0])
    np.testing.assert_array_equal(users.offsets, before[1])


@pytest.mark.parametrize("model", [Popularity(), ItemKNN()])
def test_nothing_to_learn_from_or_nobody_to_ask(model):
    fitted(model, [[], []], num_items=3)
    assert model.rank(lists_of([[0], []]), 2).tolist() == [[-1, -1], [-1, -1]]
    assert model.rank(lists_of([[0]]), 2, lists_of([[1]])).tolist() == [[-1, -1]]
    assert model.rank(lists_of([]), 2, lists_of([])).shape == (0, 2)


@pytest.mark.parametrize("make", [Popularity, ItemKNN])
def test_mistakes_are_refused(make):
    with pytest.raises(ValueError, match="`fit` must be called before `rank`"):
        make().rank(lists_of([[0]]), 2)
    with pytest.raises(ValueError, match=r"users must hold item rows 0..1, got 0..2"):
        fitted(make(), [[0, 2]], num_items=2)
    with pytest.raises(ValueError, match="num_items must be at least 1, got 0"):
        fitted(make(), [[]], num_items=0)
    model = fitted(make(), SMALL, num_items=5)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        model.rank(lists_of([[0]]), 0)
    with pytest.raises(ValueError, match=r"histories must hold item rows 0..4, got -1..0"):
        model.rank(lists_of([[-1, 0]]), 2)
    with pytest.raises(ValueError, match=r"excluded must hold item rows 0..4, got 5..5"):
        model.rank(lists_of([[0]]), 2, lists_of([[5]]))
    with pytest.raises(ValueError, match="one list for each of 1 queries, got 2"):
        model.rank(lists_of([[0]]), 2, lists_of([[1], [2]]))


def test_a_neighbour_at_least_is_needed():
    with pytest.raises(ValueError, match="num_neighbours must be at least 1, got 0"):
        ItemKNN(num_neighbours=0)


def test_movielens_1m_next_item_figures():
    """HR@10 of the last item, all items ranked, with seen items removed and kept."""
    path = DATA / "ml-1m/interactions.parquet"
    if not path.exists():
        pytest.skip(f"no ml-1m/interactions.parquet in the folder of TWOTOWER_DATA, {DATA}")
    table = pq.read_table(path, columns=["user_id", "item_id"])
    users, ids = (table[column].to_numpy() for column in ("user_id", "item_id"))
    items = np.unique(ids, return_inverse=True)[1]
    last = np.flatnonzero(np.append(np.diff(users) != 0, True))
    assert (len(users), len(last), items.max() + 1) == (999_611, 6_040, 3_416)
    offsets = np.append(0, last + 1) - np.arange(len(last) + 1)
    seen = ItemLists(offsets=offsets, item_rows=np.delete(items, last))
    relevant = Relevant.from_pairs(np.arange(len(last)), items[last], len(last))
    for model, removed, kept in ((Popularity(), 0.0364, 0.0162), (ItemKNN(), 0.0805, 0.0406)):
        model.fit(seen, 3_416)
        for expected, excluded in ((removed, seen), (kept, None)):
            metrics = top_k_metrics(model.rank(seen, 10, excluded), relevant, ks=[10])
            assert round(mean_over_queries(metrics)["hit_rate@10"], 4) == expected
