"""Data and a stand-in for FAISS' GPU half, so that the GPU paths also run where there is no GPU."""

from types import SimpleNamespace

import numpy as np
import pytest

from twotower.index import gpu_index
from twotower.index.faiss_library import faiss


@pytest.fixture(scope="session")
def clustered():
    """3,000 unit vectors around 60 centres, and 100 queries of the same kind; width 16."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((60, 16))
    points = centres[rng.integers(0, 60, 3_100)] + 1.0 * rng.standard_normal((3_100, 16))
    points = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
    return points[:3_000], points[3_000:]


@pytest.fixture
def moves(monkeypatch):
    """FAISS with a pretended GPU: moving clones the CPU index; yields the moves made.

    Shards are as FAISS' `ToGpuClonerMultiple` makes them: flat ones count from 0, and all is one
    index again on the CPU.
    """
    made = []

    def to_gpu(resources, device, index, options):
        made.append(("gpu", type(index).__name__, index.ntotal, options.useFloat16))
        return faiss.clone_index(index)

    def to_gpus(resources, index, options):
        assert len({id(resource) for resource in resources}) == len(resources)
        assert (options.shard, options.shard_type) == (True, 2)
        made.append(("gpus", len(resources), index.ntotal, options.useFloat16))
        flat = isinstance(index, faiss.IndexFlat)
        shards = faiss.IndexShards(index.d, True, flat)
        for number in range(len(resources)):
            shard = faiss.deserialize_index(faiss.serialize_index(index))  # not of a mapped file
            first, last = (index.ntotal * n // len(resources) for n in (number, number + 1))
            shard.remove_ids(np.r_[0:first, last : index.ntotal])
            shards.add_shard(shard)
        return shards

    def to_cpu(index):
        made.append(("cpu", type(index).__name__, index.ntotal))
        if not isinstance(index, faiss.IndexShards):
            return faiss.clone_index(index)
        shards = [faiss.downcast_index(index.at(number)) for number in range(index.count())]
        together = faiss.clone_index(shards[0])
        for shard in shards[1:]:
            copy = faiss.clone_index(shard)
            together.merge_from(copy, 0)
        return together

    pretended = {
        "StandardGpuResources": SimpleNamespace,
        "GpuClonerOptions": lambda: SimpleNamespace(useFloat16=False),
        "get_num_gpus": lambda: 1,
        "GpuMultipleClonerOptions": lambda: SimpleNamespace(useFloat16=False),
        "index_cpu_to_gpu": to_gpu,
        "index_cpu_to_gpu_multiple_py": to_gpus,
        "index_gpu_to_cpu": to_cpu,
    }
    for name, value in pretended.items():
        monkeypatch.setattr(faiss, name, value, raising=False)
    gpu_index.gpu_resources.cache_clear()
    yield made
    gpu_index.gpu_resources.cache_clear()


@pytest.fixture
def no_gpu(monkeypatch):
    """FAISS as a GPU build on a machine without a GPU."""
    monkeypatch.setattr(faiss, "StandardGpuResources", SimpleNamespace, raising=False)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0)
