"""Evaluation queries against a loop over the rows of the table."""

import numpy as np
import pyarrow as pa
import pytest

from twotower.data.queries import EvaluationSettings, evaluation_queries
from twotower.data.schema import TEST, VALIDATION, DataError, Label, Tables


def made(prepare_tables, seed=0, **changes):
    rng = np.random.default_rng(seed)
    count = 160
    columns = {
        "user_id": rng.integers(0, 12, count),
        "item_id": rng.integers(0, 15, count)
        + 1000 * (rng.random(count) < 0.1) * (1 + np.arange(count) % 3),
        "timestamp": rng.integers(0, 40, count),
        "split": pa.array(rng.integers(0, 3, count), pa.int8()),
        "label": pa.array(rng.integers(0, 2, count), pa.float32()),
    }
    tables = Tables(interactions=pa.table(columns | changes), label=Label())
    return prepare_tables(tables), tables.interactions.to_pylist()


def queries_slowly(log, part, *, remove_seen):
    """Per user id: the first row of the part, what was seen before, what was taken in the part."""
    found = {}
    for user in {row["user_id"] for row in log}:
        mine = [(r["split"], r["timestamp"], n) for n, r in enumerate(log)
                if r["user_id"] == user and r["label"] == 1]  # fmt: skip
        mine.sort()
        seen = [log[n]["item_id"] for code, _, n in mine if code < part]
        inside = [n for code, _, n in mine if code == part]
        truth = {log[n]["item_id"] for n in inside} - (set(seen) if remove_seen else set())
        if truth:
            found[user] = (inside[0], seen, truth)
    return found


def by_user(prepared, queries):
    """The same form as `queries_slowly` out of the arrays."""
    users, items = prepared.users.ids.to_pylist(), prepared.items.ids.to_pylist()
    found = {}
    for q in range(len(queries)):
        seen = queries.seen[q]
        truth = queries.truth[q]
        assert len(set(truth.tolist())) == len(truth)
        found[users[queries.user_rows[q]]] = (
            int(prepared.interactions.rows[queries.interactions[q]]),
            [items[row] for row in seen],
            {items[row] for row in truth},
        )
    return found


@pytest.mark.parametrize("remove_seen", [True, False])
@pytest.mark.parametrize("part", [VALIDATION, TEST])
@pytest.mark.parametrize("seed", [0, 1])
def test_queries_against_a_loop(prepare_tables, seed, part, remove_seen):
    prepared, log = made(prepare_tables, seed)
    queries = evaluation_queries(prepared, part, remove_seen=remove_seen)
    assert by_user(prepared, queries) == queries_slowly(log, part, remove_seen=remove_seen)
    assert queries.part == part
    events = prepared.events
    for q, user in enumerate(queries.user_rows):
        history = events.item_rows[events.offsets[user] : queries.history_end[q]]
        seen = queries.seen[q]
        assert history.tolist() == seen.tolist()


def test_what_cannot_be_recommended_stays_truth(prepare_tables):
    log = {
        "user_id": [1, 1, 1, 2, 2, 2],
        "item_id": [10, 11, 99, 10, 11, 10],
        "split": pa.array([0, 1, 2, 0, 1, 2], pa.int8()),
    }
    prepared = prepare_tables(Tables(interactions=pa.table(log)))
    assert prepared.num_catalogue == 1  # 10 alone trains
    queries = evaluation_queries(prepared, TEST, remove_seen=True)
    # user 2 comes back to 10, which was seen; 99 of user 1 is out of reach but counts
    assert by_user(prepared, queries) == {1: (2, [10, 11], {99})}
    assert (queries.truth.item_rows >= prepared.num_catalogue).all()


def test_a_sample_of_users(prepare_tables):
    prepared, _ = made(prepare_tables)
    everyone = by_user(prepared, evaluation_queries(prepared, TEST, remove_seen=False))
    some = evaluation_queries(prepared, TEST, remove_seen=False, max_users=4, seed=1)
    found = by_user(prepared, some)
    assert len(found) == 4
    assert found == {user: everyone[user] for user in found}
    assert sorted(some.user_rows.tolist()) == some.user_rows.tolist()
    again = evaluation_queries(prepared, TEST, remove_seen=False, max_users=4, seed=1)
    assert again.user_rows.tolist() == some.user_rows.tolist()
    draws = {
        tuple(
            evaluation_queries(
                prepared, TEST, remove_seen=False, max_users=4, seed=seed
            ).user_rows.tolist()
        )
        for seed in range(5)
    }
    assert len(draws) > 1
    many = evaluation_queries(prepared, TEST, remove_seen=False, max_users=500)
    assert len(many) == len(everyone)


def test_nothing_to_rank(prepare_tables):
    log = {
        "user_id": [1, 1, 1],
        "item_id": [10, 11, 10],
        "split": pa.array([0, 1, 2], pa.int8()),
    }
    prepared = prepare_tables(Tables(interactions=pa.table(log)))
    assert len(evaluation_queries(prepared, TEST, remove_seen=False)) == 1
    with pytest.raises(DataError, match="the test part holds no positive that could be found"):
        evaluation_queries(prepared, TEST, remove_seen=True)


def test_a_part_of_impressions_alone(prepare_tables):
    label = pa.array([1, 0, 1], pa.float32())
    log = {"user_id": [1, 1, 1], "item_id": [10, 11, 12], "label": label}
    tables = Tables(
        interactions=pa.table(log | {"split": pa.array([0, 1, 2], pa.int8())}), label=Label()
    )
    prepared = prepare_tables(tables)
    with pytest.raises(DataError, match="the validation part holds no positive"):
        evaluation_queries(prepared, VALIDATION, remove_seen=False)


def test_settings_ask_for_the_queries(prepare_tables):
    prepared, _ = made(prepare_tables)
    settings = EvaluationSettings(ks=[5], remove_seen=False, max_users=3)
    assert len(settings.queries(prepared, TEST)) == 3
    expected = evaluation_queries(prepared, TEST, remove_seen=True)
    found = EvaluationSettings().queries(prepared, TEST)
    assert by_user(prepared, found) == by_user(prepared, expected)


@pytest.mark.parametrize("ks", [[], [0], [10, -1]])
def test_settings_refuse_lists_of_no_length(ks):
    with pytest.raises(ValueError, match="`ks` must be list lengths of at least 1"):
        EvaluationSettings(ks=ks)


def test_settings_refuse_a_negative_sample():
    with pytest.raises(ValueError, match="`max_users` must be at least 0, got -1"):
        EvaluationSettings(max_users=-1)
