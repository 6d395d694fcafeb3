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
    """FAISS with a pretended GPU: moving clones the CPU index; yields the moves made."""
    made = []

    def to_gpu(resources, device, index, options):
        made.append(("gpu", type(index).__name__, index.ntotal, options.useFloat16))
        return faiss.clone_index(index)

    def to_cpu(index):
        made.append(("cpu", type(index).__name__, index.ntotal))
        return faiss.clone_index(index)

    pretended = {
        "StandardGpuResources": SimpleNamespace,
        "GpuClonerOptions": lambda: SimpleNamespace(useFloat16=False),
        "get_num_gpus": lambda: 1,
        "index_cpu_to_gpu": to_gpu,
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
