"""Graph indexes: walk from item to item along links between near neighbours.

``hnsw`` (Malkov & Yashunin 2018, arXiv:1603.09320) is built and searched on the CPU; ``cagra``
(Ootomo et al. 2023, arXiv:2308.15136) on a GPU, and its graph can be served by a CPU. Both are made
for vectors of unit length; with inner products of vectors of very different length they find less.

Letters: ``N`` items, ``D`` dimensions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from twotower.index.base import FloatArray, check_least, checked_items
from twotower.index.faiss_index import FaissIndex
from twotower.index.faiss_library import Handle, faiss
from twotower.index.gpu_index import Device, Place, filled, gpu_resources, pick_device


@dataclass(frozen=True, kw_only=True)
class HNSW:
    """Search along a graph of near neighbours, on the CPU.

    Built by several threads, the graph differs a little from run to run.

    Args:
        num_links: Links of an item; twice as many on the lowest level.
        ef_construction: Candidates kept while an item is linked in.
        ef_search: Candidates kept during a search; at least ``k`` are.
        device: ``cpu``, or ``auto``, which means the same.

    Raises:
        ValueError: When a number is too small.
    """

    num_links: int = 32
    ef_construction: int = 100
    ef_search: int = 128
    device: Device = "auto"

    kind: ClassVar[str] = "hnsw"

    def __post_init__(self) -> None:
        least = {"num_links": 2, "ef_construction": 1, "ef_search": 1}
        check_least(self.kind, {name: (getattr(self, name), low) for name, low in least.items()})

    def build(self, vectors: FloatArray, *, queries: FloatArray | None = None) -> FaissIndex:
        """Build the index; see `IndexBuilder`."""
        items = checked_items(vectors)
        place = pick_device(self.device, self.kind)
        index = faiss.IndexHNSWFlat(items.shape[1], self.num_links, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = self.ef_construction
        return self.tuned(filled(index, items, place), place)

    def tuned(self, index: Handle, place: Place) -> FaissIndex:
        """Apply the search settings to a filled FAISS index."""
        index.hnsw.efSearch = self.ef_search
        settings = f"{self.num_links} links, ef {self.ef_construction}/{self.ef_search}"
        return FaissIndex(index, kind=self.kind, settings=settings, device=place)

    def memory_bytes(self, num_items: int, dim: int) -> int:
        """Estimated size of the index in bytes."""
        # Two links of 4 bytes a lowest-level slot, 1 / (M - 1) upper levels, level and offset.
        links = 8 * self.num_links + 4 * self.num_links / (self.num_links - 1) + 12
        return math.ceil(num_items * (4 * dim + links))


@dataclass(frozen=True, kw_only=True)
class Cagra:
    """Search along a graph on a GPU; needs a FAISS with cuVS (``twotower[gpu-cuvs]``).

    Args:
        graph_degree: Links of an item.
        intermediate_graph_degree: Links before pruning, at least `graph_degree`.
        beam: Candidates kept during a search; at least ``k`` are.
        device: ``gpu``, or ``auto``, which means the same.

    Raises:
        ValueError: When a number is too small.
    """

    graph_degree: int = 64
    intermediate_graph_degree: int = 128
    beam: int = 128
    device: Device = "auto"

    kind: ClassVar[str] = "cagra"

    def __post_init__(self) -> None:
        degree = self.graph_degree
        least = {"graph_degree": 2, "intermediate_graph_degree": degree, "beam": 1}
        check_least(self.kind, {name: (getattr(self, name), low) for name, low in least.items()})

    def build(self, vectors: FloatArray, *, queries: FloatArray | None = None) -> FaissIndex:
        """Build the index; see `IndexBuilder`."""
        items = checked_items(vectors)
        num_items, dim = items.shape
        if self.device == "cpu":
            raise ValueError("cagra is built on a GPU, got device=cpu; use hnsw")
        pick_device("gpu", self.kind)
        if not hasattr(faiss, "GpuIndexCagra"):
            raise ValueError("this FAISS has no CAGRA; the extra `twotower[gpu-cuvs]` has it")
        if num_items <= self.intermediate_graph_degree:
            raise ValueError(
                f"cagra needs more items than `intermediate_graph_degree` "
                f"{self.intermediate_graph_degree}, got {num_items}; use flat"
            )
        config = faiss.GpuIndexCagraConfig()
        config.graph_degree = self.graph_degree
        config.intermediate_graph_degree = self.intermediate_graph_degree
        index = faiss.GpuIndexCagra(gpu_resources(0), dim, faiss.METRIC_INNER_PRODUCT, config)
        index.train(items)
        return self.tuned(index, "gpu")

    def tuned(self, index: Handle, place: Place) -> FaissIndex:
        """Apply the search settings to a filled FAISS index."""
        settings = f"{self.graph_degree} links, beam {self.beam}"
        return FaissIndex(index, kind=self.kind, settings=settings, device=place, beam=self.beam)

    def memory_bytes(self, num_items: int, dim: int) -> int:
        """Estimated size of the index in bytes."""
        return 4 * num_items * (dim + self.graph_degree)
