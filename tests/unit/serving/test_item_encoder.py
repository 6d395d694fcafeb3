"""Items out of plain values, against the bundle itself and the towers as they were trained."""

from __future__ import annotations

import copy

import numpy as np
import pyarrow as pa
import pytest
import torch

from twotower.cli.load_run import LoadedRun
from twotower.export.bundle import Bundle
from twotower.serving import item_encoder
from twotower.serving.catalogue import BundleItems
from twotower.serving.item_encoder import EncodedItems, ItemEncoder, Problem
from twotower.serving.models import OnnxModel

CLOSE = {"atol": 1e-5, "rtol": 0}
NEW = {
    "title": "Green lamp",
    "category": "jazz",
    "tags": ["fast jazz", "never heard of"],
    "price": 12.5,
    "image_vector": [0.25] * 16,
}


@pytest.fixture(scope="module")
def items(bundle: Bundle) -> BundleItems:
    return BundleItems(bundle, bundle.items)


@pytest.fixture(scope="module")
def encoder(bundle: Bundle, items: BundleItems) -> ItemEncoder:
    return ItemEncoder(bundle.pipeline, items, OnnxModel(bundle.item_tower))


@pytest.mark.parametrize("block", [7, 4096])
def test_items_of_the_bundle_come_out_as_they_are(
    encoder, items, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(item_encoder, "BLOCK", block)
    ids = items.ids.to_pylist()
    rows = [items.values(row) for row in range(len(items))]
    given = [{n: v for n, v in row.items() if n != "item_id"} for row in rows]
    for stated in ([{} for _ in ids], given):  # what is left out stays, what is given is the same
        found = encoder.encode(ids, stated)
        assert isinstance(found, EncodedItems)
        assert found.table.to_pylist() == rows
        for name, column in items.columns.items():
            np.testing.assert_array_equal(found.columns[name], column)
            assert found.columns[name].dtype == column.dtype
        np.testing.assert_allclose(found.vectors, items.vectors, **CLOSE)


@torch.no_grad()
def test_new_and_changed_items_as_the_towers_see_them(
    encoder, items, loaded: LoadedRun, bundle: Bundle
) -> None:
    known = items.ids[4].as_py()
    found = encoder.encode(["new", known], [NEW, {"price": None, "category": "jazz"}])
    assert isinstance(found, EncodedItems)
    assert found.table.to_pylist() == [
        {"item_id": "new", **NEW},
        {**items.values(4), "price": None, "category": "jazz"},
    ]
    vocabulary = bundle.pipeline.transforms["tags"].vocabulary.values.to_pylist()
    assert found.columns["item_id"].tolist() == [0, items.columns["item_id"][4]]
    assert found.columns["tags"][0].tolist() == [vocabulary.index("fast jazz") + 1, 0, 0]
    assert found.columns["price"][1].tolist() == [0.0, 1.0]
    batch = {
        name: torch.from_numpy(np.asarray(c, np.int64 if c.dtype == np.int32 else c.dtype))
        for name, c in found.columns.items()
    }
    expected = loaded.two_tower.embed_items(batch).numpy()
    np.testing.assert_allclose(found.vectors, expected, **CLOSE)


def test_all_problems_of_all_items(encoder) -> None:
    given = [
        NEW | {"price": "cheap", "colour": "red"},
        NEW,
        NEW | {"tags": "jazz", "title": 5, "image_vector": [1.0]},
    ]
    columns = "`item_id`, `title`, `category`, `tags`, `price`, `image_vector`"
    found = encoder.encode(["a", "b", "c"], given)
    assert sorted(found, key=lambda p: (p.item, p.column)) == [
        Problem(item=0, column="colour", text=f"unknown column; allowed: {columns}"),
        Problem(item=0, column="price", text="must be a finite number, got 'cheap'"),
        Problem(item=2, column="image_vector", text="must be a list of 16 values, got 1"),
        Problem(item=2, column="tags", text="must be a list, got 'jazz'"),
        Problem(item=2, column="title", text="must be text, got 5"),
    ]
    assert [p.place for p in found if p.item == 0] == ["items[0].colour", "items[0].price"]
    assert Problem(item=3, column="", text="x").place == "items[3]"


def test_what_a_feature_cannot_take(bundle: Bundle, items: BundleItems) -> None:
    """A column of lists of any length, of which the feature takes one."""
    lists = items.table.column("image_vector").cast(pa.list_(pa.float32()))
    loose = copy.copy(items)
    loose.table = items.table.set_column(5, "image_vector", lists)
    encoder = ItemEncoder(bundle.pipeline, loose, OnnxModel(bundle.item_tower))
    found = encoder.encode(["a", "b"], [NEW, NEW | {"image_vector": [1.0, 2.0]}])
    (problem,) = found
    assert (problem.item, problem.place) == (1, "items[1]")
    assert problem.text.startswith(
        "feature `image_vector` of kind vector: vectors must have 16 numbers, as in the training "
        "part; row 1 has 2"
    )


def test_a_vector_that_is_not_finite(encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(columns: dict) -> np.ndarray:
        return np.array([[0.0, 1.0], [np.nan, 0.0]], np.float32)

    monkeypatch.setattr(encoder._tower, "run", run)
    assert encoder.encode(["a", "b"], [NEW, NEW]) == [
        Problem(item=1, column="", text="the item tower gives no finite vector for it")
    ]
