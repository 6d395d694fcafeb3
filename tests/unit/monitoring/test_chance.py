import numpy as np
import pytest
from scipy import stats

from twotower.monitoring.chance import (
    Null,
    differences,
    effective_groups,
    group_parts,
    judge,
    signs,
)
from twotower.monitoring.statistics import chi_squared

NUM_GROUPS = 256


def counts_of(groups, bins, num_bins):
    counts = np.zeros((NUM_GROUPS, num_bins), np.int64)
    np.add.at(counts, (groups, bins), 1)
    return counts


def test_parts_of_groups_add_up_to_nothing_and_hold_their_own():
    """Two groups of 3 rows, shares 4/6 and 2/6: they are off by 1/6 each, and two groups lack half
    of a sum of squares."""
    counts = np.array([[2, 1], [2, 1]])
    assert np.allclose(group_parts(counts, counts.sum(axis=1)), 0)
    counts = np.array([[3, 0], [1, 2]])
    expected = np.array([[1, -1], [-1, 1]]) / 6 * np.sqrt(2)
    assert np.allclose(group_parts(counts, counts.sum(axis=1)), expected)
    assert group_parts(np.zeros((2, 2), np.int64), np.zeros(2, np.int64)).tolist() == [[0, 0]] * 2


def test_independent_rows_get_the_p_values_of_scipy():
    """Without users, the draws must say what the chi-squared distribution says."""
    rng = np.random.default_rng(1)
    ratios = []
    for seed in range(20):
        num_bins = 5
        now, before = (rng.integers(0, num_bins, n) for n in (4000, 40_000))
        groups = [rng.integers(0, NUM_GROUPS, len(x)) for x in (now, before)]
        table, base = (
            counts_of(g, x, num_bins) for g, x in zip(groups, (now, before), strict=True)
        )
        parts = group_parts(table, table.sum(axis=1)) - group_parts(base, base.sum(axis=1))
        chance = differences(parts, signs(2000, NUM_GROUPS, seed), seed)
        p, q = table.sum(axis=0) / len(now), base.sum(axis=0) / len(before)
        draws = chi_squared(np.maximum(q + chance, 0), q, (len(now), len(before)))
        value = chi_squared(p[None], q, (len(now), len(before)))[0]
        (judged,) = judge([Null(value=float(value), draws=draws)], 0.05)
        exact = stats.chi2.sf(value, num_bins - 1)
        assert judged.p_value == pytest.approx(exact, abs=0.12)
        ratios.append(draws.mean() / (num_bins - 1))
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.05)


def test_events_of_a_user_that_are_alike_are_no_evidence():
    """Ten rows a user, all the same: the variance of the shares is ten times the textbook's."""
    rng = np.random.default_rng(2)
    wrong = right = 0
    for seed in range(200):
        users_now, users_before = rng.integers(0, 2, 500), rng.integers(0, 2, 2500)
        groups = rng.integers(0, NUM_GROUPS, 3000)
        table = 10 * counts_of(groups[:500], users_now, 2)
        base = 10 * counts_of(groups[500:], users_before, 2)
        textbook = stats.chi2_contingency(
            np.stack([table.sum(axis=0), base.sum(axis=0)]), correction=False
        )
        wrong += textbook.pvalue < 0.05
        parts = group_parts(table, table.sum(axis=1)) - group_parts(base, base.sum(axis=1))
        chance = np.abs(differences(parts, signs(400, NUM_GROUPS, seed), seed)[:, 0])
        value = abs(users_now.mean() - users_before.mean())
        right += judge([Null(value=float(value), draws=chance)], 0.05)[0].p_value <= 0.05
    assert wrong > 90
    assert 2 <= right <= 20  # 10 expected; 20 or more once in a thousand


def test_the_rate_is_that_of_any_alarm_among_many():
    """Forty independent normal statistics: each on its own at 5 % would alarm 87 times of 100."""
    rng = np.random.default_rng(3)
    draws = np.abs(rng.standard_normal((1000, 40)))
    alarms = 0
    for _ in range(200):
        values = np.abs(rng.standard_normal(40))
        nulls = [Null(value=float(v), draws=draws[:, n]) for n, v in enumerate(values)]
        judged = judge(nulls, 0.05)
        alarms += min(one.p_value for one in judged) <= 0.05
        for one, value in zip(judged, values, strict=True):  # value and p-value say the same
            assert (one.p_value <= 0.05) == (value >= one.threshold)
    assert 1 <= alarms <= 22  # 10 expected, four standard deviations
    assert judged[0].threshold == pytest.approx(stats.norm.isf(0.05 / 80), abs=0.35)


def test_statistics_that_go_together_need_no_correction():
    draws = np.abs(np.random.default_rng(4).standard_normal(2000))
    nulls = [Null(value=2.1, draws=draws)] * 50
    expected = 2 * stats.norm.sf(2.1)
    assert judge(nulls, 0.05)[0].p_value == pytest.approx(expected, abs=0.015)
    kinds = [Null(value=2.1, draws=draws), Null(value=2.1**2, draws=draws**2)]
    assert judge(kinds, 0.05)[1].p_value == pytest.approx(expected, abs=0.02)


def test_what_cannot_alarm_takes_nothing_from_what_can():
    """39 statistics that would have to be 100 to matter: the 40th is as if it were alone."""
    rng = np.random.default_rng(6)
    draws = np.abs(rng.standard_normal((4000, 40)))
    nulls = [Null(value=0.1, draws=draws[:, n], least=100.0) for n in range(39)]
    nulls.append(Null(value=2.2, draws=draws[:, 39], least=1.0))
    *others, last = judge(nulls, 0.05)
    assert last.threshold == pytest.approx(stats.norm.isf(0.025), abs=0.1)
    assert last.p_value == pytest.approx(2 * stats.norm.sf(2.2), abs=0.01)
    for one in others:  # nobody is told that 0.1 is rare
        assert one.p_value == pytest.approx(2 * stats.norm.sf(0.1), abs=0.03)


def test_the_rate_is_that_of_alarms_where_small_values_are_none():
    """Forty at 2.5 at least: 40 in 100 have one as large, and still 5 in 100 alarm."""
    rng = np.random.default_rng(7)
    draws = np.abs(rng.standard_normal((2000, 40)))
    alarms = large = 0
    for _ in range(300):
        values = np.abs(rng.standard_normal(40))
        nulls = [Null(value=float(v), draws=draws[:, n], least=2.5) for n, v in enumerate(values)]
        judged = judge(nulls, 0.05)
        large += values.max() >= 2.5
        alarms += any(
            one.p_value <= 0.05 and value >= 2.5 for one, value in zip(judged, values, strict=True)
        )
    assert large > 90
    assert 3 <= alarms <= 30  # 15 expected, four standard deviations


def test_what_never_varies_is_no_evidence():
    constant = Null(value=0.0, draws=np.zeros(200))
    varied = Null(value=9.0, draws=np.abs(np.random.default_rng(5).standard_normal(200)))
    first, second = judge([constant, varied], 0.05)
    assert (first.p_value, first.threshold) == (1.0, 0.0)
    assert second.p_value == pytest.approx(1 / 201)
    assert judge([], 0.05) == []


def test_a_change_that_is_the_same_in_all_groups_is_all_the_more_evidence():
    """All values of a column are gone: no group differs from another, and nothing is chance."""
    gone = Null(value=1.0, draws=np.zeros(200))
    varied = Null(value=0.1, draws=np.abs(np.random.default_rng(5).standard_normal(200)))
    first, second = judge([gone, varied], 0.05)
    assert first.p_value == pytest.approx(1 / 201)
    assert second.p_value > 0.5


def test_groups_of_one_size_count_in_full_and_one_large_one_hardly():
    assert effective_groups(np.full(256, 7)) == pytest.approx(256)
    assert effective_groups(np.array([1000, 1, 1])) == pytest.approx(1, abs=0.01)
    assert effective_groups(np.zeros(3, np.int64)) == 0


def test_few_groups_widen_the_draws():
    """Student's t of one degree of freedom has far tails, the normal distribution has none."""
    parts = np.zeros((NUM_GROUPS, 1))
    parts[0], parts[1] = 1.0, -1.0
    few = np.abs(differences(parts, signs(4000, NUM_GROUPS, 0), 0))
    many = np.abs(differences(np.full((NUM_GROUPS, 1), 0.1), signs(4000, NUM_GROUPS, 0), 0))
    assert np.quantile(few, 0.99) > 20
    assert np.quantile(many, 0.99) == pytest.approx(0.1 * 16 * stats.norm.isf(0.005), rel=0.1)
