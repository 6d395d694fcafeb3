"""Exact search over all items by FAISS (Douze et al. 2024, arXiv:2401.08281).

Letters: ``N`` items, ``D`` dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from twotower.index.base import FloatArray, check_least, checked_items
from twotower.index.faiss_index import FaissIndex
from twotower.index.faiss_library import Handle, faiss
from twotower.index.gpu_index import (
    Device,
    Place,
    filled,
    pick_device,
    pick_num_shards,
)


@dataclass(frozen=True, kw_only=True)
class Flat:
    """Exact search over all items.

    Args:
        num_shards: Shards that are searched side by side, on a GPU each or by the threads of a CPU;
            0 takes one for every GPU or thread.
        device: ``cpu``, ``gpu`` or ``auto``.

    Raises:
        ValueError: When a number is negative.
    """

    num_shards: int = 1
    device: Device = "auto"

    kind: ClassVar[str] = "flat"

    def __post_init__(self) -> None:
        check_least(self.kind, {"num_shards": (self.num_shards, 0)})

    def build(self, vectors: FloatArray, *, queries: FloatArray | None = None) -> FaissIndex:
        """Build the index; see `IndexBuilder`."""
        items = checked_items(vectors)
        place = pick_device(self.device, self.kind)
        num_shards = pick_num_shards(self.num_shards, self.kind, place, len(items))
        index = faiss.IndexFlatIP(items.shape[1])
        return self.tuned(filled(index, items, place, num_shards), place)

    def tuned(self, index: Handle, place: Place) -> FaissIndex:
        """Wrap a filled FAISS index; there is nothing to set."""
        return FaissIndex(index, kind=self.kind, settings="exact", device=place)

    def memory_bytes(self, num_items: int, dim: int) -> int:
        """Estimated size of the index in bytes."""
        return 4 * num_items * dim
