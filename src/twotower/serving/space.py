"""Vectors that were stored, and whether a bundle may compare them with its own.

A vector says nothing about the towers that made it, and scores between vectors of different spaces
are noise that looks like scores. So whoever stores vectors stores the name of their space beside
them, as the manifest of the bundle has it; a retrained bundle has the same name only where it was
measured that old and new vectors find each other.

Shapes: N stored vectors, D their width, C items.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from twotower.export.bundle import Bundle

if TYPE_CHECKING:
    from twotower.index.base import SearchResult
    from twotower.serving.recommender import Recommender

Array = npt.NDArray[Any]


class SpaceError(ValueError):
    """Vectors of different spaces would have been compared."""


def check_space(space: str | None, bundle: Bundle, what: str) -> None:
    """Refuse vectors that cannot be compared with those of a bundle.

    Args:
        space: Their space.
        bundle: The bundle.
        what: What they are, for the message.

    Raises:
        SpaceError: When the spaces differ.
    """
    expected = bundle.manifest.space
    if space != expected:
        raise SpaceError(
            f"{what}: vectors of the space {space}, those of {bundle.folder} lie in {expected}; "
            "scores between them mean nothing: embed again with this bundle, or retrain with "
            "losses/alignment=anchor so that spaces stay the same"
        )


@dataclass(frozen=True, kw_only=True)
class StoredVectors:
    """Query or item vectors that outlive the bundle that made them.

    Args:
        vectors: (N, D) float32.
        space: Name of their space, of the bundle's manifest.
    """

    vectors: npt.NDArray[np.float32]
    space: str

    def save(self, path: Path) -> None:
        """Write them as ``.npz``."""
        with path.open("wb") as stream:
            np.savez(stream, vectors=self.vectors, space=np.array(self.space))

    @staticmethod
    def load(path: Path) -> StoredVectors:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            return StoredVectors(vectors=arrays["vectors"], space=str(arrays["space"]))


def nearest_items(recommender: Recommender, stored: StoredVectors, k: int) -> SearchResult:
    """The items that score best for stored query vectors.

    Args:
        recommender: Of a bundle whose space is theirs.
        stored: The vectors.
        k: How many items.

    Returns:
        Item rows and scores, (N, k) each.

    Raises:
        SpaceError: When the vectors lie in another space.
    """
    from twotower.serving.filters import search_filtered

    check_space(stored.space, recommender.bundle, "stored vectors")
    nothing_hidden = [None] * len(stored.vectors)
    return search_filtered(recommender.index, stored.vectors, k, None, nothing_hidden)
