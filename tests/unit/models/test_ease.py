"""EASE against ridge regressions that are solved item by item."""

from __future__ import annotations

import numpy as np
import pytest

from twotower.data.item_lists import ItemLists
from twotower.models import ease as module
from twotower.models.ease import EASE

NUM_USERS, NUM_ITEMS, L2 = 30, 8, 2.5


def lists(matrix: np.ndarray) -> ItemLists:
    offsets = np.concatenate([[0], matrix.sum(axis=1).cumsum()]).astype(np.int64)
    return ItemLists(offsets=offsets, item_rows=np.nonzero(matrix)[1])


@pytest.fixture
def log() -> np.ndarray:
    """Everybody has an item, so that there are no ties."""
    drawn = np.random.default_rng(0).random((NUM_USERS, NUM_ITEMS)) < 0.4
    drawn[np.arange(NUM_USERS), np.arange(NUM_USERS) % NUM_ITEMS] = True
    return drawn


def ridge_scores(log: np.ndarray, histories: np.ndarray) -> np.ndarray:
    """Item j on all others: w = (A^T A + l2 I)^-1 A^T x_j with A the log without column j."""
    scores = np.zeros(histories.shape)
    for j in range(NUM_ITEMS):
        others = np.delete(log, j, axis=1).astype(float)
        gram = others.T @ others + L2 * np.eye(NUM_ITEMS - 1)
        weights = np.linalg.solve(gram, others.T @ log[:, j])
        scores[:, j] = np.delete(histories, j, axis=1) @ weights
    return scores


@pytest.mark.parametrize("block", [1, 17, 10**6])
def test_equals_ridge_regressions(
    log: np.ndarray, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK_ENTRIES", block)
    ease = EASE(l2=L2)
    ease.fit(lists(log), NUM_ITEMS)
    expected = np.argsort(-ridge_scores(log, log), axis=1)
    assert ease.rank(lists(log), NUM_ITEMS).tolist() == expected.tolist()


def test_excluded_items_are_left_out_and_lists_end(log: np.ndarray) -> None:
    ease = EASE(l2=L2)
    ease.fit(lists(log), NUM_ITEMS)
    scores = np.where(log, -np.inf, ridge_scores(log, log))
    ranked = ease.rank(lists(log), NUM_ITEMS + 2, lists(log))
    for user in range(NUM_USERS):
        free = int((~log[user]).sum())
        assert ranked[user, :free].tolist() == np.argsort(-scores[user])[:free].tolist()
        assert (ranked[user, free:] == -1).all()


def test_ties_go_to_the_higher_row() -> None:
    ease = EASE(l2=1.0)
    ease.fit(lists(np.zeros((2, 4), bool)), 4)
    assert ease.rank(lists(np.zeros((1, 4), bool)), 3).tolist() == [[3, 2, 1]]


def test_not_fitted_and_penalty_out_of_range() -> None:
    nobody = ItemLists(offsets=np.array([0, 0]), item_rows=np.array([], np.int64))
    with pytest.raises(ValueError, match="`fit` must be called before `rank`"):
        EASE(l2=1.0).rank(nobody, 1)
    with pytest.raises(ValueError, match="`l2` must be above 0, got 0"):
        EASE(l2=0)
