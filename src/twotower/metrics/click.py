"""Metrics of predicted clicks: AUC, AUC within groups, log loss, normalised entropy.

- AUC is the probability that a positive scores above a negative, ties counting half (the
  Mann-Whitney statistic); computed from ranks, so it is exact and any real scores do.
- Grouped AUC is the AUC within each user, averaged with the user's impressions as weights (Zhou et
  al., "Deep Interest Network for Click-Through Rate Prediction", 2018).
- Normalised entropy is the log loss over that of always predicting the base rate (He et al.,
  "Practical Lessons from Predicting Clicks on Ads at Facebook", 2014); below 1 is better than that.

Letters: ``R`` impressions, ``G`` groups.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]


def auc(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Probability that a positive scores above a negative, ties counting half.

    Args:
        labels: (R,) 0 or 1.
        scores: (R,) any finite numbers.
        weights: (R,) weight of each impression, at least 0; None gives all the same.

    Raises:
        ValueError: When the arrays do not fit together or one class is missing.

    Example:
        >>> auc([1, 0, 1, 0], [-1.0, -2.0, 0.5, 0.5])
        0.625
    """
    positive, values, mass = checked_clicks(labels, scores, weights, name="scores")
    one_group = np.zeros(len(values), np.int64)
    wins, positives, negatives = _pairs(positive, values, mass, one_group)
    _require_both_classes("AUC", float(positives.sum()), float(negatives.sum()))
    return float(wins[0] / (positives[0] * negatives[0]))


def grouped_auc(labels: ArrayLike, scores: ArrayLike, groups: ArrayLike) -> float:
    """AUC within groups, averaged with the groups' impressions as weights.

    Groups with one class have no AUC and are left out, weight and all.

    Args:
        labels: (R,) 0 or 1.
        scores: (R,) any finite numbers, compared within a group only.
        groups: (R,) group of each impression, such as the user's row or id.

    Raises:
        ValueError: When the arrays do not fit together or no group has both classes.
    """
    positive, values, mass = checked_clicks(labels, scores, None, name="scores")
    names = np.asarray(groups)
    if names.shape != values.shape:
        raise ValueError(f"groups must have shape {values.shape}, got {names.shape}")
    index = np.unique(names, return_inverse=True)[1]
    by_group = _within(positive, values, mass, index)  # (G,)
    both = np.isfinite(by_group)
    if not both.any():
        raise ValueError(
            f"grouped AUC needs a group with both classes, got none among {len(both)} groups"
        )
    return float(np.average(by_group[both], weights=np.bincount(index)[both]))


def auc_by_group(labels: ArrayLike, scores: ArrayLike, groups: NDArray[np.int64]) -> FloatArray:
    """AUC within every group.

    Args:
        labels: (R,) 0 or 1.
        scores: (R,) any finite numbers, compared within a group only.
        groups: (R,) which of the groups 0 to G - 1 each impression is of.

    Returns:
        (G,), NaN where a group has one class or none; G is the largest group and one.

    Raises:
        ValueError: When the arrays do not fit together.

    Example:
        >>> auc_by_group([1, 0, 1, 0, 0], [0.3, 0.1, 0.2, 0.25, 0.9], np.array([0, 0, 0, 2, 2]))
        array([ 1., nan, nan])
    """
    positive, values, mass = checked_clicks(labels, scores, None, name="scores")
    names, index = np.unique(groups, return_inverse=True)
    found = np.full(int(names[-1]) + 1, np.nan)
    found[names] = _within(positive, values, mass, index)
    return found


def log_loss(
    labels: ArrayLike, probabilities: ArrayLike, weights: ArrayLike | None = None
) -> float:
    """Mean negative log likelihood of the labels, in nats.

    A probability of exactly 0 or 1, to which sigmoids saturate, is read as lying the machine
    epsilon of its type away from it: one wrong row then costs 16 nats in float32 and 36 in float64,
    not infinity.

    Args:
        labels: (R,) 0 or 1.
        probabilities: (R,) predicted probabilities of a 1.
        weights: (R,) weight of each impression, at least 0; None gives all the same.

    Raises:
        ValueError: When the arrays do not fit together or a probability lies outside [0, 1].
    """
    positive, values, mass = checked_clicks(labels, probabilities, weights, name="probabilities")
    given = np.asarray(probabilities)
    precision = given.dtype if np.issubdtype(given.dtype, np.floating) else np.dtype(np.float64)
    epsilon = float(np.finfo(precision).eps)
    inside = np.clip(values, epsilon, 1 - epsilon)
    losses = -np.log(np.where(positive, inside, 1 - inside))
    return float(np.average(losses, weights=mass))


def normalised_entropy(
    labels: ArrayLike, probabilities: ArrayLike, weights: ArrayLike | None = None
) -> float:
    """Log loss over the entropy of the base rate; 1 is no better than predicting the base rate.

    Args:
        labels: (R,) 0 or 1.
        probabilities: (R,) predicted probabilities of a 1.
        weights: (R,) weight of each impression, at least 0; None gives all the same.

    Raises:
        ValueError: As `log_loss`, and when one class is missing.
    """
    loss = log_loss(labels, probabilities, weights)
    positive, _, mass = checked_clicks(labels, probabilities, weights, name="probabilities")
    positives, negatives = float(mass[positive].sum()), float(mass[~positive].sum())
    _require_both_classes("normalised entropy", positives, negatives)
    rate = positives / (positives + negatives)
    return float(loss / -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate)))


def checked_clicks(
    labels: ArrayLike, values: ArrayLike, weights: ArrayLike | None, *, name: str
) -> tuple[NDArray[np.bool_], FloatArray, FloatArray]:
    """Labels, predictions and weights in the form that metrics want.

    Args:
        labels: (R,) 0 or 1.
        values: (R,) scores or probabilities.
        weights: (R,), or None.
        name: ``scores``, any finite numbers, or ``probabilities``, numbers in [0, 1].

    Returns:
        (R,) bool, (R,) and (R,) float64.

    Raises:
        ValueError: With all that is wrong.
    """
    outcomes, predictions = np.asarray(labels), np.asarray(values, np.float64)
    mass = np.ones(outcomes.shape) if weights is None else np.asarray(weights, np.float64)
    if outcomes.ndim != 1 or outcomes.size == 0 or predictions.shape != outcomes.shape:
        raise ValueError(
            f"labels and {name} must have the same shape (R,) with R > 0, got {outcomes.shape} and "
            f"{predictions.shape}"
        )
    problems = _value_problems(outcomes, predictions, name)
    if mass.shape != outcomes.shape:
        problems.append(f"weights must have shape {outcomes.shape}, got {mass.shape}")
    elif not (np.isfinite(mass).all() and (mass >= 0).all() and mass.sum() > 0):
        problems.append(
            "weights must be finite, at least 0 and not all 0, got "
            f"{np.array2string(mass, threshold=6)}"
        )
    if problems:
        raise ValueError("\n".join(problems))
    return outcomes == 1, predictions, mass


def _value_problems(outcomes: NDArray[Any], predictions: FloatArray, name: str) -> list[str]:
    problems = []
    other = outcomes[(outcomes != 0) & (outcomes != 1)]
    if len(other):
        problems.append(f"labels must be 0 or 1, got {other[:5]} in {len(other)} rows")
    if name == "probabilities":
        wrong = predictions[~((predictions >= 0) & (predictions <= 1))]
        allowed = "in [0, 1]"
    else:
        wrong, allowed = predictions[~np.isfinite(predictions)], "finite"
    if len(wrong):
        problems.append(f"{name} must be {allowed}, got {wrong[:5]} in {len(wrong)} rows")
    return problems


def _within(
    positive: NDArray[np.bool_], scores: FloatArray, mass: FloatArray, group: NDArray[np.int64]
) -> FloatArray:
    """AUC of every group (G,), none of them empty; NaN where it has one class."""
    wins, positives, negatives = _pairs(positive, scores, mass, group)
    found: FloatArray = np.full(len(wins), np.nan)
    pairs = positives * negatives
    np.divide(wins, pairs, out=found, where=pairs > 0)
    return found


def _pairs(
    positive: NDArray[np.bool_], scores: FloatArray, mass: FloatArray, group: NDArray[np.int64]
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Mass of won pairs, of positives and of negatives, (G,) each."""
    order = np.lexsort((scores, group))
    scores, group = scores[order], group[order]
    gain = np.where(positive, mass, 0.0)[order]
    loss = np.where(positive, 0.0, mass)[order]
    new_group = np.diff(group, prepend=-1) != 0
    starts = np.flatnonzero(new_group | (np.diff(scores, prepend=np.nan) != 0))
    gain, loss = np.add.reduceat(gain, starts), np.add.reduceat(loss, starts)  # by distinct score
    group, groups = group[starts], np.flatnonzero(new_group[starts])
    positives, negatives = np.add.reduceat(gain, groups), np.add.reduceat(loss, groups)  # (G,)
    earlier_groups = np.cumsum(negatives) - negatives
    below = np.cumsum(loss) - loss - earlier_groups[group]
    return np.add.reduceat(gain * (below + loss / 2), groups), positives, negatives


def _require_both_classes(what: str, positives: float, negatives: float) -> None:
    if positives == 0 or negatives == 0:
        raise ValueError(
            f"{what} needs labels of both classes with weight above 0, got a weight of "
            f"{positives:g} positives and {negatives:g} negatives"
        )
