"""Gathers against a loop over rows, and a loader that continues where it stopped."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from twotower.data.batches import ColumnNames, Columns
from twotower.data.schema import TRAIN, Label, Tables
from twotower.features.infer import GivenSpec
from twotower.features.spec import Feature, FeatureSpec, History

LENGTH = 4
NAMES = ColumnNames(
    user=["user_id", "age"],
    item=["item_id", "genres"],
    context=["device"],
    history=["item_id", "genres", "image", "price"],
    history_length=LENGTH,
)
SPEC = FeatureSpec(
    features=(
        Feature(name="user_id", side="user", kind="id"),
        Feature(name="age", side="user", kind="numeric"),
        Feature(name="item_id", side="item", kind="id", min_count=3),
        Feature(name="genres", side="item", kind="tags"),
        Feature(name="image", side="item", kind="vector"),
        Feature(name="price", side="item", kind="numeric"),
        Feature(name="device", side="context", kind="categorical"),
    ),
    history=History(length=LENGTH),
)
CPU = torch.device("cpu")


def tables_of(*, label):
    rng = np.random.default_rng(0)
    count, num_items = 140, 20
    log = {
        "user_id": rng.integers(0, 9, count),
        "item_id": rng.integers(0, num_items, count),
        "timestamp": rng.integers(0, 50, count) * 1_400_000,  # microseconds
        "split": pa.array(rng.integers(0, 3, count), pa.int8()),
        "weight": pa.array(rng.random(count), pa.float32()),
        "device": rng.choice(["a", "b"], count),
    }
    if label:
        log["label"] = pa.array(rng.integers(0, 2, count), pa.float32())
    items = {
        "item_id": np.arange(num_items),
        "genres": [["x", "y", "z"][: k % 4] for k in range(num_items)],
        "image": list(rng.normal(size=(num_items, 3)).astype(np.float32)),
        "price": rng.random(num_items),
    }
    return Tables(
        interactions=pa.table(log),
        users=pa.table({"user_id": np.arange(12), "age": rng.random(12)}),  # 9 to 11 never come
        items=pa.table(items),
        label=Label() if label else None,
        context=("device",),
    )


@pytest.fixture(params=[True, False], ids=["impressions", "positives"])
def prepared(request, prepare_tables):
    return prepare_tables(tables_of(label=request.param), features=GivenSpec(given=SPEC))


@pytest.fixture(params=["device", "host", "disk"])
def columns(request, prepared):
    return Columns(prepared, NAMES, CPU, request.param)


def history_slowly(prepared, user, end):
    """Rows of the items, -1 where there is no event."""
    first = int(prepared.events.offsets[user])
    places = [place for place in range(end - LENGTH, end)]
    return [int(prepared.events.item_rows[p]) if p >= first else -1 for p in places]


def test_the_history_of_every_row_against_a_loop(prepared, columns):
    log = prepared.interactions
    rows = torch.randperm(len(log.rows), generator=torch.Generator().manual_seed(0))
    batch = columns.queries(rows)
    lengths = set()
    for place, row in enumerate(rows.tolist()):
        expected = history_slowly(prepared, log.user_rows[row], int(log.history_end[row]))
        mask = [item >= 0 for item in expected]
        assert batch["history.mask"][place].tolist() == mask
        lengths.add(sum(mask))
        for name in NAMES.history:
            column = prepared.items.columns[name]
            wanted = [column[i] if i >= 0 else np.zeros_like(column[0]) for i in expected]
            assert batch[f"history.{name}"][place].tolist() == np.stack(wanted).tolist()
    assert lengths == {0, 1, 2, 3, 4}


def test_histories_one_behind_the_other_are_those_with_padding(prepared, columns):
    rows = torch.randperm(len(prepared.interactions.rows))
    padded, flat = columns.queries(rows), columns.queries(rows, columns.history_sets)
    mask, offsets = padded["history.mask"], flat["history.offsets"]
    assert offsets.diff().tolist() == mask.sum(dim=1).tolist()
    assert offsets[0] == 0
    for name in NAMES.history:
        assert torch.equal(flat[f"history.{name}"], padded[f"history.{name}"][mask])
    others = [name for name in padded if not name.startswith("history.")]
    assert all(torch.equal(flat[name], padded[name]) for name in others)


def test_times_of_the_events_against_a_loop(prepared):
    names = replace(NAMES, history_times=True)
    log, events = prepared.interactions, prepared.events
    batch = Columns(prepared, names, CPU).queries(torch.arange(len(log.rows)))
    raw = tables_of(label=prepared.has_impressions).interactions["timestamp"].to_pylist()
    for row, user in enumerate(log.user_rows.tolist()):
        end, first = int(log.history_end[row]), int(events.offsets[user])
        rows = [log.rows[events.interactions[place]] for place in range(first, end)][-LENGTH:]
        seconds = [int(raw[at] / 1e6) for at in rows]
        assert batch["history.time"][row].tolist() == [0] * (LENGTH - len(rows)) + seconds
    assert batch["history.time"].dtype == torch.int64
    assert len(batch["history.time"].unique()) > 20


def test_shapes_and_types(columns):
    batch = columns.examples(torch.tensor([3, 1, 2]))
    assert {name: (tuple(v.shape), v.dtype) for name, v in batch.items()} == {
        "user_id": ((3,), torch.int64),
        "age": ((3, 2), torch.float32),
        "device": ((3,), torch.int64),
        "history.item_id": ((3, LENGTH), torch.int64),
        "history.genres": ((3, LENGTH, 3), torch.int64),
        "history.image": ((3, LENGTH, 3), torch.float32),
        "history.price": ((3, LENGTH, 2), torch.float32),
        "history.mask": ((3, LENGTH), torch.bool),
        "user_rows": ((3,), torch.int64),
        "num_seen": ((3,), torch.int64),
        "item_rows": ((3,), torch.int64),
        "labels": ((3,), torch.float32),
        "weights": ((3,), torch.float32),
    }


def test_examples_are_the_rows_of_the_table(prepared, columns):
    log = prepared.interactions
    batch = columns.examples(torch.arange(len(log.rows)))
    raw = tables_of(label=prepared.has_impressions).interactions
    raw = raw.take(pa.array(log.rows))
    users, items = prepared.users.ids, prepared.items.ids
    assert users.take(pa.array(batch["user_rows"].numpy())) == raw["user_id"].combine_chunks()
    assert items.take(pa.array(batch["item_rows"].numpy())) == raw["item_id"].combine_chunks()
    assert batch["weights"].tolist() == raw["weight"].to_pylist()
    for name in NAMES.user:
        assert batch[name].tolist() == prepared.users.columns[name][log.user_rows].tolist()
    labels = raw["label"].to_pylist() if "label" in raw.column_names else [1.0] * raw.num_rows
    assert batch["labels"].tolist() == labels
    of_items = columns.items(batch["item_rows"])
    for name in NAMES.item:
        assert of_items[name].tolist() == prepared.items.columns[name][log.item_rows].tolist()
    assert batch["device"].tolist() == log.context["device"].tolist()


def test_an_item_that_training_hardly_saw_is_an_event_with_row_zero(prepared, columns):
    events = prepared.events
    ids = prepared.items.columns["item_id"][events.item_rows]
    users = np.repeat(np.arange(len(prepared.users)), np.diff(events.offsets))
    rare = int(np.flatnonzero(ids == 0)[0])
    batch = columns.history(torch.tensor([users[rare]]), torch.tensor([rare + 1]))
    assert batch["history.mask"][0, -1]
    assert batch["history.item_id"][0, -1] == 0
    price = prepared.items.columns["price"][events.item_rows[rare]]
    assert batch["history.price"][0, -1].tolist() == price.tolist()


def test_users_without_events_have_an_empty_history(prepared, columns):
    for user in (9, 10, 11):
        end = int(prepared.events.offsets[user])
        batch = columns.history(torch.tensor([user]), torch.tensor([end]))
        assert not batch["history.mask"].any()
        assert all(not batch[f"history.{name}"].any() for name in NAMES.history)


@pytest.mark.parametrize(
    "changes", [{"history_length": 0}, {"history": []}], ids=["no length", "no features"]
)
def test_no_history_is_asked_for(prepared, changes):
    names = ColumnNames(**({f: getattr(NAMES, f) for f in NAMES.__dataclass_fields__} | changes))
    batch = Columns(prepared, names, CPU).queries(torch.tensor([0]))
    assert not [name for name in batch if name.startswith("history.")]


def num_known(columns, users):
    known = columns.known_positives(torch.tensor(users))
    return [len(known.owners), len(known.item_rows), len(known.places)]


def test_a_log_without_positives_has_empty_histories(prepare_tables):
    tables = tables_of(label=True)
    place = tables.interactions.column_names.index("label")
    zeros = pa.array(np.zeros(tables.interactions.num_rows), pa.float32())
    log = tables.interactions.set_column(place, "label", zeros)
    silent = Tables(interactions=log, users=tables.users, items=tables.items,
                    label=tables.label, context=tables.context)  # fmt: skip
    prepared = prepare_tables(silent, features=GivenSpec(given=SPEC))
    columns = Columns(prepared, NAMES, CPU)
    assert not columns.queries(torch.tensor([0, 1]))["history.mask"].any()
    assert num_known(columns, [0, 1]) == [0, 0, 0]


def test_a_flat_table(prepare_tables):
    table = pa.table(
        {
            "label": pa.array([0, 1, 1, 0], pa.float32()),
            "split": pa.array([0, 0, 1, 2], pa.int8()),
            "device": ["a", "b", "b", "c"],
        }
    )
    prepared = prepare_tables(Tables(interactions=table, label=Label(), context=("device",)))
    names = ColumnNames(user=[], item=[], context=["device"], history=[], history_length=0)
    columns = Columns(prepared, names, CPU)
    batch = columns.examples(torch.tensor([3, 0]))
    assert {name: value.tolist() for name, value in batch.items()} == {
        "device": [0, 1],
        "labels": [0.0, 0.0],
        "weights": [1.0, 1.0],
    }
    assert num_known(columns, [0]) == [0, 0, 0]


def test_known_positives_are_those_of_training(prepared, columns):
    log = prepared.interactions
    users = torch.tensor([4, 11, 0, 4])
    known = columns.known_positives(users)
    owners, items = known.owners, known.item_rows
    for place, user in enumerate(users.tolist()):
        trained = (log.user_rows == user) & (log.split == TRAIN) & log.positive
        found = sorted(items[owners == place].tolist())
        assert found == sorted(log.item_rows[trained].tolist())
    assert (owners == 1).sum() == 0  # never came
    held_out = (log.user_rows == 4) & (log.split != TRAIN) & log.positive
    assert set(log.item_rows[held_out].tolist()) - set(items[owners == 0].tolist())
    events = prepared.events
    for owner, item, event in zip(owners, items, known.places, strict=True):
        first = events.offsets[users[owner]]
        assert events.item_rows[first + event] == item


def test_a_query_says_how_many_events_of_its_user_lie_before_it(prepared, columns):
    log, events = prepared.interactions, prepared.events
    batch = columns.queries(torch.arange(len(log.rows)))
    for row, num_seen in enumerate(batch["num_seen"].tolist()):
        earlier = range(int(events.offsets[log.user_rows[row]]), int(log.history_end[row]))
        assert num_seen == len(earlier)
        assert min(num_seen, LENGTH) == batch["history.mask"][row].sum()
