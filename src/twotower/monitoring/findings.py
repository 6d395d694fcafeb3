"""The one form of every result of monitoring: a comparison, and whether it is an alert."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

# What statistics are called in sentences, where it is not their name with spaces.
WORDS = {
    "psi": "PSI",
    "ks": "Kolmogorov-Smirnov",
    "jensen_shannon": "Jensen-Shannon",
    "chi_squared": "chi-squared",
    "ctr": "click rate",
    "auc": "AUC",
    "score_psi": "PSI of the scores",
    "gini": "Gini coefficient",
    "top_1_percent_share": "share of the top 1 percent",
}
DETECTORS = {"adwin": "ADWIN", "page_hinkley": "Page-Hinkley"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One comparison, and whether it is an alert.

    Args:
        area: ``data``, ``concept`` or ``model``.
        subject: Feature, slice or version that was looked at, such as ``user.country``.
        statistic: ``psi``, ``ks``, ``jensen_shannon``, ``chi_squared``, ``unseen_rate``,
            ``null_rate``, ``log_loss``, ...
        value: Of the window.
        reference: The same of the reference, where it has one.
        threshold: Beyond it is an alert.
        p_value: How likely such a value is without drift, where a test tells.
        alert: Whether somebody should look.
        since: Start (epoch seconds UTC) of the first window of the run of alerts.
        advice: What to do, one sentence; empty without alert.
    """

    area: str
    subject: str
    statistic: str
    value: float
    reference: float | None
    threshold: float
    p_value: float | None
    alert: bool
    since: int | None
    advice: str


def alerts(findings: Iterable[Finding]) -> list[Finding]:
    """Those that somebody should look at, in their order."""
    return [finding for finding in findings if finding.alert]


def in_words(statistic: str) -> str:
    """A statistic as a sentence calls it: ``log loss`` for ``log_loss``.

    Args:
        statistic: Its name in a finding.
    """
    for suffix, detector in DETECTORS.items():
        if statistic.endswith(f"_{suffix}"):
            return f"{in_words(statistic.removesuffix(f'_{suffix}'))}, {detector}"
    name, at, length = statistic.partition("@")
    return WORDS.get(name, name.replace("_", " ")) + at + length
