"""The final order of a log, its events and the ends of histories, against loops over the rows."""

import numpy as np
import pyarrow as pa
import pytest

from twotower.data.arrange import (
    align,
    arrange,
    catalogue_first,
    entity_rows,
    label_and_split,
    recommendable,
)
from twotower.data.schema import Label, Tables
from twotower.data.split import GivenSplit

RATING = Label(column="rating", minimum=0, maximum=5, positive_from=3)


def table_of(columns):
    types = {"label": pa.float32(), "weight": pa.float32(), "split": pa.int8()}
    return pa.table({k: pa.array(v, types.get(k)) for k, v in columns.items()})


def random_log(seed, *, label, times=True):
    rng = np.random.default_rng(seed)
    count = 150
    columns = {
        "user_id": [f"u{i}" for i in rng.integers(0, 10, count)],
        "item_id": rng.integers(0, 12, count).tolist(),
        "split": rng.integers(0, 3, count).tolist(),
        "weight": rng.random(count).tolist(),
    }
    if times:
        columns["timestamp"] = rng.integers(0, 8, count).tolist()  # many ties
    if label:
        columns["label"] = rng.integers(0, 6, count).tolist()
    return Tables(interactions=table_of(columns), label=RATING if label else None)


def arranged(tables):
    ids, rows = entity_rows(tables)
    labelled = label_and_split(tables, GivenSplit(), rows)
    return ids, arrange(tables, labelled, rows, len(ids["user_id"]))


def history_slowly(log, row):
    """Items of what the user of a row had done before, by the words of the module."""
    positives_alone = all(log["positive"])
    keys = list(zip(log["split"], log["timestamp"], range(len(log["split"])), strict=True))
    if "label" in log and not positives_alone:
        keys = [key[:2] for key in keys] if log["timed"] else keys
    mine = [
        other
        for other in range(len(keys))
        if log["user_id"][other] == log["user_id"][row]
        and log["positive"][other]
        and keys[other] < keys[row]
    ]
    mine.sort(key=lambda other: (log["split"][other], log["timestamp"][other], other))
    return [log["item_id"][other] for other in mine]


@pytest.mark.parametrize("times", [True, False])
@pytest.mark.parametrize("label", [True, False])
@pytest.mark.parametrize("seed", [0, 1])
def test_histories_against_a_loop(seed, label, times):
    tables = random_log(seed, label=label, times=times)
    log = tables.interactions.to_pydict()
    log["timed"] = times
    log.setdefault("timestamp", [0] * len(log["split"]))
    log["positive"] = [r >= 3 for r in log["label"]] if label else [True] * len(log["split"])
    ids, result = arranged(tables)
    columns, events = result.columns, result.events
    assert sorted(columns["rows"].tolist()) == list(range(len(log["split"])))
    for place, row in enumerate(columns["rows"]):
        start = events["offsets"][columns["user_rows"][place]]
        items = events["item_rows"][start : columns["history_end"][place]]
        assert ids["item_id"].take(pa.array(items)).to_pylist() == history_slowly(log, row)


@pytest.mark.parametrize("label", [True, False])
def test_rows_and_events_lie_by_user_part_time_and_table_order(label):
    tables = random_log(3, label=label)
    log = tables.interactions.to_pydict()
    ids, result = arranged(tables)
    columns, events = result.columns, result.events
    users = ids["user_id"].to_pylist()
    expected = sorted(
        range(len(log["split"])),
        key=lambda r: (users.index(log["user_id"][r]), log["split"][r], log["timestamp"][r], r),
    )
    assert columns["rows"].tolist() == expected
    assert result.table.to_pydict() == tables.interactions.take(pa.array(expected)).to_pydict()
    for name, source in (("split", "split"), ("timestamps", "timestamp")):
        assert columns[name].tolist() == [log[source][r] for r in expected]
    assert columns["weights"].tolist() == [log["weight"][r] for r in expected]
    assert [users[u] for u in columns["user_rows"]] == [log["user_id"][r] for r in expected]
    positives = [p for p, r in enumerate(expected) if not label or log["label"][r] >= 3]
    assert columns["positive"].nonzero()[0].tolist() == positives
    assert events["interactions"].tolist() == positives
    assert events["split"].tolist() == [log["split"][expected[p]] for p in positives]
    found = ids["item_id"].take(pa.array(events["item_rows"])).to_pylist()
    assert found == [log["item_id"][expected[p]] for p in positives]
    owners = [log["user_id"][expected[p]] for p in positives]
    assert np.diff(events["offsets"]).tolist() == [owners.count(user) for user in users]


def test_the_slate_of_a_click_is_no_part_of_its_history():
    tables = Tables(
        interactions=table_of(
            {
                "user_id": ["a"] * 5,
                "item_id": [10, 11, 12, 13, 14],
                "timestamp": [1, 1, 2, 2, 3],
                "label": [1, 1, 0, 1, 0],
                "split": [0, 0, 0, 1, 2],
            }
        ),
        label=Label(),
    )
    _, result = arranged(tables)
    assert result.columns["history_end"].tolist() == [0, 0, 2, 2, 3]


def test_a_log_of_positives_goes_by_table_order_within_an_instant():
    log = {"user_id": ["a"] * 3, "item_id": [1, 2, 3], "timestamp": [5] * 3, "split": [0, 1, 2]}
    _, result = arranged(Tables(interactions=table_of(log)))
    assert result.columns["history_end"].tolist() == [0, 1, 2]


def test_users_without_positives_have_no_events():
    log = {"user_id": ["a", "b", "c"], "item_id": [1, 2, 3], "label": [0, 1, 0]}
    tables = Tables(interactions=table_of(log | {"split": [0, 1, 2]}), label=Label())
    _, result = arranged(tables)
    assert result.events["offsets"].tolist() == [0, 0, 1, 1]


def test_a_flat_table_has_no_events_and_empty_histories():
    tables = Tables(interactions=table_of({"label": [0, 1, 1], "split": [2, 0, 1]}), label=Label())
    ids, rows = entity_rows(tables)
    assert (ids, rows) == ({}, {})
    result = arrange(tables, label_and_split(tables, GivenSplit(), rows), rows, None)
    assert result.events is None
    assert result.columns["rows"].tolist() == [1, 2, 0]
    assert result.columns["labels"].tolist() == [1, 1, 0]
    assert result.columns["history_end"].tolist() == [0, 0, 0]


def test_labels_and_weights_by_default():
    tables = Tables(interactions=table_of({"split": [0, 1, 2]}))
    labelled = label_and_split(tables, GivenSplit(), {})
    for name, dtype in (("labels", np.float32), ("weights", np.float32), ("positive", np.bool_)):
        assert labelled[name].tolist() == [1, 1, 1]
        assert labelled[name].dtype == dtype
    assert "timestamps" not in labelled


def test_entities_are_those_of_the_side_table_then_those_of_the_log():
    interactions = table_of({"user_id": ["z", "b", "z"], "item_id": [7, 5, 9]})
    items = pa.table({"item_id": [5, 6], "price": [0.5, 0.6]})
    ids, rows = entity_rows(Tables(interactions=interactions, items=items))
    assert ids["user_id"].to_pylist() == ["z", "b"]
    assert rows["user_id"].tolist() == [0, 1, 0]
    assert ids["item_id"].to_pylist() == [5, 6, 7, 9]
    assert rows["item_id"].tolist() == [2, 0, 3]


def test_who_may_be_recommended():
    interactions = table_of({"item_id": [7, 8, 9]})  # rows 2, 3 and 4
    tables = Tables(interactions=interactions, items=pa.table({"item_id": [5, 6]}))
    ids, rows = entity_rows(tables)
    split = np.array([0, 1, 2])
    names = {
        which: ids["item_id"].filter(
            pa.array(recommendable(which, tables, rows["item_id"], split, 5))
        )
        for which in ("all", "interacted")
    }
    assert names["all"].to_pylist() == [5, 6, 7]  # 8 and 9 are known from held-out rows alone
    assert names["interacted"].to_pylist() == [7, 8, 9]


def test_items_that_may_be_recommended_come_first_in_their_order():
    ids, rows = catalogue_first(
        pa.array(["a", "b", "c", "d"]),
        np.array([0, 1, 2, 3, 1]),
        np.array([False, True, False, True]),
    )
    assert ids.to_pylist() == ["b", "d", "a", "c"]
    assert ids.take(pa.array(rows)).to_pylist() == ["a", "b", "c", "d", "b"]


def test_many_items_keep_their_order():
    allowed = np.random.default_rng(0).random(5000) < 0.5
    ids, _ = catalogue_first(pa.array(np.arange(5000)), np.zeros(1, np.int64), allowed)
    expected = [*np.flatnonzero(allowed).tolist(), *np.flatnonzero(~allowed).tolist()]
    assert ids.to_pylist() == expected


def test_a_side_table_is_aligned_with_nulls_for_whom_it_lacks():
    ids = pa.array([2**53 + 1, 4, 2**53])
    side = pa.table({"age": [1.5, 2.5], "item_id": [4, 2**53], "v": [[1.0, 2.0], None]})
    assert align("item_id", ids, side).to_pydict() == {
        "item_id": [2**53 + 1, 4, 2**53],
        "age": [None, 1.5, 2.5],
        "v": [None, [1.0, 2.0], None],
    }
    assert align("item_id", ids, None).to_pydict() == {"item_id": ids.to_pylist()}
    assert align("item_id", None, side) is None
