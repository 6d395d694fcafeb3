import numpy as np
import pyarrow as pa
import pytest

from twotower.monitoring.sketches import COUNT_ERROR, RANK_ERROR, FrequentValues, Quantiles


def test_quantiles_are_within_their_error_however_the_stream_is_cut():
    numbers = np.random.default_rng(0).lognormal(size=200_000)
    merged = Quantiles()
    for part in np.array_split(numbers, 7):
        one = Quantiles()
        one.add(part)
        merged.merge(Quantiles(one.to_bytes()))
    assert merged.count == 200_000
    order = np.sort(numbers)
    for rank in (0.001, 0.1, 0.5, 0.9, 0.999):
        place = np.searchsorted(order, merged.at([rank])[0]) / len(order)
        assert place == pytest.approx(rank, abs=1.5 * RANK_ERROR)
    assert RANK_ERROR < 0.01


def test_no_number_has_no_quantile():
    empty = Quantiles()
    empty.add(np.array([np.nan]))
    assert np.isnan(empty.at([0.5])).all()
    assert Quantiles(empty.to_bytes()).count == 0


def test_frequent_values_are_within_their_error_however_the_stream_is_cut():
    rng = np.random.default_rng(1)
    drawn = np.minimum(rng.zipf(1.3, 300_000), 50_000)
    merged = FrequentValues()
    for part in np.array_split(drawn, 5):
        values, counts = np.unique(part, return_counts=True)
        one = FrequentValues()
        one.add(pa.array(values), counts, int(counts.sum()))
        merged.merge(FrequentValues(one.to_bytes()))
    values, counts = np.unique(drawn, return_counts=True)
    exact = dict(zip(map(str, values), counts.tolist(), strict=True))
    found = merged.top(20)
    expected = sorted(exact, key=lambda value: -exact[value])[:20]
    assert set(list(found)[:10]) == set(expected[:10])
    for value, count in found.items():
        assert abs(count - exact[value]) <= COUNT_ERROR * len(drawn)
    assert list(found.values()) == sorted(found.values(), reverse=True)
