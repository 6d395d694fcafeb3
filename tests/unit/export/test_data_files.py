"""What goes from the prepared data set into the bundle, by hand."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from twotower.data.prepare import prepare
from twotower.data.prepared import FEATURES_FOLDER, Entities, Prepared
from twotower.data.schema import Tables
from twotower.data.split import GivenSplit
from twotower.export import data_files as module
from twotower.export.bundle import _entities
from twotower.export.data_files import _write_entities, catalogue_only, counts, write_data
from twotower.features.infer import GivenSpec, PipelineFactory
from twotower.features.pipeline import FeaturePipeline
from twotower.features.spec import Feature, FeatureSpec, History

TRAIN, VALIDATION, TEST = 0, 1, 2

# user, item, time in seconds, part; "new" and "late" are known from held-out rows alone.
LOG = [
    ("ann", "x", 1, TRAIN),
    ("ann", "y", 2, TRAIN),
    ("ann", "new", 3, VALIDATION),
    ("ann", "z", 4, TEST),
    ("bob", "y", 1, TRAIN),
    ("bob", "late", 2, VALIDATION),
    ("cid", "z", 1, TRAIN),
    ("cid", "y", 2, TRAIN),
    ("cid", "new", 3, TEST),
    ("cid", "x", 4, TEST),
]


@dataclass(frozen=True)
class Events:
    """The log above as a source."""

    name: str = "events"

    def fingerprint(self) -> str:
        return "events"

    def read(self) -> Tables:
        columns = [list(column) for column in zip(*LOG, strict=True)]
        columns[2] = [seconds * 1_000_000 for seconds in columns[2]]
        types = [pa.string(), pa.string(), pa.int64(), pa.int8()]
        arrays = [pa.array(c, t) for c, t in zip(columns, types, strict=True)]
        return Tables(interactions=pa.table(arrays, ["user_id", "item_id", "timestamp", "split"]))


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    spec = FeatureSpec(
        features=(Feature(name="item_id", side="item", kind="id"),), history=History(length=2)
    )
    return prepare(
        source=Events(),
        splitter=GivenSplit(),
        encoders=PipelineFactory(provider=GivenSpec(given=spec)),
        root=tmp_path_factory.mktemp("events"),
    )


def lists(data: Prepared) -> dict[str, list[str]]:
    """Items of every user, oldest first."""
    table, users, items = data.require_events()
    ids = items.ids.to_pylist()
    return {
        user: [ids[row] for row in table.item_rows[table.offsets[u] : table.offsets[u + 1]]]
        for u, user in enumerate(users.ids.to_pylist())
    }


def test_events_of_the_catalogue_alone(events: Prepared) -> None:
    assert events.num_catalogue == 3
    data = catalogue_only(events)
    assert lists(data) == {"ann": ["x", "y", "z"], "bob": ["y"], "cid": ["z", "y", "x"]}
    assert data.events is not None
    np.testing.assert_array_equal(data.events.split, [0, 0, 2, 0, 0, 0, 2])
    rows = data.interactions.rows[data.events.interactions]
    assert [LOG[row][:2] for row in rows] == [
        ("ann", "x"), ("ann", "y"), ("ann", "z"), ("bob", "y"),
        ("cid", "z"), ("cid", "y"), ("cid", "x"),
    ]  # fmt: skip


def test_histories_end_where_they_did(events: Prepared) -> None:
    data = catalogue_only(events)
    table, users, _ = data.require_events()
    log, owners = data.interactions, users.ids.to_pylist()
    found = {}
    for place, row in enumerate(log.rows):
        user, item = LOG[row][:2]
        start = table.offsets[owners.index(user)]
        found[user, item] = log.history_end[place] - start
    assert found == {
        ("ann", "x"): 0, ("ann", "y"): 1, ("ann", "new"): 2, ("ann", "z"): 2,
        ("bob", "y"): 0, ("bob", "late"): 1,
        ("cid", "z"): 0, ("cid", "y"): 1, ("cid", "new"): 2, ("cid", "x"): 2,
    }  # fmt: skip


def test_the_data_set_itself_stays_as_it_was(events: Prepared) -> None:
    catalogue_only(events)
    assert lists(events)["bob"] == ["y", "late"]


def test_files(events: Prepared, tmp_path: Path) -> None:
    data = catalogue_only(events)
    write_data(tmp_path, data, FeaturePipeline.load(events.folder / FEATURES_FOLDER))
    items = events.require_events()[2].ids.to_pylist()
    # y has three training events, x and z have one each: the lower row comes first.
    ranked = [items[row] for row in np.load(tmp_path / "popular.npy")]
    assert ranked == ["y", *sorted(["x", "z"], key=items.index)]
    columns = np.load(tmp_path / "items" / "columns.rows")
    assert columns.dtype.names == ("item_id",)
    np.testing.assert_array_equal(columns["item_id"], data.items.columns["item_id"][:3])
    assert np.load(tmp_path / "events" / "offsets.npy").tolist() == [0, 3, 4, 7]
    assert np.load(tmp_path / "events" / "times.npy").tolist() == [1, 2, 4, 1, 1, 2, 4]
    assert {path.name for path in (tmp_path / "users").iterdir()} == {"table.arrow"}
    assert counts(data) == {"items": 3, "users": 3, "events": 7}


def test_columns_stand_row_by_row_but_for_long_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ROWS_OF_A_BLOCK", 2)
    rng = np.random.default_rng(0)
    columns = {
        "id": np.arange(5, dtype=np.int32),
        "日 a.b": rng.normal(size=(5, 2)).astype(np.float32),
        "tags": rng.integers(9, size=(5, 16)).astype(np.int32),  # 64 bytes
        "picture": rng.normal(size=(5, 17)).astype(np.float32),  # 68 bytes
    }
    table = pa.table({"item_id": list("abcde")})
    _write_entities(
        tmp_path / "items", Entities(ids=table["item_id"], table=table, columns=columns), 4
    )
    names = {path.name for path in (tmp_path / "items").iterdir()}
    assert names == {"table.arrow", "columns.rows", "picture.npy"}
    assert np.load(tmp_path / "items" / "columns.rows").dtype.itemsize == 4 + 8 + 64
    read = _entities(tmp_path / "items")
    assert read.ids.to_pylist() == list("abcd")
    assert read.columns.keys() == columns.keys()
    for name, column in columns.items():
        np.testing.assert_array_equal(read.columns[name], column[:4])
        assert read.columns[name].dtype == column.dtype
        np.testing.assert_array_equal(read.columns[name][[3, 0]], column[[3, 0]])


def test_a_log_without_events_stays_as_it_is(events: Prepared) -> None:
    flat = replace(events, events=None, users=None, items=None)
    assert catalogue_only(flat) is flat
    assert counts(flat) == {"items": None, "users": None, "events": None}
