"""The routes, called in process: the same answers as the recommender gives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from twotower.serving.recommender import Recommender
from twotower.serving.server.app import create_app
from twotower.serving.server.service import Service
from twotower.serving.server.settings import ServerSettings

NOON = 1_705_320_000.0  # 2024-01-15 12:00 UTC, inside the world's month


@pytest.fixture(scope="module")
def client(tiny_run) -> Iterator[TestClient]:
    service = Service(ServerSettings(bundle=str(tiny_run.bundle)))
    with TestClient(create_app(service)) as client:
        yield client


def ask(client: TestClient, **body) -> dict:
    found = client.post("/v1/recommend", json=body)
    assert found.status_code == 200, found.text
    return found.json()


def test_a_known_user(client: TestClient, recommender: Recommender) -> None:
    user = recommender.bundle.users.ids[3].as_py()
    expected = recommender.recommend(user=user, k=7, seconds=NOON)
    found = ask(client, user=user, k=7, seconds=NOON, explain=True)
    assert found["version"] == recommender.bundle.manifest.version
    assert (found["source"], found["known_user"], found["missing"]) == ("model", True, 0)
    assert [item["item_id"] for item in found["items"]] == [item.item_id for item in expected]
    for item, one in zip(found["items"], expected, strict=True):
        assert item == {
            "item_id": one.item_id,
            "title": one.title,
            "probability": pytest.approx(one.probability, abs=1e-5),
            "retrieval_score": pytest.approx(one.retrieval_score, abs=1e-5),
            "retrieval_rank": one.retrieval_rank,
            "reason": one.reason,
        }
