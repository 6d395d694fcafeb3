"""Do predicted probabilities mean what they say: the reliability table and its summary.

Predictions are cut into bins of equal mass, as clicks are rare and equally wide bins would leave
nearly all rows in the first. The expected calibration error is the mean distance between predicted
and observed rate (Naeini et al., "Obtaining Well Calibrated Probabilities Using Bayesian Binning",
2015); it cannot reach zero on a finite sample, since observed rates scatter.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from twotower.metrics.click import FloatArray, checked_clicks


@dataclass(frozen=True, kw_only=True)
class ReliabilityTable:
    """Predicted against observed rates, by rising prediction; ``M`` bins, none of them empty.

    Args:
        counts: (M,) rows of each bin.
        predicted: (M,) mean probability.
        observed: (M,) share of positives.
    """

    counts: NDArray[np.int64]
    predicted: FloatArray
    observed: FloatArray


def reliability(
    labels: ArrayLike, probabilities: ArrayLike, num_bins: int = 20
) -> ReliabilityTable:
    """Cut the predictions into bins of equal mass.

    Equal predictions share a bin, the one that the middle of them falls into; so the table does
    not depend on the order of rows, and has fewer bins than asked for where many predictions are
    equal.

    Args:
        labels: (R,) 0 or 1.
        probabilities: (R,) predicted probabilities of a 1.
        num_bins: How many bins are wanted, at least 1.

    Raises:
        ValueError: When the arrays do not fit together, a probability lies outside [0, 1], or
            `num_bins` is below 1.
    """
    if num_bins < 1:
        raise ValueError(f"num_bins must be at least 1, got {num_bins}")
    positive, values, _ = checked_clicks(labels, probabilities, None, name="probabilities")
    _, inverse, sizes = np.unique(values, return_inverse=True, return_counts=True)
    twice_middle = 2 * np.cumsum(sizes) - sizes - 1  # twice the mean position of equal predictions
    bins = (num_bins * twice_middle // (2 * len(values)))[inverse]  # (R,)
    counts = np.bincount(bins, minlength=num_bins)
    filled = np.flatnonzero(counts)
    counts = counts[filled]
    return ReliabilityTable(
        counts=counts,
        predicted=np.bincount(bins, values)[filled] / counts,
        observed=np.bincount(bins, positive)[filled] / counts,
    )


def expected_calibration_error(table: ReliabilityTable) -> float:
    """Mean distance between predicted and observed rate, bins weighted by their rows.

    Args:
        table: From `reliability`.
    """
    return float(np.average(np.abs(table.predicted - table.observed), weights=table.counts))
