"""Figures against the plain ones, errors against the jackknife over users and against draws."""

from __future__ import annotations

import numpy as np
import pytest

from twotower.metrics import click
from twotower.monitoring.estimates import Clusters, auc, calibration, click_rate, log_loss, mean

FIGURES = {
    "ctr": lambda y, p, c: click_rate(y, c),
    "log_loss": log_loss,
    "calibration": calibration,
    "auc": auc,
}


def draw(rng, num_users: int, rows_of_user: int = 12):
    """Clicks of users who differ, and probabilities that know half of it; ties among them."""
    users = np.repeat(np.arange(num_users), rows_of_user)
    taste = rng.normal(0, 1.2, num_users)
    logit = -1.5 + taste[users] + rng.normal(0, 0.5, len(users))
    labels = rng.random(len(users)) < 1 / (1 + np.exp(-logit))
    probabilities = np.round(1 / (1 + np.exp(1.5 - 0.5 * taste[users])), 2).astype(np.float32)
    return labels, probabilities, users


def test_figures_are_those_of_the_metrics():
    labels, probabilities, users = draw(np.random.default_rng(0), 40)
    clusters = Clusters.of(users)
    assert auc(labels, probabilities, clusters).value == pytest.approx(
        click.auc(labels, probabilities), abs=1e-12
    )
    assert log_loss(labels, probabilities, clusters).value == pytest.approx(
        click.log_loss(labels, probabilities), abs=1e-12
    )
    ratio = calibration(labels, probabilities, clusters)
    assert ratio.value == pytest.approx(probabilities.sum() / labels.sum(), rel=1e-6)
    assert (ratio.num_rows, ratio.num_users) == (480, 40)


@pytest.mark.parametrize("name", FIGURES)
def test_standard_error_is_that_of_the_jackknife_over_users(name):
    labels, probabilities, users = draw(np.random.default_rng(1), 150)
    figure = FIGURES[name]
    left_out = []
    for user in range(150):
        kept = users != user
        left_out.append(figure(labels[kept], probabilities[kept], Clusters.of(users[kept])).value)
    jackknife = np.sqrt(149 / 150 * ((left_out - np.mean(left_out)) ** 2).sum())
    error = figure(labels, probabilities, Clusters.of(users)).standard_error
    assert error == pytest.approx(jackknife, rel=0.02)


@pytest.mark.parametrize("name", FIGURES)
def test_differences_of_windows_without_drift_pass_the_line_as_often_as_they_may(name):
    """One in twenty; errors that count events as independent do so far more often."""
    clustered = independent = 0
    for seed in range(300):
        rng = np.random.default_rng([seed, 7])
        one, other = draw(rng, 120), draw(rng, 120)
        figure = FIGURES[name]
        first = figure(*one[:2], Clusters.of(one[2]))
        change = first.minus(figure(*other[:2], Clusters.of(-2 - other[2])))
        clustered += abs(change.value) > 1.96 * change.standard_error
        of_events = figure(*one[:2], Clusters.of(np.arange(len(one[2])))).standard_error
        independent += abs(change.value) > 1.96 * np.sqrt(2) * of_events
    assert 4 <= clustered <= 30  # 300 draws at 5 %: 15 +- 4 standard deviations
    if name in ("ctr", "log_loss"):
        assert independent > 40


def test_what_a_user_adds_to_both_windows_is_subtracted_before_it_is_squared():
    values = np.array([1.0, 3.0, 8.0])
    window = mean(values, Clusters.of(np.array([0, 1, 2])))
    same = mean(values, Clusters.of(np.array([0, 1, 2])))
    assert window.minus(same).standard_error == 0
    strangers = mean(values, Clusters.of(np.array([-2, -3, -4])))
    # mean 4, influences -1, -1/3, 4/3; sum of squares 26/9, twice, times 6/5.
    expected = np.sqrt(6 / 5 * 2 * 26 / 9)
    assert strangers.minus(strangers).standard_error == pytest.approx(expected)
    assert strangers.minus(strangers).num_users == 6


def test_logarithm_has_the_relative_error():
    estimate = mean(np.array([1.0, 3.0]), Clusters.of(np.array([0, 1])))
    assert estimate.relative().value == pytest.approx(np.log(2))
    assert estimate.relative().standard_error == pytest.approx(estimate.standard_error / 2)


def test_order_of_rows_does_not_matter():
    labels, probabilities, users = draw(np.random.default_rng(3), 30)
    order = np.random.default_rng(4).permutation(len(users))
    one = auc(labels, probabilities, Clusters.of(users))
    other = auc(labels[order], probabilities[order], Clusters.of(users[order]))
    assert one.value == pytest.approx(other.value)
    np.testing.assert_allclose(one.influences, other.influences, atol=1e-15)


def test_figures_that_cannot_be_are_none():
    clusters = Clusters.of(np.arange(3))
    never, scores = np.zeros(3, bool), np.array([0.1, 0.2, 0.3])
    assert click_rate(never, clusters) is None
    assert calibration(never, scores, clusters) is None
    assert auc(never, scores, clusters) is None
    assert auc(~never, scores, clusters) is None
    assert log_loss(never, scores, clusters).value > 0


def test_blocks_are_standardised_and_independent():
    values = np.random.default_rng(5).exponential(size=20_000)
    estimate = mean(values, Clusters.of(np.arange(20_000)))
    blocks = np.concatenate([estimate.blocks(32, seed) for seed in range(60)])
    assert abs(blocks.mean()) < 1e-9
    assert blocks.std() == pytest.approx(1, abs=0.06)
    assert estimate.blocks(8, 1).tolist() == estimate.blocks(8, 1).tolist()
    assert estimate.blocks(8, 1).tolist() != estimate.blocks(8, 2).tolist()
