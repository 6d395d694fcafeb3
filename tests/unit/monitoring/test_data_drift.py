from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from twotower.data.schema import DataError
from twotower.monitoring.bins import Bins, number_edges
from twotower.monitoring.data_drift import DataDriftSettings, data_drift
from twotower.monitoring.profile import NUM_GROUPS, Profile
from twotower.monitoring.reference import Reference

CHANCE_ALONE = DataDriftSettings(
    min_psi=0, min_jensen_shannon=0, min_ks=0, min_chi_squared=0, min_rate=0
)
KNOWN = np.random.default_rng(0).normal(size=100_000)
BINS = (
    Bins(name="context.x", feature="x", side="context", kind="numeric", edges=number_edges(KNOWN)),
    Bins(name="user.c", feature="c", side="user", kind="categorical", edges=(2.0, 3.0), values=3),
)


def made(numbers, values, unseen=0.0, null=0.0, seed=1, rows_each=1):
    """A profile of independent users with a number and a category, each `rows_each` times."""
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, NUM_GROUPS, len(numbers))
    profile = Profile.empty(BINS, 0)
    profile.rows[:] = rows_each * np.bincount(groups, minlength=NUM_GROUPS)
    of_numbers, of_values = profile.columns["context.x"], profile.columns["user.c"]
    gone = rng.random(len(numbers)) < null
    codes = np.searchsorted(BINS[0].edges, numbers, side="right")
    np.add.at(of_numbers.counts, (groups[~gone], codes[~gone]), rows_each)
    of_numbers.null[:] = rows_each * np.bincount(groups[gone], minlength=NUM_GROUPS)
    new = rng.random(len(numbers)) < unseen
    np.add.at(of_values.counts, (groups[~new], values[~new]), rows_each)
    of_values.unseen[:] = rows_each * np.bincount(groups[new], minlength=NUM_GROUPS)
    for column in (of_numbers, of_values):
        column.rows[:] = profile.rows
    return replace(profile, span=(1000, 2000))


def drawn(count, seed, shift=0.0):
    rng = np.random.default_rng(seed)
    return rng.normal(shift, 1, count), rng.choice(3, count, p=[0.5, 0.3, 0.2])


REFERENCE = Reference(
    training=made(*drawn(20_000, 1)), validation=made(*drawn(4000, 2), unseen=0.02, seed=2)
)


def found(findings):
    return {(one.subject, one.statistic): one for one in findings}


def alarms(findings):
    return {(one.subject, one.statistic) for one in findings if one.alert}


def test_no_drift_is_no_alert_and_every_comparison_is_told():
    findings = data_drift(made(*drawn(5000, 7), unseen=0.02, seed=7), REFERENCE)
    assert alarms(findings) == set()
    assert [(one.subject, one.statistic) for one in findings] == [
        *(("context.x", s) for s in ("psi", "jensen_shannon", "ks", "null_rate")),
        *(("user.c", s) for s in ("psi", "jensen_shannon", "chi_squared")),
        *(("user.c", s) for s in ("null_rate", "unseen_rate")),
    ]
    for one in findings:
        assert one.area == "data"
        assert one.advice == ""
        assert one.since is None
        assert 0 < one.p_value <= 1


def test_values_are_those_of_the_window():
    numbers, values = drawn(50_000, 7, shift=0.5)
    findings = found(data_drift(made(numbers, values, unseen=0.1, null=0.2), REFERENCE))
    before, _ = drawn(20_000, 1)
    edges = np.quantile(KNOWN, np.linspace(0, 1, 11)[1:-1])
    p, q = (
        np.bincount(np.searchsorted(edges, x), minlength=10) / len(x) for x in (numbers, before)
    )
    expected = ((p - q) * np.log(p / q)).sum()
    assert findings["context.x", "psi"].value == pytest.approx(expected, rel=0.1)
    exact = stats.ks_2samp(numbers, before).statistic
    assert exact - 1 / 64 <= findings["context.x", "ks"].value <= exact + 0.005
    assert findings["context.x", "null_rate"].value == pytest.approx(0.2, abs=0.01)
    assert findings["context.x", "null_rate"].reference == 0
    assert findings["user.c", "unseen_rate"].value == pytest.approx(0.1, abs=0.01)
    assert findings["user.c", "unseen_rate"].reference == pytest.approx(0.02, abs=0.01)
    assert alarms(findings.values()) == {
        *(("context.x", s) for s in ("psi", "jensen_shannon", "ks", "null_rate")),
        ("user.c", "unseen_rate"),
    }
    alert = findings["context.x", "psi"]
    assert alert.value > alert.threshold
    assert alert.since == 1000
    assert alert.p_value == pytest.approx(1 / 2001)
    assert "context.x is distributed differently" in alert.advice


def test_with_many_rows_what_does_not_matter_is_no_alert():
    """Fifty thousand users of 2,000 rows each: 100M rows, and a shift of a hundredth of a sigma."""
    tiny = made(*drawn(50_000, 8, shift=0.1), unseen=0.02, seed=8, rows_each=2000)
    assert tiny.num_rows == 100_000_000
    assert ("context.x", "psi") in alarms(data_drift(tiny, REFERENCE, CHANCE_ALONE))
    assert alarms(data_drift(tiny, REFERENCE)) == set()
    shifted = made(*drawn(50_000, 8, shift=0.46), unseen=0.02, seed=8, rows_each=2000)
    findings = data_drift(shifted, REFERENCE)
    assert found(findings)["context.x", "psi"].value == pytest.approx(0.2, abs=0.03)
    assert {s for s, _ in alarms(findings)} == {"context.x"}


def test_a_small_window_needs_a_larger_difference():
    limits = [
        found(data_drift(made(*drawn(count, 9), seed=9), REFERENCE))["context.x", "psi"].threshold
        for count in (200, 2000, 20_000)
    ]
    assert limits[0] > limits[1] >= limits[2] == 0.1


def test_events_of_a_user_that_are_alike_raise_the_threshold():
    once = found(data_drift(made(*drawn(300, 9), seed=9), REFERENCE))
    often = found(data_drift(made(*drawn(300, 9), seed=9, rows_each=50), REFERENCE))
    for key in (("context.x", "psi"), ("user.c", "psi")):
        assert often[key].threshold == pytest.approx(once[key].threshold, rel=0.05)


def test_a_column_of_nulls_is_an_alert():
    findings = data_drift(made(*drawn(2000, 3), unseen=0.02, null=1.0, seed=3), REFERENCE)
    assert alarms(findings) == {("context.x", "null_rate")}
    assert ("context.x", "psi") not in found(findings)


def test_fewer_unseen_than_usual():
    usual = Reference(
        training=REFERENCE.training, validation=made(*drawn(4000, 2), unseen=0.3, seed=2)
    )
    findings = found(data_drift(made(*drawn(4000, 3), seed=3), usual))
    one = findings["user.c", "unseen_rate"]
    assert one.alert
    assert one.value == pytest.approx(0)
    assert one.threshold < one.reference
    assert "Fewer new values of user.c" in one.advice


def test_where_validation_is_too_small_new_values_are_an_alert_all_the_same():
    few = Reference(training=REFERENCE.training, validation=made(*drawn(40, 2), seed=2))
    findings = data_drift(made(*drawn(4000, 3), unseen=0.05, seed=3), few)
    assert alarms(findings) == {("user.c", "unseen_rate")}
    assert found(findings)["user.c", "unseen_rate"].reference == 0


def test_encoded_rows_alone_do_not_tell_null_from_unseen():
    window = replace(made(*drawn(4000, 3), unseen=0.02, seed=3), facts={"encoded_only": True})
    statistics = {s for subject, s in found(data_drift(window, REFERENCE)) if subject == "user.c"}
    assert statistics == {"psi", "jensen_shannon", "chi_squared", "missing_rate"}


def test_columns_can_be_left_out_by_name():
    window = made(*drawn(4000, 3, shift=1.0), unseen=0.02, seed=3)
    settings = DataDriftSettings(leave_out=("context.x",))
    assert alarms(data_drift(window, REFERENCE, settings)) == set()
    with pytest.raises(ValueError, match="no column nothing; allowed: context"):
        data_drift(window, REFERENCE, DataDriftSettings(leave_out=("nothing",)))


def test_too_few_rows_or_users_are_no_verdict():
    with pytest.raises(DataError, match="the window has 60 rows of about"):
        data_drift(made(*drawn(60, 3)), REFERENCE)
    one_user = made(*drawn(1000, 3))
    one_user.rows[:] = 0
    one_user.rows[5] = 1000
    with pytest.raises(DataError, match="of about 1 groups of users"):
        data_drift(one_user, REFERENCE)


def test_a_profile_with_other_bins_is_refused():
    other = Profile.empty([replace(BINS[0], edges=(0.0,)), BINS[1]], 0)
    with pytest.raises(ValueError, match="profiles with other bins"):
        data_drift(other, REFERENCE)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"min_psi": -0.1}, "`min_psi` must be at least 0"),
        ({"num_bins": 1}, "`num_bins` must be at least 2"),
        ({"false_alarm_rate": 1.0}, "must lie between 0 and 1, got 1.0"),
        ({"false_alarm_rate": 0.001}, "2000 `num_draws` do not tell .* at least 5000"),
    ],
)
def test_settings_that_cannot_be(setting, message):
    with pytest.raises(ValueError, match=message):
        DataDriftSettings(**setting)


def test_the_time_of_day_is_compared_over_whole_days_alone(small):
    times = small.log["timestamp"].to_numpy()
    day = 86_400_000_000
    first = times.min() // day * day
    whole = small.log.filter(pa.array((times >= first + 17 * day) & (times < first + 19 * day)))
    profile = small.profiler.profile_rows(whole)
    for hours, expected in ((48, True), (46.5, True), (36, False), (12, False)):
        spanned = replace(profile, span=(0, int(hours * 3600)))
        subjects = {one.subject for one in data_drift(spanned, small.reference)}
        assert ("context.timestamp" in subjects or "context.time" in subjects) == expected


def test_frequent_values_of_training_are_rarer_later_without_any_drift(small):
    """The most frequent of many users were so by luck as well: the validation part knows."""
    rows = small.log.filter(pa.array(small.part == 2))
    profile = small.profiler.profile_rows(rows)
    of_ids = found(data_drift(profile, small.reference))["user.user_id", "psi"]
    against_training = Reference(
        training=small.reference.training, validation=small.reference.training
    )
    biased = found(data_drift(profile, against_training))["user.user_id", "psi"]
    assert biased.value > of_ids.value
