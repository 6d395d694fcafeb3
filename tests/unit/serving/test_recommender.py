"""Requests to lists: the same answers as the trained models, and what happens at the edges."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from twotower.cli.load_run import LoadedRun
from twotower.data.schema import Tables
from twotower.export.bundle import Bundle, open_bundle
from twotower.export.data_files import catalogue_only
from twotower.models.columns import stage_columns
from twotower.serving.models import score_candidates
from twotower.serving.queries import history_columns
from twotower.serving.recommender import Recommender
from twotower.serving.requests import Recommendation, Request, UnknownUser

NOON = 1_705_320_000.0  # 2024-01-15 12:00 UTC, inside the world's month
CLOSE = {"atol": 1e-5, "rtol": 0}


def ids(items: list[Recommendation]) -> list:
    return [item.item_id for item in items]


def user_with_events(bundle: Bundle, least: int = 3) -> int:
    """The first user row with some events."""
    return int(np.flatnonzero(np.diff(bundle.offsets) >= least)[0])


def events_of(bundle: Bundle, row: int) -> np.ndarray:
    return np.asarray(bundle.item_rows[bundle.offsets[row] : bundle.offsets[row + 1]])


@pytest.fixture(scope="module")
def golden_columns(bundle: Bundle) -> dict[str, np.ndarray]:
    """Columns of the golden requests, made by the code that serves."""
    golden, history = bundle.golden(), bundle.pipeline.spec.history
    columns = dict(golden.context)
    columns |= {n: c[golden.user_rows] for n, c in bundle.users.columns.items()}
    starts, item_columns = bundle.offsets[golden.user_rows], bundle.items.columns
    return columns | history_columns(
        *(bundle.item_rows, bundle.event_times, starts, golden.history_ends, item_columns),
        *(history.features, history.length),
    )


def test_events_happened_when_the_log_says_and_further_ones_now(
    recommender: Recommender, bundle: Bundle, loaded: LoadedRun
) -> None:
    row = user_with_events(bundle)
    data = catalogue_only(loaded.prepared)
    log, events = data.interactions, data.events
    own = events.interactions[events.offsets[row] : events.offsets[row + 1]]
    times = [int(log.timestamps[at]) // 1_000_000 for at in own]
    assert recommender.encoder._times(row, len(own) + 2, 7).tolist() == [*times, 7, 7]
    assert recommender.encoder._times(None, 2, 7).tolist() == [7, 7]


def test_golden_query_vectors(recommender: Recommender, bundle: Bundle, golden_columns) -> None:
    golden = bundle.golden()
    assert len(golden.user_rows) >= 20
    np.testing.assert_allclose(recommender.embed(golden_columns), golden.query_vectors, **CLOSE)


def test_golden_probabilities(recommender: Recommender, bundle: Bundle, golden_columns) -> None:
    golden = bundle.golden()
    found = score_candidates(
        recommender.ranker.model,
        golden_columns,
        bundle.items.columns,
        golden.candidates,
        {"retrieval_score": golden.candidate_scores},
    )
    assert np.isfinite(found).any()
    np.testing.assert_allclose(found, golden.probabilities, equal_nan=True, **CLOSE)


@torch.no_grad()
def trained_answer(loaded: LoadedRun, raw: Tables, user_row: int) -> dict:
    """Probability and retrieval score of every unseen item, by the trained models themselves."""
    data = catalogue_only(loaded.prepared)
    interaction = int(np.flatnonzero(data.interactions.user_rows == user_row)[0])
    at = data.interactions.rows[interaction]
    shown = {n: c[0] for n, c in raw.interactions.slice(at, 1).to_pydict().items()}
    row = torch.tensor([user_row])
    end = torch.from_numpy(data.events.offsets[user_row + 1 : user_row + 2])
    every = torch.arange(data.num_catalogue)
    columns = {s: stage_columns(data, loaded.pipeline.inputs(s)) for s in ("retrieval", "ranking")}

    def query(stage: str) -> dict:
        part = columns[stage]
        context = part.context(torch.tensor([interaction]))
        return context | part.users(row) | part.history(row, end)

    items = loaded.two_tower.embed_items(columns["retrieval"].items(every))
    scores = (loaded.two_tower.embed_queries(query("retrieval")) @ items.T)[0]
    batch = {name: c.expand(len(every), *c.shape[1:]) for name, c in query("ranking").items()}
    batch |= columns["ranking"].items(every) | {"retrieval_score": scores}
    fitted = loaded.calibration  # of impressions: nothing was sampled, nothing is undone
    assert fitted.negative_rate == 1
    probabilities = torch.sigmoid(fitted.scale * loaded.ranker(batch) + fitted.bias)
    seen = set(data.events.item_rows[data.events.offsets[user_row] : int(end)].tolist())
    names = data.items.ids.to_pylist()
    answer = {
        names[i]: (float(probabilities[i]), float(scores[i]))
        for i in range(len(every))
        if i not in seen
    }
    return {"answer": answer, "shown": shown}


def test_online_answers_are_those_of_the_trained_models(
    recommender: Recommender, bundle: Bundle, loaded: LoadedRun, raw: Tables
) -> None:
    checked = 0
    for user_row in np.flatnonzero(np.diff(bundle.offsets))[::12]:
        trained = trained_answer(loaded, raw, int(user_row))
        shown, expected = trained["shown"], trained["answer"]
        found = recommender.recommend(
            user=bundle.users.ids[int(user_row)].as_py(),
            context={name: shown[name] for name in raw.context},
            seconds=shown["timestamp"] / 1e6,
            k=len(bundle.items),
        )
        assert sorted(ids(found)) == sorted(expected)  # every item but the seen ones
        for item in found:
            probability, score = expected[item.item_id]
            assert item.probability == pytest.approx(probability, abs=1e-5)
            assert item.retrieval_score == pytest.approx(score, abs=1e-5)
        shown_order = [item.probability for item in found]
        assert shown_order == sorted(shown_order, reverse=True)
        by_score = sorted(found, key=lambda item: -item.retrieval_score)
        assert [item.retrieval_rank for item in by_score] == list(range(1, len(found) + 1))
        checked += 1
    assert checked >= 5


def test_seen_items_are_never_shown(recommender: Recommender, bundle: Bundle) -> None:
    names = bundle.items.ids.to_pylist()
    for row in range(len(bundle.users)):
        shown = ids(recommender.recommend(user=bundle.users.ids[row].as_py(), k=80, seconds=NOON))
        seen = {names[item] for item in events_of(bundle, row)}
        if seen:
            assert set(shown) == set(names) - seen
            assert len(shown) == len(set(shown))


def test_seen_items_are_shown_where_the_bundle_says_so(bundle: Bundle) -> None:
    keeps = replace(bundle, manifest=replace(bundle.manifest, remove_seen=False))
    user = bundle.users.ids[user_with_events(bundle)].as_py()
    assert len(Recommender(keeps).recommend(user=user, k=100)) == len(bundle.items)


@pytest.mark.parametrize("k", [1, 10, 79, 1000])
def test_as_many_items_as_wanted_or_there_are(
    recommender: Recommender, bundle: Bundle, k: int
) -> None:
    row = user_with_events(bundle)
    left = len(bundle.items) - len(set(events_of(bundle, row)))
    found = recommender.recommend(user=bundle.users.ids[row].as_py(), k=k, seconds=NOON)
    assert len(found) == min(k, left)
    assert all(item.title and "like" in item.reason for item in found)


def test_a_longer_list_begins_like_a_shorter_one(recommender: Recommender, bundle: Bundle) -> None:
    user = bundle.users.ids[user_with_events(bundle)].as_py()
    short, long = (recommender.recommend(user=user, k=k, seconds=NOON) for k in (5, 20))
    assert short == long[:5]


def test_somebody_who_has_seen_everything_gets_nothing(
    recommender: Recommender, bundle: Bundle
) -> None:
    assert recommender.recommend(history=bundle.items.ids.to_pylist(), k=5) == []


def test_unknown_user(recommender: Recommender, bundle: Bundle) -> None:
    first = ", ".join(bundle.users.ids[:3].to_pylist())
    message = (
        f"user: 'nobody' is unknown; known are {len(bundle.users)} users such as {first}. For "
        "somebody new give user=null and history=[<item ids>]"
    )
    with pytest.raises(UnknownUser, match=re.escape(message)):
        recommender.recommend(user="nobody")


def test_nothing_is_known_so_the_popular_items(recommender: Recommender, bundle: Bundle) -> None:
    found = recommender.recommend(k=7)
    training = np.load(bundle.folder / "popular.npy")[:7]
    assert ids(found) == [bundle.items.ids[int(row)].as_py() for row in training]
    assert {item.reason for item in found} == {"popular: nothing is known of the user"}
    assert {(i.probability, i.retrieval_score, i.retrieval_rank) for i in found} == {(None,) * 3}
    assert len(recommender.recommend(k=1000)) == len(bundle.items)


def test_popular_items_are_those_with_most_training_events(
    recommender: Recommender, loaded: LoadedRun
) -> None:
    events, _, items = loaded.prepared.require_events()
    counts: dict[str, int] = dict.fromkeys(items.ids.to_pylist(), 0)
    for row, part in zip(events.item_rows, events.split, strict=True):
        if part == 0:
            counts[items.ids[int(row)].as_py()] += 1
    shown = [counts[item] for item in ids(recommender.recommend(k=80))]
    assert shown == sorted(counts.values(), reverse=True)


def test_somebody_new_with_a_history(recommender: Recommender, bundle: Bundle) -> None:
    names = bundle.items.ids.to_pylist()
    history = [names[4], names[9], names[4]]
    found = recommender.recommend(history=history, k=200, seconds=NOON)
    assert set(ids(found)) == set(names) - set(history)
    other = recommender.recommend(history=[names[20], names[33]], k=200, seconds=NOON)
    scores, others = ({i.item_id: i.retrieval_score for i in items} for items in (found, other))
    common = scores.keys() & others.keys()
    assert any(abs(scores[item] - others[item]) > 1e-3 for item in common)
    titles = {bundle.items.table.column("title")[row].as_py() for row in (4, 9)}
    assert all(any(f"like {title} (" in item.reason for title in titles) for item in found)


def test_a_given_history_follows_the_known_one(recommender: Recommender, bundle: Bundle) -> None:
    row = user_with_events(bundle)
    names = bundle.items.ids.to_pylist()
    known = {names[item] for item in events_of(bundle, row)}
    new = next(name for name in names if name not in known)
    user = bundle.users.ids[row].as_py()
    found = recommender.recommend(user=user, history=[new], k=200, seconds=NOON)
    assert set(ids(found)) == set(names) - known - {new}


def test_history_with_unknown_items_names_those_alone(
    recommender: Recommender, bundle: Bundle
) -> None:
    known = bundle.items.ids[0].as_py()
    with pytest.raises(
        ValueError, match=r"^history: unknown items nothing, 99; known are 80 items such"
    ):
        recommender.recommend(history=["nothing", known, 99])


@pytest.mark.parametrize("k", [0, -3])
def test_a_list_holds_at_least_one_item(recommender: Recommender, k: int) -> None:
    with pytest.raises(ValueError, match=f"k: must be at least 1, got {k}"):
        recommender.recommend(k=k)


def test_features_of_a_new_user_matter(recommender: Recommender, raw: Tables) -> None:
    alike = [user for user in raw.users.to_pylist() if user["interests"]]
    first, second = (
        {name: value for name, value in user.items() if name != "user_id"}
        for user in (alike[0], next(u for u in alike if u["interests"] != alike[0]["interests"]))
    )
    lists = [
        recommender.recommend(user_features=features, k=80, seconds=NOON)
        for features in (first, second, first)
    ]
    assert lists[0] == lists[2] != lists[1]
    assert {item.reason for item in lists[0]} == {"fits the profile"}
    assert len(lists[0]) == len(recommender.items)


def test_who_asks_for_more_at_the_same_time_changes_nothing(recommender: Recommender) -> None:
    few = copy.copy(recommender)
    few.num_candidates = 10
    short = Request(user_features={"country": "SE"}, k=3, seconds=NOON)
    requests = [short, replace(short, k=80), replace(short, k=5), replace(short, k=80)]
    alone = [few.answer([request])[0] for request in requests]
    for one, other in zip(alone, few.answer(requests), strict=True):
        assert ids(one.items) == ids(other.items)
    # From 80 candidates the ranker would choose others.
    assert ids(alone[0].items) != ids(alone[1].items)[:3]


def test_a_value_of_another_kind_spoils_its_own_request_alone(recommender: Recommender) -> None:
    good = Request(user_features={"country": "SE"}, k=3, seconds=NOON)
    answers = recommender.answer(
        [
            good,
            replace(good, user_features={"country": ["SE", "FR"]}),
            replace(good, context={"timestamp": "noon"}),
            good,
        ]
    )
    assert [type(answer).__name__ for answer in answers] == [
        *("Answer", "RequestError", "RequestError", "Answer")
    ]
    assert str(answers[1]).startswith("user_features: feature `country` of kind categorical")
    assert str(answers[2]).startswith("context: feature `timestamp` of kind time: needs timestam")
    assert answers[0].items == answers[3].items


def test_context_matters(recommender: Recommender, bundle: Bundle) -> None:
    user = bundle.users.ids[user_with_events(bundle)].as_py()
    first, tenth, phone = (
        recommender.recommend(user=user, k=5, seconds=NOON, context=context)
        for context in ({}, {"position": 6}, {"device": "phone"})
    )
    probabilities = [[item.probability for item in items] for items in (first, tenth, phone)]
    assert probabilities[0] != probabilities[1]
    assert probabilities[0] != probabilities[2]


def swapped(bundle: Bundle, users: pa.Array | None, items: pa.Array | None) -> Recommender:
    """The same bundle under other ids."""
    return Recommender(
        replace(
            bundle,
            users=bundle.users if users is None else replace(bundle.users, ids=users),
            items=bundle.items if items is None else replace(bundle.items, ids=items),
        )
    )


def test_integer_ids_as_numbers_and_as_text(bundle: Bundle) -> None:
    users = pa.array([2**53 + row for row in range(len(bundle.users))])
    items = pa.array([2**60 + row for row in range(len(bundle.items))])
    recommender = swapped(bundle, users, items)
    row = user_with_events(bundle)
    neighbour = row + 1  # the same float64 as the row itself
    assert float(2**53 + row) in (float(2**53 + neighbour), float(2**53 + row - 1))
    found, again, other = (
        recommender.recommend(user=user, history=[2**60 + 5], k=10, seconds=NOON)
        for user in (2**53 + row, str(2**53 + row), 2**53 + neighbour)
    )
    assert found == again != other
    assert all(isinstance(item.item_id, int) and item.item_id >= 2**60 for item in found)
    assert recommender.recommend(history=[str(2**60 + 5)], k=3, seconds=NOON) == (
        recommender.recommend(history=[2**60 + 5], k=3, seconds=NOON)
    )


@pytest.mark.parametrize("user", ["07", "7.0", "+7", " 7", "x", 7.5, 2**63, -(2**70), True, ""])
def test_what_is_no_integer_finds_no_integer_id(bundle: Bundle, user: object) -> None:
    users = pa.array([7 + row for row in range(len(bundle.users))])
    with pytest.raises(UnknownUser, match="is unknown"):
        swapped(bundle, users, None).recommend(user=user)


def test_negative_and_largest_integer_ids(bundle: Bundle) -> None:
    users = pa.array([-5, 2**63 - 1, 0, *range(1, len(bundle.users) - 2)])
    recommender = swapped(bundle, users, None)
    for user in (-5, "-5", 2**63 - 1, str(2**63 - 1), 0):
        assert recommender.recommend(user=user, k=1)


def test_numbers_find_text_ids(bundle: Bundle) -> None:
    users = pa.array([str(row) for row in range(len(bundle.users))])
    recommender = swapped(bundle, users, None)
    row = user_with_events(bundle)
    assert recommender.recommend(user=row, seconds=NOON) == (
        recommender.recommend(user=str(row), seconds=NOON)
    )


def test_items_without_a_title_are_named_by_their_id(bundle: Bundle) -> None:
    table = bundle.items.table.drop_columns(["title"])
    recommender = Recommender(replace(bundle, items=replace(bundle.items, table=table)))
    assert all(item.title == item.item_id for item in recommender.recommend(k=5))
    missing = bundle.items.table.set_column(
        bundle.items.table.column_names.index("title"), "title", pa.nulls(80, pa.string())
    )
    recommender = Recommender(replace(bundle, items=replace(bundle.items, table=missing)))
    assert all(item.title == item.item_id for item in recommender.recommend(k=5))


def test_retrieval_alone(csv_run) -> None:
    bundle = open_bundle(csv_run.bundle)
    assert bundle.ranker is None
    found = Recommender(bundle).recommend(user=bundle.users.ids[2].as_py(), k=5)
    assert [item.retrieval_rank for item in found] == [1, 2, 3, 4, 5]
    assert [item.probability for item in found] == [None] * 5
    scores = [item.retrieval_score for item in found]
    assert scores == sorted(scores, reverse=True)


def test_ranking_alone_cannot_recommend(click_run) -> None:
    bundle = open_bundle(click_run.bundle)
    assert bundle.manifest.stages == ("ranking",)
    with pytest.raises(ValueError, match="holds no retrieval stage, so it can rank but not recom"):
        Recommender(bundle)


def test_ids_survive_from_the_table_to_the_answer(csv_run) -> None:
    """Users above 2^53 and items such as `1e5` beside `100000`, read from CSV."""
    recommender = Recommender(open_bundle(csv_run.bundle))
    users = [2**53 + 1 + row for row in range(40)]
    items = {f"{row}e5" if row % 2 else f"{row // 2 + 1}00000" for row in range(30)}
    assert {"1e5", "100000"} <= items
    lines = (csv_run.work / "interactions.csv").read_text().splitlines()[1:]
    taken: dict[int, set[str]] = {}
    for line in lines:
        visitor, item, _ = line.split(",")
        taken.setdefault(int(visitor), set()).add(item)
    assert taken.keys() == set(users)
    for user in users:
        shown = recommender.recommend(user=user, k=30, seconds=NOON)
        assert set(ids(shown)) == items - taken[user]
        assert shown == recommender.recommend(user=str(user), k=30, seconds=NOON)
    titles = {item.item_id: item.title for item in recommender.recommend(k=30)}
    assert titles["1e5"] == "Title 1"
    assert titles["100000"] == "Title 0"
    assert titles["3e5"] == "3e5"  # not in the table of items
    first, second = (recommender.recommend(history=[i], k=1)[0] for i in ("1e5", "100000"))
    assert first.reason.startswith("like Title 1 (")
    assert second.reason.startswith("like Title 0 (")


def test_serving_loads_no_torch(tiny_run) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from twotower.export.bundle import open_bundle\n"
        "from twotower.serving.recommender import Recommender\n"
        f"recommender = Recommender(open_bundle(Path({str(tiny_run.bundle)!r})))\n"
        "user = recommender.bundle.users.ids[0].as_py()\n"
        "print(len(recommender.recommend(user=user, k=4)))\n"
        "print([n for n in ('torch', 'pytorch_lightning', 'hydra', 'matplotlib') "
        "if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["4", "[]"]
