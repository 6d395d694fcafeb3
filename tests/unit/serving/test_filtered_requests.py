"""Requests with filters: the unfiltered lists without what does not pass, asked in any way."""

from __future__ import annotations

import numpy as np
import pytest

from twotower.export.bundle import Bundle
from twotower.serving.recommender import Recommender
from twotower.serving.requests import Answer, Filter, Request, RequestError
from twotower.serving.similar import similar_to_item, similar_to_vector

NOON = 1_705_320_000.0
ALL = 200
JAZZ = Filter(column="category", operator="in", values=["jazz"])
CHEAP = Filter(column="price", operator="at_most", values=[6.0])
SLOW = Filter(column="tags", operator="not_in", values=["fast jazz", "fast football"])


@pytest.fixture(scope="module")
def values(bundle: Bundle) -> dict[str, dict]:
    return {row["item_id"]: row for row in bundle.items.table.to_pylist()}


def passes(row: dict) -> dict[str, bool]:
    return {
        "jazz": row["category"] == "jazz",
        "cheap": row["price"] is not None and row["price"] <= 6.0,
        "slow": bool(row["tags"]) and not {"fast jazz", "fast football"} & set(row["tags"]),
    }


CASES = [
    ((JAZZ,), ("jazz",)),
    ((CHEAP,), ("cheap",)),
    ((SLOW, CHEAP), ("slow", "cheap")),
    ((JAZZ, SLOW), ("jazz", "slow")),
]


def users_with_events(bundle: Bundle) -> list[str]:
    return [bundle.users.ids[row].as_py() for row in np.flatnonzero(np.diff(bundle.offsets))[:6]]


@pytest.mark.parametrize(("filters", "names"), CASES)
def test_the_unfiltered_list_without_what_does_not_pass(
    recommender: Recommender, bundle: Bundle, values: dict, filters: tuple, names: tuple
) -> None:
    for user in users_with_events(bundle):
        every = recommender.recommend(user=user, k=ALL, seconds=NOON)
        expected = [i for i in every if all(passes(values[i.item_id])[name] for name in names)]
        found = recommender.recommend(user=user, k=ALL, seconds=NOON, filters=filters)
        assert [i.item_id for i in found] == [i.item_id for i in expected]
        for item, unfiltered in zip(found, expected, strict=True):
            assert item.retrieval_score == pytest.approx(unfiltered.retrieval_score, abs=1e-6)
        ranks = sorted(item.retrieval_rank for item in found)
        assert ranks == list(range(1, len(found) + 1))


@pytest.mark.parametrize(("filters", "names"), CASES)
def test_popular_and_similar_items_too(
    recommender: Recommender, bundle: Bundle, values: dict, filters: tuple, names: tuple
) -> None:
    item = bundle.items.ids[3].as_py()
    vector = np.asarray(bundle.items.columns["image_vector"][3])
    asked = {
        "popular": lambda **more: recommender.recommend(k=ALL, **more),
        "similar": lambda **more: similar_to_item(recommender, item, k=ALL, **more),
        "vector": lambda **more: similar_to_vector(recommender, vector, k=ALL, **more),
    }
    for ask in asked.values():
        every = [found.item_id for found in ask()]
        expected = [i for i in every if all(passes(values[i])[name] for name in names)]
        assert 0 < len(expected) < len(every)
        assert [found.item_id for found in ask(filters=filters)] == expected


def test_what_is_missing_is_said(recommender: Recommender, bundle: Bundle, values: dict) -> None:
    num_jazz = sum(passes(row)["jazz"] for row in values.values())
    user = users_with_events(bundle)[0]
    left = len(recommender.recommend(user=user, k=ALL, filters=[JAZZ]))
    assert 0 < left <= num_jazz < 80
    none = Filter(column="category", operator="in", values=["nothing of the kind"])
    requests = [
        Request(user=user, k=left + 7, filters=[JAZZ]),
        Request(user=user, k=left, filters=[JAZZ]),
        Request(k=num_jazz + 2, filters=[JAZZ]),
        Request(user=user, k=5, filters=[none]),
        Request(k=5, filters=[none]),
    ]
    answers = recommender.answer(requests)
    assert [(len(a.items), a.missing) for a in answers if isinstance(a, Answer)] == [
        (left, 7),
        (left, 0),
        (num_jazz, 2),
        (0, 5),
        (0, 5),
    ]


def test_requests_together_are_as_alone(recommender: Recommender, bundle: Bundle) -> None:
    users = users_with_events(bundle)
    sets = [(), (JAZZ,), (SLOW, CHEAP), (JAZZ,), (CHEAP,), ()]
    requests = [
        Request(user=user, k=7, filters=filters, seconds=NOON)
        for user, filters in zip(users, sets, strict=True)
    ]
    requests[2:2] = [
        Request(k=3, filters=[CHEAP], seconds=NOON),
        Request(user="nobody", k=3, seconds=NOON),
        Request(
            user=users[0],
            filters=[JAZZ, Filter(column="x", operator="in", values=[1])],
            seconds=NOON,
        ),
    ]
    together = recommender.answer(requests)
    for request, answer in zip(requests, together, strict=True):
        (alone,) = recommender.answer([request])
        if isinstance(answer, RequestError):
            assert (answer.place, str(answer)) == (alone.place, str(alone))
            continue
        assert [i.item_id for i in answer.items] == [i.item_id for i in alone.items]
        assert (answer.source, answer.missing) == (alone.source, alone.missing)
        for item, other in zip(answer.items, alone.items, strict=True):
            if item.probability is not None:
                assert item.probability == pytest.approx(other.probability, abs=1e-6)
    assert [a.place for a in together if isinstance(a, RequestError)] == [
        "user",
        "filters[1].column",
    ]


def test_similar_items_of_what_is_not_there(recommender: Recommender, bundle: Bundle) -> None:
    item = bundle.items.ids[0].as_py()
    with pytest.raises(RequestError, match=r"filters\[0\]\.column: unknown column `x`; allowed: `"):
        similar_to_item(
            recommender, item, k=3, filters=[Filter(column="x", operator="in", values=["a"])]
        )
