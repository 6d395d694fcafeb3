"""Inverted files: search only the cells of a k-means partition that are nearest to the query.

``ivf_flat`` keeps the vectors as they are, ``ivf_pq`` compresses what the cell does not explain by
product quantization (Jegou et al. 2011, doi:10.1109/TPAMI.2010.57). Cells and queries are compared
by inner product, cell centres have unit length.

Letters: ``N`` items, ``D`` dimensions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from twotower.index.base import FloatArray, check_least, checked_items
from twotower.index.faiss_index import FaissIndex
from twotower.index.faiss_library import Handle, faiss
from twotower.index.gpu_index import (
    GPU_CODE_BYTES,
    MAX_GPU_SELECTION,
    Device,
    Place,
    filled,
    pick_device,
    pick_num_shards,
    trained,
)
from twotower.index.shards import shards_of

# k-means wants so many points a cell; FAISS warns below.
MIN_POINTS_PER_CELL = 39
# Centroids of a one-byte sub-quantizer, which needs as many items to be trained.
NUM_CODES = 256


@dataclass(frozen=True, kw_only=True)
class IVFFlat:
    """Search in the cells nearest to the query.

    Args:
        num_cells: Cells of the partition; 0 takes 4 sqrt(N), or fewer so that every cell has enough
            points to be trained on.
        num_probes: Cells looked into, at most all; 0 takes a sixteenth of them, at least 8.
        num_shards: Shards with the same cells that are searched side by side, on a GPU each or by
            the threads of a CPU; 0 takes one for every GPU or thread.
        device: ``cpu``, ``gpu`` or ``auto``.

    Raises:
        ValueError: When a number is negative.
    """

    num_cells: int = 0
    num_probes: int = 0
    num_shards: int = 1
    device: Device = "auto"

    kind: ClassVar[str] = "ivf_flat"

    def __post_init__(self) -> None:
        names = ("num_cells", "num_probes", "num_shards")
        check_least(self.kind, {name: (getattr(self, name), 0) for name in names})

    def build(self, vectors: FloatArray, *, queries: FloatArray | None = None) -> FaissIndex:
        """Build the index; see `IndexBuilder`."""
        items = checked_items(vectors)
        num_items, dim = items.shape
        place = pick_device(self.device, self.kind)
        num_cells = _cells(self.kind, self.num_cells, num_items)
        index = faiss.IndexIVFFlat(
            faiss.IndexFlatIP(dim), dim, num_cells, faiss.METRIC_INNER_PRODUCT
        )
        num_shards = pick_num_shards(self.num_shards, self.kind, place, num_items)
        return self.tuned(filled(index, items, place, num_shards), place)

    def tuned(self, index: Handle, place: Place) -> FaissIndex:
        """Apply the search settings to a filled FAISS index."""
        shards = shards_of(index)
        for shard in shards:
            shard.nprobe = _probes(self.kind, self.num_probes, shard.nlist, place)
        settings = f"{shards[0].nlist} cells, {shards[0].nprobe} probes"
        return FaissIndex(index, kind=self.kind, settings=settings, device=place)

    def memory_bytes(self, num_items: int, dim: int) -> int:
        """Estimated size of the index in bytes."""
        num_cells = self.num_cells or default_num_cells(num_items)
        return num_items * (4 * dim + 8) + 4 * num_cells * dim


@dataclass(frozen=True, kw_only=True)
class IVFPQ:
    """Search on compressed vectors in the cells nearest to the query, then re-rank exactly.

    Args:
        num_cells: Cells of the partition; 0 as for `IVFFlat`.
        num_probes: Cells looked into, at most all; 0 as for `IVFFlat`.
        num_bytes: Bytes of a compressed vector, a divisor of ``D``; 0 takes the longest code of at
            most ``D / 2`` bytes.
        refine: The best ``refine * k`` compressed items are scored again with their exact vectors,
            which the index then keeps in memory; 0 trusts the compressed scores.
        num_shards: Shards of the compressed vectors; 0 as for `IVFFlat`.
        device: ``cpu``, ``gpu`` or ``auto``; the exact vectors always stay in host memory.

    Raises:
        ValueError: When a number is negative.
    """

    num_cells: int = 0
    num_probes: int = 0
    num_bytes: int = 0
    refine: int = 8
    num_shards: int = 1
    device: Device = "auto"

    kind: ClassVar[str] = "ivf_pq"

    def __post_init__(self) -> None:
        names = ("num_cells", "num_probes", "num_bytes", "refine", "num_shards")
        check_least(self.kind, {name: (getattr(self, name), 0) for name in names})

    def build(self, vectors: FloatArray, *, queries: FloatArray | None = None) -> FaissIndex:
        """Build the index; see `IndexBuilder`."""
        items = checked_items(vectors)
        num_items, dim = items.shape
        place = pick_device(self.device, self.kind)
        if num_items < NUM_CODES:
            raise ValueError(
                f"ivf_pq needs at least {NUM_CODES} items to train its codes, got {num_items}; "
                "use flat"
            )
        num_cells = _cells(self.kind, self.num_cells, num_items)
        index = faiss.IndexIVFPQ(
            faiss.IndexFlatIP(dim),
            dim,
            num_cells,
            _code_bytes(self.num_bytes, dim, place),
            8,  # bits of a sub-quantizer
            faiss.METRIC_INNER_PRODUCT,
        )
        index.pq.cp.min_points_per_centroid = 1  # else FAISS warns below 9,984 items
        num_shards = pick_num_shards(self.num_shards, self.kind, place, num_items)
        index = trained(index, items, place, num_shards)
        if self.refine:
            index = faiss.IndexRefineFlat(index)
        index.add(items)
        return self.tuned(index, place)

    def tuned(self, index: Handle, place: Place) -> FaissIndex:
        """Apply the search settings to a filled FAISS index."""
        refined = "not refined"
        if isinstance(index, faiss.IndexRefine):
            index.k_factor = self.refine
            refined = f"refined from {self.refine} k"
        shards = shards_of(index)
        for shard in shards:
            shard.nprobe = _probes(self.kind, self.num_probes, shard.nlist, place)
        cells = shards[0]
        settings = f"{cells.nlist} cells, {cells.nprobe} probes, {cells.pq.M} bytes, {refined}"
        return FaissIndex(index, kind=self.kind, settings=settings, device=place)

    def memory_bytes(self, num_items: int, dim: int) -> int:
        """Estimated size of the index in bytes."""
        num_cells = self.num_cells or default_num_cells(num_items)
        num_bytes = self.num_bytes or default_code_bytes(dim)
        codes = num_items * (num_bytes + 8) + 4 * dim * (num_cells + NUM_CODES)
        return codes + (4 * num_items * dim if self.refine else 0)


def default_num_cells(num_items: int) -> int:
    """Cells for a corpus: 4 sqrt(N), bounded so that k-means has enough points for each.

    Args:
        num_items: Items of the corpus, ``N``.

    Example:
        >>> default_num_cells(1_000_000), default_num_cells(100)
        (4000, 2)
    """
    return max(1, min(round(4 * math.sqrt(num_items)), num_items // MIN_POINTS_PER_CELL))


def default_code_bytes(dim: int) -> int:
    """The longest code that cuts a vector evenly, has a GPU form and at most ``D / 2`` bytes.

    Args:
        dim: Width of the vectors, ``D``.
    """
    return max(n for n in GPU_CODE_BYTES if dim % n == 0 and n <= max(dim // 2, 1))


def _cells(kind: str, num_cells: int, num_items: int) -> int:
    if num_cells > num_items:
        raise ValueError(
            f"{kind}: `num_cells` must be at most the number of items {num_items}, got {num_cells}"
        )
    return num_cells or default_num_cells(num_items)


def _probes(kind: str, num_probes: int, num_cells: int, place: Place) -> int:
    """Cells to look into: the wish, or the default; never more than there are."""
    if place == "gpu" and num_probes > MAX_GPU_SELECTION:
        raise ValueError(
            f"{kind}: `num_probes` must be at most {MAX_GPU_SELECTION} on a GPU, got {num_probes}"
        )
    wish = num_probes or min(max(math.ceil(num_cells / 16), 8), MAX_GPU_SELECTION)
    return min(wish, num_cells)


def _code_bytes(num_bytes: int, dim: int, place: Place) -> int:
    allowed = [n for n in range(1, dim + 1) if dim % n == 0]
    if place == "gpu":
        allowed = [n for n in allowed if n in GPU_CODE_BYTES]
    if num_bytes and num_bytes not in allowed:
        raise ValueError(
            f"ivf_pq: `num_bytes` must be one of {', '.join(map(str, allowed))} for vectors of "
            f"width {dim} on a {place.upper()}, got {num_bytes}"
        )
    return num_bytes or default_code_bytes(dim)
