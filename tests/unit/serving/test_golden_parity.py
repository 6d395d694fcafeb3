"""One request alone, among a thousand, over HTTP, and as evaluation asks: the same scores.

Features too; the same of Triton's backend stands in `test_triton_backend.py`.

Some users are known and some are not, and what they bring is complete, incomplete, null, unknown,
or of another type than the table has.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from starlette.testclient import TestClient

from twotower.cli.load_run import LoadedRun
from twotower.data.item_lists import ItemLists
from twotower.data.prepared import history_before
from twotower.data.queries import EvaluationSettings
from twotower.data.schema import MICROSECONDS, POSITION, TEST, TIMESTAMP, Tables
from twotower.export.bundle import Bundle
from twotower.export.data_files import catalogue_only
from twotower.serving.asked import Asked
from twotower.serving.evaluation import query_columns
from twotower.serving.queries import history_columns
from twotower.serving.recommender import Ranked, Recommender
from twotower.serving.requests import Answer, Request
from twotower.serving.server.app import create_app
from twotower.serving.server.service import Service
from twotower.serving.server.settings import ServerSettings

NUM_REQUESTS = 1_000
START, MONTH = 1_704_067_200, 30 * 86_400  # 2024-01-01
CLOSE = 1e-5

Columns = dict[str, np.ndarray]


def some_context(rng: np.random.Generator) -> dict[str, Any]:
    """Some of the context columns, in JSON's types."""
    given = {
        "position": [1, 3, 99, None, "2", 2.0][rng.integers(6)],
        "device": ["phone", "desktop", "toaster", None, 7][rng.integers(5)],
    }
    return {name: value for name, value in given.items() if rng.random() < 0.7}


def some_features(rng: np.random.Generator, users: list[dict[str, Any]]) -> dict[str, Any]:
    """Some features of somebody, some of them null or unknown."""
    described = dict(users[rng.integers(len(users))])
    described["country"] = [described["country"], None, "Atlantis", 7][rng.integers(4)]
    tags = described["interests"] or []
    described["interests"] = [tags, None, [], [*tags, "alchemy", None]][rng.integers(4)]
    return {name: value for name, value in described.items() if rng.random() < 0.6}


@pytest.fixture(scope="module")
def requests(bundle: Bundle, raw: Tables) -> list[Request]:
    rng = np.random.default_rng(0)
    users, items = raw.users.to_pylist(), bundle.items.ids.to_pylist()
    known = bundle.users.ids.to_pylist()
    made = []
    while len(made) < NUM_REQUESTS:
        is_known = rng.random() < 0.6
        history = rng.choice(items, rng.integers(0, 30)).tolist() if rng.random() < 0.5 else ()
        features = {} if is_known else some_features(rng, users)
        if is_known or history or features:
            made.append(
                Request(
                    user=known[rng.integers(len(known))] if is_known else None,
                    history=history,
                    user_features=features,
                    context=some_context(rng),
                    k=len(items),
                    seconds=float(START + rng.random() * MONTH),
                )
            )
    return made


@pytest.fixture(scope="module")
def asked(recommender: Recommender, requests: list[Request]) -> list[Asked]:
    """Every request alone, by the path of one row."""
    return [recommender.encoder.asked(0, request) for request in requests]


def one_by_one(values: list[Any], encode: Any) -> Columns:
    """Columns of rows whose values have different types, each by the path of tables."""
    parts = [encode(pa.table({name: [v] for name, v in row.items()})) for row in values]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@pytest.fixture(scope="module")
def columns(
    recommender: Recommender, bundle: Bundle, requests: list[Request], asked: list[Asked]
) -> Columns:
    """All requests together, by the path of tables."""
    pipeline, history = bundle.pipeline, bundle.pipeline.spec.history
    context = [
        {POSITION: 1, TIMESTAMP: int(r.seconds * MICROSECONDS), **r.context} for r in requests
    ]
    together = one_by_one(context, lambda table: pipeline.encode("context", table))
    features = [dict(r.user_features) or {"_": None} for r in requests]
    of_users = one_by_one(features, lambda table: pipeline.encode("user", table))
    ids = bundle.users.ids.to_pylist()
    for place, request in enumerate(requests):
        if request.user is not None:
            for name, column in of_users.items():
                column[place] = bundle.users.columns[name][ids.index(request.user)]
    together |= of_users
    ends = np.cumsum([len(one.events) for one in asked])
    starts = np.concatenate([[0], ends[:-1]])
    # Events of the log happened when it says, those of the request at its time.
    times = []
    for request, one in zip(requests, asked, strict=True):
        own = np.zeros(0, np.int64)
        if request.user is not None:
            row = ids.index(request.user)
            own = bundle.event_times[bundle.offsets[row] : bundle.offsets[row + 1]]
        times += [own, np.full(len(one.events) - len(own), int(request.seconds))]
    return together | history_columns(
        np.concatenate([one.events for one in asked]),
        np.concatenate(times),
        starts,
        ends,
        bundle.items.columns,
        history.features,
        history.length,
    )


def test_the_requests_are_of_all_sorts(requests: list[Request], asked: list[Asked]) -> None:
    known = [request.user is not None for request in requests]
    assert 300 < sum(known) < 900
    assert sum(len(one.events) == 0 for one in asked) > 20
    assert sum(not request.context for request in requests) > 20
    assert (
        sum(not user and not r.user_features for user, r in zip(known, requests, strict=True)) > 5
    )


def test_features_of_one_row_and_of_tables(asked: list[Asked], columns: Columns) -> None:
    names = asked[0].columns.keys()
    assert names == columns.keys() >= {"device", "timestamp", "interests", "history.mask"}
    for name in names:
        alone = np.concatenate([one.columns[name] for one in asked])
        np.testing.assert_array_equal(alone, columns[name], err_msg=name)
        assert alone.dtype == columns[name].dtype


def scores_of(answer: Answer) -> dict[Any, tuple[float, float]]:
    return {item.item_id: (item.probability, item.retrieval_score) for item in answer.items}


def ranked_scores(recommender: Recommender, ranked: Ranked, query: int) -> dict:
    """The same out of what `rank` gives."""
    shown = zip(ranked.rows[query], ranked.places[query], strict=True)
    probabilities, scores = ranked.probabilities[query], ranked.candidates.scores[query]
    return {
        recommender.items.ids[int(row)].as_py(): (probabilities[place], scores[place])
        for row, place in shown
        if row >= 0
    }


def test_scores_alone_together_and_as_evaluation_asks(
    recommender: Recommender, requests: list[Request], asked: list[Asked], columns: Columns
) -> None:
    alone = [recommender.answer([request])[0] for request in requests]
    together = recommender.answer(requests)
    seen = ItemLists(
        offsets=np.cumsum([0, *(len(one.events) for one in asked)]),
        item_rows=np.concatenate([one.events for one in asked]),
    )
    ranked = recommender.rank(columns, len(recommender.items), seen)
    for query, (one, other) in enumerate(zip(alone, together, strict=True)):
        assert isinstance(one, Answer)
        assert isinstance(other, Answer)
        expected, found = scores_of(one), scores_of(other)
        assert expected.keys() == found.keys()
        assert len(found) == len(one.items) > 40
        evaluated = ranked_scores(recommender, ranked, query)
        for item, scores in expected.items():
            assert found[item] == pytest.approx(scores, abs=CLOSE)
            assert evaluated[item] == pytest.approx(scores, abs=CLOSE)
        probabilities = [item.probability for item in other.items]
        assert probabilities == sorted(probabilities, reverse=True)


def test_scores_over_http(tiny_run, recommender: Recommender, requests: list[Request]) -> None:
    service = Service(ServerSettings(bundle=str(tiny_run.bundle), deadline_ms=20_000))
    with TestClient(create_app(service)) as client:
        for request in requests:
            body = {
                "user": request.user,
                "history": list(request.history),
                "user_features": dict(request.user_features),
                "context": dict(request.context),
                "k": request.k,
                "seconds": request.seconds,
            }
            reply = client.post("/v1/recommend", json=body)
            assert reply.status_code == 200, reply.text
            found = {
                item["item_id"]: (item["probability"], item["retrieval_score"])
                for item in reply.json()["items"]
            }
            expected = scores_of(recommender.answer([request])[0])
            assert found.keys() == expected.keys()
            for item, scores in expected.items():
                assert found[item] == pytest.approx(scores, abs=CLOSE)


def test_features_of_a_request_are_those_that_evaluation_reads(
    recommender: Recommender, bundle: Bundle, loaded: LoadedRun, raw: Tables
) -> None:
    """A user whom the request describes, id and all, with the history as it was at the cut."""
    settings = EvaluationSettings(ks=[10], remove_seen=True, max_users=0, num_resamples=1)
    queries = settings.queries(loaded.prepared, TEST)
    data = catalogue_only(loaded.prepared)
    ends = history_before(data, TEST)[queries.user_rows]
    queries = replace(queries, history_end=ends)
    expected = query_columns(data, recommender, queries, 0, len(queries))
    events, users, items = data.require_events()
    described = {user["user_id"]: user for user in raw.users.to_pylist()}
    log, ids = data.interactions, items.ids.to_pylist()
    assert len(queries) > 20
    for query in range(len(queries)):
        row = int(queries.user_rows[query])
        at = log.rows[queries.interactions[query]]
        shown = {n: c[0] for n, c in raw.interactions.slice(at, 1).to_pydict().items()}
        taken = events.item_rows[events.offsets[row] : ends[query]]
        one = recommender.encoder.asked(
            0,
            Request(
                history=[ids[item] for item in taken],
                user_features=described[users.ids[row].as_py()],
                context={name: shown[name] for name in raw.context},
                seconds=shown["timestamp"] / MICROSECONDS,
            ),
        )
        for name, column in expected.items():
            if name != "history.time":  # when the log says, and now
                wanted = column[query : query + 1]
                np.testing.assert_array_equal(one.columns[name], wanted, err_msg=name)
