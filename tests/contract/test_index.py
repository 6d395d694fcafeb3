"""Every index against exact search: one suite for all kinds, on the CPU and on a GPU.

The floors of recall@20 hold for the default settings on 2,500 unit vectors around 100 centres.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from twotower.index.base import index_recall
from twotower.index.choose import Auto
from twotower.index.exact import exact_search
from twotower.index.faiss_index import load_index
from twotower.index.faiss_library import faiss
from twotower.index.flat import Flat
from twotower.index.graph import HNSW, Cagra
from twotower.index.inverted_file import IVFPQ, IVFFlat

NUM_ITEMS, DIM, K = 2_500, 16, 20

FLOORS = {
    "flat": (Flat(), 1.0),
    "flat_3_shards": (Flat(num_shards=3), 1.0),
    "ivf_flat": (IVFFlat(), 0.9),
    "ivf_flat_2_shards": (IVFFlat(num_shards=2), 0.9),
    "ivf_pq": (IVFPQ(), 0.9),
    "ivf_pq_2_shards": (IVFPQ(num_shards=2), 0.9),
    "ivf_pq_codes": (IVFPQ(refine=0), 0.6),
    "hnsw": (HNSW(), 0.95),
    "cagra": (Cagra(), 0.9),
    "auto": (Auto(k=K), 1.0),  # takes flat for so few items
}
CASES = [(name, "cpu") for name in FLOORS if name != "cagra"] + [
    pytest.param((name, "gpu"), marks=pytest.mark.gpu) for name in FLOORS if name != "hnsw"
]


@pytest.fixture(scope="module")
def world():
    """Items, queries and the exact top 50 of each."""
    rng = np.random.default_rng(1)
    centres = rng.standard_normal((100, DIM))
    points = centres[rng.integers(0, 100, NUM_ITEMS + 200)]
    points = points + 0.6 * rng.standard_normal(points.shape)
    points = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
    items, queries = points[:NUM_ITEMS], points[NUM_ITEMS:]
    return items, queries, exact_search(torch.from_numpy(queries), torch.from_numpy(items), 50)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(case))
def case(request, world):
    """An index, its least recall and its device."""
    name, device = request.param
    if device == "gpu" and faiss.get_num_gpus() == 0:
        pytest.skip("needs an NVIDIA GPU and a GPU build of FAISS")
    if name == "cagra" and not hasattr(faiss, "GpuIndexCagra"):
        pytest.skip("needs a FAISS with cuVS (extra `gpu-cuvs`)")
    spec, least = FLOORS[name]
    num_gpus = getattr(spec, "num_shards", 1)
    if device == "gpu" and faiss.get_num_gpus() < num_gpus:
        pytest.skip(f"needs {num_gpus} NVIDIA GPUs")
    items, queries, _ = world
    index = replace(spec, device=device).build(items, queries=queries)
    assert index.device == device
    return index, least


def test_recall(case, world):
    index, least = case
    _, queries, exact = world
    result = index.search(queries, K)
    assert index_recall(result.rows, exact.rows[:, :K]).mean() >= least
    if least == 1.0:
        np.testing.assert_array_equal(result.rows, exact.rows[:, :K])
        np.testing.assert_allclose(result.scores, exact.scores[:, :K], rtol=1e-5, atol=1e-6)


def test_form_of_the_result(case, world):
    index, _ = case
    _, queries, _ = world
    result = index.search(queries, K)
    assert result.rows.shape == result.scores.shape == (200, K)
    assert (result.rows.dtype, result.scores.dtype) == (np.int64, np.float32)
    assert ((result.rows >= 0) & (result.rows < NUM_ITEMS)).all()
    assert (np.diff(result.scores, axis=1) <= 0).all()  # best first
    assert all(len(set(row)) == K for row in result.rows.tolist())


def test_more_wanted_than_there_are(case, world):
    index, _ = case
    _, queries, _ = world
    if index.device == "gpu":
        with pytest.raises(ValueError, match="on a GPU, where FAISS selects at most 2048"):
            index.search(queries, NUM_ITEMS + 3)
        return
    result = index.search(queries[:2], NUM_ITEMS + 3)
    assert result.rows.shape == (2, NUM_ITEMS + 3)
    missing = result.rows == -1
    assert missing[:, -3:].all()
    assert np.isneginf(result.scores[missing]).all()
    assert np.isfinite(result.scores[~missing]).all()
    assert (np.diff(missing.astype(int), axis=1) >= 0).all()  # padding stands at the end


def test_no_queries(case):
    index, _ = case
    result = index.search(np.empty((0, DIM), np.float32), K)
    assert result.rows.shape == result.scores.shape == (0, K)


def test_one_query_alone_is_as_in_a_batch(case, world):
    index, _ = case
    _, queries, _ = world
    batch = index.search(queries, K)
    alone = [index.search(queries[q : q + 1], K) for q in range(30)]
    rows = np.concatenate([result.rows for result in alone])
    if index.kind == "cagra":  # a single query is searched by another, randomised kernel
        assert index_recall(rows, batch.rows[:30]).mean() > 0.9
        return
    np.testing.assert_array_equal(rows, batch.rows[:30])
    scores = np.concatenate([result.scores for result in alone])
    np.testing.assert_allclose(scores, batch.scores[:30], rtol=1e-4, atol=1e-5)


def test_saved_and_loaded(case, world, tmp_path):
    index, least = case
    _, queries, exact = world
    index.save(tmp_path / "index")
    loaded = load_index(tmp_path / "index", device=index.device, num_shards=index.num_shards)
    assert loaded.description == index.description
    before, after = index.search(queries, K), loaded.search(queries, K)
    if index.kind == "cagra":
        assert index_recall(after.rows, exact.rows[:, :K]).mean() >= least
    else:
        np.testing.assert_array_equal(after.rows, before.rows)
        np.testing.assert_array_equal(after.scores, before.scores)
    on_cpu = load_index(tmp_path / "index").search(queries, K)
    assert index_recall(on_cpu.rows, exact.rows[:, :K]).mean() >= least


def test_facts(case):
    index, _ = case
    assert (index.num_items, index.dim) == (NUM_ITEMS, DIM)
    assert "2,500 items x 16" in index.description
    with pytest.raises(ValueError, match=r"queries must have shape \(n, 16\), got \(1, 15\)"):
        index.search(np.zeros((1, DIM - 1), np.float32), K)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        index.search(np.zeros((1, DIM), np.float32), 0)
