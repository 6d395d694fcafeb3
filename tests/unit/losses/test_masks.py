"""The mask of known positives against a loop over pairs."""

from __future__ import annotations

from collections.abc import Callable
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from twotower.losses import masked_pairs, masks
from twotower.losses.blockwise_softmax import BlockwiseSoftmax
from twotower.losses.masked_pairs import MaskedPairs
from twotower.losses.masks import PositiveMask
from twotower.losses.negatives import WholeCatalogue
from twotower.losses.objective import Objective
from twotower.losses.sampled_softmax import FullSoftmax


def objective_of(temperature: float, **masks: bool) -> Objective:
    loss = FullSoftmax(temperature=temperature)
    return Objective(loss=loss, negatives=WholeCatalogue(), **masks)


def mask_by_loop(
    pool: list[int], targets: list[int], known: list[tuple[int, int]], users: list[int]
) -> list[list[bool]]:
    taken = [
        {target} | {row for owner, row in known if owner == user}
        for target, user in zip(targets, users, strict=True)
    ]
    return [[candidate in rows for candidate in pool] for rows in taken]


def mask(
    pool: list[int],
    targets: list[int],
    known: list[tuple[int, int]],
    users: list[int] | None = None,
) -> list[list[bool]]:
    """The mask; every query has a user of its own unless some are given."""
    users = users or list(range(len(targets)))
    known = sorted(known)
    positives = PositiveMask(
        target_rows=torch.tensor(targets, dtype=torch.int64),
        users=torch.tensor(users, dtype=torch.int64),
        num_users=max(users) + 1,
        known_users=torch.tensor([user for user, _ in known], dtype=torch.int64),
        known_rows=torch.tensor([row for _, row in known], dtype=torch.int64),
    )
    result = positives.of(torch.tensor(pool, dtype=torch.int64))
    assert result.dtype == torch.bool
    assert result.shape == (len(targets), len(pool))
    return result.tolist()


def test_hand_table() -> None:
    # Query 0 has target 7 and took 3 and 9 (9 is no candidate); query 1 has target 3 alone.
    pool = [7, 3, 5, 3, 0]
    expected = [[True, True, False, True, False], [False, True, False, True, False]]
    assert mask(pool, [7, 3], [(0, 9), (0, 3)]) == expected


def test_queries_of_one_user_share_what_it_took() -> None:
    # User 0 asks queries 0 and 2 and took 4; user 1 asks query 1 and took 5.
    expected = [[True, True, False], [False, False, True], [False, True, False]]
    assert mask([7, 4, 5], [7, 5, 9], [(0, 4), (1, 5)], users=[0, 1, 0]) == expected


def test_targets_are_masked_without_known_positives() -> None:
    assert mask([2, 1, 2], [2, 5], []) == [[True, False, True], [False, False, False]]


def test_rows_beyond_all_candidates_mark_nothing() -> None:
    assert mask([1, 2], [99, 0], [(0, 50), (1, 99)]) == [[False, False], [False, False]]


def test_empty_pool() -> None:
    assert mask([], [1, 2], [(0, 3)]) == [[], []]


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_equal_to_the_loop(data: st.DataObject) -> None:
    row = st.integers(0, 12)
    pool = data.draw(st.lists(row, max_size=20))
    targets = data.draw(st.lists(row, min_size=1, max_size=6))
    user = st.integers(0, 4)
    users = data.draw(st.lists(user, min_size=len(targets), max_size=len(targets)))
    known = data.draw(st.lists(st.tuples(st.integers(0, max(users)), row), max_size=30))
    assert mask(pool, targets, known, users) == mask_by_loop(pool, targets, known, users)


def test_large_rows_and_order_of_pairs_do_not_matter() -> None:
    big = 2**40
    pool, targets = [big, 3, big + 1, 3], [3, big + 1]
    known = [(0, big), (1, 3), (0, 3), (0, big)]
    assert mask(pool, targets, known) == mask(pool, targets, known[::-1])
    assert mask(pool, targets, known) == mask_by_loop(pool, targets, known, [0, 1])


@settings(deadline=None)
@given(st.data())
def test_what_came_before_a_query_is_masked_and_what_comes_later_is_not(
    data: st.DataObject,
) -> None:
    rows, owners = st.integers(0, 6), st.integers(0, 2)
    pool = data.draw(st.lists(rows, min_size=1, max_size=9))
    events = sorted(data.draw(st.lists(st.tuples(owners, rows, st.integers(0, 5)), max_size=12)))
    queries = data.draw(
        st.lists(st.tuples(owners, rows, st.integers(0, 6)), min_size=1, max_size=5)
    )
    expected = [
        [
            c == target or any(u == user and r == c and place < seen for u, r, place in events)
            for c in pool
        ]
        for user, target, seen in queries
    ]
    users, targets, num_seen = (torch.tensor(part) for part in zip(*queries, strict=True))
    known = torch.tensor(events, dtype=torch.int64).reshape(-1, 3)
    positives = PositiveMask(
        target_rows=targets,
        users=users,
        num_users=3,
        known_users=known[:, 0].contiguous(),
        known_rows=known[:, 1].contiguous(),
        known_places=known[:, 2].int(),
        num_seen=num_seen,
    )
    rows_of_pool = torch.tensor(pool)
    assert positives.of(rows_of_pool).tolist() == expected
    masked = positives.on(rows_of_pool)
    for start in range(len(queries)):
        assert masked[start : start + 2].tolist() == expected[start : start + 2]
    chosen = torch.arange(len(queries)).flip(0)[:3]
    few = positives.of_queries(chosen).of(rows_of_pool).tolist()
    assert few == [expected[query] for query in chosen]


@settings(deadline=None)
@given(st.data())
def test_the_table_and_the_sorted_candidates_say_the_same(data: st.DataObject) -> None:
    """A pair of row -1 is none; it is how a list of mined items is filled up."""
    pool = data.draw(st.lists(st.integers(3, 9), min_size=1, max_size=9))
    pairs = data.draw(st.lists(st.tuples(st.integers(0, 2), st.integers(-1, 30)), max_size=12))
    rows = torch.tensor(pool)
    owners, taken = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T.contiguous()
    expected = [[(owner, row) in pairs for row in pool] for owner in range(3)]
    for share in (masks.TABLE_SHARE, 0):
        with (
            mock.patch.object(masks, "TABLE_SHARE", share),
            mock.patch.object(masked_pairs, "TABLE_SHARE", share),
        ):
            assert masks.positive_mask(rows, owners, taken, 3).tolist() == expected


@pytest.mark.parametrize("objective", [objective_of, BlockwiseSoftmax])
def test_later_positives_are_not_told_from_earlier_ones_where_none_are_masked(
    objective: Callable[..., object],
) -> None:
    with pytest.raises(ValueError, match="set mask_later=true beside mask_known=false"):
        objective(temperature=1.0, mask_known=False, mask_later=False)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_pairs_are_the_matrix(data: st.DataObject) -> None:
    """Users with several queries, in any order; items that are no candidates; places; never."""

    def draw(size: int, largest: int) -> torch.Tensor:
        numbers = st.lists(st.integers(0, largest), min_size=size, max_size=size)
        return torch.tensor(data.draw(numbers), dtype=torch.int64)

    num_users, num_queries, num_known = 3, 7, data.draw(st.integers(0, 20))
    spread = data.draw(st.sampled_from([1, 10**6]))  # items next to each other, or far apart
    positives = PositiveMask(
        target_rows=data.draw(st.sampled_from([None, draw(num_queries, 9) * spread])),
        users=draw(num_queries, num_users - 1),
        num_users=num_users,
        known_users=draw(num_known, num_users - 1).sort().values,
        known_rows=draw(num_known, 9) * spread,
        known_places=draw(num_known, 5).int(),
        num_seen=data.draw(st.sampled_from([None, draw(num_queries, 6)])),
        never=draw(9 * spread + 1, 1).bool() if spread == 1 and data.draw(st.booleans()) else None,
    )
    if positives.target_rows is None and not num_known and positives.never is None:
        return  # nothing to mask by
    pool = draw(11, 9) * spread
    with mock.patch.object(masks, "PAIR_SHARE", 1):
        pairs = positives._pairs(pool)
    if pairs is None:  # more than all pairs, repeats counted
        return
    matrix = positives.block(pool, slice(0, num_queries))
    assert torch.equal(pairs[0:num_queries], matrix)
    logits = torch.zeros(3, 11)
    masks.hide_(logits, pairs, 2, -7.0)
    assert torch.equal(logits == -7, matrix[2:5])


def test_many_pairs_are_a_matrix() -> None:
    """Every candidate is the target of every query."""
    rows = torch.zeros(32, dtype=torch.int64)
    positives = PositiveMask(
        target_rows=rows, users=rows, num_users=1, known_users=rows[:0], known_rows=rows[:0]
    )
    assert not isinstance(positives.on(rows), MaskedPairs)
    assert isinstance(positives.on(torch.arange(32)), MaskedPairs)
