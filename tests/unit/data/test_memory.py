"""Tables in memory: brought into canonical form, and refused when they are not in it."""

from __future__ import annotations

import datetime
from dataclasses import dataclass

import pyarrow as pa
import pytest

from twotower.data.memory import canonical_tables, check_source, check_tables
from twotower.data.prepare import prepare
from twotower.data.schema import DataError, Label, Tables
from twotower.data.split import TemporalSplit
from twotower.data.tables import TableSource
from twotower.features.infer import AutoSpec, PipelineFactory

LOG = pa.table(
    {
        "visitor": ["a", "b", "a"],
        "sku": [7, 8, 8],
        "at": ["2020-01-01", "2020-01-01T00:00:01", "2020-01-02"],
        "bought": [1, 0, 1],
        "device": ["phone", "phone", "desktop"],
    }
)
ITEMS = pa.table({"sku": [7, 8], "title": ["Lamp", "Shelf"], "image": [[0.5, 1.0], [0.0, 2.0]]})
COLUMNS = {"user_id": "visitor", "item_id": "sku", "timestamp": "at"}


def test_tables_in_memory_become_what_the_same_files_become(tmp_path):
    pa.parquet.write_table(LOG, tmp_path / "log.parquet")
    pa.parquet.write_table(ITEMS, tmp_path / "items.parquet")
    label = Label(column="bought")
    from_files = TableSource(
        interactions=str(tmp_path / "log.parquet"),
        items=str(tmp_path / "items.parquet"),
        columns=COLUMNS,
        label=label,
        context=["device"],
    ).read()
    tables = canonical_tables(
        interactions=LOG, items=ITEMS, columns=COLUMNS, label=label, context=["device"]
    )
    assert tables == from_files
    assert tables.interactions["timestamp"].to_pylist()[1] == 1_577_836_801_000_000
    assert check_tables(tables, Own(tables)) is tables


def test_all_problems_of_all_tables_are_said():
    with pytest.raises(DataError) as caught:
        canonical_tables(
            interactions=LOG.append_column("more", LOG["sku"]),
            items=pa.table({"sku": [7, 7]}),
            columns=COLUMNS | {"timestamp": "when"},
        )
    assert [text.split(":")[0] for text in caught.value.problems] == [
        "data.columns.timestamp=when",
        "items",
    ]


@dataclass
class Own:
    """A source of somebody who reads the page on extending."""

    tables: object
    name: str = "own"

    def fingerprint(self):
        return "1"

    def read(self):
        return self.tables


NOW = datetime.datetime(2020, 1, 1)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"timestamp": pa.array([NOW] * 3)}, r"`timestamp` of the interactions is timestamp\[us\]"),
        ({"timestamp": None}, "the interactions have no column `timestamp`"),
        ({"user_id": pa.array([1.0, 2.0, 3.0])}, "`user_id` .* is double, must be int64 or string"),
        ({"item_id": pa.array([1, None, 3])}, "`item_id` of the interactions has 1 nulls"),
        ({"label": pa.array([1, 0, 1])}, "`label` of the interactions is int64, must be float"),
    ],
)
def test_what_is_not_canonical_is_refused(change, problem, tmp_path):
    columns = {
        "user_id": pa.array(["a", "b", "a"]),
        "item_id": pa.array([1, 2, 3]),
        "timestamp": pa.array([1, 2, 3]),
    } | change
    tables = Tables(interactions=pa.table({n: c for n, c in columns.items() if c is not None}))
    with pytest.raises(DataError, match=problem + ".*canonical_tables"):
        prepare(
            source=Own(tables),
            splitter=TemporalSplit(),
            encoders=PipelineFactory(provider=AutoSpec()),
            root=tmp_path / "prepared",
        )
    assert not (tmp_path / "prepared").exists()


def test_users_and_context_are_looked_at_too():
    log = pa.table({"user_id": [1], "item_id": [2], "timestamp": [3]})
    tables = Tables(interactions=log, users=pa.table({"visitor": [1]}), context=("device",))
    with pytest.raises(DataError) as caught:
        check_tables(tables, Own(tables))
    first, second = caught.value.problems
    assert "the interactions have no column `device`" in first
    assert "the users have no column `user_id`" in second


def test_something_else_than_tables_is_named():
    with pytest.raises(DataError, match=r"Own.read returned builtins.dict, not .*Tables; "):
        check_tables({}, Own({}))


def test_an_object_that_is_no_source_is_named():
    with pytest.raises(
        DataError, match=r"builtins\.dict is no source, it has no name, fingerprint"
    ):
        check_source({})
    check_source(Own(None))
