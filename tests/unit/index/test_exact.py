"""Exact search and ranks against a float64 loop over every pair."""

from functools import partial

import numpy as np
import pytest
import torch

from twotower.data.item_lists import ItemLists
from twotower.index import exact
from twotower.index.exact import exact_ranks, exact_search


def whole_numbers(seed, *shape):
    """Small whole numbers: products are exact in float32, and ties are frequent."""
    return torch.from_numpy(np.random.default_rng(seed).integers(-2, 3, shape).astype(np.float32))


def some_excluded(seed, num_queries, num_items, most):
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, most + 1, num_queries)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    return ItemLists(offsets=offsets, item_rows=rng.integers(0, num_items, offsets[-1]))


def slow_order(queries, items, excluded):
    """Item rows of every query, best first, by sorting (-score, row) pairs."""
    lists = []
    for q, query in enumerate(queries.double().tolist()):
        gone = set()
        if excluded is not None:
            gone = set(excluded.item_rows[excluded.offsets[q] : excluded.offsets[q + 1]].tolist())
        scored = [
            (-sum(a * b for a, b in zip(query, item, strict=True)), row)
            for row, item in enumerate(items.double().tolist())
            if row not in gone
        ]
        lists.append(sorted(scored))
    return lists


@pytest.mark.parametrize("with_excluded", [False, True])
@pytest.mark.parametrize("k", [1, 7, 40, 60])
def test_search_equals_the_loop_with_ties(k, with_excluded):
    queries, items = whole_numbers(0, 33, 3), whole_numbers(1, 40, 3)
    excluded = some_excluded(2, 33, 40, 12) if with_excluded else None
    result = exact_search(queries, items, k, excluded)
    assert result.rows.shape == result.scores.shape == (33, k)
    for rows, scores, expected in zip(
        result.rows, result.scores, slow_order(queries, items, excluded), strict=True
    ):
        best = expected[:k]
        missing = k - len(best)
        assert rows.tolist() == [row for _, row in best] + [-1] * missing
        assert scores.tolist() == [-s for s, _ in best] + [-np.inf] * missing


@pytest.mark.parametrize("with_excluded", [False, True])
def test_ranks_equal_the_loop_with_ties(with_excluded):
    queries, items = whole_numbers(3, 50, 3), whole_numbers(4, 40, 3)
    targets = np.random.default_rng(5).integers(0, 40, 50)
    excluded = some_excluded(6, 50, 40, 25) if with_excluded else None
    ranks = exact_ranks(queries, items, targets, excluded)
    for rank, target, order in zip(
        ranks, targets, slow_order(queries, items, excluded), strict=True
    ):
        rows = [row for _, row in order]
        assert rank == (rows.index(target) if target in rows else 40)
    if with_excluded:
        assert 0 < (ranks == 40).sum() < 50  # both cases were met


@pytest.mark.parametrize("with_excluded", [False, True])
def test_ranks_of_several_targets_equal_those_of_one_each(with_excluded):
    """Queries with no, one and several targets; whole numbers, so there are ties."""
    queries, items = whole_numbers(3, 50, 3), whole_numbers(4, 41, 3)
    excluded = some_excluded(6, 50, 41, 25) if with_excluded else None
    rng = np.random.default_rng(7)
    counts = rng.integers(0, 4, 50)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    lists = ItemLists(offsets=offsets, item_rows=rng.integers(0, 41, offsets[-1]))
    expected = [
        exact_ranks(
            queries[q : q + 1],
            items,
            np.array([target]),
            None if excluded is None else excluded.between(q, q + 1),
        )[0]
        for q in range(50)
        for target in lists[q]
    ]
    assert exact_ranks(queries, items, lists, excluded).tolist() == expected


def test_targets_that_do_not_fit_are_all_named():
    lists = ItemLists(offsets=np.array([0, 1]), item_rows=np.array([7]))
    with pytest.raises(ValueError, match=r"targets must have one list(.|\n)*rows 0\.\.4, got 7"):
        exact_ranks(torch.ones(2, 3), torch.ones(5, 3), lists)


def test_rank_is_the_place_in_the_list():
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(40, 24, generator=generator)
    items = torch.randn(300, 24, generator=generator)
    items[150:] = items[:150]  # every vector twice: ties of rounded scores
    targets = torch.randint(0, 300, (40,), generator=generator)
    listed = exact_search(queries, items, 300).rows
    ranks = exact_ranks(queries, items, targets)
    np.testing.assert_array_equal(listed[np.arange(40), ranks], targets.numpy())


@pytest.mark.parametrize("block_scores", [1, 16 * 300, 17 * 300, 25 * 300])
def test_blocks_do_not_matter(monkeypatch, block_scores):
    generator = torch.Generator().manual_seed(1)
    queries = torch.randn(50, 48, generator=generator)
    items = torch.randn(300, 48, generator=generator)
    items[100:200] = items[:100]
    targets = torch.randint(0, 300, (50,), generator=generator)
    excluded = some_excluded(7, 50, 300, 20)
    whole = exact_search(queries, items, 20, excluded)
    whole_ranks = exact_ranks(queries, items, targets, excluded)
    monkeypatch.setattr(exact, "CPU_BLOCK_SCORES", block_scores)
    cut = exact_search(queries, items, 20, excluded)
    np.testing.assert_array_equal(cut.rows, whole.rows)
    np.testing.assert_array_equal(cut.scores, whole.scores)
    np.testing.assert_array_equal(exact_ranks(queries, items, targets, excluded), whole_ranks)


def test_one_query_alone_is_as_in_a_batch():
    generator = torch.Generator().manual_seed(2)
    queries = torch.randn(30, 100, generator=generator)
    items = torch.randn(500, 100, generator=generator)
    items[250:] = items[:250]
    batch = exact_search(queries, items, 11)
    for q in range(30):
        alone = exact_search(queries[q : q + 1], items, 11)
        np.testing.assert_array_equal(alone.rows[0], batch.rows[q])
        np.testing.assert_array_equal(alone.scores[0], batch.scores[q])


def test_items_may_come_in_any_order():
    generator = torch.Generator().manual_seed(3)
    queries = torch.randn(20, 8, generator=generator)
    items = torch.randn(90, 8, generator=generator)
    order = torch.randperm(90, generator=generator)
    plain = exact_search(queries, items, 10)
    shuffled = exact_search(queries, items[order], 10)
    np.testing.assert_array_equal(order.numpy()[shuffled.rows], plain.rows)


def test_everything_excluded_gives_padding():
    excluded = ItemLists(offsets=np.array([0, 3, 3]), item_rows=np.array([0, 1, 2]))
    result = exact_search(torch.eye(3)[:2], torch.eye(3), 2, excluded)
    assert result.rows.tolist() == [[-1, -1], [1, 0]]
    assert result.scores[0].tolist() == [-np.inf, -np.inf]


def test_no_queries():
    result = exact_search(torch.empty(0, 4), torch.ones(5, 4), 3)
    assert result.rows.shape == result.scores.shape == (0, 3)
    assert exact_ranks(torch.empty(0, 4), torch.ones(5, 4), np.empty(0, np.int64)).shape == (0,)


def test_mixed_precision_settings_change_nothing():
    generator = torch.Generator().manual_seed(4)
    queries = torch.randn(20, 64, generator=generator)
    items = torch.randn(200, 64, generator=generator)
    plain = exact_search(queries, items, 200)
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = exact_search(queries, items, 200)
        assert torch.get_float32_matmul_precision() == "medium"  # restored for the caller
    finally:
        torch.set_float32_matmul_precision(precision)
    np.testing.assert_array_equal(mixed.rows, plain.rows)
    np.testing.assert_array_equal(mixed.scores, plain.scores)


def test_precision_is_raised_and_restored():
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with exact._full_precision("cpu"):
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(precision)


def test_half_precision_vectors_are_scored_in_float32():
    vectors = torch.tensor([[1.0, 1 / 512]]).bfloat16()
    assert exact_search(vectors, vectors, 1).scores[0, 0] == 1 + 2.0**-18


def test_gradients_are_left_alone():
    items = torch.ones(3, 2, requires_grad=True)
    assert exact_search(torch.ones(1, 2), items, 3).rows.tolist() == [[0, 1, 2]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"queries": torch.ones(2, 5)}, r"shapes \(Q, D\) and \(N, D\), got \(2, 5\) and \(3, 4\)"),
        ({"items": torch.ones(3, 4, dtype=torch.int64)}, "items must be finite floating"),
        ({"queries": torch.full((2, 4), torch.nan)}, "queries must be finite floating"),
        ({"items": torch.empty(0, 4), "targets": None}, "items must not be empty"),
        ({"targets": np.array([0, 3])}, r"targets must be item rows 0\.\.2, got 0\.\.3"),
        ({"targets": np.array([-1, 0])}, r"targets must be item rows 0\.\.2, got -1\.\.0"),
        ({"targets": np.array([0])}, r"targets must have shape \(2,\), got \(1,\)"),
        (
            {"excluded": ItemLists(offsets=np.array([0, 1]), item_rows=np.array([0]))},
            "one list for each of 2 queries, got 1",
        ),
        (
            {"excluded": ItemLists(offsets=np.array([0, 1, 2]), item_rows=np.array([-1, 3]))},
            r"excluded must hold item rows 0\.\.2, got -1\.\.3",
        ),
    ],
)
def test_bad_arguments(change, message):
    good = {
        "queries": torch.ones(2, 4),
        "items": torch.ones(3, 4),
        "targets": np.array([0, 1]),
        "excluded": None,
    }
    arguments = good | change
    if arguments["targets"] is None:
        del arguments["targets"]
        call = partial(exact_search, k=2, **arguments)
    else:
        call = partial(exact_ranks, **arguments)
    with pytest.raises(ValueError, match=message):
        call()


def test_two_mistakes_are_reported_together():
    with pytest.raises(ValueError, match=r"(?s)targets must be.*excluded must have one list"):
        exact_ranks(
            torch.ones(2, 4),
            torch.ones(3, 4),
            np.array([0, 9]),
            ItemLists(offsets=np.array([0]), item_rows=np.array([], dtype=np.int64)),
        )


def test_k_below_one():
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        exact_search(torch.ones(1, 2), torch.ones(1, 2), 0)
