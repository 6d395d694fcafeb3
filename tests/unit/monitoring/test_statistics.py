import math

import numpy as np
import pytest
from scipy import stats
from scipy.spatial import distance

from twotower.monitoring.statistics import chi_squared, jensen_shannon, ks, psi


def test_psi_by_hand():
    """(0.6 - 0.5) ln 1.2 + (0.4 - 0.5) ln 0.8"""
    found = psi(np.array([[0.6, 0.4]]), np.array([0.5, 0.5]))
    assert found[0] == pytest.approx(0.1 * math.log(1.2) - 0.1 * math.log(0.8))
    nothing = psi(np.array([[1.0, 0.0]]), np.array([0.5, 0.5]))  # 0 counts as one in ten thousand
    assert nothing[0] == pytest.approx(0.5 * math.log(2) - (0.0001 - 0.5) * math.log(5000))
    assert psi(np.array([[0.5, 0.5]]), np.array([0.5, 0.5]))[0] == 0


def test_against_scipy_on_the_same_arrays():
    rng = np.random.default_rng(0)
    for _ in range(50):
        bins = int(rng.integers(2, 30))
        now, before = rng.integers(1, 50, bins), rng.integers(1, 500, bins)
        p, q = now / now.sum(), before / before.sum()
        shown = chi_squared(p[None], q, (float(now.sum()), float(before.sum())))[0]
        expected = stats.chi2_contingency(np.stack([now, before]), correction=False).statistic
        assert shown == pytest.approx(expected, rel=1e-9)
        assert jensen_shannon(p[None], q)[0] == pytest.approx(
            distance.jensenshannon(p, q, base=2), rel=1e-9
        )
        values = np.arange(bins)
        of_values = stats.ks_2samp(np.repeat(values, now), np.repeat(values, before)).statistic
        assert ks(p[None], q)[0] == pytest.approx(of_values, rel=1e-9)
        kept = (stats.entropy(p, q) + stats.entropy(q, p)) if min(p.min(), q.min()) > 1e-4 else None
        if kept is not None:  # the PSI is the sum of both relative entropies
            assert psi(p[None], q)[0] == pytest.approx(kept, rel=1e-9)


def test_empty_bins_on_one_side():
    p, q = np.array([[0.0, 0.5, 0.5]]), np.array([0.5, 0.5, 0.0])
    assert jensen_shannon(p, q)[0] == pytest.approx(distance.jensenshannon(p[0], q, base=2))
    assert chi_squared(p, q, (10.0, 10.0))[0] == pytest.approx(10.0)  # 5 * 5/10 each, four times
    assert np.isfinite(psi(p, q)[0])
    assert jensen_shannon(q[None], q)[0] == 0
