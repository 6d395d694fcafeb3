"""Items that are added, changed and removed over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from tests.bundle_versions import copy_home, further_version
from twotower.export.writer import publish
from twotower.serving.server.app import create_app
from twotower.serving.server.service import Service
from twotower.serving.server.settings import ServerSettings

NEW = {"item_id": "fresh", "title": "Fresh lamp", "price": 3.0}


def settings(bundle: Path, journal: Path | None) -> ServerSettings:
    where = None if journal is None else str(journal)
    return ServerSettings(
        bundle=str(bundle), deadline_ms=20_000, reload_seconds=3600, journal=where
    )


@pytest.fixture
def home(tiny_run, tmp_path: Path) -> Path:
    return copy_home(tiny_run.bundle, tmp_path)


@pytest.fixture
def service(home: Path, tmp_path: Path) -> Service:
    return Service(settings(home, tmp_path / "items.journal"))


@pytest.fixture
def client(service: Service) -> Iterator[TestClient]:
    with TestClient(create_app(service)) as client:
        yield client


def shown(client: TestClient) -> dict[str, str]:
    """Titles by id of all items that a user has not seen."""
    found = client.post("/v1/recommend", json={"user": "u000003", "k": 200})
    assert found.status_code == 200, found.text
    return {item["item_id"]: item["title"] for item in found.json()["items"]}


def change(client: TestClient, what: str, body: dict, status: int = 200) -> dict:
    found = client.post(f"/v1/items:{what}", json=body)
    assert found.status_code == status, found.text
    return found.json()


def test_an_item_comes_changes_and_goes(client: TestClient) -> None:
    before = shown(client)
    assert change(client, "upsert", {"items": [NEW]}) == {"changed": 1}
    assert shown(client) == before | {"fresh": "Fresh lamp"}
    change(client, "upsert", {"items": [{"item_id": "fresh", "title": "Lamp"}]})
    assert shown(client)["fresh"] == "Lamp"
    similar = client.post("/v1/similar", json={"item": "fresh", "k": 3})
    assert len(similar.json()["items"]) == 3
    gone = next(iter(before))
    assert change(client, "remove", {"ids": ["fresh", gone, "never was"]}) == {"changed": 2}
    assert shown(client) == {item: title for item, title in before.items() if item != gone}


def test_another_process_follows(client: TestClient, home: Path, tmp_path: Path) -> None:
    other = Service(settings(home, tmp_path / "items.journal"))
    with TestClient(create_app(other)) as follower:
        before = shown(follower)
        change(client, "upsert", {"items": [NEW]})
        assert shown(follower) == before | {"fresh": "Fresh lamp"}
        change(follower, "remove", {"ids": ["fresh"]})
        assert shown(client) == before


def test_changes_outlive_a_swap(client: TestClient, service: Service, home: Path) -> None:
    change(client, "upsert", {"items": [NEW]})
    change(client, "remove", {"ids": [next(iter(shown(client)))]})
    before = shown(client)
    publish(further_version(home, "B: "))
    service._watcher.look()
    after = shown(client)
    assert after == {i: t if i == "fresh" else f"B: {t}" for i, t in before.items()}


@pytest.mark.parametrize(
    ("what", "body", "place"),
    [
        ("upsert", {"items": []}, "items"),
        ("upsert", {"items": [{"title": "no id"}]}, "items[0].item_id"),
        ("upsert", {"items": [{"item_id": "a", "price": {"much": 1}}]}, "items[0].price"),
        ("upsert", {"items": [{"item_id": "a", "colour": "red"}]}, "items[0].colour"),
        ("upsert", {"items": [{"item_id": "a"}] * 1001}, "items"),
        ("upsert", {"items": [NEW], "force": True}, "force"),
        ("remove", {"ids": []}, "ids"),
        ("remove", {"ids": [None]}, "ids[0]"),
        ("remove", {}, "ids"),
    ],
)
def test_changes_that_are_none(client: TestClient, what: str, body: dict, place: str) -> None:
    before = shown(client)
    found = change(client, what, body, 422)["problems"]
    assert [problem["place"] for problem in found] == [place]
    assert shown(client) == before


def test_a_journal_that_cannot_be_written(client: TestClient, tmp_path: Path) -> None:
    (tmp_path / "items.journal").mkdir()
    (problem,) = change(client, "upsert", {"items": [NEW]}, 503)["problems"]
    assert problem["place"] == "server"
    assert "fresh" not in shown(client)


def test_without_a_journal_nothing_changes(home: Path) -> None:
    with TestClient(create_app(Service(settings(home, None)))) as client:
        (problem,) = change(client, "upsert", {"items": [NEW]}, 422)["problems"]
        assert problem["place"] == "path"
        assert "started without journal" in problem["problem"]
