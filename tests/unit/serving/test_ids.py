"""External ids against a dictionary, as numbers and as text."""

from __future__ import annotations

import gc

import numpy as np
import pyarrow as pa
import pytest

from twotower.features.row_index import RowIndex
from twotower.serving import ids as module
from twotower.serving.ids import find_rows, prepare_to_find


@pytest.mark.parametrize(
    ("ids", "wanted", "rows"),
    [
        (pa.array(["a", "7", "07"]), ["07", 7, "7", "b", ""], [2, 1, 1, -1, -1]),
        (pa.array([7, -5, 2**63 - 1]), [7, "7", "-5", 2**63 - 1, "07", " 7"], [0, 0, 1, 2, -1, -1]),
        (pa.array([1, 0]), [True, 1.0, None, "x", 2**70, -(2**63), 0], [-1] * 6 + [1]),
        (pa.array([], pa.string()), ["a"], [-1]),
        (pa.array(["a"]), [], []),
    ],
)
def test_rows(ids: pa.Array, wanted: list, rows: list) -> None:
    found = find_rows(ids, wanted)
    assert found.tolist() == rows
    assert found.dtype == np.int64


def test_ids_are_gone_through_once_and_forgotten_with_them(monkeypatch) -> None:
    built = []
    once = RowIndex._sorted
    monkeypatch.setattr(RowIndex, "_sorted", lambda self: (built.append(1), once(self))[1])
    ids = pa.array([str(n) for n in range(100)])
    gc.collect()  # those of other tests
    kept = len(module._indexes)
    prepare_to_find(ids)
    assert [find_rows(ids, [n]).tolist() for n in (3, 99, 100)] == [[3], [99], [-1]]
    assert (len(built), len(module._indexes)) == (1, kept + 1)
    del ids
    gc.collect()
    assert len(module._indexes) == kept
