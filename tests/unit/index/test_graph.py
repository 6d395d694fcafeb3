"""Graph indexes: settings, sizes, and CAGRA's refusals; recall is in the contract tests."""

from types import SimpleNamespace

import numpy as np
import pytest

from twotower.index.faiss_index import load_index
from twotower.index.faiss_library import faiss
from twotower.index.graph import HNSW, Cagra


@pytest.mark.parametrize("num_links", [4, 32])
def test_size(clustered, num_links):
    items, _ = clustered
    spec = HNSW(num_links=num_links, ef_construction=20, device="cpu")
    size = len(faiss.serialize_index(spec.build(items).faiss_index))
    assert spec.memory_bytes(*items.shape) == pytest.approx(size, rel=0.05)


def test_search_effort_is_kept_in_the_file(clustered, tmp_path):
    index = HNSW(num_links=8, ef_construction=20, ef_search=77, device="cpu").build(clustered[0])
    assert index.settings == "8 links, ef 20/77"
    index.save(tmp_path)
    assert load_index(tmp_path).faiss_index.hnsw.efSearch == 77


def test_hnsw_has_no_gpu_form(clustered, moves):
    with pytest.raises(ValueError, match="`hnsw` has no GPU form; kinds that have: flat, ivf_flat"):
        HNSW(device="gpu").build(clustered[0])
    assert HNSW(device="auto", ef_construction=10).build(clustered[0]).device == "cpu"
    assert moves == []


def test_bad_settings():
    with pytest.raises(ValueError, match=r"(?s)`num_links` must be at least 2, got 1.*`ef_search`"):
        HNSW(num_links=1, ef_search=0)
    with pytest.raises(ValueError, match="`intermediate_graph_degree` must be at least 64, got 32"):
        Cagra(intermediate_graph_degree=32)


class PretendedCagra:
    """Finds everything; remembers what it was given. Saved as an HNSW graph, as CAGRA is."""

    def __init__(self, resources, dim, metric, config):
        self.hnsw_index = faiss.IndexHNSWFlat(dim, config.graph_degree // 2, metric)
        self.config = config
        self.d = dim
        self.beams = []

    @property
    def ntotal(self):
        return self.hnsw_index.ntotal

    def train(self, items):
        self.hnsw_index.add(items)

    def search(self, queries, k, params):
        self.beams.append(params.itopk_size)
        return self.hnsw_index.search(queries, k)


@pytest.fixture
def cagra(moves, monkeypatch):
    monkeypatch.setattr(faiss, "GpuIndexCagra", PretendedCagra, raising=False)
    monkeypatch.setattr(faiss, "GpuIndexCagraConfig", SimpleNamespace, raising=False)
    monkeypatch.setattr(faiss, "SearchParametersCagra", SimpleNamespace, raising=False)
    monkeypatch.setattr(faiss, "index_gpu_to_cpu", lambda index: index.hnsw_index)


def test_cagra_settings_reach_faiss(cagra, clustered, tmp_path):
    items, queries = clustered
    spec = Cagra(graph_degree=16, intermediate_graph_degree=32, beam=90)
    index = spec.build(items)
    assert index.faiss_index.config == SimpleNamespace(
        graph_degree=16, intermediate_graph_degree=32
    )
    assert index.description.startswith("cagra (16 links, beam 90) on gpu: 3,000 items x 16")
    index.search(queries, 10)
    index.search(queries, 200)
    assert index.faiss_index.beams == [90, 200]  # the beam holds the wanted items
    index.save(tmp_path)
    on_cpu = load_index(tmp_path)
    assert (on_cpu.kind, on_cpu.device) == ("cagra", "cpu")
    assert on_cpu.faiss_index.hnsw.efSearch == 90
    assert np.array_equal(on_cpu.search(queries, 1).rows, index.search(queries, 1).rows)


def test_cagra_needs_cuvs(moves, clustered):
    with pytest.raises(ValueError, match=r"this FAISS has no CAGRA; the extra `twotower\[gpu-cuvs"):
        Cagra().build(clustered[0])


def test_cagra_needs_enough_items(cagra, clustered):
    with pytest.raises(
        ValueError, match="more items than `intermediate_graph_degree` 128, got 128"
    ):
        Cagra().build(clustered[0][:128])


def test_cagra_needs_a_gpu(no_gpu, clustered):
    with pytest.raises(ValueError, match="cagra is built on a GPU, got device=cpu; use hnsw"):
        Cagra(device="cpu").build(clustered[0])
    with pytest.raises(ValueError, match="device=gpu cannot be used: FAISS sees no GPU"):
        Cagra().build(clustered[0])
