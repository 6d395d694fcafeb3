"""How often items occur in training: the counts behind the logQ correction and popularity."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from twotower.data.leakage import FittedOn
from twotower.data.prepared import Prepared


@dataclass(frozen=True, kw_only=True)
class ItemFrequency:
    """Training positives of every item.

    Args:
        counts: (C,) int64 training events of the items that may be recommended.
        fitted_on: The interactions that were counted and the impressions beside them.
    """

    counts: npt.NDArray[np.int64]
    fitted_on: FittedOn

    @staticmethod
    def count(prepared: Prepared, interactions: npt.NDArray[np.int64]) -> ItemFrequency:
        """Count the positives among some interactions.

        Args:
            prepared: The data set.
            interactions: (R',) rows of its interactions, the training part for a model.
        """
        prepared.require_events()
        table = prepared.interactions
        rows = interactions[table.positive[interactions]]
        times = None if table.timestamps is None else table.timestamps[interactions]
        return ItemFrequency(
            counts=np.bincount(table.item_rows[rows], minlength=prepared.num_catalogue),  # type: ignore[index]
            fitted_on=FittedOn.rows(table.rows[interactions], times),
        )

    def probability(self) -> npt.NDArray[np.float64]:
        """(C,) probability that a random training event is of the item; 0 for items never seen."""
        return self.counts / max(1, int(self.counts.sum()))
