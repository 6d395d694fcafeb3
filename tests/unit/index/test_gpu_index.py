"""Where indexes run, with a pretended GPU (conftest); `tests/contract` uses a real one."""

import logging
from dataclasses import replace

import numpy as np
import pytest

from twotower.index.faiss_index import load_index
from twotower.index.faiss_library import faiss
from twotower.index.flat import Flat
from twotower.index.gpu_index import gpu_resources, pick_device, pick_num_shards, to_gpu
from twotower.index.inverted_file import IVFPQ, IVFFlat
from twotower.index.shards import shards_of

SPECS = [
    Flat(),
    IVFFlat(num_cells=20, num_probes=7),
    IVFPQ(num_cells=20, num_probes=7, num_bytes=4, refine=0),
    IVFPQ(num_cells=20, num_probes=7, num_bytes=4, refine=5),
]


@pytest.mark.parametrize("spec", SPECS)
def test_gpu_index_is_moved_empty_and_saved_in_cpu_form(moves, clustered, tmp_path, spec):
    items, queries = clustered
    index = spec.build(items)
    name = {"flat": "IndexFlatIP", "ivf_flat": "IndexIVFFlat", "ivf_pq": "IndexIVFPQ"}[spec.kind]
    assert index.device == "gpu"
    assert moves == [("gpu", name, 0, False)]
    index.save(tmp_path)
    assert moves[1:] == [("cpu", name, 3_000)]
    expected = index.search(queries, 12)
    for device in ("cpu", "gpu"):
        loaded = load_index(tmp_path, device=device)
        assert loaded.device == device
        assert loaded.settings == index.settings
        result = loaded.search(queries, 12)
        np.testing.assert_array_equal(result.rows, expected.rows)
        np.testing.assert_allclose(result.scores, expected.scores, rtol=1e-6)
    assert moves[2:] == [("gpu", name, 3_000, False)]


@pytest.fixture
def three_gpus(moves, monkeypatch):
    """As `moves`, with three pretended GPUs."""
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 3)
    return moves


@pytest.mark.parametrize("spec", SPECS)
def test_shards_on_gpus_are_trained_once_and_saved_as_one(three_gpus, clustered, tmp_path, spec):
    items, queries = clustered
    expected = spec.build(items).search(queries, 12)
    three_gpus.clear()
    index = replace(spec, num_shards=3).build(items)
    name = {"flat": "IndexFlatIP", "ivf_flat": "IndexIVFFlat", "ivf_pq": "IndexIVFPQ"}[spec.kind]
    # Trained on the first GPU, tried there in the CPU form, made on three, and only then filled.
    trial = ("gpu", name, 0, False)
    assert three_gpus == [trial, ("cpu", name, 0), trial, ("gpus", 3, 0, False)]
    assert (index.device, index.num_shards) == ("gpu", 3)
    assert [shard.ntotal for shard in shards_of(index.faiss_index)] == [1_000] * 3
    np.testing.assert_array_equal(index.search(queries, 12).rows, expected.rows)
    index.save(tmp_path)
    assert three_gpus[4:] == [("cpu", "IndexShards", 3_000)]
    for device, num_shards in (("cpu", 1), ("cpu", 2), ("gpu", 1), ("gpu", 2), ("gpu", 0)):
        loaded = load_index(tmp_path, device=device, num_shards=num_shards)
        assert (loaded.device, loaded.num_shards) == (device, num_shards or 3)
        result = loaded.search(queries, 12)
        np.testing.assert_array_equal(result.rows, expected.rows)
        np.testing.assert_allclose(result.scores, expected.scores, rtol=1e-6)
    moved = [trial, ("gpus", 3, 3_000, False)]
    assert three_gpus[-2:] == moved


def test_a_gpu_has_resources_of_its_own(three_gpus):
    assert gpu_resources(0) is gpu_resources(0)
    assert gpu_resources(0) is not gpu_resources(1)


def test_no_more_shards_than_gpus(three_gpus, clustered):
    assert Flat(num_shards=0).build(clustered[0]).num_shards == 3
    with pytest.raises(ValueError, match="at most the number of GPUs that FAISS sees, 3, got 4"):
        Flat(num_shards=4).build(clustered[0])
    assert Flat(num_shards=4, device="cpu").build(clustered[0]).num_shards == 4


def test_shards_of_a_kind_that_cannot_be_divided(three_gpus):
    with pytest.raises(ValueError, match="`cagra` cannot be divided, got num_shards=2; kinds"):
        pick_num_shards(2, "cagra", "gpu", 1_000)
    assert pick_num_shards(1, "cagra", "gpu", 1_000) == 1


def test_long_codes_use_float16_tables_in_shards(three_gpus):
    items = np.random.default_rng(0).standard_normal((300, 64)).astype(np.float32)
    IVFPQ(num_cells=2, num_bytes=64, refine=0, num_shards=2).build(items)
    assert three_gpus[-1] == ("gpus", 2, 0, True)


def test_what_a_gpu_cannot_hold_is_told_before_shards_are_made(three_gpus, monkeypatch):
    def refuse(*_):
        raise RuntimeError("not implemented")

    monkeypatch.setattr(faiss, "index_cpu_to_gpu", refuse, raising=False)
    with pytest.raises(ValueError, match="IndexFlatIP could not be moved to a GPU"):
        to_gpu(faiss.IndexFlatIP(3), 2)
    assert three_gpus == []


def test_long_codes_use_float16_tables(moves):
    items = np.random.default_rng(0).standard_normal((300, 64)).astype(np.float32)
    IVFPQ(num_cells=2, num_bytes=64, refine=0, device="gpu").build(items)
    IVFPQ(num_cells=2, num_bytes=32, refine=0, device="gpu").build(items)
    assert [move[-1] for move in moves] == [True, False]


def test_k_limit_on_a_gpu(moves, clustered):
    items, queries = clustered
    flat = Flat().build(items)
    assert flat.search(queries, 2_048).rows.shape == (100, 2_048)
    with pytest.raises(ValueError, match=r"k must be at most 2048 on a GPU.*got 2049"):
        flat.search(queries, 2_049)
    refined = IVFPQ(num_cells=4, refine=10).build(items)
    with pytest.raises(
        ValueError, match=r"k must be at most 204 on a GPU.*got 205 x 10 to be refin"
    ):
        refined.search(queries, 205)


def test_k_limit_counts_items_that_exist(moves, clustered):
    items, queries = clustered
    result = Flat().build(items[:50]).search(queries, 5_000)
    assert result.rows.shape == (100, 5_000)
    assert (result.rows[:, :50] >= 0).all()
    assert (result.rows[:, 50:] == -1).all()


def test_no_k_limit_on_the_cpu(clustered):
    items, queries = clustered
    assert (Flat(device="cpu").build(items).search(queries, 2_500).rows >= 0).all()


def test_probe_limit_on_a_gpu(moves, clustered):
    with pytest.raises(ValueError, match="`num_probes` must be at most 2048 on a GPU, got 2049"):
        IVFFlat(num_probes=2_049).build(clustered[0])


def test_code_lengths_on_a_gpu(moves):
    items = np.random.default_rng(0).standard_normal((300, 10)).astype(np.float32)
    with pytest.raises(ValueError, match="one of 1, 2 for vectors of width 10 on a GPU, got 5"):
        IVFPQ(num_bytes=5).build(items)


def test_auto_takes_the_gpu_where_it_can(moves):
    assert pick_device("auto", "flat") == "gpu"
    assert pick_device("auto", "hnsw") == "cpu"
    assert pick_device("cpu", "flat") == "cpu"
    assert pick_device("gpu", "ivf_pq") == "gpu"


def test_auto_says_why_not(no_gpu, caplog):
    with caplog.at_level(logging.INFO):
        assert pick_device("auto", "flat") == "cpu"
    assert "flat runs on the CPU: FAISS sees no GPU" in caplog.text


def test_gpu_asked_for_but_not_there(no_gpu):
    with pytest.raises(ValueError, match="device=gpu cannot be used: FAISS sees no GPU"):
        pick_device("gpu", "flat")


def test_gpu_asked_for_of_a_cpu_build(monkeypatch):
    monkeypatch.delattr(faiss, "StandardGpuResources", raising=False)
    with pytest.raises(ValueError, match=r"a CPU build; the extra `twotower\[gpu\]` has a GPU"):
        pick_device("gpu", "flat")


def test_unknown_device():
    with pytest.raises(ValueError, match="`device` must be one of cpu, gpu, auto, got 'cuda'"):
        pick_device("cuda", "flat")


def test_a_kind_that_cannot_be_moved(moves, monkeypatch):
    def refuse(*_):
        raise RuntimeError("This index type is not implemented on GPU.")

    monkeypatch.setattr(faiss, "index_cpu_to_gpu", refuse, raising=False)
    with pytest.raises(ValueError, match=r"IndexFlatIP could not be moved.*gpu-cuvs.*not implem"):
        to_gpu(faiss.IndexFlatIP(3))
