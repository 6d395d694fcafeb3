"""Counts of items in training, by hand."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest

from twotower.data.leakage import LeakError, check_leaks
from twotower.data.prepare import prepare
from twotower.data.schema import TRAIN, DataError, Label, Tables
from twotower.data.split import GivenSplit
from twotower.features.frequency import ItemFrequency
from twotower.features.infer import AutoSpec, PipelineFactory

LOG = {
    "user_id": [1, 1, 2, 2, 3, 3, 3],
    "item_id": ["a", "b", "a", "c", "d", "a", "b"],
    "timestamp": [1, 2, 3, 4, 5, 6, 7],
    "label": pa.array([1, 1, 1, 0, 1, 1, 1], pa.float32()),
    "split": pa.array([0, 0, 0, 0, 1, 2, 2], pa.int8()),
}
ITEMS = {"item_id": ["e", "a", "b"]}


@dataclass(frozen=True)
class Made:
    tables: Tables
    name: str = "made"

    def fingerprint(self):
        return "1"

    def read(self):
        return self.tables


def prepared_of(tables, root):
    encoders = PipelineFactory(provider=AutoSpec())
    return prepare(source=Made(tables), splitter=GivenSplit(), encoders=encoders, root=root)


@pytest.fixture
def prepared(tmp_path):
    tables = Tables(interactions=pa.table(LOG), items=pa.table(ITEMS), label=Label())
    return prepared_of(tables, tmp_path)


def part(prepared, code):
    return np.flatnonzero(prepared.interactions.split == code)


def test_training_positives_are_counted(prepared):
    frequency = ItemFrequency.count(prepared, part(prepared, TRAIN))
    assert prepared.items.ids.to_pylist()[: prepared.num_catalogue] == ["e", "a", "b", "c"]
    assert frequency.counts.tolist() == [0, 2, 1, 0]  # c was shown, not taken
    assert frequency.probability() == pytest.approx([0, 2 / 3, 1 / 3, 0])
    check_leaks({"frequency": frequency.fitted_on}, prepared.training)


def test_counting_all_rows_is_a_leak(prepared):
    frequency = ItemFrequency.count(prepared, np.arange(7))
    with pytest.raises(LeakError, match="item frequencies was fitted on 7 rows instead of the 4"):
        check_leaks({"item frequencies": frequency.fitted_on}, prepared.training)


def test_the_order_of_rows_does_not_matter(prepared):
    rows = part(prepared, TRAIN)
    forward, backward = (ItemFrequency.count(prepared, r) for r in (rows, rows[::-1]))
    assert forward.fitted_on == backward.fitted_on
    assert forward.counts.tolist() == backward.counts.tolist()


def test_nothing_was_taken(prepared):
    frequency = ItemFrequency.count(prepared, np.array([], np.int64))
    assert frequency.probability().tolist() == [0, 0, 0, 0]


def test_a_flat_table_has_no_frequencies(tmp_path):
    log = pa.table({"label": LOG["label"], "split": LOG["split"], "x": list("aabbccd")})
    flat = prepared_of(Tables(interactions=log, label=Label(), context=("x",)), tmp_path)
    with pytest.raises(DataError, match="retrieval needs `user_id` and `item_id`"):
        ItemFrequency.count(flat, np.arange(7))
