"""Data drift: do features and scores still look as they did when the models learned.

A window is held against the reference of the bundle, column by column:

==================  ==============================  ============================================
columns             statistics                      against
==================  ==============================  ============================================
with a vocabulary   psi, jensen_shannon,            values of the training part; the validation
                    chi_squared                     part where there are many values (see below)
numbers, vectors    psi, jensen_shannon, ks         values of the training part
time of day         psi, jensen_shannon             values of the training part
score               psi, jensen_shannon, ks         scores of the validation part
with a vocabulary   unseen_rate                     the validation part, as in the training part
                                                    every value is known
all                 null_rate                       the training part
==================  ==============================  ============================================

Many values share bins by how often they came in training. The most frequent of many came so often
by luck as well, and come less often in any later data; the validation part has that behind it.

An alert needs two things. The difference must be more than chance: `twotower.monitoring.chance`
keeps the rate of windows with any alarm at what the user asks for, whatever the number of columns,
rows and events of a user. And it must matter: with a hundred million rows everything is more than
chance, so that every statistic has a least value below which nobody needs to look.
"""

from __future__ import annotations

from collections.abc import Iterator

from twotower.data.schema import DataError
from twotower.monitoring.advice import advice_of
from twotower.monitoring.bins import LABEL_COLUMN, Bins
from twotower.monitoring.chance import effective_groups, judge, signs
from twotower.monitoring.data_comparison import Comparison
from twotower.monitoring.data_comparison import DataDriftSettings as DataDriftSettings
from twotower.monitoring.findings import Finding
from twotower.monitoring.profile import NUM_GROUPS, Profile, check_same_bins
from twotower.monitoring.reference import Reference

DATA = "data"
DAY = 86_400
MIN_GROUPS = 8
HOURS_SHORT = 2 * 3600  # by which a window of whole days may be shorter, for want of events


def data_drift(
    window: Profile,
    reference: Reference,
    settings: DataDriftSettings | None = None,
) -> list[Finding]:
    """Hold a window against the reference.

    Args:
        window: Its profile.
        reference: Of the bundle.
        settings: What is an alert.

    Returns:
        All comparisons, in the order of the columns.

    Raises:
        ValueError: When the profile was made with other bins, or is of too few rows or users.
    """
    settings = settings or DataDriftSettings()
    check_same_bins(window, reference.training)
    unknown = sorted(set(settings.leave_out) - set(window.bins))
    if unknown:
        raise ValueError(
            f"leave_out: no column {', '.join(unknown)}; allowed: {', '.join(window.bins)}"
        )
    _check_size(window, settings)
    drawn = signs(settings.num_draws, NUM_GROUPS, settings.seed)
    compared = [
        one
        for place, bins in enumerate(_looked_at(window, settings))
        for one in Comparison(window, reference, bins, settings, drawn, place).all()
    ]
    judged = judge([one.null for one in compared], settings.false_alarm_rate)
    findings = []
    for one, verdict in zip(compared, judged, strict=True):
        value, least = one.null.value, one.null.least
        threshold = max(verdict.threshold, least)
        alert = verdict.p_value <= settings.false_alarm_rate and value >= least
        shown, limit = value, threshold
        if one.reference is not None:  # a rate is shown as it is, not as its difference
            shown = one.reference + (value if one.rises else -value)
            limit = one.reference + (threshold if one.rises else -threshold)
        column = window.columns[one.bins.name]
        findings.append(
            Finding(
                area=DATA,
                subject=one.bins.name,
                statistic=one.statistic,
                value=shown,
                reference=one.reference,
                threshold=limit,
                p_value=verdict.p_value,
                alert=alert,
                since=(None if window.span is None else window.span[0]) if alert else None,
                advice=advice_of(one.bins, column, one.statistic, one.rises) if alert else "",
            )
        )
    return findings


def _check_size(window: Profile, settings: DataDriftSettings) -> None:
    """A window in which chance cannot be told from drift is not one without drift."""
    groups = effective_groups(window.rows)
    if window.num_rows < settings.min_rows or groups < MIN_GROUPS:
        raise DataError(
            [
                f"the window has {window.num_rows} rows of about {groups:.0f} groups of users; "
                f"allowed: at least {settings.min_rows} rows (data_drift.min_rows) of {MIN_GROUPS} "
                "groups, or what is chance cannot be told; take a longer window"
            ]
        )


def _looked_at(window: Profile, settings: DataDriftSettings) -> Iterator[Bins]:
    """Columns that can be compared; what users did with what they saw is concept drift."""
    whole_days = False
    if window.span is not None:
        seconds = window.span[1] - window.span[0]
        whole_days = seconds >= DAY - HOURS_SHORT and (-seconds) % DAY <= HOURS_SHORT
    for name, bins in window.bins.items():
        if name == LABEL_COLUMN or name in settings.leave_out:
            continue
        if bins.kind == "time" and not whole_days:
            continue
        if bins.feature in window.facts.get("without", ()):
            continue
        yield bins
