"""Which stage lost the test positives that are missing from the final list.

Every positive passes the stages in the order of the system, and the first that drops it is held
responsible: retrieval (its exact rank is not good enough to be a candidate), the approximate index
(exact search would have made it a candidate, the index did not return it), the filter, the ranker
(it was a candidate and did not reach the top k). A positive that the index returned although its
exact rank was not good enough is a candidate like others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Attribution:
    """What became of the test positives, in (query, item) pairs.

    Args:
        found: In the top k.
        lost_by_retrieval: Exact rank beyond the number of candidates.
        lost_by_index: Missed by the approximate index alone.
        lost_by_filter: A candidate that the filter removed.
        lost_by_ranker: A candidate that the ranker left outside the top k.
    """

    found: int
    lost_by_retrieval: int
    lost_by_index: int
    lost_by_filter: int
    lost_by_ranker: int

    @property
    def total(self) -> int:
        """All test positives."""
        return sum(self.counts().values())

    def counts(self) -> dict[str, int]:
        """Counts by name, in the order of the fields."""
        return {
            "found": self.found,
            "lost_by_retrieval": self.lost_by_retrieval,
            "lost_by_index": self.lost_by_index,
            "lost_by_filter": self.lost_by_filter,
            "lost_by_ranker": self.lost_by_ranker,
        }

    def shares(self) -> dict[str, float]:
        """Shares of the total by name; they sum to 1."""
        return {name: count / self.total for name, count in self.counts().items()}


def attribute(
    *,
    exact_candidate: BoolArray,
    ann_candidate: BoolArray,
    passed_filter: BoolArray,
    in_top_k: BoolArray,
) -> Attribution:
    """Count where the test positives of all queries were found or lost.

    Args:
        exact_candidate: (R,) whether exact search makes the positive a candidate.
        ann_candidate: (R,) whether the index that serves returned it.
        passed_filter: (R,) whether the filter lets it through; not looked at where it was no
            candidate.
        in_top_k: (R,) whether it stands in the final list.

    Returns:
        Counts over the ``R`` positives.

    Raises:
        ValueError: When the arrays differ in length, are not bool or empty, or when a positive
            reached the final list without being a candidate that passed the filter.
    """
    _check(exact_candidate, ann_candidate, passed_filter, in_top_k)
    candidate = ann_candidate & passed_filter
    return Attribution(
        found=int(in_top_k.sum()),
        lost_by_retrieval=int((~ann_candidate & ~exact_candidate).sum()),
        lost_by_index=int((~ann_candidate & exact_candidate).sum()),
        lost_by_filter=int((ann_candidate & ~passed_filter).sum()),
        lost_by_ranker=int((candidate & ~in_top_k).sum()),
    )


def _check(
    exact_candidate: BoolArray, ann_candidate: BoolArray, passed: BoolArray, in_top_k: BoolArray
) -> None:
    arrays = (exact_candidate, ann_candidate, passed, in_top_k)
    shapes = [array.shape for array in arrays]
    if any(a.dtype != np.bool_ or a.ndim != 1 or a.shape != shapes[0] for a in arrays):
        raise ValueError(
            "exact_candidate, ann_candidate, passed_filter and in_top_k must be bool of one shape "
            f"(R,), got shapes {shapes} and types {[str(a.dtype) for a in arrays]}"
        )
    if len(in_top_k) == 0:
        raise ValueError("there must be at least one test positive, got none")
    impossible = np.flatnonzero(in_top_k & ~(ann_candidate & passed))
    if len(impossible):
        raise ValueError(
            f"{len(impossible)} positives are in the final list without being candidates that "
            f"passed the filter, first {impossible[:5]}; the final list must be made of candidates"
        )
