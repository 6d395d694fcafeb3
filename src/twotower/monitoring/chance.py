"""How far a window differs from the reference by chance alone, and what is more than that.

The events of a user are alike, and the same users come in the window and in the reference, so that
the textbook distributions of the statistics, which take rows for independent draws, would raise
alarms all the time. Counts are therefore kept by group of users (random groups: Wolter,
"Introduction to Variance Estimation", chapter 2), and what a group adds to the difference of the
shares is a draw of its own:

    shares - reference  =  sum over groups g of d[g]    (to first order, around no drift)

Giving every d[g] a random sign gives the difference another value that it could as well have had
(wild bootstrap: Wu, "Jackknife, bootstrap and other resampling methods in regression analysis",
1986). The signs are the same for all columns and statistics, so the largest of all their deviations
is known too, however they depend on each other: an alarm rate for the whole window needs no
Bonferroni correction (Westfall and Young, "Resampling-based multiple testing", 1993).

Shape letters: G groups, B bins, M draws, H comparisons.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import gamma

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Null:
    """A statistic and what it would be by chance.

    Args:
        value: The statistic.
        draws: (M,) what it could have been without drift.
    """

    value: float
    draws: Floats


@dataclass(frozen=True, kw_only=True)
class Judged:
    """How unusual a statistic is among all that are looked at.

    Args:
        p_value: Probability that, without drift, any of the comparisons is as unusual.
        threshold: Value beyond which that probability is below the false-alarm rate.
    """

    p_value: float
    threshold: float


def signs(num_draws: int, num_groups: int, seed: int) -> Floats:
    """Random signs (M, G)."""
    drawn = np.random.default_rng(seed).integers(0, 2, (num_draws, num_groups))
    return drawn * 2.0 - 1.0


def group_parts(counts: Counts, totals: Counts) -> Floats:
    """What every group adds to the deviation of the shares from their expectation.

    Args:
        counts: (G, B) by group and bin.
        totals: (G,) what they are shares of.

    Returns:
        (G, B); the sum over the groups is 0.
    """
    total = totals.sum()
    if not total:
        return np.zeros(counts.shape)
    shares = counts.sum(axis=0) / total  # (B,)
    return np.asarray((counts - totals[:, None] * shares) / total)


def differences(parts: Floats, drawn: Floats, seed: int) -> Floats:
    """Differences of shares (M, B) as they could have been without drift.

    As the spread of the parts is itself an estimate, the draws are as much wider as Student's t is
    wider than the normal distribution; its degrees of freedom are those of Satterthwaite.

    Args:
        parts: (G, B) of the window less those of the reference.
        drawn: (M, G) random signs.
        seed: Of the widths.
    """
    weights = (parts**2).sum(axis=1)  # (G,)
    if not weights.any():
        return np.zeros((len(drawn), parts.shape[1]))
    effective = weights.sum() ** 2 / (weights**2).sum()
    freedom = max(effective - 1.0, 1.0)
    rng = np.random.default_rng(seed)
    width = np.sqrt(freedom / rng.chisquare(freedom, len(drawn)))  # (M,)
    grow = np.sqrt(effective / max(effective - 1.0, 1.0))
    return np.asarray((drawn @ parts) * (width * grow)[:, None])  # (M, B)


def judge(nulls: Sequence[Null], false_alarm_rate: float) -> list[Judged]:
    """Hold every statistic against what the most unusual of all would be by chance.

    Statistics of different kinds are made comparable by the tail of a gamma distribution of the
    mean and variance of their draws; that it fits is not needed for the alarm rate to hold, as the
    draws go through the same function.

    Args:
        nulls: H statistics.
        false_alarm_rate: Probability of any alarm without drift.
    """
    if not nulls:
        return []
    draws = np.stack([null.draws for null in nulls], axis=1)  # (M, H)
    values = np.array([null.value for null in nulls])  # (H,)
    mean, variance = draws.mean(axis=0), draws.var(axis=0)
    fixed = variance <= 1e-18 * np.maximum(mean**2, 1e-30)  # nothing varies, so nothing is known
    shape = np.where(fixed, 1.0, mean**2 / np.where(fixed, 1.0, variance))
    scale = np.where(fixed, 1.0, variance / np.where(fixed, 1.0, mean))
    tails = np.where(fixed, 0.0, gamma.logsf(draws, shape, scale=scale))  # (M, H)
    own = np.where(fixed, 0.0, gamma.logsf(values, shape, scale=scale))  # (H,)
    least = np.sort(tails.min(axis=1))  # (M,) the most unusual of every draw
    as_unusual = np.searchsorted(least, own, side="right")
    p_values = (as_unusual + 1) / (len(least) + 1)
    place = max(int(np.floor(false_alarm_rate * (len(least) + 1))) - 1, 0)
    thresholds = gamma.isf(np.exp(least[place]), shape, scale=scale)
    return [
        Judged(p_value=1.0 if none else float(p), threshold=0.0 if none else float(threshold))
        for p, threshold, none in zip(p_values, thresholds, fixed, strict=True)
    ]
