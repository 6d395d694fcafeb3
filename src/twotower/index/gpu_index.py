"""Where an index runs: the choice of device and shards, and moving FAISS indexes there and back.

FAISS keeps a GPU index and its CPU form apart; only the CPU form can be written. A refined index is
mixed: its compressed part moves, the exact vectors stay in the host's memory. CAGRA (Ootomo et al.
2023, arXiv:2308.15136) is built on a GPU alone and needs FAISS with cuVS; its CPU form is an HNSW
graph, so what a GPU built can be served without one.

Shards lie on a GPU each, or share the cores of a CPU. Shards on GPUs were not yet run: they follow
FAISS' interface, and the tests pretend the GPUs.
"""

from __future__ import annotations

import logging
import threading
from functools import cache
from typing import Literal, get_args

from twotower.index.base import FloatArray
from twotower.index.faiss_library import Handle, faiss
from twotower.index.shards import SHARDED_KINDS, copied, divided, emptied, merged

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

# Of `GpuMultipleClonerOptions`: shards are successive rows, as `IndexShards` adds them.
SHARD_BY_RANGE = 2

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


def pick_num_shards(num_shards: int, kind: str, place: Place, num_items: int) -> int:
    """Settle into how many shards an index of some kind is divided.

    Args:
        num_shards: How many, at least 0; 0 is one for every GPU, or for every thread of a CPU.
        kind: Kind of the index.
        place: Where it is to run.
        num_items: Items of the index; there are no more shards than items.

    Raises:
        ValueError: When the kind cannot be divided, or there are fewer GPUs than shards.
    """
    if num_shards == 1:
        return 1
    if kind not in SHARDED_KINDS:
        raise ValueError(
            f"index: `{kind}` cannot be divided, got num_shards={num_shards}; kinds that can: "
            f"{', '.join(SHARDED_KINDS)}"
        )
    available = faiss.get_num_gpus() if place == "gpu" else faiss.omp_get_max_threads()
    wish = num_shards or available
    if place == "gpu" and wish > available:
        raise ValueError(
            f"index: `num_shards` must be at most the number of GPUs that FAISS sees, {available}, "
            f"got {wish}"
        )
    return int(min(wish, num_items))


def filled(index: Handle, items: FloatArray, place: Place, num_shards: int = 1) -> Handle:
    """A FAISS index at its place, trained on the items and holding them.

    Args:
        index: Empty CPU form of the index.
        items: Item vectors (N, D).
        place: Where it is to run.
        num_shards: Into how many shards it is divided.
    """
    index = trained(index, items, place, num_shards)
    index.add(items)
    return index


def trained(index: Handle, items: FloatArray, place: Place, num_shards: int = 1) -> Handle:
    """An empty FAISS index at its place, trained on ``(N, D)`` for all shards; see `filled`."""
    if place == "gpu":
        index = to_gpu(index)
    index.train(items)
    if num_shards == 1:
        return index
    return placed(whole(index, place) if place == "gpu" else index, place, num_shards)


def placed(index: Handle, place: Place, num_shards: int = 1) -> Handle:
    """A FAISS index moved to its place; arguments as of `filled`, but the index may hold items.

    Raises:
        ValueError: When this FAISS build has no GPU form of it.
    """
    if place == "cpu" and num_shards == 1:
        return index
    if isinstance(index, faiss.IndexRefine):
        base = placed(faiss.downcast_index(index.base_index), place, num_shards)
        # The copy belongs to the new index, so that the old one may be freed.
        moved = faiss.IndexRefine(base, copied(faiss.downcast_index(index.refine_index)))
        moved.k_factor = index.k_factor
        return moved
    return to_gpu(index, num_shards) if place == "gpu" else divided(index, num_shards)


def to_gpu(index: Handle, num_shards: int = 1) -> Handle:
    """The GPU form of a FAISS index, trained or not: on the first GPU, or a shard on each of some.

    Raises:
        ValueError: When this FAISS build has no GPU form of it.
    """
    if num_shards > 1:
        to_gpu(emptied(index))  # what fails while FAISS makes shards ends the process
    options = faiss.GpuClonerOptions() if num_shards == 1 else faiss.GpuMultipleClonerOptions()
    if isinstance(index, faiss.IndexIVFPQ):
        options.useFloat16 = index.pq.M > MAX_FLOAT32_TABLE_BYTES
    try:
        if num_shards == 1:
            return faiss.index_cpu_to_gpu(gpu_resources(0), 0, index, options)
        options.shard, options.shard_type = True, SHARD_BY_RANGE
        resources = [gpu_resources(gpu) for gpu in range(num_shards)]
        return faiss.index_cpu_to_gpu_multiple_py(resources, index, options)
    except RuntimeError as error:
        raise ValueError(
            f"index: {type(index).__name__} could not be moved to a GPU (an HNSW graph made by "
            f"CAGRA needs the extra `twotower[gpu-cuvs]`): {error}"
        ) from error


def whole(index: Handle, place: Place) -> Handle:
    """The CPU form, undivided, of a FAISS index on GPUs or in shards; valid as long as it lives.

    Args:
        index: The FAISS index.
        place: Where it runs.
    """
    if isinstance(index, faiss.IndexRefine):
        base = whole(faiss.downcast_index(index.base_index), place)
        moved = faiss.IndexRefine(base, faiss.downcast_index(index.refine_index))
        moved.k_factor = index.k_factor
        return moved
    return faiss.index_gpu_to_cpu(index) if place == "gpu" else merged(index)


@cache
def gpu_resources(gpu: int) -> Handle:
    """Streams and scratch memory of a GPU, shared by all indexes of the process."""
    return faiss.StandardGpuResources()
