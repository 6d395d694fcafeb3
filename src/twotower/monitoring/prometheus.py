"""Findings as a text file for Prometheus, as the text-file collector of its node exporter reads it.

Exposition format: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from twotower.monitoring.findings import Finding
from twotower.monitoring.history import PENDING, Entry

PREFIX = "twotower_drift"
HELP = {
    "value": "Value of a comparison in the latest window.",
    "reference": "The same value in the reference.",
    "threshold": "Beyond it is an alert.",
    "alert": "1 where somebody should look.",
    "window_start_seconds": "Start of the latest window.",
    "window_end_seconds": "End of the latest window.",
    "alerts": "Comparisons of the latest window that alert.",
    "windows_pending": "Windows whose labels have not matured.",
}


def prometheus_text(bundle: str, entries: Sequence[Entry]) -> str:
    """What Prometheus is told.

    Args:
        bundle: Name of the bundle.
        entries: All windows, oldest first; at least one.
    """
    last = entries[-1]
    pending = sum(entry.labels == PENDING for entry in entries)
    labels = {"bundle": bundle, "version": last.bundle}
    lines: list[str] = []
    for name in ("value", "reference", "threshold", "alert"):
        lines += _family(name, _samples(name, labels, last.findings))
    for name, value in (
        ("window_start_seconds", last.start),
        ("window_end_seconds", last.end),
        ("alerts", last.num_alerts),
        ("windows_pending", pending),
    ):
        lines += _family(name, [(labels, float(value))])
    return "\n".join(lines) + "\n"


def _samples(
    name: str, labels: Mapping[str, str], findings: Sequence[Finding]
) -> Iterator[tuple[Mapping[str, str], float]]:
    for finding in findings:
        value = getattr(finding, name)
        if value is not None and math.isfinite(value):
            own = {
                "area": finding.area,
                "subject": finding.subject,
                "statistic": finding.statistic,
            }
            yield {**labels, **own}, float(value)


def _family(name: str, samples: Iterable[tuple[Mapping[str, str], float]]) -> Iterator[str]:
    yield f"# HELP {PREFIX}_{name} {HELP[name]}"
    yield f"# TYPE {PREFIX}_{name} gauge"
    for labels, value in samples:
        text = ",".join(f'{key}="{_escaped(one)}"' for key, one in labels.items())
        yield f"{PREFIX}_{name}{{{text}}} {value!r}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
