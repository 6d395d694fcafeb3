"""The final order of a log, its events and the ends of histories, against loops over the rows."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from twotower.data.arrange import Buckets
from twotower.data.entities import align, catalogue_first
from twotower.data.schema import Label, Tables
from twotower.data.workers import Budget
from twotower.features.infer import GivenSpec
from twotower.features.spec import Feature, FeatureSpec, History

RATING = Label(column="rating", minimum=0, maximum=5, positive_from=3)
ROW = FeatureSpec(
    features=(Feature(name="number", side="context", kind="numeric"),), history=History(length=0)
)
BUDGETS = {
    "one bucket": Budget(),
    "many": Budget(rows_per_block=17, rows_per_bucket=13),
    "a user a bucket": Budget(rows_per_block=5, rows_per_bucket=1),
}


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


@dataclass(frozen=True)
class Arranged:
    users: list[Any]
    items: list[Any]
    log: Any
    events: Any


@pytest.fixture(params=BUDGETS)
def arranged(prepare_tables, request):
    """Arrange a log; every row carries its number as a feature."""

    def run(tables):
        numbers = pa.array(np.arange(float(tables.interactions.num_rows)))
        tables = Tables(
            interactions=tables.interactions.append_column("number", numbers),
            label=tables.label,
            context=("number",),
        )
        features = GivenSpec(given=ROW)
        prepared = prepare_tables(tables, features=features, budget=BUDGETS[request.param])
        encoded = prepared.interactions.context["number"][:, 0]
        assert np.argsort(np.argsort(encoded)).tolist() == prepared.interactions.rows.tolist()
        return Arranged(
            users=[] if prepared.users is None else prepared.users.ids.to_pylist(),
            items=[] if prepared.items is None else prepared.items.ids.to_pylist(),
            log=prepared.interactions,
            events=prepared.events,
        )

    return run


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
def test_histories_against_a_loop(arranged, seed, label, times):
    tables = random_log(seed, label=label, times=times)
    log = tables.interactions.to_pydict()
    log["timed"] = times
    log.setdefault("timestamp", [0] * len(log["split"]))
    log["positive"] = [r >= 3 for r in log["label"]] if label else [True] * len(log["split"])
    result = arranged(tables)
    assert sorted(result.log.rows.tolist()) == list(range(len(log["split"])))
    for place, row in enumerate(result.log.rows):
        start = result.events.offsets[result.log.user_rows[place]]
        items = result.events.item_rows[start : result.log.history_end[place]]
        assert [result.items[item] for item in items] == history_slowly(log, row)


@pytest.mark.parametrize("label", [True, False])
def test_rows_and_events_lie_by_user_part_time_and_table_order(arranged, label):
    tables = random_log(3, label=label)
    log = tables.interactions.to_pydict()
    result = arranged(tables)
    columns, events, users = result.log, result.events, result.users
    expected = sorted(
        range(len(log["split"])),
        key=lambda r: (users.index(log["user_id"][r]), log["split"][r], log["timestamp"][r], r),
    )
    assert columns.rows.tolist() == expected
    assert columns.split.tolist() == [log["split"][r] for r in expected]
    assert columns.timestamps.tolist() == [log["timestamp"][r] for r in expected]
    assert columns.weights.tolist() == [log["weight"][r] for r in expected]
    assert [users[u] for u in columns.user_rows] == [log["user_id"][r] for r in expected]
    assert [result.items[i] for i in columns.item_rows] == [log["item_id"][r] for r in expected]
    positives = [p for p, r in enumerate(expected) if not label or log["label"][r] >= 3]
    assert columns.positive.nonzero()[0].tolist() == positives
    assert events.interactions.tolist() == positives
    assert events.split.tolist() == [log["split"][expected[p]] for p in positives]
    found = [result.items[item] for item in events.item_rows]
    assert found == [log["item_id"][expected[p]] for p in positives]
    owners = [log["user_id"][expected[p]] for p in positives]
    assert np.diff(events.offsets).tolist() == [owners.count(user) for user in users]


def test_the_slate_of_a_click_is_no_part_of_its_history(arranged):
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
    assert arranged(tables).log.history_end.tolist() == [0, 0, 2, 2, 3]


def test_a_log_of_positives_goes_by_table_order_within_an_instant(arranged):
    log = {"user_id": ["a"] * 3, "item_id": [1, 2, 3], "timestamp": [5] * 3, "split": [0, 1, 2]}
    assert arranged(Tables(interactions=table_of(log))).log.history_end.tolist() == [0, 1, 2]


def test_users_without_positives_have_no_events(arranged):
    log = {"user_id": ["a", "b", "c"], "item_id": [1, 2, 3], "label": [0, 1, 0]}
    tables = Tables(interactions=table_of(log | {"split": [0, 1, 2]}), label=Label())
    assert arranged(tables).events.offsets.tolist() == [0, 0, 1, 1]


def test_a_flat_table_has_no_events_and_empty_histories(arranged):
    tables = Tables(interactions=table_of({"label": [0, 1, 1], "split": [2, 0, 1]}), label=Label())
    result = arranged(tables)
    assert (result.users, result.items, result.events) == ([], [], None)
    assert result.log.rows.tolist() == [1, 2, 0]
    assert result.log.labels.tolist() == [1, 1, 0]
    assert result.log.history_end.tolist() == [0, 0, 0]


def test_a_flat_table_lies_by_part_time_and_table_order(arranged):
    rng = np.random.default_rng(4)
    times = rng.integers(0, 2**45, 200) // 2**30 * 2**30  # some ties
    split = rng.integers(0, 3, 200)
    log = {"label": rng.integers(0, 2, 200), "timestamp": times, "split": split}
    expected = sorted(range(200), key=lambda row: (split[row], times[row], row))
    assert arranged(Tables(interactions=table_of(log), label=Label())).log.rows.tolist() == expected


def test_labels_and_weights_by_default(arranged):
    log = {"user_id": [1, 2, 3], "item_id": [1, 2, 3], "split": [0, 1, 2]}
    found = arranged(Tables(interactions=table_of(log))).log
    for values, dtype in (
        (found.labels, np.float32),
        (found.weights, np.float32),
        (found.positive, np.bool_),
    ):
        assert values.tolist() == [1, 1, 1]
        assert values.dtype == dtype
    assert found.timestamps is None


def test_buckets_are_ranges_of_keys_with_about_as_many_rows():
    buckets = Buckets.of(np.array([3, 0, 4, 1, 9, 1, 0]), rows_per_bucket=5)
    # rows before each key: 0, 3, 3, 7, 8, 17, 18
    assert buckets.of_key.tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert buckets.starts == (0, 3, 5, 7)
    assert len(buckets) == 3


def test_no_bucket_is_without_rows():
    rng = np.random.default_rng(0)
    for _ in range(50):
        counts = rng.integers(0, 4, 30)
        counts[rng.integers(30)] = 2
        buckets = Buckets.of(counts, rows_per_bucket=int(rng.integers(1, 12)))
        assert np.bincount(buckets.of_key, weights=counts, minlength=len(buckets)).min() > 0
        assert buckets.starts[0] == 0
        assert buckets.starts[-1] == 30


def test_items_that_may_be_recommended_come_first_in_their_order():
    order, renumbered = catalogue_first(np.array([False, True, False, True]))
    assert order.tolist() == [1, 3, 0, 2]
    assert renumbered.tolist() == [2, 0, 3, 1]


def test_many_items_keep_their_order():
    allowed = np.random.default_rng(0).random(5000) < 0.5
    order, _ = catalogue_first(allowed)
    assert order.tolist() == [*np.flatnonzero(allowed), *np.flatnonzero(~allowed)]


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
