"""Rows of a window against one request at a time and against slow loops."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from twotower.data.schema import ITEM_ID, LABEL, MICROSECONDS, TIMESTAMP, USER_ID, DataError
from twotower.export.bundle import Bundle, open_bundle
from twotower.monitoring.scoring import UNKNOWN, BundleModels, find_ids
from twotower.monitoring.windows import Window
from twotower.serving.explain import explain
from twotower.serving.requests import Request


def window_of(table: pa.Table) -> Window:
    seconds = table[TIMESTAMP].to_numpy() // MICROSECONDS
    return Window(interactions=table, start=int(seconds.min()), end=int(seconds.max()) + 1)


def test_probabilities_are_those_of_single_requests(models: BundleModels, bundle: Bundle):
    """After the last event, at the first position: what a request sees."""
    late = models.last_event + 3_600
    table = pa.table(
        {
            USER_ID: [bundle.users.ids[row].as_py() for row in (3, 3, 40, 77)],
            ITEM_ID: [bundle.items.ids[row].as_py() for row in (5, 60, 5, 11)],
            TIMESTAMP: pa.array([late * MICROSECONDS] * 4, pa.int64()),
            LABEL: pa.array([1, 0, 0, 1], pa.float32()),
            "position": pa.array([1] * 4, pa.int64()),
        }
    )
    window = window_of(table)
    rows = models.rows(window, 1.0)
    found = models.probabilities(window, rows)
    for at, (user, item) in enumerate(
        zip(table[USER_ID].to_pylist(), table[ITEM_ID].to_pylist(), strict=True)
    ):
        one = explain(models.recommender, Request(user=user, seconds=late), item)
        if one.places.probability is not None:  # what was taken before is no candidate
            assert found[at] == pytest.approx(one.places.probability, abs=1e-5)
    assert len(set(found.tolist())) == 4


def test_history_ends_before_the_row(models: BundleModels, cut):
    window = cut(8, 12)
    rows = models.rows(window, 1.0)
    starts, ends = models.histories(rows.user_rows, rows.seconds)
    offsets, times = models.bundle.offsets, models.bundle.event_times
    num_cut = 0
    for row in range(0, len(starts), 7):
        user = rows.user_rows[row]
        own = times[offsets[user] : offsets[user + 1]]
        assert starts[row] == offsets[user]
        assert ends[row] - starts[row] == sum(time < rows.seconds[row] for time in own.tolist())
        num_cut += ends[row] < offsets[user + 1]
    assert num_cut > 10


def test_after_the_last_event_the_history_is_whole(models: BundleModels):
    users = np.array([0, UNKNOWN, 5])
    late = np.full(3, models.last_event + 1)
    starts, ends = models.histories(users, late)
    offsets = models.bundle.offsets
    assert ends.tolist() == [offsets[1], starts[1], offsets[6]]
    early = models.histories(users, np.zeros(3, np.int64))
    assert early[0].tolist() == early[1].tolist()


def test_blocks_do_not_matter(models: BundleModels, cut, monkeypatch):
    window = cut(15, 17)
    rows = models.rows(window, 1.0)
    whole = models.probabilities(window, rows)
    monkeypatch.setattr("twotower.monitoring.scoring.BLOCK", 13)
    np.testing.assert_allclose(models.probabilities(window, rows), whole, atol=1e-6)


def test_unknown_users_have_no_history_and_unknown_items_no_score(models: BundleModels, cut):
    window = cut(15, 17)
    table = window.interactions.slice(0, 20)
    ids = table[ITEM_ID].to_pylist()
    ids[4] = "never seen"
    users = table[USER_ID].to_pylist()
    users[5] = users[6] = "stranger"
    users[7] = "another stranger"
    table = table.set_column(0, USER_ID, pa.array(users)).set_column(1, ITEM_ID, pa.array(ids))
    window = replace(window, interactions=table)
    rows = models.rows(window, 1.0)
    found = models.probabilities(window, rows)
    assert np.flatnonzero(np.isnan(found)).tolist() == [4]
    assert rows.user_rows[5:8].tolist() == [UNKNOWN] * 3
    keys = rows.clusters.keys[rows.clusters.codes]
    assert keys[5] == keys[6] != keys[7]
    assert (keys[5:8] < UNKNOWN).all()


def test_labels_that_have_not_come(models: BundleModels, cut):
    window = cut(15, 17)
    table = window.interactions.slice(0, 4)
    labels = pa.array([1.0, None, 0.0, 1.0], pa.float32())
    table = table.set_column(table.column_names.index(LABEL), LABEL, labels)
    rows = models.rows(replace(window, interactions=table), 1.0)
    assert rows.labels.tolist() == [True, False, False, True]
    assert rows.has_label.tolist() == [True, False, True, True]
    assert rows.taken.tolist() == [True, False, False, True]


def test_ids_of_another_kind_are_refused():
    with pytest.raises(DataError, match="`user_id` holds int64, the bundle knows ids of type str"):
        find_ids(pa.table({USER_ID: [1, 2]}), USER_ID, pa.array(["1", "2"]))


def test_flat_click_table_is_scored(click_run):
    models = BundleModels(open_bundle(click_run.bundle))
    table = pa.table(
        {
            "site": ["s1", "s2", "s1"],
            "price": [0.1, 2.0, 0.1],
            LABEL: pa.array([1.0, 0, 1], pa.float32()),
        }
    )
    window = Window(interactions=table, start=0, end=0)
    rows = models.rows(window, 1.0)
    found = models.probabilities(window, rows)
    assert found[0] == found[2] != found[1]
    assert ((found > 0) & (found < 1)).all()
    assert len(rows.clusters.keys) == 3


def test_retrieval_alone_has_no_probabilities(csv_run):
    models = BundleModels(open_bundle(csv_run.bundle))
    table = pa.table({USER_ID: [2**53 + 1], ITEM_ID: ["100000"]})
    window = Window(interactions=table, start=0, end=0)
    rows = models.rows(window, 1.0)
    assert models.probabilities(window, rows) is None
    assert rows.labels is None
    assert (rows.user_rows[0], rows.item_rows[0] >= 0) == (0, True)
