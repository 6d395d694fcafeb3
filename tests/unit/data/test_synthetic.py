"""The built-in world does what its page says.

Numbers of the click model and of the logging policy are written out here again, so that a change
of a constant in the source fails.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from scipy.stats import rankdata

from twotower.data.impressions import draw_log, repeats
from twotower.data.schema import Label
from twotower.data.synthetic import SyntheticSource
from twotower.data.world import Drift

DAYS = 60
DAY = 86_400_000_000  # microseconds
START = 1_704_067_200_000_000  # 2024-01-01
DRIFT_TIME = START + DAYS * DAY // 2

SMALL = SyntheticSource(
    num_users=300, num_items=120, num_days=DAYS, slates_per_user=5, slate_size=6, seed=3
)


def source(**changes):
    default = {
        "num_users": 2000,
        "num_items": 1000,
        "num_days": DAYS,
        "slates_per_user": 10,
        "slate_size": 10,
        "seed": 7,
    }
    return SyntheticSource(**(default | changes))


def log_of(made):
    return draw_log(made.world, made.num_days, made.slates_per_user, made.seed)


@pytest.fixture(scope="module")
def demo():
    return source()


@pytest.fixture(scope="module")
def log(demo):
    return log_of(demo)


@pytest.fixture(scope="module")
def tables(demo):
    return demo.read()


@pytest.fixture(scope="module")
def single():
    """One slot a slate and hardly a second session: the policy without the rules about repeats."""
    return source(num_users=60_000, num_items=120, slates_per_user=1, slate_size=1)


@pytest.fixture(scope="module")
def single_log(single):
    return log_of(single)


def standard_scores(counts, expected, variance):
    return (counts - expected) / np.sqrt(variance)


def auc(labels, scores):
    ranks, positives = rankdata(scores), labels.sum()
    return (ranks[labels].sum() - positives * (positives + 1) / 2) / (
        positives * (len(labels) - positives)
    )


# --- tables


def test_tables_are_in_canonical_form(tables):
    assert tables.interactions.schema == pa.schema(
        {
            "user_id": pa.string(),
            "item_id": pa.string(),
            "timestamp": pa.int64(),
            "label": pa.float32(),
            "position": pa.int64(),
            "device": pa.string(),
        }
    )
    assert tables.users.schema == pa.schema(
        {
            "user_id": pa.string(),
            "age_group": pa.string(),
            "country": pa.string(),
            "interests": pa.list_(pa.string()),
        }
    )
    assert tables.items.schema == pa.schema(
        {
            "item_id": pa.string(),
            "title": pa.string(),
            "category": pa.string(),
            "tags": pa.list_(pa.string()),
            "price": pa.float64(),
            "image_vector": pa.list_(pa.float32(), 16),
        }
    )
    assert tables.label == Label(column="click", minimum=0, maximum=1, positive_from=1)
    assert tables.context == ("position", "device")
    for table in (tables.interactions, tables.users, tables.items):
        assert all(column.null_count == 0 for column in table.columns)


def test_tables_agree_with_the_log_and_the_world(demo, log, tables):
    interactions = tables.interactions.to_pydict()
    for row in (0, 1, len(log.clicks) // 2, len(log.clicks) - 1):
        assert interactions["user_id"][row] == f"u{log.user_rows[row]:06d}"
        assert interactions["item_id"][row] == f"i{log.item_rows[row]:05d}"
        assert interactions["timestamp"][row] == log.timestamps[row]
        assert interactions["label"][row] == float(log.clicks[row])
        assert interactions["position"][row] == log.positions[row]
    assert tables.users["user_id"].to_pylist() == list(demo.world.user_ids)
    assert tables.items["item_id"].to_pylist() == list(demo.world.item_ids)
    assert set(interactions["label"]) == {0.0, 1.0}
    assert set(interactions["device"]) == {"phone", "desktop", "tablet"}
    assert demo.name == "synthetic"


def test_default_size(log):
    assert 180_000 < len(log.clicks) < 220_000
    assert 0.1 < log.clicks.mean() < 0.2
    assert np.all(np.diff(log.timestamps) >= 0)
    assert log.timestamps[0] >= START
    assert log.timestamps[-1] < START + DAYS * DAY


def test_same_seed_same_tables_other_seed_other_tables(demo, tables):
    again = source().read()
    assert again.interactions.equals(tables.interactions)
    assert again.users.equals(tables.users)
    assert again.items.equals(tables.items)
    other = source(seed=8).read()
    assert not other.interactions.equals(tables.interactions)
    assert not other.items["image_vector"].equals(tables.items["image_vector"])


def test_fingerprint_follows_every_setting():
    drifts = [
        Drift(start_share=0.5),
        Drift(start_share=0.6),
        Drift(start_share=0.5, taste_shift=0.1),
        Drift(start_share=0.5, popularity_shift=0.1),
    ]
    variants = [
        SMALL,
        replace(SMALL, num_users=301),
        replace(SMALL, num_items=121),
        replace(SMALL, num_days=61),
        replace(SMALL, slates_per_user=5.5),
        replace(SMALL, slate_size=7),
        replace(SMALL, seed=4),
        *(replace(SMALL, drift=drift) for drift in drifts),
        replace(SMALL, launched_share=0.2),
        replace(SMALL, launched_from=0.2),
    ]
    assert len({variant.fingerprint() for variant in variants}) == len(variants)
    assert replace(SMALL).fingerprint() == SMALL.fingerprint()


def test_attributes_tell_a_part_of_the_truth(demo, tables):
    world = demo.world
    images = np.stack(tables.items["image_vector"].to_numpy())
    assert np.mean((images @ world.centres.T).argmax(axis=1) == world.items.topics) > 0.95
    names = np.array(tables.items["category"].to_pylist())
    name_of = {topic: set(names[world.items.topics == topic]) for topic in range(12)}
    assert all(len(found) == 1 for found in name_of.values())
    assert len(set(names)) == 12
    favourites = world.users.topic_shares[0].argmax(axis=1)
    interests = tables.users["interests"].to_pylist()
    told = [
        name_of[topic] <= set(said)
        for topic, said in zip(favourites, interests, strict=True)
        if said
    ]
    assert 0.9 < np.mean(told) < 1
    assert 0.02 < np.mean([not said for said in interests]) < 0.08
    assert all(len(set(said)) == len(said) <= 3 for said in interests)
    price = tables.items["price"].to_numpy()
    assert np.corrcoef(np.log(price), world.items.quality)[0, 1] > 0.3
    ages = np.array(tables.users["age_group"].to_pylist())
    share_of_first = [np.mean(ages[favourites == topic] == "18-24") for topic in range(12)]
    assert max(share_of_first) > 3 * np.median(share_of_first)


def test_titles_are_readable_and_all_different():
    items = source(num_users=1, num_items=2500, slates_per_user=0.1).read().items
    titles = items["title"].to_pylist()
    assert len(set(titles)) == 2500
    assert pc.all(pc.match_substring_regex(items["title"], "^The [A-Z][a-z]+ [A-Z][a-z]+( [23])?$"))
    assert 0 < sum(title.endswith(" 3") for title in titles) < 2500 - 2 * 1024 + 1
    assert {len(tags) for tags in items["tags"].to_pylist()} == {2, 3}


# --- click model


def test_click_probability_is_the_stated_formula(demo):
    world = demo.world
    for user, item, slot in ((0, 5, 1), (17, 3, 2), (1999, 999, 10)):
        match = sum(
            a * b
            for a, b in zip(world.users.vectors[0, user], world.items.vectors[item], strict=True)
        )
        logit = 5 * match + world.items.quality[item] - 2.7
        expected = slot**-0.6 / (1 + math.exp(-logit))
        got = world.click_probability(np.array([user]), np.array([item]), np.array([slot]))
        assert got[0] == pytest.approx(expected, rel=1e-12)


def test_click_rates_by_position_follow_the_examination_model(log):
    shown = np.bincount(log.positions)[1:]
    clicks = np.bincount(log.positions, weights=log.clicks)[1:]
    rates = clicks / shown
    assert len(rates) == 10
    for slot in range(2, 11):
        ratio = rates[slot - 1] / rates[0]
        # binomial error of the logarithm of a ratio of two rates
        error = math.sqrt(sum((1 - rates[k]) / clicks[k] for k in (0, slot - 1)))
        assert abs(math.log(ratio) + 0.6 * math.log(slot)) < 4 * error


def test_drawn_clicks_are_calibrated(demo, log):
    probability = demo.world.click_probability(
        log.user_rows, log.item_rows, log.positions, log.timestamps
    )
    bins = np.array_split(np.argsort(probability), 25)
    expected = np.array([probability[rows].sum() for rows in bins])
    variance = np.array([(probability[rows] * (1 - probability[rows])).sum() for rows in bins])
    scores = standard_scores([log.clicks[rows].sum() for rows in bins], expected, variance)
    assert np.abs(scores).max() < 4
    assert probability[bins[0]].max() < 0.03
    assert probability[bins[-1]].min() > 0.5


# --- logging policy


def test_exposure_and_affinity_are_the_stated_formulas():
    world = SMALL.world
    users, items = np.array([4, 250]), np.array([7, 99, 0])
    popularity, topics = world.items.popularity[0], world.items.topics
    looked_at = sum(slot**-0.6 for slot in range(1, 7))
    for row, user in enumerate(users):
        for column, item in enumerate(items):
            same = [popularity[j] for j in range(120) if topics[j] == topics[item]]
            exposure = (
                0.3 * popularity[item]
                + 0.55
                * world.users.topic_shares[0, user, topics[item]]
                * popularity[item]
                / sum(same)
                + 0.15 / 120
            )
            first_slot = world.click_probability(users[[row]], items[[column]], np.array([1]))[0]
            assert world.exposure(users, items)[row, column] == pytest.approx(exposure)
            assert world.affinity(users, items)[row, column] == pytest.approx(
                looked_at * exposure * first_slot
            )
    np.testing.assert_allclose(world.exposure(users).sum(axis=1), 1)
    np.testing.assert_array_equal(world.affinity(users)[:, items], world.affinity(users, items))


def test_impressions_follow_the_exposure(single, single_log):
    world, log = single.world, single_log
    first = np.unique(log.user_rows, return_index=True)[1]  # nobody has clicked anything yet
    users, times = log.user_rows[first], log.timestamps[first]
    weights = world.exposure(users) * (world.launch_times <= times[:, None])
    chance = weights / weights.sum(axis=1, keepdims=True)
    counts = np.bincount(log.item_rows[first], minlength=120)
    scores = standard_scores(counts, chance.sum(axis=0), (chance * (1 - chance)).sum(axis=0))
    assert np.abs(scores).max() < 4.5
    assert 0.8 < scores.std() < 1.2
    # and the user's own topic, which sums over items would hide
    own = world.users.topic_shares[0, users].argmax(axis=1)
    is_own = world.items.topics == own[:, None]
    expected = (chance * is_own).sum(axis=1)
    score = standard_scores(
        is_own[np.arange(len(first)), log.item_rows[first]].sum(),
        expected.sum(),
        (expected * (1 - expected)).sum(),
    )
    assert abs(score) < 4


def test_zipf_exponent_is_recovered(single, single_log):
    items = single.world.items
    share = np.bincount(single_log.item_rows, minlength=120) / len(single_log.item_rows)
    rank = rankdata(-items.popularity[0])
    use = single.world.launch_times == START
    # every topic has its own share of the draws, so logarithms lie on one slope by topic
    by_topic = np.eye(12)[items.topics]
    design = np.column_stack([np.log(rank), by_topic])[use]
    launched = np.mean(single.world.launch_times <= single_log.timestamps[:, None], axis=0)
    without_chance = share - 0.15 / launched.sum()
    weight = np.sqrt(without_chance[use])  # counts have errors that grow as their root
    slope = np.linalg.lstsq(
        design * weight[:, None], np.log(without_chance[use]) * weight, rcond=None
    )[0][0]
    assert slope == pytest.approx(-0.8, abs=0.04)


def test_nothing_is_shown_before_its_launch(demo, log):
    launches = demo.world.launch_times
    assert np.all(log.timestamps >= launches[log.item_rows])
    late = launches > START
    assert 0.1 <= late.mean() <= 0.15
    last_tenth = launches > START + DAYS * DAY * 9 // 10
    assert last_tenth.sum() >= 20
    shown = np.bincount(log.item_rows, minlength=1000) > 0
    assert shown[late].mean() > 0.9
    assert shown[last_tenth].any()


def test_launches_as_they_are_asked_for(tables):
    late = source(launched_share=0.2, launched_from=0.8)
    shares = (late.world.launch_times - START) / (DAYS * DAY)
    launched = shares > 0
    assert launched.sum() == 200
    assert shares[launched].min() >= 0.8
    assert shares.max() < 0.98
    assert (shares > 0.9).sum() == 50
    assert late.read().items.equals(tables.items)  # what they are does not hang on when they come
    log = log_of(late)
    is_new = launched[log.item_rows]
    assert log.timestamps[is_new].min() >= START + 0.8 * DAYS * DAY
    assert len(np.unique(log.item_rows[is_new])) > 180


def test_a_world_without_launches():
    assert np.all(replace(SMALL, launched_share=0.0).world.launch_times == START)


def test_clicked_items_are_never_shown_again(log):
    pair = log.user_rows * 1000 + log.item_rows
    order = np.lexsort((log.timestamps, pair))
    same_pair = pair[order][1:] == pair[order][:-1]
    assert same_pair.sum() > 1000  # what was not clicked does come again
    assert not np.any(same_pair & log.clicks[order][:-1])


@pytest.mark.parametrize("which", ["demo", "crowded"])
def test_slates_hold_different_items_in_different_slots(which, log):
    drawn = log if which == "demo" else log_of(source(num_users=50, num_items=20))
    for columns in ((drawn.sessions, drawn.item_rows), (drawn.sessions, drawn.positions)):
        assert len(np.unique(np.stack(columns), axis=1).T) == len(drawn.clicks)
    assert set(drawn.positions) == set(range(1, 11))
    if which == "demo":
        assert np.all(np.bincount(drawn.sessions)[np.unique(drawn.sessions)] == 10)


def test_slates_run_short_only_when_the_items_are_used_up():
    drawn = log_of(source(num_users=50, num_items=20, slates_per_user=30))
    sizes = np.bincount(drawn.sessions)
    assert sizes.max() == 10
    assert sizes.min() < 10
    assert np.all(np.bincount(drawn.user_rows, weights=drawn.clicks) <= 20)


def test_repeats_marks_later_and_newer_entries():
    items = np.array([[5, 3, 5, 3], [1, 2, 3, 4], [9, 9, 9, 9]])
    is_new = np.array([[True, True, False, True], [True] * 4, [True, True, True, False]])
    expected = [[True, False, False, True], [False] * 4, [True, True, True, False]]
    np.testing.assert_array_equal(repeats(items, is_new), expected)
    np.testing.assert_array_equal(repeats(items)[2], [False, True, True, True])


def test_a_world_may_stay_without_visits():
    tables = source(num_users=1, num_items=20, slates_per_user=1e-9).read()
    assert tables.interactions.num_rows == 0
    assert tables.users.num_rows == 1


# --- drift


@pytest.mark.parametrize(
    "shift", [{"taste_shift": 1.0}, {"popularity_shift": 1.0}], ids=["taste", "popularity"]
)
def test_drift_leaves_everything_before_it_as_it_was(shift, tables):
    drifted = source(drift=Drift(start_share=0.5, **shift)).read()
    before, after = (
        [
            t.interactions.filter(op(t.interactions["timestamp"], DRIFT_TIME))
            for t in (tables, drifted)
        ]
        for op in (pc.less, pc.greater_equal)
    )
    assert before[0].num_rows > 90_000
    assert before[0].equals(before[1])
    assert not after[0].equals(after[1])
    assert drifted.users.equals(tables.users)
    assert drifted.items.equals(tables.items)


def test_drift_without_a_shift_changes_nothing(tables):
    assert source(drift=Drift(start_share=0.5)).read().interactions.equals(tables.interactions)


def test_taste_drift_changes_what_a_pair_clicks_but_hardly_what_is_popular(demo):
    drifted = source(drift=Drift(start_share=0.5, taste_shift=1.0))
    log, world = log_of(drifted), drifted.world
    late = log.timestamps >= DRIFT_TIME
    columns = [x[late] for x in (log.user_rows, log.item_rows, log.positions)]
    truth = world.click_probability(*columns, log.timestamps[late])
    stale = demo.world.click_probability(*columns)
    score = standard_scores(log.clicks[late].sum(), truth.sum(), (truth * (1 - truth)).sum())
    assert abs(score) < 4
    assert auc(log.clicks[late], truth) > auc(log.clicks[late], stale) + 0.1
    moment = np.full(len(columns[0]), DRIFT_TIME - 1)
    np.testing.assert_array_equal(world.click_probability(*columns, moment), stale)
    np.testing.assert_array_equal(world.click_probability(*columns), truth)
    # the favourite of every user is one topic further
    favourite = [shares.argmax(axis=1) for shares in world.users.topic_shares]
    np.testing.assert_array_equal((favourite[0] + 1) % 12, favourite[1])
    np.testing.assert_array_equal(world.items.popularity[0], world.items.popularity[1])


def test_popularity_drift_changes_what_is_shown_but_not_what_a_pair_clicks(demo):
    drifted = source(drift=Drift(start_share=0.5, popularity_shift=0.5))
    log, world = log_of(drifted), drifted.world
    late = log.timestamps >= DRIFT_TIME
    columns = log.user_rows, log.item_rows, log.positions
    np.testing.assert_array_equal(
        world.click_probability(*columns), demo.world.click_probability(*columns)
    )
    np.testing.assert_allclose(world.items.popularity.sum(axis=1), 1)
    head = np.argsort(-world.items.popularity[0])[:20]
    share = [np.isin(log.item_rows[part], head).mean() for part in (~late, late)]
    assert share[1] < 0.75 * share[0]


# --- the best possible scores


def test_truth_beats_popularity_and_has_the_expected_auc(demo, log):
    probability = demo.world.click_probability(
        log.user_rows, log.item_rows, log.positions, log.timestamps
    )
    assert 0.75 < auc(log.clicks, probability) < 0.86
    is_test = log.timestamps >= np.quantile(log.timestamps, 0.9)
    seen, relevant = np.zeros((2, 2000, 1000), dtype=bool)
    for part, marks in ((~is_test, seen), (is_test, relevant)):
        marks[log.user_rows[part & log.clicks], log.item_rows[part & log.clicks]] = True
    users = np.flatnonzero(relevant.any(axis=1))

    def recall(scores):
        ranked = np.argsort(-np.where(seen[users], -np.inf, scores), axis=1)[:, :100]
        hits = np.take_along_axis(relevant[users], ranked, axis=1).sum(axis=1)
        return np.mean(hits / relevant[users].sum(axis=1))

    best = recall(demo.world.affinity(users))
    assert best > 0.5
    assert recall(np.tile(seen.sum(axis=0), (len(users), 1))) < 0.6 * best
    # neither exposure nor taste alone is as good
    world = demo.world
    assert recall(world.exposure(users)) < best
    assert recall(world.users.vectors[1, users] @ world.items.vectors.T) < best


# --- mistakes


def test_all_wrong_settings_are_named_at_once():
    with pytest.raises(ValueError, match="`num_users` must be at least 1, got 0") as caught:
        SyntheticSource(
            num_users=0,
            num_items=11,
            num_days=0,
            slates_per_user=0,
            slate_size=0,
            seed=-1,
            launched_share=1.0,
            launched_from=-0.1,
        )
    assert str(caught.value).splitlines() == [
        "synthetic data: `num_users` must be at least 1, got 0",
        "synthetic data: `num_items` must be at least 12, got 11",
        "synthetic data: `num_days` must be at least 1, got 0",
        "synthetic data: `slate_size` must be at least 1, got 0",
        "synthetic data: `seed` must be at least 0, got -1",
        "synthetic data: `launched_share` must be at least 0 and below 1, got 1.0",
        "synthetic data: `launched_from` must be at least 0 and below 0.9, got -0.1",
        "synthetic data: `slates_per_user` must be above 0, got 0",
    ]
    with pytest.raises(ValueError, match="`num_items` must be at least 40, got 39"):
        replace(SMALL, num_items=39, slate_size=20)


@pytest.mark.parametrize("share", [0.0, 1.0, float("nan")])
def test_all_wrong_drift_settings_are_named_at_once(share):
    with pytest.raises(ValueError, match="`start_share` must lie between 0 and 1") as caught:
        Drift(start_share=share, taste_shift=-0.1, popularity_shift=1.5)
    assert "`taste_shift` must lie between 0 and 1, got -0.1" in str(caught.value)
    assert "`popularity_shift` must lie between 0 and 1, got 1.5" in str(caught.value)
