"""Windows against a reference: what is found, what is not, and what cannot be judged yet."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from twotower.data.schema import LABEL, USER_ID
from twotower.metrics import click
from twotower.monitoring.concept_drift import compare, measure, pending
from twotower.monitoring.concept_history import (
    WindowFigures,
    sequential_findings,
    window_figures,
)
from twotower.monitoring.concept_settings import ConceptSettings
from twotower.monitoring.windows import Window

SETTINGS = ConceptSettings(min_users=5, min_successes=5, k=5)


def with_labels(window: Window, labels) -> Window:
    table = window.interactions
    at = table.column_names.index(LABEL)
    return replace(window, interactions=table.set_column(at, LABEL, labels))


def flipped(window: Window, share: float, seed: int = 0) -> Window:
    """Some clicks did not happen."""
    labels = window.interactions[LABEL].to_numpy().copy()
    labels[np.random.default_rng(seed).random(len(labels)) < share] = 0
    return with_labels(window, pa.array(labels))


def of_users(window: Window, remainder: int) -> Window:
    """Every other user: users of one kind, since later days of so small a world are others."""
    users = window.interactions[USER_ID].to_pylist()
    kept = pa.array([int(user[1:]) % 2 == remainder for user in users])
    return replace(window, interactions=window.interactions.filter(kept))


@pytest.fixture(scope="module")
def days(cut) -> Window:
    return cut(2, 19)


@pytest.fixture(scope="module")
def reference(models, days):
    return measure(models, of_users(days, 0), SETTINGS)


@pytest.fixture(scope="module")
def usual(days) -> Window:
    return of_users(days, 1)


def by_key(findings):
    return {(finding.subject, finding.statistic): finding for finding in findings}


def test_figures_are_those_of_the_rows(models, days, reference):
    window = of_users(days, 0)
    rows = models.rows(window, 1.0)
    scores, labels = models.probabilities(window, rows), rows.labels
    expected = {
        "ctr": labels.mean(),
        "log_loss": click.log_loss(labels, scores),
        "auc": click.auc(labels, scores),
        "calibration": scores.sum() / labels.sum(),
    }
    for name, value in expected.items():
        assert reference.estimates["all", name].value == pytest.approx(value, rel=1e-5)
    phone = np.array(window.interactions["device"].to_pylist()) == "phone"
    slice_ = reference.estimates["context.device=phone", "auc"]
    assert slice_.value == pytest.approx(click.auc(labels[phone], scores[phone]))


def test_slices_are_there(reference):
    names = {name for name, _ in reference.estimates}
    assert {"all", "context.device=desktop", "popularity_decile=10"} <= names
    assert any(name.startswith("user.country=") for name in names)
    assert any(name.startswith("item.category=") for name in names)
    assert "users=new" not in names  # there are none, so `users=warm` are all


def test_the_same_world_raises_no_alert(models, usual, reference):
    findings = compare(measure(models, usual, SETTINGS), reference, SETTINGS)
    assert len(findings) > 40
    assert [f for f in findings if f.alert and f.subject == "all"] == []
    assert all((f.since is None) == (not f.alert) for f in findings)
    assert all((f.advice == "") == (not f.alert) for f in findings)


def test_clicks_that_do_not_come_are_found(models, usual, reference):
    window = measure(models, flipped(usual, 0.5), SETTINGS)
    found = by_key(compare(window, reference, SETTINGS))
    assert found["all", "ctr"].alert
    assert found["all", "calibration"].alert
    assert found["all", "calibration"].value == pytest.approx(2, rel=0.25)
    assert "too many clicks" in found["all", "calibration"].advice
    assert found["all", "ctr"].since == window.start


def test_threshold_is_where_the_alert_begins(models, usual, reference):
    """Beyond it is an alert, on either side, for every figure."""
    for share in (0.0, 0.2, 0.4):
        window = measure(models, flipped(usual, share), SETTINGS)
        for finding in compare(window, reference, SETTINGS):
            if finding.value >= finding.reference:
                assert finding.alert == (finding.value >= finding.threshold)
            else:
                assert finding.alert == (finding.value <= finding.threshold)


def test_a_tolerated_change_is_no_alert(models, usual, reference):
    window = measure(models, flipped(usual, 0.5), SETTINGS)
    tolerant = replace(SETTINGS, tolerance=2.0)
    assert not any(finding.alert for finding in compare(window, reference, tolerant))


def test_order_of_rows_does_not_matter(models, usual, reference):
    window = usual
    order = pa.array(np.random.default_rng(1).permutation(len(window.interactions)))
    mixed = replace(window, interactions=window.interactions.take(order))
    one, other = (
        compare(measure(models, w, SETTINGS), reference, SETTINGS) for w in (window, mixed)
    )
    for first, second in zip(one, other, strict=True):
        assert (first.subject, first.statistic) == (second.subject, second.statistic)
        assert first.value == pytest.approx(second.value, rel=1e-6)
        assert first.p_value == pytest.approx(second.p_value, abs=1e-5)


def test_a_window_is_pending_until_its_labels_have_matured(cut):
    window, settings = cut(10, 11), replace(SETTINGS, label_delay=3600)
    early = pending(window, settings, now=window.end + 3599)
    assert early is not None
    assert early.until == window.end + 3600
    assert "mature 3600 seconds after" in early.reason
    assert pending(window, settings, now=window.end + 3600) is None


def test_a_window_is_pending_while_labels_are_missing(cut):
    window = cut(10, 11)
    labels = window.interactions[LABEL].to_pylist()
    tenth = [None if row % 10 == 0 else value for row, value in enumerate(labels)]
    lacking = with_labels(window, pa.array(tenth, pa.float32()))
    found = pending(lacking, SETTINGS, now=window.end)
    assert found is not None
    assert found.missing == pytest.approx(0.1, abs=0.01)
    assert "have not come though they should have" in found.reason
    assert pending(lacking, replace(SETTINGS, max_missing_labels=0.2), now=window.end) is None


def test_settings_out_of_range_are_named_together():
    with pytest.raises(ValueError, match=r"`k` must be at least 1, got 0\n.*false_alarm_rate"):
        ConceptSettings(k=0, false_alarm_rate=1.0)
    with pytest.raises(ValueError, match="max_missing_labels"):
        ConceptSettings(max_missing_labels=1.0)


def test_figures_of_a_window_survive_json(models, usual, reference):
    kept = window_figures(measure(models, usual, SETTINGS), reference, SETTINGS)
    again = WindowFigures.from_dict(kept.to_dict())
    assert again.to_dict() == kept.to_dict()
    assert set(kept.figures) >= {"ctr", "log_loss", "calibration", "auc", "recall@5"}
    assert len(kept.figures["auc"].blocks) == SETTINGS.num_blocks


def test_blocks_deviate_by_as_much_as_the_window(models, usual, reference):
    window = measure(models, flipped(usual, 0.5), SETTINGS)
    kept = window_figures(window, reference, SETTINGS).figures["ctr"]
    estimate, known = window.estimates["all", "ctr"], reference.estimates["all", "ctr"]
    beyond = np.log(known.value / estimate.value) - SETTINGS.tolerance
    shift = -beyond / (estimate.standard_error / estimate.value)
    assert np.mean(kept.blocks) * np.sqrt(32) == pytest.approx(shift, rel=1e-3)


def test_what_builds_up_is_found(models, usual, reference):
    pytest.importorskip("river", reason="needs the extra `monitor`")
    later = 0
    windows = []
    for number in range(12):
        window = flipped(usual, 0.0 if number < 6 else 0.6, seed=number)
        window = replace(window, start=usual.start + number)
        windows.append(window_figures(measure(models, window, SETTINGS), reference, SETTINGS))
        alerts = [f for f in sequential_findings(windows, SETTINGS) if f.alert]
        assert not alerts or number >= 6
        later += bool(alerts)
        assert all(f.statistic.endswith(("adwin", "page_hinkley")) for f in alerts)
        assert all("_" not in f.advice and " has moved over " in f.advice for f in alerts)
    assert later
    assert sequential_findings([], SETTINGS) == []
