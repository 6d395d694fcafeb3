"""Search, saving and loading of a FAISS index; numpy is the oracle."""

import json

import numpy as np
import pytest

from twotower.index.faiss_index import load_index
from twotower.index.faiss_library import faiss
from twotower.index.flat import Flat


@pytest.fixture
def saved(tmp_path, clustered):
    items, _ = clustered
    Flat(device="cpu").build(items[:40]).save(tmp_path)
    return tmp_path


def change_facts(folder, **changes):
    path = folder / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_ties_are_ordered_by_row():
    items = np.array([[1, 0], [0, 1], [1, 0], [2, 0], [1, 0]], dtype=np.float32)
    result = Flat(device="cpu").build(items).search(np.array([[1, 0]], dtype=np.float32), 5)
    assert result.rows.tolist() == [[3, 0, 2, 4, 1]]
    assert result.scores.tolist() == [[2, 1, 1, 1, 0]]


def test_scores_are_inner_products_also_for_long_and_opposite_vectors():
    items = np.array([[3, 4], [-30, -40], [0, 0]], dtype=np.float32)
    result = Flat(device="cpu").build(items).search(np.array([[1, 2]], dtype=np.float64), 3)
    assert result.rows.tolist() == [[0, 2, 1]]
    assert result.scores.tolist() == [[11, 0, -110]]


def test_facts_are_written(saved):
    facts = json.loads((saved / "index.json").read_text())
    assert facts.pop("faiss") == faiss.__version__
    assert facts == {
        "version": 1,
        "kind": "flat",
        "settings": "exact",
        "metric": "inner_product",
        "dim": 16,
        "num_items": 40,
    }


def test_description(saved):
    assert load_index(saved).description == "flat (exact) on cpu: 40 items x 16, inner product"


def test_saving_again_replaces(saved, clustered):
    items, queries = clustered
    bigger = Flat(device="cpu").build(items)
    bigger.save(saved)
    loaded = load_index(saved)
    assert loaded.num_items == 3_000
    np.testing.assert_array_equal(loaded.search(queries, 5).rows, bigger.search(queries, 5).rows)


@pytest.mark.parametrize(
    ("queries", "k", "message"),
    [
        (np.zeros((1, 3), np.float32), 1, r"queries must have shape \(n, 16\), got \(1, 3\)"),
        (np.zeros(16, np.float32), 1, r"queries must have shape \(n, 16\), got \(16,\)"),
        (np.full((1, 16), np.nan, np.float32), 1, "queries must be finite"),
        (np.zeros((1, 16), np.float32), 0, "k must be at least 1, got 0"),
    ],
)
def test_bad_searches(saved, queries, k, message):
    index = load_index(saved)
    with pytest.raises(ValueError, match=message):
        index.search(queries, k)


def test_missing_facts(tmp_path):
    with pytest.raises(ValueError, match=r"holds no index: index\.json is missing"):
        load_index(tmp_path)


def test_unreadable_facts(saved):
    (saved / "index.json").write_text("{")
    with pytest.raises(ValueError, match=r"index\.json is not readable JSON"):
        load_index(saved)


def test_incomplete_facts(saved):
    (saved / "index.json").write_text('{"version": 1}')
    with pytest.raises(ValueError, match="must hold dim, kind, metric, num_items, settings"):
        load_index(saved)


def test_other_format_version(saved):
    change_facts(saved, version=2)
    with pytest.raises(ValueError, match="format version 2, allowed is 1"):
        load_index(saved)


def test_missing_index_file(saved):
    (saved / "index.faiss").unlink()
    with pytest.raises(ValueError, match=r"index\.faiss is not a readable FAISS index"):
        load_index(saved)


def test_truncated_index_file(saved):
    path = saved / "index.faiss"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"index\.faiss is not a readable FAISS index"):
        load_index(saved)


def test_all_contradictions_are_named(saved):
    change_facts(saved, dim=17, num_items=41)
    with pytest.raises(ValueError, match="stated dim 17, num_items 41; found dim 16, num_items 40"):
        load_index(saved)


def test_another_metric_is_refused(saved):
    faiss.write_index(faiss.IndexFlatL2(16), str(saved / "index.faiss"))
    with pytest.raises(ValueError, match="stated num_items 40, metric inner_product; found"):
        load_index(saved)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.zeros((0, 4), np.float32), "an index needs at least one item, got none"),
        (np.zeros(4, np.float32), r"item vectors must have shape \(n, D\), got \(4,\)"),
        (np.zeros((4, 2), np.int64), "item vectors must be floating point numbers, got int64"),
        (np.array([[0.0], [np.inf]]), r"item vectors must be finite.* 1 rows, first \[1\]"),
    ],
)
def test_bad_item_vectors(vectors, message):
    with pytest.raises(ValueError, match=message):
        Flat(device="cpu").build(vectors)


def test_flat_size(saved):
    assert Flat().memory_bytes(40, 16) == 40 * 16 * 4
    assert (saved / "index.faiss").stat().st_size == pytest.approx(40 * 16 * 4, rel=0.05)
