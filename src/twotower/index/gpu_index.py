"""Where an index runs: the choice of device, and moving FAISS indexes to a GPU and back.

FAISS keeps a GPU index and its CPU form apart; only the CPU form can be written. A refined index is
mixed: its compressed part moves, the exact vectors stay in the host's memory. CAGRA (Ootomo et al.
2023, arXiv:2308.15136) is built on a GPU alone and needs FAISS with cuVS; its CPU form is an HNSW
graph, so what a GPU built can be served without one.
"""

from __future__ import annotations

import logging
import threading
from functools import cache
from typing import Literal, get_args

from twotower.index.base import FloatArray
from twotower.index.faiss_library import Handle, faiss

Device = Literal["cpu", "gpu", "auto"]
Place = Literal["cpu", "gpu"]

# FAISS' GPU code selects at most so many items, and visits at most so many cells.
MAX_GPU_SELECTION = 2048
# Code lengths that FAISS' GPU kernels exist for, in bytes.
GPU_CODE_BYTES = (1, 2, 3, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 96)
# With longer codes the lookup tables fit a GPU's shared memory only as float16.
MAX_FLOAT32_TABLE_BYTES = 48
# Kinds of index that have a GPU form.
GPU_KINDS = ("flat", "ivf_flat", "ivf_pq", "cagra")

# FAISS' GPU resources serve one thread at a time, whichever index uses them.
GPU_LOCK = threading.Lock()

logger = logging.getLogger(__name__)


def pick_device(device: Device, kind: str) -> Place:
    """Settle where an index of some kind is to run.

    Args:
        device: ``gpu``, ``cpu``, or ``auto``: a GPU where there is one and the kind can use it.
        kind: Kind of the index.

    Raises:
        ValueError: When a GPU is asked for and cannot be used, or the name is unknown.
    """
    if device not in get_args(Device):
        allowed = ", ".join(get_args(Device))
        raise ValueError(f"index: `device` must be one of {allowed}, got {device!r}")
    if device == "cpu":
        return "cpu"
    if kind not in GPU_KINDS:
        obstacle = f"`{kind}` has no GPU form; kinds that have: {', '.join(GPU_KINDS)}"
    elif not hasattr(faiss, "StandardGpuResources"):
        obstacle = "this FAISS is a CPU build; the extra `twotower[gpu]` has a GPU build"
    elif faiss.get_num_gpus() == 0:
        obstacle = "FAISS sees no GPU; `twotower doctor` says why"
    else:
        return "gpu"
    if device == "gpu":
        raise ValueError(f"index: device=gpu cannot be used: {obstacle}")
    logger.info("index: %s runs on the CPU: %s", kind, obstacle)
    return "cpu"


def filled(index: Handle, items: FloatArray, place: Place) -> Handle:
    """A FAISS index moved to its place, trained on the items and holding them.

    Args:
        index: Empty CPU form of the index.
        items: Item vectors (N, D).
        place: Where it is to run.
    """
    if place == "gpu":
        index = to_gpu(index)
    index.train(items)
    index.add(items)
    return index


def to_gpu(index: Handle) -> Handle:
    """The GPU form of a FAISS index, trained or not, on the first GPU.

    Raises:
        ValueError: When this FAISS build has no GPU form of it.
    """
    if isinstance(index, faiss.IndexRefine):
        # A clone belongs to the new index, so that the old one may be freed.
        vectors = faiss.clone_index(faiss.downcast_index(index.refine_index))
        moved = faiss.IndexRefine(to_gpu(faiss.downcast_index(index.base_index)), vectors)
        moved.k_factor = index.k_factor
        return moved
    options = faiss.GpuClonerOptions()
    if isinstance(index, faiss.IndexIVFPQ):
        options.useFloat16 = index.pq.M > MAX_FLOAT32_TABLE_BYTES
    try:
        return faiss.index_cpu_to_gpu(gpu_resources(), 0, index, options)
    except RuntimeError as error:
        raise ValueError(
            f"index: {type(index).__name__} could not be moved to a GPU (an HNSW graph made by "
            f"CAGRA needs the extra `twotower[gpu-cuvs]`): {error}"
        ) from error


def to_cpu(index: Handle) -> Handle:
    """The CPU form of a FAISS index on a GPU; valid as long as `index` lives."""
    if isinstance(index, faiss.IndexRefine):
        base = faiss.index_gpu_to_cpu(faiss.downcast_index(index.base_index))
        moved = faiss.IndexRefine(base, faiss.downcast_index(index.refine_index))
        moved.k_factor = index.k_factor
        return moved
    return faiss.index_gpu_to_cpu(index)


@cache
def gpu_resources() -> Handle:
    """Streams and scratch memory of the first GPU, shared by all indexes of the process."""
    return faiss.StandardGpuResources()
