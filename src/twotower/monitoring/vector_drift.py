"""How far the vectors of two versions are apart: neighbours and shift.

Shape letters: n items, m of them in a sample, Q queries, D width of the vectors, k neighbours.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from twotower.data.item_lists import ItemLists
from twotower.index.flat import Flat
from twotower.serving.filters import search_allowed

BLOCK = 1 << 16
QUERIES = 1024

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Vectors = npt.NDArray[np.float32]


def neighbour_overlap(old: Vectors, new: Vectors, rows: Integers, k: int) -> float:
    """Share of the k nearest items that are the same in both versions.

    Args:
        old: (n, D) item vectors of one version.
        new: (n, D') those of the other.
        rows: (m,) items whose neighbours are looked at.
        k: Length of a neighbourhood, below n.
    """
    one, other = (_neighbours(vectors, rows, k) for vectors in (old, new))
    span = len(old)
    keys = [(np.arange(len(rows))[:, None] * span + found) for found in (one, other)]
    return float(np.isin(keys[0], keys[1]).mean())


def best_rotation(old: Vectors, new: Vectors) -> Floats:
    """The rotation (D, D) of the old vectors (n, D) that brings them closest to the new (n, D)."""
    product = np.zeros((old.shape[1], new.shape[1]))
    for start in range(0, len(old), BLOCK):
        block = slice(start, start + BLOCK)
        product += old[block].astype(np.float64).T @ new[block]  # (D, D)
    left, _, right = np.linalg.svd(product)
    rotation: Floats = left @ right
    return rotation


def vector_shift(old: Vectors, new: Vectors, rotation: Floats | None = None) -> float:
    """Mean of 1 - cosine between old vectors (n, D), rotated, and new ones (n, D)."""
    total = 0.0
    for start in range(0, len(old), BLOCK):
        block = slice(start, start + BLOCK)
        one, other = old[block].astype(np.float64), new[block].astype(np.float64)
        if rotation is not None:
            one = one @ rotation
        lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
        total += float((1 - (one * other).sum(axis=1) / np.maximum(lengths, 1e-12)).sum())
    return total / len(old)


def best_items(queries: Vectors, items: Vectors, seen: ItemLists, k: int) -> Integers:
    """The k best items (Q, k) for query vectors (Q, D), without seen ones; exact."""
    index = Flat(device="cpu").build(items)
    starts = range(0, len(queries), QUERIES)
    blocks = [(start, min(start + QUERIES, len(queries))) for start in starts]
    return np.concatenate(
        [search_allowed(index, queries[a:b], k, seen.between(a, b)).rows for a, b in blocks]
    )


def _neighbours(vectors: Vectors, rows: Integers, k: int) -> Integers:
    """The k nearest items (m, k) of some items, without themselves; exact."""
    own = ItemLists(offsets=np.arange(len(rows) + 1), item_rows=rows)
    return best_items(vectors[rows], vectors, own, k)
