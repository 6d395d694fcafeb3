import math

import numpy as np
import pytest

from twotower.metrics.click import auc, grouped_auc, log_loss, normalised_entropy


def slow_auc(labels, scores, weights=None):
    """Every pair of a positive and a negative."""
    weights = np.ones(len(labels)) if weights is None else weights
    won = pairs = 0.0
    for i in np.flatnonzero(labels):
        for j in np.flatnonzero(np.asarray(labels) == 0):
            pair = weights[i] * weights[j]
            pairs += pair
            won += pair * (1.0 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0.0)
    return won / pairs


def test_auc_with_negative_scores_and_ties_by_hand():
    # -0.5 beats -2, ties -0.5, loses to 0.3; -0.1 beats -2 and -0.5, loses to 0.3
    assert auc([1, 0, 1, 0, 0], [-0.5, -0.5, -0.1, -2.0, 0.3]) == pytest.approx(3.5 / 6)


def test_auc_at_its_ends():
    assert auc([0, 0, 1], [-3.0, -2.0, -1.0]) == 1
    assert auc([1, 1, 0], [-3.0, -2.0, -1.0]) == 0
    assert auc([1, 0, 1, 0], [0.0, 0.0, 0.0, 0.0]) == 0.5


@pytest.mark.parametrize("seed", range(5))
def test_auc_equals_all_pairs(seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, 60)
    scores = rng.integers(-4, 5, 60).astype(float)
    weights = rng.random(60)
    assert auc(labels, scores) == pytest.approx(slow_auc(labels, scores), rel=1e-12)
    weighted = auc(labels, scores, weights)
    assert weighted == pytest.approx(slow_auc(labels, scores, weights), rel=1e-12)


def test_auc_invariances():
    rng = np.random.default_rng(1)
    labels, scores = rng.integers(0, 2, 200), rng.normal(size=200).round(1)
    value, order = auc(labels, scores), rng.permutation(200)
    assert auc(labels[order], scores[order]) == value
    assert auc(labels, np.exp(scores)) == value
    assert auc(labels, -scores) == pytest.approx(1 - value, rel=1e-12)
    assert auc(labels.astype(bool), scores.astype(np.float64).tolist()) == value
    assert auc(labels, scores, np.full(200, 2.5)) == pytest.approx(value, rel=1e-12)


def test_a_weight_of_two_is_the_row_twice():
    labels, scores = np.array([1, 0, 1, 0]), np.array([0.3, 0.3, 0.1, 0.2])
    twice = np.append(labels, 1), np.append(scores, 0.3)
    assert auc(labels, scores, [2, 1, 1, 1]) == pytest.approx(auc(*twice))


def test_grouped_auc_by_hand():
    # a: 1 of 2 pairs, three rows; b: only positives; c: tie, two rows; d: only negatives
    groups = ["a", "b", "a", "c", "a", "b", "c", "d"]
    labels = [1, 1, 0, 1, 0, 1, 0, 0]
    scores = [0.5, 9.0, 0.7, -1.0, 0.1, 8.0, -1.0, 5.0]
    assert grouped_auc(labels, scores, groups) == pytest.approx((3 * 0.5 + 2 * 0.5) / 5)
    scores[0] = 0.8
    assert grouped_auc(labels, scores, groups) == pytest.approx((3 * 1 + 2 * 0.5) / 5)


@pytest.mark.parametrize("seed", range(3))
def test_grouped_auc_equals_one_group_at_a_time(seed):
    rng = np.random.default_rng(seed)
    groups, labels = rng.integers(100, 110, 120), rng.integers(0, 2, 120)
    scores = rng.integers(-3, 3, 120) / 2
    total = mass = 0.0
    for group in np.unique(groups):
        mine = groups == group
        if len(set(labels[mine])) == 2:
            total += mine.sum() * slow_auc(labels[mine], scores[mine])
            mass += mine.sum()
    assert grouped_auc(labels, scores, groups) == pytest.approx(total / mass, rel=1e-12)
    shift = 10.0 * (groups - 105)  # scores are compared within a group only
    assert grouped_auc(labels, scores + shift, groups) == pytest.approx(total / mass, rel=1e-12)


def test_one_group_is_plain_auc():
    labels, scores = [1, 0, 0, 1], [0.1, 0.1, -0.4, 0.0]
    assert grouped_auc(labels, scores, [5, 5, 5, 5]) == auc(labels, scores)


def test_log_loss_by_hand():
    expected = -(math.log(0.8) + math.log(0.5) + math.log(0.9)) / 3
    assert log_loss([1, 0, 0], [0.8, 0.5, 0.1]) == pytest.approx(expected)
    weighted = -(2 * math.log(0.8) + math.log(0.9)) / 3
    assert log_loss([1, 0, 0], [0.8, 0.5, 0.1], [2, 0, 1]) == pytest.approx(weighted)


def test_saturated_probabilities_cost_the_precision_of_their_type():
    single = log_loss([1], np.array([0.0], np.float32))
    assert single == pytest.approx(23 * math.log(2))  # float32 has 23 bits after the point
    assert log_loss([0], np.array([1.0])) == pytest.approx(52 * math.log(2))
    assert log_loss([1, 0], [1, 0]) == pytest.approx(0, abs=1e-15)


def test_normalised_entropy_of_the_base_rate_is_one():
    labels = [1, 0, 0, 0]
    assert normalised_entropy(labels, [0.25] * 4) == pytest.approx(1)
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    loss = -(math.log(0.6) + 3 * math.log(0.8)) / 4
    assert normalised_entropy(labels, [0.6, 0.2, 0.2, 0.2]) == pytest.approx(loss / entropy)
    assert normalised_entropy([1, 0], [0.25, 0.25], [1, 3]) == pytest.approx(1)


def test_one_class_is_refused():
    with pytest.raises(
        ValueError, match=r"AUC needs labels of both classes.*3 positives and 0 neg"
    ):
        auc([1, 1, 1], [0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="AUC needs labels of both classes"):
        auc([1, 0], [0.1, 0.2], [1.0, 0.0])
    with pytest.raises(ValueError, match="normalised entropy needs labels of both classes"):
        normalised_entropy([0, 0], [0.1, 0.2])
    with pytest.raises(ValueError, match="a group with both classes, got none among 2 groups"):
        grouped_auc([0, 1], [0.1, 0.2], [1, 2])


@pytest.mark.parametrize(
    ("labels", "scores", "weights", "message"),
    [
        ([0, 1], [0.5], None, r"same shape \(R,\) with R > 0, got \(2,\) and \(1,\)"),
        ([], [], None, r"same shape \(R,\) with R > 0, got \(0,\) and \(0,\)"),
        ([[0, 1]], [[0.1, 0.2]], None, r"same shape \(R,\)"),
        ([0, 2], [0.1, 0.2], None, r"labels must be 0 or 1, got \[2\] in 1 rows"),
        ([0, math.nan], [0.1, 0.2], None, r"labels must be 0 or 1, got \[nan\]"),
        ([0, 1], [0.1, math.nan], None, r"scores must be finite, got \[nan\] in 1 rows"),
        ([0, 1], [0.1, math.inf], None, r"scores must be finite, got \[inf\]"),
        ([0, 1], [0.1, 0.2], [1.0], r"weights must have shape \(2,\), got \(1,\)"),
        ([0, 1], [0.1, 0.2], [1.0, -1.0], r"weights must be finite, at least 0 and not all 0"),
        ([0, 1], [0.1, 0.2], [0.0, 0.0], r"weights must be finite, at least 0 and not all 0"),
    ],
)
def test_bad_input_is_refused(labels, scores, weights, message):
    with pytest.raises(ValueError, match=message):
        auc(labels, scores, weights)


def test_two_mistakes_are_told_at_once():
    with pytest.raises(ValueError, match=r"labels must be 0 or 1(.|\n)*probabilities must be in"):
        log_loss([0, 3], [1.5, math.nan])


def test_probabilities_and_groups_are_checked():
    with pytest.raises(ValueError, match=r"probabilities must be in \[0, 1\], got \[-0.1  1.5\]"):
        log_loss([0, 1], [-0.1, 1.5])
    with pytest.raises(ValueError, match=r"groups must have shape \(2,\), got \(3,\)"):
        grouped_auc([0, 1], [0.1, 0.2], [1, 2, 3])
