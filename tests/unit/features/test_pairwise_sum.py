"""Sums over blocks are bit for bit those of NumPy over one array."""

import numpy as np
import pytest

from twotower.features import pairwise_sum as module
from twotower.features.pairwise_sum import pairwise_sum


@pytest.mark.parametrize("count", [1, 7, 8, 128, 129, 1000, 1001, 65_537, 300_001])
@pytest.mark.parametrize("at_once", [128, 1000, 1 << 17])
def test_sums_are_those_of_numpy(monkeypatch, count, at_once):
    monkeypatch.setattr(module, "SUMMED_AT_ONCE", at_once)
    rng = np.random.default_rng(count)
    values = rng.normal(size=count) * 10.0 ** rng.integers(-8, 8, count)
    blocks = np.split(values, np.sort(rng.integers(0, count + 1, 5)))
    assert pairwise_sum(iter(blocks), count) == float(np.sum(values))


def test_another_order_of_adding_would_be_seen():
    """The comparison above can fail: adding up the sums of the blocks gives other last bits."""
    values = np.random.default_rng(0).normal(size=300_001)
    assert sum(float(np.sum(part)) for part in np.split(values, 5000 * np.arange(1, 60))) != float(
        np.sum(values)
    )
