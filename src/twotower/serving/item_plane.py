"""The plane in which item vectors differ most, to draw them on.

It is spanned by the two first principal components (Pearson, "On lines and planes of closest fit to
systems of points in space", 1901), fitted on a sample, scaled so that most items lie between -1 and
1. Every process finds the same one.

Shape letters: N items, S items in the sample, P points, D width of an item vector.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

SAMPLE = 20_000
SHARE_WITHIN = 0.99

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Plane:
    """A plane through vectors.

    Args:
        centre: (D,) what lies at the origin.
        axes: (D, 2) its directions, over the length of the unit on it.
    """

    centre: Floats
    axes: Floats

    def places(self, vectors: npt.NDArray[Any]) -> Floats:
        """Places (P, 2) of vectors (P, D)."""
        return np.asarray((vectors - self.centre) @ self.axes, np.float64)  # (P, 2)


def fit_plane(vectors: npt.NDArray[Any]) -> Plane:
    """The plane of some vectors.

    Args:
        vectors: (N, D), at least one; of many a sample is looked at.
    """
    drawn = np.random.default_rng(0).permutation(len(vectors))[:SAMPLE]
    sample = np.asarray(vectors[np.sort(drawn)], np.float64)  # (S, D)
    centre = sample.mean(axis=0)
    centred = sample - centre
    _, directions = np.linalg.eigh(centred.T @ centred)  # (D, D), ascending
    axes = directions[:, :-3:-1]  # (D, 2), (D, 1) where D is 1
    # A direction and its opposite are as good; the largest part of each is made positive.
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), range(axes.shape[1])])
    axes = np.pad(axes, ((0, 0), (0, 2 - axes.shape[1])))
    reach = np.quantile(np.abs(centred @ axes), SHARE_WITHIN)
    return Plane(centre=centre, axes=axes / (reach or 1.0))
