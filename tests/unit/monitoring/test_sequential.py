"""Detectors over windows: how often they cry without a change, and how soon with one."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from twotower.monitoring.sequential import (
    ADWIN,
    PAGE_HINKLEY,
    detections,
    detectors,
    page_hinkley_threshold,
)

pytest.importorskip("river", reason="needs the extra `monitor`")

BLOCKS = 32


def stream(rng, num_windows: int, shift: float = 0.0, since: int = 0):
    windows = rng.normal(size=(num_windows, BLOCKS))
    windows[since:] += shift
    return list(windows)


def test_threshold_is_that_of_siegmunds_run_length():
    """A sum of N(-1/4, 1) steps over 4: about 35 steps by simulation of the plain CUSUM."""
    rng = np.random.default_rng(0)
    lengths = []
    for _ in range(400):
        total, steps = 0.0, 0
        while total <= 4:
            total = max(0.0, total + rng.normal() - 0.25)
            steps += 1
        lengths.append(steps)
    assert page_hinkley_threshold(2 / np.mean(lengths)) == pytest.approx(4, abs=0.4)


def test_page_hinkley_cries_as_seldom_as_asked_for():
    make, scaled = detectors(0.02, BLOCKS)[PAGE_HINKLEY]
    rng = np.random.default_rng(1)
    cries = sum((detections(stream(rng, 50), make, scaled=scaled) > 0).sum() for _ in range(60))
    assert cries / 3000 <= 0.02


def test_adwin_cries_as_seldom_as_asked_for():
    make, scaled = detectors(0.02, BLOCKS)[ADWIN]
    rng = np.random.default_rng(2)
    cries = sum((detections(stream(rng, 50), make, scaled=scaled) > 0).sum() for _ in range(60))
    assert cries / 3000 <= 0.02


@pytest.mark.parametrize(("name", "latest"), [(PAGE_HINKLEY, 3), (ADWIN, 8)])
@pytest.mark.parametrize("sign", [-1, 1])
def test_a_change_of_four_standard_errors_is_found(name, latest, sign):
    """Four of a window are 4 / sqrt(32) of a group of users."""
    make, scaled = detectors(0.005, BLOCKS)[name]
    late = 0
    for seed in range(20):
        rng = np.random.default_rng([seed, 3])
        found = detections(stream(rng, 30, sign * 4 / 32**0.5, since=20), make, scaled=scaled)
        late += not found[20 : 20 + latest].any()
    assert late <= 1


def test_a_slow_change_is_found_that_no_window_shows():
    """A twentieth of a standard error a window; after 60 windows it is three."""
    make, scaled = detectors(0.005, BLOCKS)[PAGE_HINKLEY]
    rng = np.random.default_rng(5)
    slope = np.arange(80) / 20 / 32**0.5
    windows = [values + shift for values, shift in zip(stream(rng, 80), slope, strict=True)]
    assert detections(windows, make, scaled=scaled).any()


def test_river_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "river", None)
    with pytest.raises(ValueError, match=r"pip install 'twotower\[monitor\]'"):
        detectors(0.01, BLOCKS)
