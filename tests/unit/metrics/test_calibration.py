import numpy as np
import pytest

from twotower.metrics.calibration import expected_calibration_error, reliability


def test_hand_table():
    # sorted: .1 .2 | .3 .4 | .6 .8
    probabilities = [0.4, 0.1, 0.8, 0.3, 0.2, 0.6]
    labels = [1, 0, 1, 0, 0, 1]
    table = reliability(labels, probabilities, num_bins=3)
    assert table.counts.tolist() == [2, 2, 2]
    assert table.predicted.tolist() == pytest.approx([0.15, 0.35, 0.7])
    assert table.observed.tolist() == [0, 0.5, 1]
    assert expected_calibration_error(table) == pytest.approx((0.15 + 0.15 + 0.3) / 3)


def test_bins_are_weighted_by_their_rows():
    # five rows in two bins: positions 0, 1, 2 and 3, 4
    table = reliability([0, 0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4, 0.5], num_bins=2)
    assert table.counts.tolist() == [3, 2]
    assert expected_calibration_error(table) == pytest.approx((3 * 0.2 + 2 * 0.55) / 5)


def test_equal_predictions_share_a_bin_in_any_order():
    labels, probabilities = np.array([1, 0, 0, 0, 1, 1]), np.array([0.2] * 4 + [0.9] * 2)
    for seed in range(4):
        order = np.random.default_rng(seed).permutation(6)
        table = reliability(labels[order], probabilities[order], num_bins=6)
        assert table.counts.tolist() == [4, 2]
        assert table.observed.tolist() == [0.25, 1]
    assert expected_calibration_error(table) == pytest.approx((4 * 0.05 + 2 * 0.1) / 6)


def test_bins_have_equal_mass_however_skewed_the_predictions():
    rng = np.random.default_rng(0)
    probabilities = rng.random(1000) ** 8
    table = reliability(rng.random(1000) < probabilities, probabilities, num_bins=20)
    assert table.counts.tolist() == [50] * 20
    assert (np.diff(table.predicted) > 0).all()
    assert (table.counts * table.predicted).sum() == pytest.approx(probabilities.sum())


def test_more_bins_than_rows_is_one_row_a_bin():
    table = reliability([0, 1], [0.4, 0.6], num_bins=10)
    assert table.counts.tolist() == [1, 1]


def test_true_probabilities_are_calibrated_and_scaled_ones_are_not():
    rng = np.random.default_rng(3)
    probabilities = rng.random(40_000) * 0.3
    labels = rng.random(40_000) < probabilities
    honest = expected_calibration_error(reliability(labels, probabilities))
    doubled = expected_calibration_error(reliability(labels, 2 * probabilities))
    assert honest < 0.01
    assert doubled == pytest.approx(0.15, abs=0.01)  # the mean probability


def test_mistakes_are_refused():
    with pytest.raises(ValueError, match="num_bins must be at least 1, got 0"):
        reliability([0, 1], [0.1, 0.2], num_bins=0)
    with pytest.raises(ValueError, match=r"probabilities must be in \[0, 1\]"):
        reliability([0, 1], [0.1, 1.2])
