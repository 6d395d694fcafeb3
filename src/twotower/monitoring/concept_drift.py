"""Concept drift: does what users do still answer what the bundle predicts.

Of every window whose labels have come in, the bundle's log loss, its calibration (expected over
observed clicks), its AUC, the click rate and the bundle's recall are taken, over all rows and by
slice, and held against those of a reference window:

    z = (|change| - tolerance) / standard error of the change

The change is that of the logarithm (0.1 is 10 %), of the AUC the difference. The error knows that a
user's events are alike and that both windows see the same users; see `estimates`. The false-alarm
rate that is asked for is one of a whole window: half of it is shared out equally to the figures
over all rows, a quarter to those of the slices, and a quarter to `sequential`, which looks for what
builds up over windows.

A window is judged when its labels have matured, and not before: until then it is `Pending`, which
is neither an alert nor none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from twotower.data.schema import LABEL
from twotower.monitoring.concept_advice import advice_of
from twotower.monitoring.concept_settings import ConceptSettings
from twotower.monitoring.estimates import (
    Array,
    Clusters,
    Estimate,
    auc,
    calibration,
    click_rate,
    log_loss,
)
from twotower.monitoring.findings import Finding
from twotower.monitoring.scoring import BundleModels, WindowRows
from twotower.monitoring.slices import ALL, row_slices
from twotower.monitoring.window_recall import window_recall
from twotower.monitoring.windows import Window

CONCEPT = "concept"
LOG_LOSS, CALIBRATION, CTR, AUC = "log_loss", "calibration", "ctr", "auc"
SHARE_OVERALL, SHARE_SLICES, SHARE_SEQUENTIAL = 0.5, 0.25, 0.25

Key = tuple[str, str]  # slice and statistic


@dataclass(frozen=True, kw_only=True)
class Pending:
    """A window that cannot be judged yet.

    Args:
        start: Its start, epoch seconds UTC.
        until: When its labels will have matured, epoch seconds UTC.
        missing: Share of its labels that have not come.
        reason: One sentence.
    """

    start: int
    until: int
    missing: float
    reason: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """Figures of a window.

    Args:
        start: Start of the window, epoch seconds UTC.
        end: Its end.
        estimates: By slice and statistic.
    """

    start: int
    end: int
    estimates: Mapping[Key, Estimate]


def pending(window: Window, settings: ConceptSettings, now: float) -> Pending | None:
    """Why the labels of a window cannot be judged yet; None when they can.

    Args:
        window: The window.
        settings: When labels have matured.
        now: The present, epoch seconds UTC.
    """
    missing = 0.0
    if LABEL in window.interactions.column_names:
        column = window.interactions.column(LABEL)
        missing = column.null_count / max(len(column), 1)
    until = window.end + settings.label_delay
    if now < until:
        reason = f"its labels mature {settings.label_delay} seconds after its end"
    elif missing > settings.max_missing_labels:
        reason = (
            f"{missing:.1%} of its labels have not come though they should have; at most "
            f"{settings.max_missing_labels:.1%} may be missing"
        )
    else:
        return None
    return Pending(start=window.start, until=until, missing=missing, reason=reason)


def measure(models: BundleModels, window: Window, settings: ConceptSettings) -> Measured:
    """Figures of a bundle on a window, over all rows and by slice.

    Args:
        models: The bundle.
        window: A window whose labels have matured.
        settings: What is looked at.
    """
    rows = models.rows(window, settings.positive_from)
    estimates: dict[Key, Estimate] = {}
    if rows.labels is not None:
        every = [(ALL, np.ones(len(rows.has_label), np.bool_))]
        every += row_slices(models, window, rows, max_values=settings.max_values)
        scores = models.probabilities(window, rows)
        for name, mask in every:
            if name != ALL and mask.all():
                continue
            chosen = np.flatnonzero(mask & rows.has_label)
            estimates |= {
                (name, statistic): estimate
                for statistic, estimate in _click_figures(rows, scores, chosen, settings)
            }
    estimates |= {
        (name, statistic): estimate
        for name, statistic, estimate in window_recall(
            models, window, rows, k=settings.k, max_users=settings.recall_users
        )
        if estimate.num_users >= settings.min_users
    }
    return Measured(start=window.start, end=window.end, estimates=estimates)


def promised(window: Measured) -> Measured:
    """What the bundle promises of itself, where there is no reference: a calibration of 1."""
    none = np.zeros(0, np.int64)
    exact = Estimate(value=1.0, users=none, influences=none.astype(np.float64), num_rows=0)
    key = (ALL, CALIBRATION)
    return Measured(
        start=window.start,
        end=window.end,
        estimates={key: exact} if key in window.estimates else {},
    )


def compare(window: Measured, reference: Measured, settings: ConceptSettings) -> list[Finding]:
    """Hold the figures of a window against those of the reference.

    Args:
        window: Figures of the window.
        reference: Figures of a window without drift.
        settings: The false-alarm rate and what is tolerated.

    Returns:
        A finding a figure that both have; all rows first.
    """
    shared = [key for key in window.estimates if key in reference.estimates]
    findings = []
    for overall, share in ((True, SHARE_OVERALL), (False, SHARE_SLICES)):
        keys = [key for key in shared if (key[0] == ALL) == overall]
        level = settings.false_alarm_rate * share / max(len(keys), 1)
        for key in keys:
            estimates = (window.estimates[key], reference.estimates[key])
            findings.append(_finding(key, *estimates, level, settings.tolerance, window.start))
    return findings


def _click_figures(
    rows: WindowRows, scores: Array | None, chosen: Array, settings: ConceptSettings
) -> Iterator[tuple[str, Estimate]]:
    """Figures of some rows; nothing where they are too few."""
    if rows.labels is None:
        return
    labels, clusters = rows.labels[chosen], rows.clusters.take(chosen)
    rate = click_rate(labels, clusters) if _enough(labels, clusters, settings) else None
    if rate is None:
        return
    yield CTR, rate
    if scores is None:
        return
    scored = np.flatnonzero(~np.isnan(scores[chosen]))
    labels, clusters, scores = labels[scored], clusters.take(scored), scores[chosen][scored]
    if not _enough(labels, clusters, settings):
        return
    figures: tuple[tuple[str, Callable[[Array, Array, Clusters], Estimate | None]], ...] = (
        (LOG_LOSS, log_loss),
        (CALIBRATION, calibration),
        (AUC, auc),
    )
    for name, figure in figures:
        estimate = figure(labels, scores, clusters)
        if estimate is not None:
            yield name, estimate


def _enough(labels: Array, clusters: Clusters, settings: ConceptSettings) -> bool:
    successes = int(np.count_nonzero(labels))
    num_users = int(np.count_nonzero(np.bincount(clusters.codes, minlength=1)))
    fewest = min(successes, len(labels) - successes)
    return num_users >= settings.min_users and fewest >= settings.min_successes


def _finding(
    key: Key, window: Estimate, reference: Estimate, level: float, tolerance: float, start: int
) -> Finding:
    name, statistic = key
    is_ratio = statistic != AUC and window.value > 0 and reference.value > 0
    one, other = window, reference
    if is_ratio:
        one, other = window.relative(), reference.relative()
    change = one.minus(other)
    error = change.standard_error
    freedom = min(n for n in (window.num_users, reference.num_users) if n) - 1
    beyond = abs(change.value) - tolerance
    p_value = 1.0
    if beyond > 0:
        p_value = float(2 * student.sf(beyond / error, freedom)) if error > 0 else 0.0
    margin = tolerance + float(student.isf(level / 2, freedom)) * error
    signed = margin if change.value >= 0 else -margin
    threshold = reference.value * np.exp(signed) if is_ratio else reference.value + signed
    alert = p_value <= level
    return Finding(
        area=CONCEPT,
        subject=name,
        statistic=statistic,
        value=window.value,
        reference=reference.value,
        threshold=float(threshold),
        p_value=p_value,
        alert=alert,
        since=start if alert else None,
        advice=advice_of(name, statistic, window.value, reference.value) if alert else "",
    )
