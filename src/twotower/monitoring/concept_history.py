"""What is kept of a judged window: figures over all rows, for plots and for what builds up.

Shape letters: W windows, B blocks of users.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from twotower.monitoring.concept_drift import AUC, CONCEPT, SHARE_SEQUENTIAL, Measured
from twotower.monitoring.concept_settings import ConceptSettings
from twotower.monitoring.estimates import Floats
from twotower.monitoring.findings import Finding, in_words
from twotower.monitoring.sequential import detections, detectors
from twotower.monitoring.slices import ALL


@dataclass(frozen=True, kw_only=True, eq=False)
class Figure:
    """A figure of a window.

    Args:
        value: The figure.
        standard_error: Its standard error.
        blocks: (B,) standardised deviations of groups of users from the reference, as far as they
            are not tolerated.
    """

    value: float
    standard_error: float
    blocks: Sequence[float]


@dataclass(frozen=True, kw_only=True, eq=False)
class WindowFigures:
    """Figures of a window over all rows.

    Args:
        start: Start of the window, epoch seconds UTC.
        end: Its end.
        figures: By statistic.
    """

    start: int
    end: int
    figures: Mapping[str, Figure]

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        figures = {
            name: {
                "value": figure.value,
                "standard_error": figure.standard_error,
                "blocks": [round(value, 4) for value in figure.blocks],
            }
            for name, figure in self.figures.items()
        }
        return {"start": self.start, "end": self.end, "figures": figures}

    @staticmethod
    def from_dict(document: Mapping[str, Any]) -> WindowFigures:
        """What `to_dict` gave."""
        figures = {name: Figure(**fields) for name, fields in document["figures"].items()}
        return WindowFigures(start=document["start"], end=document["end"], figures=figures)


def window_figures(
    window: Measured, reference: Measured, settings: ConceptSettings
) -> WindowFigures:
    """What is kept of a window.

    Args:
        window: Figures of the window.
        reference: Figures that deviations are from.
        settings: Number of groups of users, and what is tolerated.
    """
    figures = {}
    for (name, statistic), estimate in window.estimates.items():
        known = reference.estimates.get((name, statistic))
        if name != ALL or known is None:
            continue
        scaled, centre = estimate, known.value
        if statistic != AUC and min(estimate.value, known.value) > 0:
            scaled, centre = estimate.relative(), float(np.log(known.value))
        figures[statistic] = Figure(
            value=estimate.value,
            standard_error=estimate.standard_error,
            blocks=_blocks(
                _beyond(scaled.value - centre, settings.tolerance),
                scaled.standard_error,
                scaled.blocks(settings.num_blocks, seed=window.start),
            ).tolist(),
        )
    return WindowFigures(start=window.start, end=window.end, figures=figures)


def sequential_findings(
    windows: Sequence[WindowFigures], settings: ConceptSettings
) -> list[Finding]:
    """What ADWIN and Page-Hinkley say of the last of some windows.

    Args:
        windows: All windows that were judged, oldest first.
        settings: The false-alarm rate.
    """
    if not windows:
        return []
    last = windows[-1]
    level = settings.false_alarm_rate * SHARE_SEQUENTIAL / max(2 * len(last.figures), 1)
    findings = []
    for statistic in last.figures:
        past = [
            np.asarray(window.figures[statistic].blocks)
            for window in windows
            if statistic in window.figures
        ]
        for name, (make, scaled) in detectors(level, settings.num_blocks).items():
            found = int(detections(past, make, scaled=scaled)[-1])
            findings.append(
                Finding(
                    area=CONCEPT,
                    subject=ALL,
                    statistic=f"{statistic}_{name}",
                    value=float(found),
                    reference=None,
                    threshold=0.0,
                    p_value=None,
                    alert=found > 0,
                    since=last.start if found else None,
                    advice=_advice(statistic) if found else "",
                )
            )
    return findings


def _beyond(change: float, tolerance: float) -> float:
    """What of a change is not tolerated."""
    return float(np.sign(change)) * max(abs(change) - tolerance, 0.0)


def _blocks(shift: float, error: float, deviations: Floats) -> Floats:
    """Deviations (B,) from another value than their mean's; `shift` lies between the two."""
    if not 0 < error < float("inf"):
        return np.zeros(len(deviations))
    return deviations + shift / (error * float(np.sqrt(len(deviations))))


def _advice(statistic: str) -> str:
    return (
        f"The {in_words(statistic)} has moved over several windows: look at its course, and "
        "retrain on the windows since then."
    )
