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

ROUNDING = 1e-9

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Null:
    """A statistic and what it would be by chance.

    Args:
        value: The statistic.
        draws: (M,) what it could have been without drift.
        least: A smaller value is no alarm, however unusual it is.
    """

    value: float
    draws: Floats
    least: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Judged:
    """How unusual a statistic is among all that are looked at.

    Args:
        p_value: Probability that, without drift, any of the comparisons would be an alarm that is
            as unusual; no smaller than the probability of this one alone to be as large.
        threshold: Value beyond which that probability is below the false-alarm rate.
    """

    p_value: float
    threshold: float


def signs(num_draws: int, num_groups: int, seed: int) -> npt.NDArray[np.float32]:
    """Random signs (M, G)."""
    drawn = np.random.default_rng(seed).integers(0, 2, (num_draws, num_groups), dtype=np.int8)
    return 2 * drawn.astype(np.float32) - 1


def group_parts(counts: Counts, totals: Counts) -> Floats:
    """What every group adds to the deviation of the shares from their expectation.

    Args:
        counts: (G, B) by group and bin.
        totals: (G,) what they are shares of, in two groups at least.

    Returns:
        (G, B); the sum over the groups is 0. They are larger by what a sum of squares lacks whose
        mean was taken off.
    """
    total = totals.sum()
    if not total:
        return np.zeros(counts.shape)
    shares = counts.sum(axis=0) / total  # (B,)
    effective = effective_groups(totals)
    grow = np.sqrt(effective / max(effective - 1.0, ROUNDING))
    return np.asarray((counts - totals[:, None] * shares) / total * grow)


def effective_groups(totals: Counts) -> float:
    """How many groups of the same size would tell as much as these (G,)."""
    squares = float((totals.astype(np.float64) ** 2).sum())
    return float(totals.sum()) ** 2 / squares if squares else 0.0


def differences(parts: Floats, drawn: npt.NDArray[np.float32], seed: int) -> Floats:
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
    sums = drawn @ parts.astype(np.float32)  # (M, B)
    return np.asarray(sums * width[:, None], np.float64)


def judge(nulls: Sequence[Null], false_alarm_rate: float) -> list[Judged]:
    """Hold every statistic against what the most unusual of all would be by chance.

    Statistics of different kinds are made comparable by the normal score that the cube root of a
    gamma variable of the mean and variance of their draws has (Wilson and Hilferty, "The
    distribution of chi-square", 1931). That it fits is not needed for the alarm rate to hold, as
    the draws go through the same function.

    Values below the least one are no alarms, so that such draws are none either: with many rows,
    where hardly any statistic gets there by chance, those that do are held against few others.

    Args:
        nulls: H statistics, none below 0.
        false_alarm_rate: Probability of any alarm without drift.
    """
    if not nulls:
        return []
    draws = np.stack([null.draws for null in nulls], axis=1)  # (M, H)
    values = np.array([null.value for null in nulls])  # (H,)
    mean, variance = draws.mean(axis=0), draws.var(axis=0)
    fixed = variance <= 1e-18 * np.maximum(mean**2, 1e-12)  # chance makes no difference at all
    mean, variance = np.where(fixed, 1.0, mean), np.where(fixed, 1.0, variance)
    spread = variance / (9 * mean**2)  # (H,) variance of the cube root of draws over their mean
    centre, width = 1 - spread, np.sqrt(spread)
    scores = np.where(fixed, -np.inf, (np.cbrt(draws / mean) - centre) / width)  # (M, H)
    own = np.where(fixed, -np.inf, (np.cbrt(values / mean) - centre) / width)
    own = np.where(fixed & (values > ROUNDING), np.inf, own)
    least = np.array([null.least for null in nulls])  # (H,)
    alarming = np.where(draws >= least, scores, -np.inf)  # (M, H)
    most = np.sort(alarming.max(axis=1))  # (M,) the most unusual alarm of every draw
    as_unusual = len(most) - np.searchsorted(most, own, side="left")
    as_large = np.count_nonzero(draws >= values, axis=0)
    p_values = (np.maximum(as_unusual, as_large) + 1) / (len(most) + 1)
    p_values = np.where(own == -np.inf, 1.0, p_values)
    allowed = max(int(np.floor(false_alarm_rate * (len(most) + 1))) - 1, 0)  # draws beyond it
    last = len(most) - 1 - allowed
    thresholds = mean * np.maximum(most[last] * width + centre, 0.0) ** 3
    thresholds = np.maximum(thresholds, np.partition(draws, last, axis=0)[last])
    return [
        Judged(p_value=float(p), threshold=0.0 if none else float(threshold))
        for p, threshold, none in zip(p_values, thresholds, fixed, strict=True)
    ]
