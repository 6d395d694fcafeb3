"""What builds up over windows: ADWIN and Page-Hinkley over the figures of a bundle.

A window is held against the reference by `concept_drift.compare`, once. A change too small for that
shows when windows are taken together. Every window is cut into groups of users, drawn at random,
and each group's figure goes, standardised, into the two detectors of `river`:

- ADWIN (Bifet and Gavalda, "Learning from time-changing data with adaptive windowing", SDM 2007)
  keeps as much of the past as is alike and drops the rest. It takes values from 0 to 1: standard
  deviations from -3 to 3 are mapped to them.
- Page-Hinkley (Page, "Continuous inspection schemes", Biometrika 1954) sums deviations from the
  mean beyond half a standard error of a window; the threshold gives the average run length that
  the false-alarm rate asks for, by Siegmund's approximation ("Sequential analysis", 1985, 2.6).

What is tolerated is taken off before. Groups of users are independent within a window, where rows
are not. Only figures over all rows are followed. A detector is replayed from the history, so it has
no state that could be lost.

`river` is the extra `monitor`, and is imported by nothing that serves.

Shape letters: W windows, B blocks of users.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq

from twotower.monitoring.estimates import Floats

ADWIN, PAGE_HINKLEY = "adwin", "page_hinkley"
CLIP = 3.0
MIN_WINDOWS = 2  # before a change can be told
OVERSHOOT = 1.166  # of a sum of normal steps over both thresholds, Siegmund's 2 * 0.583
ALLOWANCE = 0.25  # standard deviations of a block


class Detector(Protocol):
    """A detector of `river`."""

    @property
    def drift_detected(self) -> bool:
        """Whether the last value completed a change."""

    def update(self, x: float) -> object:
        """Take a value."""


def detections(
    windows: Sequence[Floats], make: Callable[[], Detector], *, scaled: bool
) -> npt.NDArray[np.int64]:
    """How often a detector found a change, by window.

    Args:
        windows: W arrays (B,) of standardised deviations from one fixed value, oldest first.
        make: Makes the detector.
        scaled: Whether it takes values from 0 to 1.

    Returns:
        (W,) counts.
    """
    detector = make()
    counts = np.zeros(len(windows), np.int64)
    for number, values in enumerate(windows):
        if scaled:
            values = (np.clip(values, -CLIP, CLIP) + CLIP) / (2 * CLIP)
        for value in values.tolist():
            detector.update(value)
            counts[number] += detector.drift_detected
    return counts


def detectors(level: float, num_blocks: int) -> dict[str, tuple[Callable[[], Detector], bool]]:
    """Both detectors of one figure, and whether they take values from 0 to 1.

    Args:
        level: Share of windows without drift in which each may find one.
        num_blocks: ``B``.

    Raises:
        ValueError: When `river` is not installed.
    """
    require_river()
    from river import drift

    threshold = page_hinkley_threshold(level / num_blocks)
    least = MIN_WINDOWS * num_blocks

    def adwin() -> Detector:
        made: Detector = drift.ADWIN(delta=level, clock=num_blocks, grace_period=least)
        return made

    def page_hinkley() -> Detector:
        made: Detector = drift.PageHinkley(
            min_instances=least, delta=ALLOWANCE, threshold=threshold, alpha=1.0
        )
        return made

    return {ADWIN: (adwin, True), PAGE_HINKLEY: (page_hinkley, False)}


def require_river() -> None:
    """Refuse to go on without `river`.

    Raises:
        ValueError: When it is not installed.
    """
    try:
        import river.drift  # noqa: F401
    except ImportError as error:
        raise ValueError(
            "detectors of drift over windows need river, which is not installed: "
            "pip install 'twotower[monitor]', or leave concept drift out with concept_drift=none"
        ) from error


def page_hinkley_threshold(rate: float) -> float:
    """Threshold at which standard normal values raise so many alarms a value, on both sides.

    Args:
        rate: Alarms a value, above 0 and below 0.1.
    """
    wanted = 2 / rate  # run length of one side

    def excess(threshold: float) -> float:
        twice = 2 * ALLOWANCE * (threshold + OVERSHOOT)
        return float(np.exp(twice) - twice - 1) / (2 * ALLOWANCE**2) - wanted

    return float(brentq(excess, 0.0, 200.0))
