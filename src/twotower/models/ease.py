"""EASE: a linear map from a user's items to scores of all items, in closed form.

With X (U, N) binary, G = X^T X + l2 I and P = G^-1, the weights of the ridge regression of every
item on all others are

    B_ij = -P_ij / P_jj for i != j,    B_jj = 0,    scores of a user = x B.

Steck 2019, "Embarrassingly Shallow Autoencoders for Sparse Data". On small catalogues it is often
the figure to beat. Fitting costs N^3 operations and N^2 numbers, so it is for some ten thousand
items.

Letters: ``U`` users, ``N`` items, ``Q`` queries, ``B`` rows of a block.
"""

from __future__ import annotations

import numpy as np

from twotower.data.item_lists import ItemLists
from twotower.models.baselines import (
    BLOCK_ENTRIES,
    NO_ITEM,
    FloatArray,
    IntArray,
    binary_matrix,
    check_query,
    check_rows,
    fitted,
)


class EASE:
    """Recommends by ridge regression of every item on all others.

    Args:
        l2: Weight of the penalty; 100 to 1,000 is common.

    Raises:
        ValueError: When `l2` is not above 0.

    Example:
        >>> ease = EASE(l2=1.0)
        >>> ease.fit(ItemLists(offsets=np.array([0, 2, 4]), item_rows=np.array([0, 1, 0, 1])), 3)
        >>> ease.rank(ItemLists(offsets=np.array([0, 1]), item_rows=np.array([0])), k=2).tolist()
        [[1, 2]]
    """

    def __init__(self, *, l2: float) -> None:
        if l2 <= 0:
            raise ValueError(f"EASE: `l2` must be above 0, got {l2}")
        self._l2 = l2
        self._weights: FloatArray | None = None

    def fit(self, users: ItemLists, num_items: int) -> None:
        """Solve for the weights.

        Args:
            users: What each of the U users had in the part that may be looked at.
            num_items: ``N``.

        Raises:
            ValueError: When an item row is out of range.
        """
        check_rows("users", users, num_items)
        by_user = binary_matrix(users, num_items)  # (U, N)
        gram = (by_user.T @ by_user).toarray()  # (N, N)
        diagonal = np.arange(num_items)
        gram[diagonal, diagonal] += self._l2
        inverse = np.linalg.inv(gram)
        weights = inverse / -np.diag(inverse)
        weights[diagonal, diagonal] = 0.0
        self._weights = weights

    def rank(self, histories: ItemLists, k: int, excluded: ItemLists | None = None) -> IntArray:
        """The items with the highest scores; ties go to the higher row.

        Args:
            histories: What the queries' users had before; the order does not matter.
            k: Length of the lists, at least 1.
            excluded: Items that a query may not return, such as seen ones.

        Returns:
            (Q, k) item rows, best first, padded with -1.

        Raises:
            ValueError: When not fitted, or when the arguments do not fit together.
        """
        weights = fitted(self._weights)  # (N, N)
        num_items = len(weights)
        check_query(histories, k, excluded, num_items)
        ranked = np.full((len(histories), k), NO_ITEM, np.int64)
        width, size = min(k, num_items), max(BLOCK_ENTRIES // num_items, 1)
        for start in range(0, len(histories), size):
            block = slice(start, start + size)
            scores = binary_matrix(histories.between(*_ends(block, histories)), num_items) @ weights
            if excluded is not None:
                gone = excluded.between(*_ends(block, histories))
                scores[gone.query_index, gone.item_rows] = -np.inf  # (B, N)
            # Columns turned around: a stable sort then puts the higher row of a tie first.
            order = np.argsort(-scores[:, ::-1], axis=1, kind="stable")[:, :width]
            rows = num_items - 1 - order  # (B, width)
            best = np.take_along_axis(scores, rows, axis=1)
            ranked[block, :width] = np.where(np.isneginf(best), NO_ITEM, rows)
        return ranked


def _ends(block: slice, histories: ItemLists) -> tuple[int, int]:
    return block.start, min(block.stop, len(histories))
