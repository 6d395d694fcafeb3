"""Figures of a log with the error that a user's events share.

The events of a user are alike, so they are no independent draws, and a standard error that counts
events is too small. Every figure here is a smooth function of sums over events; to first order it
deviates from the truth by a sum over events, which is added up by user:

    figure - truth  ~  sum over users of influence(user)
    variance        ~  G / (G - 1) * sum over users of influence(user)^2

That is the linearised estimator of cluster samples (Särndal, Swensson and Wretman, "Model Assisted
Survey Sampling", 1992, chapter 5). For the AUC the influences are the structural components of
DeLong et al. ("Comparing the areas under two or more correlated receiver operating characteristic
curves", 1988), summed by user as Obuchowski does ("Nonparametric analysis of clustered ROC curve
data", 1997). Two windows see the same users, and what a user adds to both is subtracted before it
is squared, so that a difference has the error it has, and not that of two samples of strangers.

Shape letters: R events, G users, B blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Array = npt.NDArray[Any]

OTHERS = 1 << 62


@dataclass(frozen=True, kw_only=True, eq=False)
class Estimate:
    """A figure and what every user adds to its error.

    Args:
        value: The figure.
        users: (G,) keys of the users, rising; those below 0 mean nothing outside of the window.
        influences: (G,) what they add, in units of the figure.
        num_rows: How many events it is of.
    """

    value: float
    users: Integers
    influences: Floats
    num_rows: int

    @property
    def num_users(self) -> int:
        """``G``."""
        return len(self.users)

    @property
    def standard_error(self) -> float:
        """Standard error of the figure."""
        return _standard_error(self.influences)

    def relative(self) -> Estimate:
        """The logarithm of a figure above 0, so that differences are relative changes."""
        return Estimate(
            value=float(np.log(self.value)),
            users=self.users,
            influences=self.influences / self.value,
            num_rows=self.num_rows,
        )

    def minus(self, other: Estimate) -> Estimate:
        """The difference of two figures of the same kind; users of both count once."""
        others = np.where(other.users < 0, other.users - OTHERS, other.users)
        users, inverse = np.unique(np.concatenate([self.users, others]), return_inverse=True)
        parts = np.concatenate([self.influences, -other.influences])
        return Estimate(
            value=self.value - other.value,
            users=users,
            influences=_sums(inverse, parts, len(users)),
            num_rows=self.num_rows,
        )

    def blocks(self, num_blocks: int, seed: int) -> Floats:
        """Standardised deviations of disjoint groups of users, drawn at random.

        Args:
            num_blocks: ``B``.
            seed: Decides which user falls into which block.

        Returns:
            (B,) by how much the figure of each group would lie above that of all, in standard
            errors of one group; their mean is 0.
        """
        error = self.standard_error
        if error == 0:
            return np.zeros(num_blocks)
        places = np.random.default_rng(seed).permutation(self.num_users) % num_blocks
        scale = float(np.sqrt(num_blocks)) / error
        return _sums(places, self.influences, num_blocks) * scale


@dataclass(frozen=True, kw_only=True, eq=False)
class Clusters:
    """Which user every event is of.

    Args:
        keys: (G,) keys of the users, rising.
        codes: (R,) place of every event's user among them.
    """

    keys: Integers
    codes: Integers

    @staticmethod
    def of(keys: Integers) -> Clusters:
        """Group events by the keys (R,) of their users."""
        found, codes = np.unique(keys, return_inverse=True)
        return Clusters(keys=found, codes=codes)

    def take(self, rows: Array) -> Clusters:
        """Those of some events (n,)."""
        return Clusters(keys=self.keys, codes=self.codes[rows])

    def estimate(self, value: float, influences: Floats) -> Estimate:
        """A figure whose events have influences (R,)."""
        counts = np.bincount(self.codes, minlength=len(self.keys))
        sums = _sums(self.codes, influences, len(self.keys))
        present = counts > 0
        return Estimate(
            value=value,
            users=self.keys[present],
            influences=sums[present],
            num_rows=len(self.codes),
        )


def mean(values: Floats, clusters: Clusters) -> Estimate:
    """Mean of values (R,), R at least 1."""
    average = float(values.mean())
    return clusters.estimate(average, (values - average) / len(values))


def click_rate(labels: Array, clusters: Clusters) -> Estimate | None:
    """Share of clicks among labels (R,) of 0 and 1; None where it is 0 or 1."""
    estimate = mean(labels.astype(np.float64), clusters)
    return estimate if 0 < estimate.value < 1 else None


def log_loss(labels: Array, probabilities: Array, clusters: Clusters) -> Estimate:
    """Log loss as `twotower.metrics.click.log_loss` has it; both (R,)."""
    epsilon = float(np.finfo(probabilities.dtype).eps)
    inside = np.clip(probabilities.astype(np.float64), epsilon, 1 - epsilon)
    return mean(-np.log(np.where(labels, inside, 1 - inside)), clusters)


def calibration(labels: Array, probabilities: Array, clusters: Clusters) -> Estimate | None:
    """Expected over observed clicks, both (R,); None without a click."""
    clicks = float(np.count_nonzero(labels))
    if not clicks:
        return None
    predicted = probabilities.astype(np.float64)
    ratio = float(predicted.sum()) / clicks
    return clusters.estimate(ratio, (predicted - ratio * labels) / clicks)


def auc(labels: Array, scores: Array, clusters: Clusters) -> Estimate | None:
    """AUC of scores (R,), ties counting half; None where one class is missing."""
    positive = labels.astype(np.bool_)
    num_positives = int(np.count_nonzero(positive))
    num_negatives = len(positive) - num_positives
    if not num_positives or not num_negatives:
        return None
    distinct, place = np.unique(scores, return_inverse=True)
    positives = np.bincount(place[positive], minlength=len(distinct))
    negatives = np.bincount(place[~positive], minlength=len(distinct))
    below = np.cumsum(negatives) - negatives / 2  # negatives that a positive of this score beats
    above = num_positives - np.cumsum(positives) + positives / 2
    area = float(positives @ below) / (num_positives * num_negatives)
    influences = np.where(
        positive,
        (below[place] / num_negatives - area) / num_positives,
        (above[place] / num_positives - area) / num_negatives,
    )
    return clusters.estimate(area, influences)


def _sums(places: Integers, values: Floats, length: int) -> Floats:
    return np.bincount(places, values, length).astype(np.float64)


def _standard_error(influences: Floats) -> float:
    count = len(influences)
    if count < 2:
        return float("inf")
    return float(np.sqrt(count / (count - 1) * (influences @ influences)))
