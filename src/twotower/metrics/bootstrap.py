"""Bootstrap intervals of means over queries (one query a user).

The percentile bootstrap (Efron, "Bootstrap methods: another look at the jackknife", 1979): draw as
many queries as there are, with replacement, many times; the interval holds the middle of the
resampled means. Only how often each distinct value is drawn matters to a mean, so multinomial
counts of the distinct values are drawn instead of queries. That is the same distribution, but the
cost grows with the number of distinct values (11 for NDCG@10 with one relevant item), not of
queries, and their order does not matter.

Letters: ``Q`` queries, ``V`` distinct values, ``B`` resamples of a block.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

# Counts held at once: 32 MB.
BLOCK_COUNTS = 2**22


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean with its uncertainty.

    Args:
        value: The mean of the sample.
        low: Lower end of the interval.
        high: Upper end of the interval.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"

    def entries(self, name: str) -> dict[str, float]:
        """The value as `name`, the ends as ``<name>/low`` and ``<name>/high``; for result files."""
        return {name: self.value, f"{name}/low": self.low, f"{name}/high": self.high}


def bootstrap_mean(
    values: FloatArray, *, num_resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Interval of a mean over queries.

    Args:
        values: (Q,) a metric by query; NaN where a query does not count.
        num_resamples: How many resamples.
        level: Probability that the interval holds the mean of the population.
        seed: Seed of the draws; the same seed gives the same interval.

    Raises:
        ValueError: When no value counts, one is infinite, or a setting is out of range.
    """
    kept = np.asarray(values, np.float64)
    _check(kept, num_resamples, level)
    kept = kept[~np.isnan(kept)]
    distinct, counts = np.unique(kept, return_counts=True)
    generator = np.random.default_rng(seed)
    size = max(BLOCK_COUNTS // len(distinct), 1)
    means = np.empty(num_resamples)
    for start in range(0, num_resamples, size):
        block = means[start : start + size]
        drawn = generator.multinomial(len(kept), counts / len(kept), size=len(block))  # (B, V)
        block[:] = drawn @ distinct / len(kept)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value=float(kept.mean()), low=float(low), high=float(high))


def bootstrap_difference(
    first: FloatArray,
    second: FloatArray,
    *,
    num_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Interval of the mean of ``first - second`` over the same queries.

    Both systems answer the same queries, so a query is drawn with both its values: what is easy for
    both cancels, and the interval is narrower than two intervals side by side would suggest.

    Args:
        first: (Q,) a metric by query; NaN where a query does not count.
        second: (Q,) the same metric of the other system.
        num_resamples: How many resamples.
        level: Probability that the interval holds the difference in the population.
        seed: Seed of the draws.

    Raises:
        ValueError: When the two do not count the same queries, or as `bootstrap_mean`.
    """
    one, other = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if one.shape != other.shape or bool((np.isnan(one) != np.isnan(other)).any()):
        raise ValueError(
            "`first` and `second` must hold the same queries, got shapes "
            f"{one.shape} and {other.shape} with {int((~np.isnan(one)).sum())} and "
            f"{int((~np.isnan(other)).sum())} values that count"
        )
    return bootstrap_mean(one - other, num_resamples=num_resamples, level=level, seed=seed)


def _check(values: FloatArray, num_resamples: int, level: float) -> None:
    problems = []
    if values.ndim != 1 or bool(np.isnan(values).all()):
        problems.append(
            "values must have shape (Q,) with at least one that is not NaN, got "
            f"{int((~np.isnan(values)).sum())} of shape {values.shape}"
        )
    if bool(np.isinf(values).any()):
        problems.append(f"values must not be infinite, got {int(np.isinf(values).sum())}")
    if num_resamples < 1:
        problems.append(f"num_resamples must be at least 1, got {num_resamples}")
    if not 0 < level < 1:
        problems.append(f"level must lie between 0 and 1, got {level}")
    if problems:
        raise ValueError("\n".join(problems))
