"""Recall of a window against a loop over its users, one request each."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from twotower.data.schema import ITEM_ID, LABEL, USER_ID
from twotower.monitoring.scoring import BundleModels
from twotower.monitoring.window_recall import window_recall


def by_hand(models: BundleModels, table: pa.Table, start: int, k: int) -> list[float]:
    """Recall of every user, asked alone; only for windows after the last event."""
    taken = defaultdict(set)
    for row in table.to_pylist():
        if row[LABEL] == 1:
            taken[row[USER_ID]].add(row[ITEM_ID])
    bundle, values = models.bundle, []
    users = bundle.users.ids.to_pylist()
    for user, items in taken.items():
        if user in users:
            at = users.index(user)
            events = bundle.item_rows[bundle.offsets[at] : bundle.offsets[at + 1]]
            items = items - {bundle.items.ids[int(row)].as_py() for row in events}
            shown = models.recommender.recommend(user=user, k=k, seconds=start)
        else:
            shown = models.recommender.recommend(k=k, seconds=start)
        if items:
            values.append(len(items & {one.item_id for one in shown}) / len(items))
    return values


@pytest.fixture
def later(models: BundleModels, cut):
    """A window moved behind all that the bundle knows, with a stranger and an unknown item."""
    window = cut(14, 19)
    table = window.interactions
    users, items = table[USER_ID].to_pylist(), table[ITEM_ID].to_pylist()
    rng = np.random.default_rng(0)
    known = models.bundle.items.ids.to_pylist()
    items = [known[n] for n in rng.integers(0, len(known), len(items))]
    clicked = np.flatnonzero(table[LABEL].to_numpy() == 1)
    users[clicked[0]] = users[clicked[1]] = "stranger"
    items[clicked[2]] = "launched today"
    table = table.set_column(0, USER_ID, pa.array(users)).set_column(1, ITEM_ID, pa.array(items))
    start = models.last_event + 60
    return replace(window, interactions=table, start=start, end=start + 5 * 86_400)


def test_recall_is_that_of_single_requests(models: BundleModels, later):
    rows = models.rows(later, 1.0)
    found = {
        (name, statistic): estimate
        for name, statistic, estimate in window_recall(models, later, rows, k=5, max_users=1000)
    }
    expected = by_hand(models, later.interactions, later.start, 5)
    overall = found["all", "recall@5"]
    assert overall.num_users == len(expected) > 30
    assert overall.value == pytest.approx(np.mean(expected), abs=1e-12)
    error = np.std(expected, ddof=1) / np.sqrt(len(expected))
    assert overall.standard_error == pytest.approx(error)
    assert found["users=new", "recall@5"].num_users == 1
    assert found["items=new", "recall@5"].value == 0
    # Of 80 items all are candidates, so only the unknown one is missed.
    every = found["all", "candidate_recall@80"]
    assert 0.95 < every.value < 1


def test_some_users_are_the_same_in_every_window(models: BundleModels, cut):
    def keys(window):
        rows = models.rows(window, 1.0)
        (first, *_) = window_recall(models, window, rows, k=5, max_users=20)
        return set(first[2].users.tolist())

    one, other = keys(cut(14, 18)), keys(cut(14, 19))
    assert len(one) <= 20
    assert len(one & other) > 14


def test_nothing_to_recall(models: BundleModels, cut):
    window = cut(14, 15)
    table = window.interactions
    none = pa.array(np.zeros(len(table), np.float32))
    table = table.set_column(table.column_names.index(LABEL), LABEL, none)
    window = replace(window, interactions=table)
    rows = models.rows(window, 1.0)
    assert list(window_recall(models, window, rows, k=5, max_users=10)) == []
