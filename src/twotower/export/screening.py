"""A ranker in two steps: a fast one screens all candidates, the exact one decides among the best.

The fast one (`twotower.export.int8`) is off by a few hundredths of what candidates differ by, so of
the ten best it would show a wrong one every other time, but misplaces nobody by much. It lets more
pass than will be shown, the finalists; those are scored exactly, and what is shown has the order
and the probabilities of the exact ranker.

Shapes: Q queries, K candidates, F finalists, k items shown.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

LEAST_FINALISTS = 32


def num_finalists(k: int) -> int:
    """How many candidates are scored exactly for a list of `k`."""
    return max(LEAST_FINALISTS, 2 * k)


def finalists(estimates: Array, k: int) -> npt.NDArray[np.int64]:
    """The candidates that are scored exactly.

    Args:
        estimates: (Q, K) of the fast ranker, NaN where padded.
        k: Length of the list that is wanted.

    Returns:
        (Q, F) their places, in the order of the places.
    """
    order = np.argsort(-_or_least(estimates), axis=1, kind="stable")
    return np.sort(order[:, : num_finalists(k)], axis=1)


def best(probabilities: Array, k: int) -> npt.NDArray[np.int64]:
    """Places of the `k` best (Q, k), best first; of equal ones the first.

    Args:
        probabilities: (Q, K), NaN where padded.
        k: How many.
    """
    return np.argsort(-_or_least(probabilities), axis=1, kind="stable")[:, :k]


def same_lists(exact: Array, estimates: Array, k: int) -> tuple[Array, Array]:
    """Whether a query is shown what it would be shown without screening.

    Args:
        exact: (Q, K) of the exact ranker, NaN where padded.
        estimates: (Q, K) of the fast one.
        k: Length of the lists.

    Returns:
        (Q,) bool, that the list is the same; and (Q,) bool, that the same items, in any order,
        would be shown if the fast ranker had the last word.
    """
    wanted = best(exact, k)  # (Q, k)
    passed = finalists(estimates, k)  # (Q, F)
    among = best(np.take_along_axis(exact, passed, axis=1), k)
    found = np.take_along_axis(passed, among, axis=1)
    alone = np.sort(best(estimates, k), axis=1) == np.sort(wanted, axis=1)
    return (found == wanted).all(axis=1), alone.all(axis=1)


def _or_least(values: Array) -> Array:
    return np.where(np.isnan(values), -np.inf, values)
