"""Ids are numbered over all blocks as they appear."""

import numpy as np
import pyarrow as pa
import pytest

from twotower.data import spill as module
from twotower.data.schema import Label, Tables
from twotower.data.spill import Log, number_ids, spill, write_block
from twotower.data.workers import Budget, Scratch, Threads


@pytest.mark.parametrize("at_least", [1, 20, 10_000])
@pytest.mark.parametrize("text", [True, False])
def test_ids_are_numbered_as_in_a_dictionary(tmp_path, monkeypatch, at_least, text):
    monkeypatch.setattr(module, "MIN_NUMBERED", at_least)
    rng = np.random.default_rng(0)
    blocks = [rng.integers(0, 60 * (k + 1), size) for k, size in enumerate((30, 0, 200, 1, 70))]
    shown = [[f"ü{v}" if text else int(v) for v in block] for block in blocks]
    listed = ["ü3", "zz", "ü500"] if text else [3, -9, 500]
    kind = pa.string() if text else pa.int64()
    for number, block in enumerate(shown):
        write_block(tmp_path, number, pa.table({"user_id": pa.array(block, kind)}))
    ids = number_ids(tmp_path, "user_id", len(blocks), pa.array(listed, kind))
    expected = list(dict.fromkeys([*listed, *(v for block in shown for v in block)]))
    assert ids.to_pylist() == expected
    log = Log(
        folder=tmp_path,
        tables=Tables(interactions=pa.table({"user_id": pa.array([], kind)})),
        lengths=tuple(map(len, blocks)),
        ids={"user_id": ids},
    )
    for number, block in enumerate(shown):
        rows = log.entity_rows(number, "user_id")
        assert rows.dtype == np.int32
        assert [expected[row] for row in rows] == block
    assert log.starts == (0, 30, 30, 230, 231)
    assert log.num_rows == 301


def test_tables_in_memory_are_set_down_in_blocks(tmp_path):
    table = pa.table(
        {
            "user_id": ["b", "a", "b", "c", "b"],
            "item_id": [5, 5, 7, 9, 7],
            "label": pa.array([1, 0, 1, 0, 1], pa.float32()),
            "tags": [["x"], None, [], ["y", "z"], ["x"]],
        }
    )
    items = pa.table({"item_id": [9, 1]})
    scratch = Scratch(
        folder=tmp_path, workers=Threads(), budget=Budget(rows_per_block=2, rows_per_bucket=9)
    )
    tables = spill(Tables(interactions=table, items=items, label=Label()), scratch)
    assert tables.interactions.num_rows == 0
    assert tables.interactions.schema == table.schema
    log = Log.of(tables, tmp_path)
    assert log.lengths == (2, 2, 1)
    assert {name: ids.to_pylist() for name, ids in log.ids.items()} == {
        "user_id": ["b", "a", "c"],
        "item_id": [9, 1, 5, 7],
    }
    assert [log.entity_rows(b, "item_id").tolist() for b in range(3)] == [[2, 2], [3, 0], [3]]
    assert [log.positive(b).tolist() for b in range(3)] == [[True, False], [True, False], [True]]
    assert log.table(1).column("tags").to_pylist() == [[], ["y", "z"]]
