"""Exact search over all items by FAISS (Douze et al. 2024, arXiv:2401.08281).

Letters: ``N`` items, ``D`` dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from twotower.index.base import FloatArray, checked_items
from twotower.index.faiss_index import FaissIndex
from twotower.index.faiss_library import Handle, faiss
from twotower.index.gpu_index import Device, Place, filled, pick_device


@dataclass(frozen=True, kw_only=True)
class Flat:
    """Exact search over all items.

    Args:
        device: ``cpu``, ``gpu`` or ``auto``.
    """

    device: Device = "auto"

    kind: ClassVar[str] = "flat"

    def build(self, vectors: FloatArray, *, queries: FloatArray | None = None) -> FaissIndex:
        """Build the index; see `IndexBuilder`."""
        items = checked_items(vectors)
        place = pick_device(self.device, self.kind)
        return self.tuned(filled(faiss.IndexFlatIP(items.shape[1]), items, place), place)

    def tuned(self, index: Handle, place: Place) -> FaissIndex:
        """Wrap a filled FAISS index; there is nothing to set."""
        return FaissIndex(index, kind=self.kind, settings="exact", device=place)

    def memory_bytes(self, num_items: int, dim: int) -> int:
        """Estimated size of the index in bytes."""
        return 4 * num_items * dim
