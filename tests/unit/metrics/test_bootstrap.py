import numpy as np
import pytest

from twotower.metrics import bootstrap
from twotower.metrics.bootstrap import Interval, bootstrap_difference, bootstrap_mean


def slow_interval(values, num_resamples, seed):
    """Draw the queries themselves."""
    rng = np.random.default_rng(seed)
    means = [rng.choice(values, len(values)).mean() for _ in range(num_resamples)]
    return np.quantile(means, [0.025, 0.975])


def test_all_values_equal_leave_no_doubt():
    assert bootstrap_mean(np.full(20, 0.25)) == Interval(value=0.25, low=0.25, high=0.25)
    assert bootstrap_mean(np.array([0.5])) == Interval(value=0.5, low=0.5, high=0.5)


@pytest.mark.parametrize("kind", ["hits", "continuous"])
def test_agrees_with_drawing_queries(kind):
    rng = np.random.default_rng(0)
    values = rng.random(150) if kind == "continuous" else (rng.random(150) < 0.3).astype(float)
    interval = bootstrap_mean(values, num_resamples=4000, seed=1)
    low, high = slow_interval(values, 4000, seed=2)
    spread = values.std() / np.sqrt(150)
    assert interval.value == pytest.approx(values.mean())
    assert interval.low == pytest.approx(low, abs=0.15 * spread)
    assert interval.high == pytest.approx(high, abs=0.15 * spread)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * spread, rel=0.08)


def test_intervals_hold_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(5)
    held = {0.5: 0, 0.95: 0}
    for trial in range(400):
        sample = (rng.random(300) < 0.3).astype(float)
        for level in held:
            interval = bootstrap_mean(sample, num_resamples=300, level=level, seed=trial)
            held[level] += interval.low <= 0.3 <= interval.high
    # four standard errors of a share of 400 trials, and some room for the few values of a mean
    assert 0.90 <= held[0.95] / 400 <= 0.99
    assert 0.39 <= held[0.5] / 400 <= 0.61


def test_a_higher_level_is_wider_and_more_queries_are_narrower():
    values = np.random.default_rng(0).random(400)
    narrow, wide = bootstrap_mean(values, level=0.8), bootstrap_mean(values, level=0.99)
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high
    more = bootstrap_mean(np.tile(values, 4), level=0.8)
    halved = (more.high - more.low) / (narrow.high - narrow.low)
    assert halved == pytest.approx(0.5, abs=0.06)


def test_seed_decides_and_order_and_missing_values_do_not_matter():
    rng = np.random.default_rng(2)
    values = rng.random(100)
    shuffled = np.insert(rng.permutation(values), [0, 50, 100], np.nan)
    first, again = bootstrap_mean(values, seed=7), bootstrap_mean(shuffled, seed=7)
    assert (first.low, first.high) == (again.low, again.high)
    assert first.value == pytest.approx(again.value)
    assert bootstrap_mean(values, seed=8) != first


def test_does_not_depend_on_blocks(monkeypatch):
    values = np.random.default_rng(2).random(50)
    whole = bootstrap_mean(values, num_resamples=100)
    for counts in (350, 1):  # seven resamples a block, and one
        monkeypatch.setattr(bootstrap, "BLOCK_COUNTS", counts)
        blocked = bootstrap_mean(values, num_resamples=100)
        assert (blocked.low, blocked.high) == pytest.approx((whole.low, whole.high), rel=1e-12)


def test_a_million_queries_take_no_memory_of_queries_times_resamples():
    hits = np.zeros(1_000_000)
    hits[:200_000] = 1
    interval = bootstrap_mean(hits)
    assert interval.value == 0.2
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * 0.4 / 1000, rel=0.15)


def test_pairing_cancels_what_is_hard_for_both():
    rng = np.random.default_rng(4)
    difficulty = rng.random(300)
    first = difficulty + 0.02 + 0.01 * rng.normal(size=300)
    second = difficulty
    paired = bootstrap_difference(first, second)
    assert paired.value == pytest.approx((first - second).mean())
    assert paired.low > 0.015
    one, other = bootstrap_mean(first), bootstrap_mean(second)
    assert one.low < other.high  # side by side, the intervals overlap
    assert paired.high - paired.low < 0.1 * (one.high - one.low)


def test_difference_is_antisymmetric_and_zero_against_itself():
    rng = np.random.default_rng(4)
    first, second = rng.random(80), rng.random(80)
    first[3] = second[3] = np.nan
    there = bootstrap_difference(first, second, num_resamples=2000)
    back = bootstrap_difference(second, first, num_resamples=2000)
    assert there.value == pytest.approx(-back.value)
    assert there.low == pytest.approx(-back.high, abs=0.01)
    assert bootstrap_difference(first, first) == Interval(value=0, low=0, high=0)


def test_prints_as_people_write_it():
    assert str(Interval(value=0.08046, low=0.07351, high=0.0873)) == "0.0805 [0.0735, 0.0873]"


def test_mistakes_are_refused():
    ok = np.array([0.1, 0.2])
    with pytest.raises(ValueError, match=r"at least one that is not NaN, got 0 of shape \(2,\)"):
        bootstrap_mean(np.full(2, np.nan))
    with pytest.raises(ValueError, match=r"values must have shape \(Q,\)"):
        bootstrap_mean(np.zeros((2, 2)))
    with pytest.raises(ValueError, match="values must not be infinite, got 1"):
        bootstrap_mean(np.array([0.1, np.inf]))
    with pytest.raises(ValueError, match=r"num_resamples must be at least 1, got 0\n.*got 1.0"):
        bootstrap_mean(ok, num_resamples=0, level=1.0)
    with pytest.raises(ValueError, match="level must lie between 0 and 1, got 0"):
        bootstrap_difference(ok, ok, level=0)
    with pytest.raises(ValueError, match=r"the same queries, got shapes \(2,\) and \(1,\)"):
        bootstrap_difference(ok, ok[:1])
    with pytest.raises(ValueError, match=r"the same queries.* with 2 and 1 values that count"):
        bootstrap_difference(ok, np.array([0.1, np.nan]))
