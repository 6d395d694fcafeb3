"""What every index promises, and the small values that pass between indexes and their users.

An index holds the item vectors and answers "which items have the largest inner product with this
query". Vectors of a cosine model have unit length, so inner product serves both similarities.

Letters: ``Q`` queries, ``N`` items, ``D`` dimensions, ``k`` wanted items a query.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]

NO_ITEM = -1


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """The best items of every query, best first; equal scores are ordered by row.

    Args:
        rows: Item rows (Q, k) int64, padded with -1 at the end.
        scores: Their scores (Q, k) float32, padded with minus infinity.
    """

    rows: IntArray
    scores: FloatArray


class Index(Protocol):
    """A searchable set of item vectors."""

    @property
    def num_items(self) -> int:
        """Number of items, ``N``."""

    @property
    def dim(self) -> int:
        """Width of the vectors, ``D``."""

    @property
    def description(self) -> str:
        """Kind, settings, size and device in words."""

    def search(self, queries: FloatArray, k: int) -> SearchResult:
        """Find the items with the largest inner products.

        Args:
            queries: Query vectors (Q, D); Q may be 0.
            k: How many items are wanted, at least 1; may exceed ``N``.

        Returns:
            Exactly ``k`` columns, padded where fewer items were found.

        Raises:
            ValueError: When the queries do not fit or `k` is not allowed.
        """

    def save(self, folder: Path) -> None:
        """Write the index into a folder, in a form that a machine without a GPU can read."""


class IndexBuilder(Protocol):
    """A recipe for an index; a frozen dataclass of settings that a YAML file names."""

    def build(self, vectors: FloatArray, *, queries: FloatArray | None = None) -> Index:
        """Build the index.

        Args:
            vectors: Item vectors (N, D) by item row.
            queries: Held-out query vectors (Q, D), on which ``auto`` measures its options; the
                other builders need none.

        Raises:
            ValueError: When the vectors or settings do not allow it.
        """


def checked_vectors(name: str, vectors: NDArray[Any], *, dim: int | None = None) -> FloatArray:
    """Vectors as FAISS wants them: (n, D) float32, C-contiguous and finite.

    Args:
        name: What they are, for the message.
        vectors: The vectors (n, D), any floating type.
        dim: Required ``D``; None allows any.

    Raises:
        ValueError: On another shape or type, or with values that are not finite.
    """
    expected = f"(n, {'D' if dim is None else dim})"
    if vectors.ndim != 2 or vectors.shape[1] == 0 or dim not in (None, vectors.shape[1]):
        raise ValueError(f"{name} must have shape {expected}, got {vectors.shape}")
    if not np.issubdtype(vectors.dtype, np.floating):
        raise ValueError(f"{name} must be floating point numbers, got {vectors.dtype}")
    floats = np.ascontiguousarray(vectors, dtype=np.float32)
    broken = np.flatnonzero(~np.isfinite(floats).all(axis=1))
    if len(broken):
        raise ValueError(
            f"{name} must be finite, got NaN or infinity in {len(broken)} rows, first {broken[:5]}"
        )
    return floats


def checked_items(vectors: NDArray[Any]) -> FloatArray:
    """Item vectors (N, D) that an index can be built from.

    Raises:
        ValueError: As `checked_vectors`, and when there are none.
    """
    items = checked_vectors("item vectors", vectors)
    if len(items) == 0:
        raise ValueError("an index needs at least one item, got none")
    return items


def check_least(owner: str, values: Mapping[str, tuple[int, int]]) -> None:
    """Refuse settings below their least value, all at once.

    Args:
        owner: Whose settings, for the message.
        values: (value, least value) by name.

    Raises:
        ValueError: When a value is too small.
    """
    problems = [
        f"{owner}: `{name}` must be at least {least}, got {value}"
        for name, (value, least) in values.items()
        if value < least
    ]
    if problems:
        raise ValueError("\n".join(problems))


def check_k(k: int) -> None:
    """Refuse a list length below 1.

    Raises:
        ValueError: When `k` is below 1.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")


def padded(rows: IntArray, scores: FloatArray, k: int) -> SearchResult:
    """A result of exactly `k` columns with the padding marked.

    Args:
        rows: Item rows (Q, j) with j <= k, best first; -1, at the end, where nothing was found.
        scores: Their scores (Q, j); anything where the row is -1.
        k: Wanted number of columns.
    """
    if rows.shape[1] < k:
        missing = ((0, 0), (0, k - rows.shape[1]))
        rows = np.pad(rows, missing, constant_values=NO_ITEM)
        scores = np.pad(scores, missing, constant_values=-np.inf)
    scores[rows == NO_ITEM] = -np.inf
    return SearchResult(rows=rows, scores=scores)


def index_recall(found: IntArray, exact: IntArray) -> NDArray[np.float64]:
    """Share of the exact top ``k`` that an index returned, by query.

    Args:
        found: Item rows (Q, k') that the index returned, padded with -1.
        exact: Item rows (Q, k) of exact search, padded with -1.

    Returns:
        (Q,) float64; NaN where exact search found nothing.

    Raises:
        ValueError: When the two have different numbers of queries.

    Example:
        >>> index_recall(np.array([[3, 9, 1, 0]]), np.array([[1, 2, 3, 4]]))
        array([0.5])
    """
    if len(found) != len(exact):
        raise ValueError(
            f"`found` and `exact` must have the same queries, got {len(found)} and {len(exact)}"
        )
    span = max(int(found.max(initial=0)), int(exact.max(initial=0))) + 1
    first = np.arange(len(exact), dtype=np.int64)[:, None] * span
    wanted = exact != NO_ITEM
    hit = np.isin(exact + first, (found + first)[found != NO_ITEM]) & wanted
    share = np.full(len(exact), np.nan)
    np.divide(hit.sum(axis=1), wanted.sum(axis=1), out=share, where=wanted.any(axis=1))
    return share
